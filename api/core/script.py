"""The scripted model: text whose token count is known without a tokeniser, and every way to fail.

A script rides in the model's name as a query string, so that it reaches the upstream through any dialect
and any SDK: `scripted?tokens=50&pace_ms=20&silence_at=10&silence_ms=5000`. Every word of the vocabulary
is one token in o200k and in cl100k (a test holds this), so the truth is the number of words. What it says
besides, of its own thinking or to tools, counts one token for each piece that is sent.

How that looks on the wire is in `script_chat`, `script_messages` and `script_responses`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

MODELS = (
    "scripted",
    "gpt-4o",
    "gpt-4o-mini",
    "claude-sonnet-4-5",
    "text-embedding-3-small",
)
"""Names the scripted model answers to; those of providers so that copied snippets work against the demo."""

_VOCABULARY = tuple(
    "water finds its way down the hill and through the gate when we open it and not before so "  # noqa: SIM905
    "every drop is counted at the door by one who keeps the book and no one may take more than was "
    "agreed with them".split()
)


@dataclass(frozen=True, slots=True)
class Script:
    """How to answer. Counts are tokens, times are milliseconds; `*_at` is a token's number, -1 is never."""

    tokens: int = 48
    per_chunk: int = 1  # tokens in each chunk
    pad: int = 0  # extra bytes in each chunk, in a field that no client reads
    first_ms: int = 0  # silence before the status line
    pace_ms: int = 20  # pause between chunks
    silence_at: int = -1  # before this token, ...
    silence_ms: int = 0  # ... be silent for so long
    status: int = 200  # refuse with this status
    retry_after: int = 0  # with such a header, in seconds
    error_at: int = -1  # before this token, send an error event and end
    reset_at: int = -1  # before this token, break the connection
    eof_at: int = -1  # before this token, end the body as if all were well
    usage: int = 1  # 0 reports none though it was asked for; 2 reports in each chunk (vLLM's continuous)
    done: int = 1  # 0 leaves the terminal event out
    max_tokens: int = 1 << 30  # what the request allows; reaching it ends with finish_reason "length"
    think: int = 0  # tokens of reasoning before the answer, for all to see
    calls: int = 0  # so many calls of the request's tools, at once, until it brings their results
    refuse: int = 0  # 1 says it as a refusal
    say: str = ""  # this, in place of words
    label: str = ""  # groups the stand-alone server's statistics


_BOUNDS = {
    "tokens": (0, 5_000_000),
    "per_chunk": (1, 100_000),
    "pad": (0, 1 << 20),
    "think": (0, 100_000),
    "calls": (0, 100),
}
_TEXTS = ("label", "say")
_MAX_MS = 3_600_000


class UnknownModel(Exception):  # noqa: N818 - a 404, not a bug
    """No such scripted model, or a script that cannot be read; the text is public."""


def script_of(model: str) -> Script:
    """The script in a model's name. Raises UnknownModel."""
    name, _, query = model.partition("?")
    if name not in MODELS:
        raise UnknownModel(f"The model `{name}` does not exist")
    known = {field.name: field.type for field in fields(Script)}
    values: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in known:
            raise UnknownModel(f"The scripted model knows no `{key}`")
        try:
            values[key] = value if key in _TEXTS else int(value)
        except ValueError:
            raise UnknownModel(f"`{key}` takes a whole number") from None
        least, most = _BOUNDS.get(key, (-1, _MAX_MS))
        if key not in _TEXTS and not least <= values[key] <= most:
            raise UnknownModel(f"`{key}` must be from {least} to {most}")
    return Script(**values)


def allowed(script: Script, body: dict[str, Any]) -> Script:
    """The script within the output limit of a request."""
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    limits = (*(body.get(name) for name in names), script.max_tokens)
    limit = min(limit for limit in limits if isinstance(limit, int))
    if limit >= script.tokens:
        return script
    return replace(script, tokens=max(limit, 0), max_tokens=limit)


class Step(NamedTuple):
    """One write of the upstream: wait, then send. `reset` breaks the connection instead.

    `usage` is what it reports: tokens of input and of output.
    """

    wait_ms: int
    data: bytes
    tokens: int = 0
    reset: bool = False
    usage: tuple[int, int] | None = None


def text_of(script: Script, start: int = 0, stop: int | None = None) -> str:
    """The words [start, stop) of the answer, each with the space before it but for the very first."""
    stop = script.tokens if stop is None else stop
    return "".join(" " * bool(i) + _VOCABULARY[i % len(_VOCABULARY)] for i in range(start, stop))


