"""The Response that walks a request through the flow and owns its ending, whoever gives up first.

Why not a generator: a generator's `finally` runs inside a cancellation, or never, or after the pools are
closed. Here one task, which nobody cancels, admits, books, calls, relays and settles in plain order; the
request's own task only watches for the client to leave. Shutdown waits for the first (`Gate.drained`).
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from starlette.responses import Response

from api.core.booking import ENDINGS, Ended, Happening
from api.core.sse import EventTooLarge
from api.core.translate.ways import Untranslatable
from api.edge import send_failure
from api.errors import Cut, Draining, failure_of
from api.flow.admit import admit
from api.flow.book import book
from api.flow.call import broke_off, call
from api.flow.keep_stream import Recorder
from api.flow.numbers import count_admission
from api.flow.read_on import client_left, over
from api.flow.relay import collect, extra_headers, relay, send_headers
from api.flow.settle import settle
from api.flow.stream import Stream
from api.flow.watch import recheck
from api.ports import AccountsUnavailable, LedgerUnavailable, LimitReached, UpstreamFailed

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from api.core.dialects import Writer
    from api.flow.gate import Gate
    from api.flow.stream import Order
    from api.telemetry import Traces
    from auth.principal import Principal

log = logging.getLogger("sluicegate.walk")

_FAREWELL_SECONDS = 5.0
"""How long the last bytes may take; a client that does not read them is broken off."""


_PIECE_BYTES = 64 * 1024


class Walk(Response):
    """The answer to a metered request, streamed or whole."""

    def __init__(self, gate: Gate, caller: Principal, order: Order) -> None:
        super().__init__()
        self._gate = gate
        self._caller = caller
        self._order = order

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; returns when the stream is settled and its last byte is out, or nobody wants it."""
        connection = scope["state"]["connection"]
        clock = self._gate.clock
        stream = Stream(
            self._order, self._caller, send, connection, came_at=clock.now(), now=clock.monotonic()
        )
        work = self._gate.walks.start(_walk(self._gate, stream), name=f"walk {self._order.request_id}")
        try:
            await _watch(self._gate, stream, receive, work)
            await asyncio.wait([work])
        except asyncio.CancelledError:  # the server's own patience is over
            stream.cut(Happening.DRAIN)
            raise


async def _watch(gate: Gate, stream: Stream, receive: Receive, work: asyncio.Task[None]) -> None:
    """Cut the stream when the client leaves; returns when it did, or when the work is done."""
    loop = asyncio.get_running_loop()
    with suppress(TimeoutError):
        async with asyncio.timeout(None) as watching:

            def stop(_: object) -> None:
                with suppress(RuntimeError):  # the watch is over already
                    watching.reschedule(loop.time())

            work.add_done_callback(stop)
            while (await receive())["type"] != "http.disconnect":
                pass
            client_left(gate, stream)


async def _walk(gate: Gate, stream: Stream) -> None:
    if stream.order.kept is not None:
        stream.recorder = Recorder(gate, stream.order.kept)
    try:
        stream.permit = await admit(gate, stream)
    except Exception as error:  # noqa: BLE001 - the error table sorts them
        stream.uncuttable()
        count_admission(gate, stream, error)
        if stream.failure is None and not stream.client_left:
            gave_up = isinstance(error, TimeoutError) and stream.cut_by is not None
            stream.failure = Cut(stream.cut_by) if gave_up and stream.cut_by else error
        await _last_beat(stream)
        if isinstance(error, LimitReached):
            await _paced(gate, stream)
        await _farewell(gate, stream)
        return
    count_admission(gate, stream)
    await _last_beat(stream)
    permit_id = stream.permit.id
    stream.limit_headers["x-sluicegate-stream"] = permit_id
    gate.live[permit_id] = stream
    try:
        try:
            await _still_welcome(gate, stream)
            if stream.live:
                await _serve(gate, stream)
        finally:
            await settle(gate, stream)
    finally:
        over(gate, stream)
        del gate.live[permit_id]
    await _farewell(gate, stream)


async def _paced(gate: Gate, stream: Stream) -> None:
    """A tenant that does not wait between refusals is made to; it may leave, of course."""
    seconds = gate.pace.delay_seconds(stream.caller.tenant_id or "")
    if seconds and not gate.draining:
        with suppress(TimeoutError):
            async with stream.cuttable(seconds):
                await asyncio.sleep(seconds + 1)  # until the scope gives up
        stream.uncuttable()


async def _still_welcome(gate: Gate, stream: Stream) -> None:
    """Whatever changed between authentication and the moment from which on `gate.live` is watched."""
    try:
        if stream.caller.as_of != gate.authenticator.memory.version:
            await recheck(gate, stream)
    except AccountsUnavailable as error:
        stream.cut(Happening.GATE_FAILED, error)
    if gate.draining:
        stream.cut(Happening.DRAIN, Draining())
    if stream.cut_by is not None and stream.failure is None and not stream.client_left:
        stream.failure = Cut(stream.cut_by)


