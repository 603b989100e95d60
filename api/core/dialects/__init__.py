"""Wire formats. One file a dialect: read events, find text, usage and the end; write errors and ends.

A dialect is pure, and a module of this package is one: `Dialect` says what it has. `read` says what an
upstream's event means; `Writer` says what a client gets for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from api.core.sse import Event
    from api.core.usage import Reported, Usage


Tokens = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
"""What the ledger can hold and sums can bear; more is nonsense, and so is less than nothing."""


class Piece(NamedTuple):
    """Text that the model wrote, and the channel it wrote on: pieces of one channel join to one text."""

    channel: tuple[int, str]
    text: str


class Seen(msgspec.Struct):
    """What one upstream event means.

    `content` is the visible answer's text in this event; `pieces` is all text that costs output tokens.
    `begun` is what a provider reports before its answer: true of the input, the least of the output.
    """

    content: str = ""
    pieces: list[Piece] = msgspec.field(default_factory=list)
    usage: Reported | None = None
    begun: Reported | None = None
    model: str | None = None
    finished: tuple[int, ...] = ()  # choices with a finish_reason in it
    terminal: bool = False  # nothing follows
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

    def heartbeat(self) -> bytes:
        """What may be sent between any two events, and before the first, to show that somebody is there."""
        ...


class Dialect(Protocol):
    """A wire format in both directions. `body` is a request's, which the route has checked."""

    NAME: str

    def read(self, event: Event) -> Seen:
        """What an event of an upstream's stream means."""
        ...

    def read_object(self, data: bytes) -> Seen:
        """What the JSON of a whole answer means."""
        ...

    def prompt_of(self, body: dict[str, Any]) -> Prompt:
        """The countable input of a request."""
        ...

    def choices_of(self, body: dict[str, Any]) -> int:
        """How many answers are asked for; each may have as many tokens as the request allows."""
        ...

    def is_text_alone(self, body: dict[str, Any]) -> bool:
        """Whether no message has a part that is not text, such as an image."""
        ...

    def output_limit_of(self, body: dict[str, Any]) -> int | None:
        """How many output tokens a request allows for each choice, where it says so."""
        ...

    def limited(self, body: dict[str, Any], tokens: int) -> dict[str, Any]:
        """The request, with no more output allowed than `tokens` for each choice."""
        ...

    def reasons(self, body: dict[str, Any]) -> bool:
        """Whether the request makes a model bill reasoning that it never streams."""
        ...

    def asking_usage(self, body: dict[str, Any], *, continuous: bool) -> dict[str, Any]:
        """A request for a stream, as the provider gets it: it is to report what was used."""
        ...

    def error_body(self, failure: Failure, request_id: str) -> bytes:
        """The JSON of an error answer."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """What of a request costs input tokens.

    `countable` is False where a part of it cannot be counted from text (an image, a tool's schema).
    """

    texts: list[str]
    overhead_tokens: int
    countable: bool
