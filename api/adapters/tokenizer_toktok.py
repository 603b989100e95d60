"""Token counts by toktok-rs: o200k and cl100k ranks are compiled into its wheel, so nothing is fetched.

It releases the GIL while it counts, so a thread keeps the event loop free (docs/adr/0002).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import toktok

if TYPE_CHECKING:
    from collections.abc import Sequence


_HERE_CHARACTERS = 4096
"""So little is counted sooner (some 20 us) than it is handed to a thread and back."""


class ToktokTokenizer:
    """Counts in the loop's default thread pool what takes longer than to go there."""

    async def count(self, texts: Sequence[str], encoding: str) -> list[int]:
        """Tokens of each text. Lone surrogates, which no UTF-8 has, count as U+FFFD."""
        if not texts:
            return []
        if sum(map(len, texts)) <= _HERE_CHARACTERS:
            return count_tokens(texts, encoding)
        return await asyncio.to_thread(count_tokens, texts, encoding)


def count_tokens(texts: Sequence[str], encoding: str) -> list[int]:
    """Tokens of each text; blocks for about 4 us a KB.

    One text at a time: the GIL is held while a text is handed over, and let go while it is counted.
    """
    return [_count(text, encoding) for text in texts]


def _count(text: str, encoding: str) -> int:
    try:
        [tokens] = toktok.batch_count([text], encoding)
    except UnicodeEncodeError:
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        [tokens] = toktok.batch_count([clean], encoding)
    return int(tokens)