async def _serve(gate: Gate, stream: Stream) -> None:
    """Book, call, relay. Returns with the ending decided and the upstream's connection let go."""
    try:
        most = stream.order.spec.stream_seconds or gate.policy.stream_seconds
        async with stream.cuttable(min(most, gate.policy.stream_seconds)):
            book(gate, stream)
            if gate.traces is not None:
                _begin_span(stream, gate.traces)
            await call(gate, stream)
            if stream.writer is None:
                await collect(gate, stream)
            else:
                await relay(gate, stream, stream.writer)
        _cut_at_the_end(stream)
    except Exception as error:  # noqa: BLE001 - sorted below
        _decide(stream, error)
        if stream.account.cause is Happening.UPSTREAM_BROKE:
            broke_off(gate, stream)
    stream.uncuttable()
    await _last_beat(stream)
    if stream.answer is not None:
        await stream.answer.close()
    if stream.provider is not None:
        stream.provider.live -= 1


def _begin_span(stream: Stream, traces: Traces) -> None:
    order = stream.order
    stream.span, headers = traces.begin(order.trace, order.name, order.body["model"], stream.came_at)
    order.headers = {**order.headers, **headers}


async def _last_beat(stream: Stream) -> None:
    """A heartbeat that is under way; one that had not begun yet never says that it has ended."""
    if stream.beat is not None:
        stream.beat.cancel()
        await asyncio.wait([stream.beat])
        stream.beat = None


def _cut_at_the_end(stream: Stream) -> None:
    """It was cut when all of its answer was there, and nothing was given up: its end says so all the same.

    Else the client would be told of a good end, and the ledger of a cut.
    """
    cause, told = stream.account.cause, stream.failure is not None or stream.client_left
    if cause is not None and cause is not Happening.BUDGET and ENDINGS[cause] is Ended.CUT and not told:
        stream.failure = Cut(cause)


def _decide(stream: Stream, error: Exception) -> None:
    """Say how the stream ended, from what broke it off."""
    account = stream.account
    if isinstance(error, TimeoutError) and stream.given_up:
        cause = stream.cut_by or Happening.DEADLINE
        account.happen(cause)  # changes nothing where `cut` has said it
        if stream.failure is None and not stream.client_left:
            stream.failure = Cut(cause)
        return
    stream.failure = error
    if isinstance(error, UpstreamFailed | EventTooLarge | Untranslatable):
        refused = stream.answer is None
        account.happen(Happening.UPSTREAM_REFUSED if refused else Happening.UPSTREAM_BROKE)
    else:
        if not isinstance(error, LedgerUnavailable):
            log.error("request %s failed", stream.order.request_id, exc_info=error)
        account.happen(Happening.GATE_FAILED)


async def _farewell(gate: Gate, stream: Stream) -> None:
    """The last bytes: terminal event, whole answer, error event or JSON error; or a broken connection."""
    last = b"" if stream.writer is None else _closing(stream, stream.writer)
    if stream.recorder is not None:
        if stream.failure is None and stream.terminal is not None:
            gate.walks.start(stream.recorder.finish(last), name="keep")  # neither waits for the other
        else:
            await stream.recorder.drop()  # who is told that it failed may ask again at once
    if stream.client_left:
        return
    try:
        await _last_bytes(stream, last, min(_FAREWELL_SECONDS, gate.policy.send_seconds))
    except TimeoutError:
        stream.connection.abort()
    except (OSError, RuntimeError):  # the connection is gone
        log.debug("request %s: nobody was there for its last bytes", stream.order.request_id)


def _closing(stream: Stream, writer: Writer) -> bytes:
    """How a stream ends."""
    if stream.failure is not None:
        return writer.error(failure_of(stream.failure))
    if stream.account.cause is Happening.BUDGET and stream.usage is not None:
        return writer.stopped(stream.usage)
    return writer.end(stream.terminal)


async def _last_bytes(stream: Stream, last: bytes, patience_seconds: float) -> None:
    writer, failure = stream.writer, stream.failure
    if writer is None and failure is None:
        await _send_whole(stream, patience_seconds)
        return
    async with asyncio.timeout(patience_seconds):
        if failure is not None and (writer is None or not stream.headers_sent):
            failure_said = failure_of(failure)
            headers = {**stream.limit_headers, **failure_said.headers}
            order, said = stream.order, replace(failure_said, headers=headers)
            await send_failure(stream.send, said, order.dialect, order.request_id)
            return
        if not stream.headers_sent:
            await send_headers(stream)
        await stream.send({"type": "http.response.body", "body": last, "more_body": False})


async def _send_whole(stream: Stream, patience_seconds: float) -> None:
    """In pieces: each waits until the client has taken most of those before it, or gives up."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(stream.whole)).encode()),
        (b"cache-control", b"no-store"),
        *extra_headers(stream),
    ]
    pieces = [stream.whole[i : i + _PIECE_BYTES] for i in range(0, len(stream.whole), _PIECE_BYTES)]
    for message in (
        {"type": "http.response.start", "status": 200, "headers": headers},
        *({"type": "http.response.body", "body": piece, "more_body": True} for piece in pieces),
        {"type": "http.response.body", "body": b"", "more_body": False},
    ):
        async with asyncio.timeout(patience_seconds):
            await stream.send(message)
