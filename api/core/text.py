"""Text that is received in pieces and counted in tokens, without counting it all again each second.

Tokens may not be counted piece by piece: "to" + "ken" are two tokens apart and one together. But the
o200k and cl100k pre-tokenisers never let one token span the gap between a letter or digit and a space,
line end or full stop that follows it (only letters, marks, digits and an apostrophe continue a word). So
everything up to such a gap can be counted once and forgotten, and the sum equals the count of the whole.
`tests/core/test_text.py` holds this against the tokeniser itself.
"""

from __future__ import annotations

import re

# Old, stable blocks only: whether a newer code point is a letter depends on whose Unicode table one asks.
_WORD = (
    "A-Za-z0-9\u03b1-\u03c9\u0410-\u044f\u05d0-\u05ea\u0621-\u063a\u0641-\u064a\u0905-\u0939"
    "\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
)
_GAP = re.compile(rf"[{_WORD}](?=[ \n.,;:!?\u3002\u3001\uff0c])")


_SEARCH = 4096
_NEAR = 64


def safe_cut(text: str, searched: int = 0) -> int:
    """Index of the last gap at which `text` may be cut for counting; 0 where there is none.

    Nothing before `searched` is looked at again, and no more than the last 4,096 characters: text without
    gaps (base64) is then counted whole, which is exact too.
    """
    for most in (_NEAR, _SEARCH):  # in words the last gap is near
        last = None
        for last in _GAP.finditer(text, max(searched, len(text) - most)):  # noqa: B007 - after the last match
            pass
        if last is not None:
            return last.end()
    return 0


class RunningText:
    """One text that grows. What has been counted is folded into a number, so memory stays bounded."""

    __slots__ = ("_cut", "_pieces", "_searched", "folded_tokens")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._searched = 0
        self._cut = 0
        self.folded_tokens = 0

    def add(self, piece: str) -> None:
        """Append a piece as it arrived."""
        self._pieces.append(piece)

    def tail(self) -> str:
        """The text that is not folded yet."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def halves(self) -> tuple[str, str]:
        """The tail, up to its last safe cut and from there on."""
        tail = self.tail()
        self._cut = safe_cut(tail, max(0, self._searched - 1)) or self._cut
        self._searched = len(tail)
        return tail[: self._cut], tail[self._cut :]

    def fold(self, characters: int, tokens: int) -> None:
        """The first `characters` of the tail, which end at a safe cut, are `tokens` tokens."""
        tail = self.tail()
        self._pieces = [tail[characters:]] if characters < len(tail) else []
        self.folded_tokens += tokens
        self._searched = max(0, self._searched - characters)
        self._cut = max(0, self._cut - characters)
