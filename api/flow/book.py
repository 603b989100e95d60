"""The booking: the row that says "in flight". No byte of an answer is delivered before it is durable (P1).

It is written beside the upstream call, together with the bookings of other requests; `booked` waits. If
it cannot be written the stream is cut at once, and nothing has been delivered.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from api.core.booking import Happening
from api.core.record import Booking
from api.ports import LedgerUnavailable

if TYPE_CHECKING:
    from api.flow.gate import Gate
    from api.flow.stream import Stream


def book(gate: Gate, stream: Stream) -> None:
    """Start writing the booking. Raises LedgerUnavailable where it is known that this would fail."""
    caller = stream.caller
    assert caller.tenant_id is not None  # noqa: S101 - admitted
    assert stream.permit is not None  # noqa: S101 - the same
    booking = Booking(
        id=stream.permit.id,
        request_id=stream.order.request_id,
        tenant_id=caller.tenant_id,
        key_id=caller.key_id,
        token_id=caller.token_id,
        end_user=caller.end_user,
        dialect=stream.order.name,
        model=stream.order.body["model"],
        upstream=stream.order.spec.targets[0].upstream,
        worker=gate.policy.worker,
        started_at=stream.came_at,
    )
    stream.booked = gate.ledger.book(booking)
    if stream.booked.done():
        stream.booked.result()
    stream.booking = booking

    def cut_on_failure(booked: asyncio.Future[None]) -> None:
        error = booked.exception()
        if isinstance(error, Exception):
            stream.cut(Happening.GATE_FAILED, error)

    stream.booked.add_done_callback(cut_on_failure)


async def booked(gate: Gate, stream: Stream) -> None:
    """Wait until the booking is durable. Raises LedgerUnavailable, within `settle_seconds`."""
    assert stream.booked is not None  # noqa: S101 - `book` came before
    if not stream.booked.done():
        await asyncio.wait([stream.booked], timeout=gate.policy.settle_seconds)
    if not stream.booked.done():
        raise LedgerUnavailable("the booking was not written in time")
    stream.booked.result()
