"""Once a second, for all live streams of a worker: leases, stalls, heartbeats, checkpoints.

One Redis round trip, one thread hop for counting and one group of rows, however many
streams there are; a stream pays nothing per chunk for any of it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from api.core.booking import Happening
from api.core.record import Checkpoint
from api.core.usage import encoding_of
from api.flow.read_on import client_left, looked_at
from api.flow.relay import heartbeat
from api.flow.settle import used_so_far
from api.ports import Renewal

if TYPE_CHECKING:
    from api.core.meter import Snapshot
    from api.flow.gate import Gate
    from api.flow.stream import Stream

log = logging.getLogger("sluicegate.tend")

_IN_ONE_TURN = 10  # streams


async def tend(gate: Gate) -> None:
    """Tick until cancelled. A tick that fails is logged, and the next one comes."""
    loop, seconds = asyncio.get_running_loop(), gate.policy.tick_seconds
    due, lag = loop.time(), gate.numbers.histogram("loop_lag_seconds")
    while True:
        due = max(due + seconds, loop.time() + seconds / 4)  # a slow Redis makes no longer interval
        await asyncio.sleep(due - loop.time())
        lag.observe(max(0.0, loop.time() - due))
        try:
            await tick(gate)
        except Exception:
            log.exception("a tick failed")


async def tick(gate: Gate) -> None:
    """One round over the live streams."""
    streams = list(gate.live.values())
    now = gate.clock.monotonic()
    for stream in [*streams, *gate.waiting.values()]:
        _look(gate, stream, now)
    try:
        # First: what dies with this worker is what came since, however slow Redis is.
        await _checkpoint(gate, [stream for stream in streams if _flows(stream) and stream.called])
    finally:
        await _renew(gate)


def _look(gate: Gate, stream: Stream, now: float) -> None:
    stream.connection.resume_reading()
    if stream.connection.is_gone():
        client_left(gate, stream)
    if stream.caller.expires_at is not None and gate.clock.unix() >= stream.caller.expires_at:
        stream.cut(Happening.EXPIRED)
    if stream.sending_since is not None:
        if now - stream.sending_since > gate.policy.send_seconds:
            stream.cut(Happening.SLOW_READER)
    elif (
        stream.order.writer is not None
        and stream.live
        and (stream.booked is not None or stream.permit is None)
        and stream.beat is None
        and now - stream.sent_at >= gate.policy.heartbeat_seconds
    ):
        stream.beat = gate.chores.start(heartbeat(gate, stream), name="heartbeat")


def _flows(stream: Stream) -> bool:
    return stream.live or (stream.reading_on_from is not None and stream.terminal is None)


async def _renew(gate: Gate) -> None:
    gate.renewed.clear()
    renewals = [
        Renewal(stream.permit, used_so_far(stream, stream.order.meter.usage()))
        for stream in gate.live.values()
        if stream.permit is not None
    ]
    waiters: dict[str, list[str]] = {}
    for permit_id, stream in gate.waiting.items():
        waiters.setdefault(stream.caller.tenant_id or "", []).append(permit_id)
    try:
        lost = (await gate.limiter.renew(renewals, waiters)).lost
    finally:
        gate.renewed.set()
    for permit_id in lost:
        if permit_id in gate.live:
            gate.live[permit_id].cut(Happening.LEASE_LOST)


async def _checkpoint(gate: Gate, streams: list[Stream]) -> None:
    by_encoding: dict[str, list[tuple[Stream, Snapshot]]] = {}
    for number, stream in enumerate(streams):
        if number % _IN_ONE_TURN == 0:
            await asyncio.sleep(0)  # megabytes of text are put together here: others get their turn
        meter = stream.order.meter
        if meter.needs_counting():
            entry = (stream, meter.snapshot())
            by_encoding.setdefault(encoding_of(meter.model)[0], []).append(entry)
    for encoding, entries in by_encoding.items():
        counts = await gate.tokenizer.count([text for _, shot in entries for text in shot.texts], encoding)
        position = 0
        for stream, snapshot in entries:
            stream.order.meter.fold(snapshot, counts[position : position + len(snapshot.texts)])
            position += len(snapshot.texts)
    now, checkpoints = gate.clock.now(), []
    for stream in streams:
        usage = stream.order.meter.usage()
        looked_at(gate, stream, usage.output_tokens)
        if _flows(stream) and stream.booking and usage.output_tokens != stream.checkpointed_tokens:
            stream.checkpointed_tokens = usage.output_tokens
            checkpoints.append(Checkpoint(stream.booking.id, usage.input_tokens, usage.output_tokens, now))
    if checkpoints:
        gate.ledger.checkpoint(checkpoints)
