"""Settlement: the booking becomes its usage event, then the slot is given back; only then the stream ends.

Runs once for each booking, in a task that nobody cancels, and is bounded in time: if the database does not
take the event within `settle_seconds` the stream ends anyway, and the ledger goes on trying.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from api.core.booking import Happening
from api.core.record import UsageEvent
from api.core.usage import NOTHING, Certainty, encoding_of
from api.flow.numbers import count_end
from api.flow.stream import stoppable
from api.ports import LedgerUnavailable, Used

if TYPE_CHECKING:
    from api.core.usage import Usage
    from api.flow.gate import Gate
    from api.flow.stream import Stream
    from api.ports import Permit

log = logging.getLogger("sluicegate.settle")


async def settle(gate: Gate, stream: Stream) -> None:
    """Book out `stream`, whose ending is decided."""
    try:
        if stream.booking is not None:
            await _write(gate, stream)
    except Exception:
        log.exception("request %s could not be settled", stream.order.request_id)
    permit, stream.permit = stream.permit, None  # no renewal that begins from here on knows it
    assert permit is not None  # noqa: S101 - admitted
    try:
        await gate.renewed.wait()
        await gate.limiter.release(permit, _charged(stream, permit))
    finally:
        gate.places.give_back()
        gate.lines.freed(permit.tenant_id)


def used_so_far(stream: Stream, usage: Usage) -> Used:
    """What a usage means to its limits."""
    return Used(usage.input_tokens + usage.output_tokens, stream.price.of(usage) if stream.price else 0)


def _charged(stream: Stream, permit: Permit) -> Used:
    """What to charge the limits: what the ledger says; or all that was reserved, where nobody knows.

    An exact usage refunds its reservation, and so does one of which all that arrived was counted as it
    came. What was produced out of sight is charged as if it were all that was asked for (ADR 6).
    """
    if not stream.called:
        return Used()
    usage = stream.usage
    used = Used() if usage is None else used_so_far(stream, usage)
    if usage is not None and (usage.certainty is Certainty.EXACT or stoppable(stream.order)):
        return used
    reserved = [(demand.is_money, permit.reserved(demand)) for demand in permit.demands if demand.each]
    tokens = max([used.tokens, *(amount for money, amount in reserved if not money)])
    return Used(tokens, max([used.nano_dollars, *(amount for money, amount in reserved if money)]))


async def _write(gate: Gate, stream: Stream) -> None:
    account = stream.account
    assert stream.booking is not None  # noqa: S101 - the caller looked
    assert account.ended is not None  # noqa: S101 - the ending is decided
    assert account.cause is not None  # noqa: S101 - the same
    ended = gate.clock.monotonic()
    first = stream.first_token_at
    usage = stream.usage = await measure(gate, stream)
    price = stream.price
    booking = stream.booking
    if stream.provider is not None and stream.provider.spec.name != booking.upstream:
        booking = replace(booking, upstream=stream.provider.spec.name)
    event = UsageEvent(
        booking=booking,
        answered_model=stream.order.meter.model,
        usage=usage,
        ended=account.ended,
        cause=account.cause,
        first_token_ms=None if first is None else _ms(first - stream.started_at),
        duration_ms=_ms(ended - stream.started_at),
        ended_at=gate.clock.now(),
        cost_nano_dollars=None if price is None else price.of(usage),
        price_version=None if price is None else price.version,
    )
    count_end(gate, stream, event)
    if gate.traces is not None and stream.span is not None:
        gate.traces.end(stream.span, event, first_token=stream.order.writer is not None)
    written = gate.ledger.settle(event)
    done, _ = await asyncio.wait([written], timeout=gate.policy.settle_seconds)
    if not done:
        log.warning("booking %s waits for the database to be settled", stream.booking.id)
    elif isinstance(written.exception(), LedgerUnavailable):
        log.error("booking %s could not be settled", stream.booking.id)
    account.happen(Happening.SETTLED)


async def measure(gate: Gate, stream: Stream) -> Usage:
    """What the stream used: the provider's word, else an exact count of what was received.

    A provider that refused the request, or never got it, used nothing.
    """
    if not stream.called or stream.account.cause is Happening.UPSTREAM_REFUSED:
        return NOTHING
    meter = stream.order.meter
    try:
        while meter.needs_counting():
            snapshot = meter.snapshot()
            if meter.fold(snapshot, await gate.tokenizer.count(snapshot.texts, encoding_of(meter.model)[0])):
                break  # else a checkpoint was counted in between: take what is new
    except Exception:
        log.exception("request %s could not be counted", stream.order.request_id)
        return replace(meter.usage(), certainty=Certainty.AT_LEAST)  # what the last checkpoint knew
    return meter.usage()


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
