"""A live stream: what the steps share, and the one way to end it early.

`cut` may be called at any moment by anything that runs on the loop: the watcher when the client leaves,
the tick when a send stalls, the drain at shutdown. The first happening wins (api.core.booking).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from api.core.booking import Account, Happening

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping
    from datetime import datetime

    from starlette.types import Send

    from api.core.catalog import ModelSpec
    from api.core.dialects import Dialect, Writer
    from api.core.meter import Meter
    from api.core.money import Price
    from api.core.record import Booking
    from api.core.sse import Event, Framer
    from api.core.translate import Translation
    from api.core.usage import Usage
    from api.edge import Connection
    from api.flow.credit import Credit
    from api.flow.keep_stream import Kept, Recorder
    from api.flow.providers import Provider
    from api.ports import Permit, UpstreamAnswer
    from auth.principal import Principal

T = TypeVar("T")


class Order:
    """What was asked for: the request's body in its dialect, and how to write the answer.

    `writer` is None where the client wants one JSON object and no stream. `name` is what the ledger calls the
    client's dialect: plain tokens are asked for as a chat. `headers` go to the provider with the body. `spec`
    says who answers for the model; `patience_seconds` is how long the client waits, where it says so. `kept`
    is where its answer is kept for whoever asks again.
    """

    __slots__ = (
        "body",
        "dialect",
        "headers",
        "kept",
        "meter",
        "name",
        "patience_seconds",
        "request_id",
        "spec",
        "trace",
        "writer",
    )

    def __init__(
        self,
        *,
        request_id: str,
        dialect: Dialect,
        body: dict[str, Any],
        meter: Meter,
        writer: Writer | None,
        spec: ModelSpec,
        name: str = "",
        headers: Mapping[str, str] | None = None,
        patience_seconds: float | None = None,
        kept: Kept | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> None:
        self.request_id = request_id
        self.dialect = dialect
        self.name = name or dialect.NAME
        self.body = body
        self.meter = meter
        self.writer = writer
        self.headers = headers or {}
        self.spec = spec
        self.patience_seconds = patience_seconds
        self.kept = kept
        self.trace = trace or {}  # W3C trace context, as it came

    @property
    def model(self) -> str:
        """What the model is called where it is asked for first."""
        return self.spec.at(self.spec.targets[0], self.body["model"])

    @property
    def reasons(self) -> bool:
        """Whether it may bill reasoning that it never streams, whoever answers."""
        asked, dialect, body = self.body["model"], self.dialect, self.body
        names = (self.spec.at(target, asked) for target in self.spec.targets)
        return any(dialect.reasons(body if name == asked else {**body, "model": name}) for name in names)


def stoppable(order: Order) -> bool:
    """Whether all that an answer costs is seen as it comes, so that it can be stopped where credit ends."""
    return order.writer is not None and not order.reasons


class Stream:
    """One request that is being answered. Times are the Clock's monotonic seconds."""

    __slots__ = (
        "_scope",
        "account",
        "answer",
        "beat",
        "booked",
        "booking",
        "called",
        "caller",
        "came_at",
        "checkpointed_tokens",
        "chunk_at",
        "client_left",
        "committed",
        "connection",
        "credit",
        "cut_by",
        "early",
        "failure",
        "first_token_at",
        "framer",
        "headers_sent",
        "input_tokens",
        "limit_headers",
        "order",
        "permit",
        "price",
        "provider",
        "reading_on_from",
        "reads",
        "recorder",
        "send",
        "sending_since",
        "sent_at",
        "span",
        "started_at",
        "terminal",
        "translation",
        "usage",
        "wait_until",
        "whole",
        "writer",
    )

    def __init__(
        self,
        order: Order,
        caller: Principal,
        send: Send,
        connection: Connection,
        *,
        came_at: datetime,
        now: float,
    ) -> None:
        self.order = order
        self.caller = caller
        self.send = send
        self.connection = connection
        self.account = Account()
        self.came_at = came_at  # UTC; its budgets' day is the one in which it came
        self.wait_until = now
        self.limit_headers: dict[str, str] = {}
        self.input_tokens = 0  # what was reserved for the prompt
        self.credit: Credit | None = None
        self.permit: Permit | None = None
        self.price: Price | None = None  # what the model costs this tenant, as it was when it came
        self.booking: Booking | None = None
        self.booked: asyncio.Future[None] | None = None
        self.called = False  # the upstream has, or may have, got the request
        self.answer: UpstreamAnswer | None = None
        self.provider: Provider | None = None  # whose answer it is
        self.recorder: Recorder | None = None  # what is sent is kept, too
        self.reads: Dialect = order.dialect  # what it speaks
        self.writer: Writer | None = order.writer
        self.translation: Translation | None = None
        self.framer: Framer | None = None  # where the first event was waited for
        self.early: list[Event] = []  # and what came with it
        self.failure: Exception | None = None  # what the client is told, where it is no success
        self.span: Any = None  # of OpenTelemetry, where it is on
        self.client_left = False
        self.reading_on_from: int | None = None  # the client left at so many tokens, and it is read on
        self.cut_by: Happening | None = None  # who gave it up first, which may be too late for the ledger
        self.started_at = now
        self.chunk_at = 0.0  # when the client was last sent a part of the answer
        self.first_token_at: float | None = None
        self.headers_sent = False
        self.committed = False  # the booking is durable, and the answer has begun
        self.sent_at = now  # when the client last got bytes
        self.sending_since: float | None = None  # a send is under way since
        self.beat: asyncio.Task[None] | None = None  # a heartbeat is under way
        self.checkpointed_tokens = -1
        self.terminal: Event | None = None
        self.usage: Usage | None = None  # once it is measured
        self.whole = b""  # the answer of a request without streaming
        self._scope: asyncio.Timeout | None = None

    @property
    def live(self) -> bool:
        """Whether nothing has ended it yet."""
        return self.account.cause is None

    def cut(self, cause: Happening, failure: Exception | None = None) -> None:
        """End the stream: whatever its task waits for inside `cuttable` is given up at once.

        Also where the ending is already decided: a client that leaves while the last bytes are on their
        way must not hold them, although the stream counts as finished.
        """
        self.account.happen(cause)
        self.cut_by = self.cut_by or cause
        self.client_left = self.client_left or cause is Happening.CLIENT_LEFT
        self.failure = self.failure or failure
        if self._scope is not None and not self._scope.expired():
            self._scope.reschedule(asyncio.get_running_loop().time())

    def read_on(self, from_tokens: int, seconds: float) -> None:
        """The client has left, and the answer is read on for so long: nothing more is sent."""
        self.account.happen(Happening.CLIENT_LEFT)
        self.client_left = True
        self.reading_on_from = from_tokens
        if self._scope is not None and not self._scope.expired():
            end, deadline = asyncio.get_running_loop().time() + seconds, self._scope.when()
            self._scope.reschedule(end if deadline is None else min(end, deadline))

    def cuttable(self, deadline_seconds: float) -> asyncio.Timeout:
        """The scope that `cut` gives up, and the deadline too; it raises TimeoutError then."""
        self._scope = asyncio.timeout(deadline_seconds)
        return self._scope

    async def patient(self, waited: Awaitable[T]) -> T:
        """Wait before admission. Raises TimeoutError when the stream is cut, or has waited long enough."""
        if self.cut_by is not None:
            if asyncio.iscoroutine(waited):
                waited.close()
            raise TimeoutError
        try:
            async with self.cuttable(self.wait_until - asyncio.get_running_loop().time()):
                return await waited
        finally:
            self.uncuttable()

    @property
    def given_up(self) -> bool:
        """Whether a TimeoutError came from `cut` or the deadline."""
        return self._scope is not None and self._scope.expired()

    def uncuttable(self) -> None:
        """The scope is left: from here on `cut` changes nothing that runs."""
        self._scope = None
