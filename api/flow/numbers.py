"""Where a stream is counted: at its admission or refusal, and at its settlement. And what it is like."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from api.core.breaker import Standing
from api.core.numbers import merged
from api.errors import failure_of
from api.ports import LimitReached

if TYPE_CHECKING:
    from collections.abc import Iterator

    from api.core.numbers import Labels, Snapshot, Totals
    from api.core.record import UsageEvent
    from api.flow.gate import Gate
    from api.flow.stream import Stream

log = logging.getLogger("sluicegate.numbers")


def count_admission(gate: Gate, stream: Stream, error: Exception | None = None) -> None:
    """It was admitted, or refused for a reason."""
    outcome = "admitted" if error is None else "refused"
    wait = gate.numbers.histogram("admission_wait_seconds", outcome)
    wait.observe(gate.clock.monotonic() - stream.started_at)
    if error is None:
        return
    if isinstance(error, LimitReached):
        gate.numbers.add("refusals", error.limit, error.of)
    elif stream.cut_by is not None:
        gate.numbers.add("refusals", stream.cut_by.value, "")
    else:
        gate.numbers.add("refusals", failure_of(error).code, "")


def count_end(gate: Gate, stream: Stream, event: UsageEvent) -> None:
    """Its event is written."""
    numbers, upstream, usage = gate.numbers, event.booking.upstream, event.usage
    numbers.add("bookings_ended", event.ended.value, event.cause.value)
    numbers.add("tokens", upstream, "input", by=usage.input_tokens)
    numbers.add("tokens", upstream, "output", by=usage.output_tokens)
    seconds = event.duration_ms / 1000
    numbers.histogram("stream_seconds", upstream, event.ended.value).observe(seconds)
    first = stream.first_token_at
    if first is not None and stream.order.writer is not None:
        to_first = first - stream.started_at
        numbers.histogram("first_token_seconds", upstream).observe(to_first)
        if usage.output_tokens > 1:
            each = (seconds - to_first) / (usage.output_tokens - 1)
            numbers.histogram("token_seconds", upstream).observe(max(0.0, each))


def gauges(gate: Gate) -> Iterator[tuple[str, Labels, float]]:
    """What is true of this worker now."""
    yield "workers", (), 1
    yield "open_streams", (), len(gate.live)
    yield "live_tokens", (), sum(stream.checkpointed_tokens for stream in gate.live.values())
    yield "waiting_requests", (), len(gate.waiting)
    yield "spool_bytes", (), gate.ledger.spooled_bytes
    yield "ledger_away", (), float(gate.ledger.away)
    yield "limiter_degraded", (), float(gate.limiter.degraded)
    now = gate.clock.monotonic()
    for name, provider in gate.providers.all().items():
        yield "upstream_streams", (name,), provider.live
        stands = provider.breaker.standing(now)
        for one in Standing:
            yield "upstream_standing", (name, one.value), float(one is stands)


def own_numbers(gate: Gate) -> Snapshot:
    """This worker's."""
    return gate.numbers.snapshot(gate.policy.worker, gate.clock.unix(), gauges(gate))


async def all_numbers(gate: Gate) -> Totals:
    """Over all workers of this host."""
    others = [] if gate.shelf is None else await asyncio.to_thread(gate.shelf.others)
    return merged([own_numbers(gate), *others], gate.clock.unix())


async def tell_the_others(gate: Gate) -> None:
    """Write down what this worker has counted. Raises OSError."""
    if gate.shelf is not None:
        await asyncio.to_thread(gate.shelf.write, own_numbers(gate))
