"""Wire formats. One file a dialect: read events, find text, usage and the end; write errors and ends.

A dialect is pure. `read` says what an upstream's event means; `Writer` says what a client gets for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from api.core.sse import Event
    from api.core.usage import Reported, Usage


class Piece(NamedTuple):
    """Text that the model wrote, and the channel it wrote on: pieces of one channel join to one text."""

    channel: tuple[int, str]
    text: str


class Seen(msgspec.Struct):
    """What one upstream event means.

    `content` is the visible answer's text in this event; `pieces` is all text that costs output tokens.
    """

    content: str = ""
    pieces: list[Piece] = msgspec.field(default_factory=list)
    usage: Reported | None = None
    model: str | None = None
    finished: tuple[int, ...] = ()  # choices with a finish_reason in it
    terminal: bool = False  # nothing follows: `[DONE]`
    error: str | None = None  # the provider says that it failed
    unreadable: bool = False  # passed on, but what it costs is not known
    usage_only: bool = False  # a chunk that only carries usage, which not every client asked for


@dataclass(frozen=True, slots=True)
class Failure:
    """What a caller is told of an error: a row of the error table, made concrete.

    Both texts are public. `param` names the field of the request that is at fault.
    """

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Writer(Protocol):
    """What the client of one stream gets."""

    name: str

    def event(self, event: Event, seen: Seen) -> bytes:
        """The bytes for an upstream event; b"" for none. Never called with a terminal event."""
        ...

    def end(self, terminal: Event | None) -> bytes:
        """The terminal event. `terminal` is the upstream's own, where it sent one."""
        ...

    def stopped(self, usage: Usage) -> bytes:
        """The end of a stream for which there was no more budget, where that is no error."""
        ...

    def error(self, failure: Failure) -> bytes:
        """The error event that ends a stream which had begun."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """What of a request costs input tokens.

    `countable` is False where a part of it cannot be counted from text (an image, a tool's schema).
    """

    texts: list[str]
    overhead_tokens: int
    countable: bool