class Piece(NamedTuple):
    """What one chunk says, and how many tokens that is."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an answer: `reasoning`, `text`, `refusal`, or the `call` of a `tool`.

    It says so many `words`, or what is `said`, a piece at a time: nobody holds a long answer before it goes.
    """

    kind: str
    words: Script
    said: tuple[str, ...] = ()
    tool: str = ""

    def pieces(self) -> Iterator[Piece]:
        """What it says, in order."""
        if self.said:
            yield from (Piece(text, 1) for text in self.said)
            return
        for start in range(0, self.words.tokens, self.words.per_chunk):
            stop = min(start + self.words.per_chunk, self.words.tokens)
            yield Piece(text_of(self.words, start, stop), stop - start)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.said) or text_of(self.words)

    @property
    def tokens(self) -> int:
        """How many it has."""
        return len(self.said) or self.words.tokens


_SAID = 4  # characters of what is said word for word in one piece


def parts_of(script: Script, tools: list[str]) -> list[Part]:
    """What an answer consists of, in order. `tools` are the names of those that may be called."""
    parts = []
    if script.think:
        parts.append(Part("reasoning", Script(tokens=script.think)))
    if script.say:
        said = tuple(script.say[i : i + _SAID] for i in range(0, len(script.say), _SAID))
        parts.append(Part("text", script, said))
    elif script.tokens or not (script.calls and tools):
        parts.append(Part("refusal" if script.refuse else "text", script))
    for number in range(script.calls if tools else 0):
        arguments = ('{"words": ', f'"{_VOCABULARY[number % len(_VOCABULARY)]}', '"}')
        parts.append(Part("call", script, arguments, tools[number % len(tools)]))
    return parts


def tokens_of(parts: list[Part]) -> int:
    """How many tokens an answer has."""
    return sum(part.tokens for part in parts)


class Speaker(Protocol):
    """One answer in one dialect. `sent` is how many tokens are out once that is said."""

    def begin(self) -> bytes:
        """Before all parts."""
        ...

    def opens(self, index: int, part: Part) -> bytes:
        """A part begins."""
        ...

    def says(self, index: int, part: Part, text: str, sent: int) -> bytes:
        """A piece of it."""
        ...

    def closes(self, index: int, part: Part) -> bytes:
        """It is over."""
        ...

    def ends(self) -> Iterator[Step]:
        """The end, and what was used."""
        ...

    def fails(self) -> bytes:
        """An error in the middle."""
        ...


def played(script: Script, parts: list[Part], speaker: Speaker, input_tokens: int) -> Iterator[Step]:
    """The answer, step by step, from the first byte of the body on, with its pauses and its failure."""
    sent = 0

    def step(data: bytes, wait_ms: int = 0, tokens: int = 0) -> Step:
        reports = (input_tokens, sent) if script.usage == 2 else None  # noqa: PLR2004 - see Script.usage
        return Step(wait_ms, data, tokens, usage=reports)

    yield step(speaker.begin())
    for index, part in enumerate(parts):
        if opening := speaker.opens(index, part):
            yield step(opening)
        for piece in part.pieces():
            wait = script.pace_ms if sent else 0
            start, sent = sent, sent + piece.tokens
            if start <= script.silence_at < sent:
                wait += script.silence_ms
            broken = _failure_between(script, start, sent, speaker)
            if broken is not None:
                yield broken._replace(wait_ms=wait)
                return
            yield step(speaker.says(index, part, piece.text, sent), wait, piece.tokens)
        if closing := speaker.closes(index, part):
            yield step(closing)
    yield from speaker.ends()


def _failure_between(script: Script, start: int, stop: int, speaker: Speaker) -> Step | None:
    """The last step of a script that breaks before one of these tokens."""
    if start <= script.error_at < stop:
        return Step(0, speaker.fails())
    if start <= script.reset_at < stop:
        return Step(0, b"", reset=True)
    if start <= script.eof_at < stop:
        return Step(0, b"")
    return None


def embeddings(body: dict[str, Any], input_tokens: int) -> bytes:
    """One small vector for each input, which depends on it."""
    asked = body["input"]
    one = isinstance(asked, str) or (bool(asked) and isinstance(asked[0], int))
    data = [
        {"object": "embedding", "index": index, "embedding": [len(str(item)) / 100, 0.5, -0.5]}
        for index, item in enumerate([asked] if one else asked)
    ]
    usage = {"prompt_tokens": input_tokens, "total_tokens": input_tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": body["model"], "usage": usage})
