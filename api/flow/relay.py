"""The relay: events from the upstream to the client, counted on the way.

The commit point is the first event (or the first heartbeat): status 200 and the SSE headers go out then,
and an error after it is an event of the stream. One send for all events of one read. A client that does
not read stops its own upstream and nothing else (P8): while a send waits, nothing is read, and what is
held is one read of the upstream. The terminal event is not sent here: it waits for settlement.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from api.core.booking import Happening
from api.core.dialects import plain
from api.core.sse import HEARTBEAT, Framer
from api.core.translate.ways import ODD, Untranslatable
from api.flow.book import booked
from api.flow.credit import affordable
from api.flow.read_on import client_left
from api.flow.refusals import spent
from api.ports import UpstreamFailed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from api.core.dialects import Seen, Writer
    from api.core.sse import Event
    from api.flow.gate import Gate
    from api.flow.stream import Stream

SSE_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


async def relay(gate: Gate, stream: Stream, writer: Writer) -> None:
    """Relay up to the terminal event.

    Raises UpstreamFailed, EventTooLarge, Untranslatable, LedgerUnavailable.
    """
    assert stream.answer is not None  # noqa: S101 - `call` came before
    framer, read = stream.framer or Framer(gate.policy.max_event_bytes), stream.reads.read
    more = True
    while stream.terminal is None:
        events, stream.early = stream.early, []
        if not events:
            data = await stream.answer.read()
            events = framer.feed(data) if data else framer.end()
            more = bool(data)
        seen = [(event, read(event)) for event in events]
        fits = len(seen)
        if stream.credit is not None:
            fits = await affordable(gate, stream, stream.credit, [one for _, one in seen])
        out, broken = _take(gate, stream, writer, seen[:fits])
        if out:
            await deliver(gate, stream, out)
        if fits < len(seen):
            await _stop(gate, stream)
            return
        if broken:
            raise UpstreamFailed("The provider reported an error in the middle of its answer.")
        if not more:
            break
    if stream.terminal is None:
        # Some servers leave `[DONE]` out; the end is an end all the same if the model said that it finished.
        if not stream.order.meter.finished:
            raise UpstreamFailed("The provider ended its answer in the middle.")
        stream.account.happen(Happening.TERMINAL)
    await booked(gate, stream)
    await stream.answer.finish()


async def _stop(gate: Gate, stream: Stream) -> None:
    """The wall: there is no budget for what comes next. It is not delivered, nor charged."""
    assert stream.credit is not None  # noqa: S101 - else there is no wall
    assert stream.credit.wall is not None  # noqa: S101 - the same
    stream.account.happen(Happening.BUDGET)
    if gate.policy.wall_is_error or stream.order.name == plain.NAME:
        stream.failure = spent(stream.credit.wall)
    await booked(gate, stream)


def _take(
    gate: Gate, stream: Stream, writer: Writer, events: Iterable[tuple[Event, Seen]]
) -> tuple[bytes, bool]:
    """Count the events of one read and translate them, up to the terminal one or an error (then True)."""
    out: list[bytes] = []
    for event, seen in events:
        if seen.error is not None:
            if seen.usage is not None:  # what failed was paid for all the same
                stream.order.meter.see(seen)
            return b"".join(out), True
        if not event.data:
            continue  # a comment, or nothing: openai-go takes a blank line after one for an event
        stream.order.meter.see(seen)
        if seen.terminal:
            stream.terminal = event
            stream.account.happen(Happening.TERMINAL)
            break
        if seen.pieces and stream.first_token_at is None:
            stream.first_token_at = gate.clock.monotonic()
        out.append(writer.event(event, seen))
    return b"".join(out), False


async def deliver(gate: Gate, stream: Stream, data: bytes) -> None:
    """Send bytes of the stream; the first ones only once the booking is durable, with the headers."""
    if stream.beat is not None:
        await stream.beat
    if stream.recorder is not None:
        await booked(gate, stream)  # who asks again gets no byte of it before either
        stream.recorder.put(data)
    if stream.reading_on_from is None:
        before = stream.chunk_at
        await _send(gate, stream, data)
        stream.chunk_at = stream.sent_at
        if before:
            gate.numbers.chunk_gaps.observe(stream.sent_at - before)


async def heartbeat(gate: Gate, stream: Stream) -> None:
    """A comment between events, so that nobody on the way takes silence for death. `deliver` waits for it.

    Whoever waits to be admitted gets one too: it is no part of an answer, so no booking is needed for it.
    """
    try:
        if stream.permit is None:
            await _send_waiting(gate, stream)
        else:
            await _send(gate, stream, _beat(stream))
    finally:
        stream.beat = None


def _beat(stream: Stream) -> bytes:
    writer = stream.writer
    return HEARTBEAT if writer is None else writer.heartbeat()


async def _send(gate: Gate, stream: Stream, data: bytes) -> None:
    stream.sending_since = gate.clock.monotonic()
    try:
        if not stream.committed:
            await booked(gate, stream)
            stream.committed = True
            stream.account.happen(Happening.FIRST_EVENT)
            if not stream.headers_sent:
                await send_headers(stream)
        await stream.connection.send({"type": "http.response.body", "body": data, "more_body": True})
    except (OSError, RuntimeError):  # servers say it in either way when the connection is gone
        client_left(gate, stream)
        await asyncio.sleep(0)  # the cut takes effect here
    finally:
        stream.sending_since = None
    stream.sent_at = gate.clock.monotonic()


async def _send_waiting(gate: Gate, stream: Stream) -> None:
    with suppress(OSError, RuntimeError):  # it has left, which its watcher sees
        if not stream.headers_sent:
            await send_headers(stream)
        await stream.send({"type": "http.response.body", "body": _beat(stream), "more_body": True})
    stream.sent_at = gate.clock.monotonic()


async def send_headers(stream: Stream) -> None:
    """The commit point."""
    stream.headers_sent = True
    headers = [*SSE_HEADERS, *extra_headers(stream)]
    await stream.send({"type": "http.response.start", "status": 200, "headers": headers})


def extra_headers(stream: Stream) -> list[tuple[bytes, bytes]]:
    """What the caller is told of its limits."""
    return [(name.encode(), value.encode()) for name, value in stream.limit_headers.items()]


async def collect(gate: Gate, stream: Stream) -> None:
    """The answer of a request that did not ask for a stream: read whole, bounded, and counted."""
    assert stream.answer is not None  # noqa: S101 - `call` came before
    parts, size = [], 0
    while data := await stream.answer.read():
        size += len(data)
        if size > gate.policy.max_answer_bytes:
            raise UpstreamFailed("The provider's answer is too large.")
        parts.append(data)
    stream.whole = b"".join(parts)
    stream.order.meter.see(stream.reads.read_object(stream.whole))
    if stream.translation is not None:
        try:
            stream.whole = stream.translation.whole(stream.whole)
        except ODD as error:
            raise Untranslatable from error
    stream.first_token_at = gate.clock.monotonic()
    await booked(gate, stream)
    stream.account.happen(Happening.TERMINAL)
