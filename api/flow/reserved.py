"""Whether what is reserved is what runs: a lease in Redis for each open booking, and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.core.invariants import Check
from api.ports import LimiterUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from api.flow.overview import Leases
    from api.ports import Ledger

_LOOKS = 3
_LOOK_SECONDS = 1.0


async def check_streams(
    leases: Leases,
    ledger: Ledger,
    tenants: Iterable[str],
    *,
    pause: Callable[[float], Awaitable[None]],
) -> Check:
    """Compares the tenants' live permits with their open bookings. Raises LedgerUnavailable.

    A permit comes before its booking, and goes after it: what differs is looked at again.
    """
    check = Check("streams", "reservations are those of the streams that run")
    differing: dict[str, dict[str, str]] = {}
    wanted = list(tenants)
    for look in range(_LOOKS):
        if look:
            await pause(_LOOK_SECONDS)
        try:
            differing = await _differing(leases, ledger, wanted, differing if look else None)
        except LimiterUnavailable:
            check.unknown = True
            check.add("Redis does not answer.")
            return check
        wanted = list(differing)
        if not wanted:
            return check
    for tenant_id, faults in differing.items():
        for booking_id, fault in sorted(faults.items()):
            check.found(fault, id=booking_id, tenant_id=tenant_id)
    return check


async def _differing(
    leases: Leases, ledger: Ledger, tenants: Iterable[str], before: dict[str, dict[str, str]] | None
) -> dict[str, dict[str, str]]:
    """By tenant, ids with a lease or a booking alone; after the first look, those that still are so."""
    found = {}
    for tenant_id in tenants:
        live = set(await leases.live(tenant_id))
        booked = {one.booking.id for one in await ledger.in_flight(tenant_id)}
        faults = dict.fromkeys(live - booked, "holds a slot, and has no booking")
        faults |= dict.fromkeys(booked - live, "is open, and holds no slot")
        if before is not None:
            faults = {one: fault for one, fault in faults.items() if before[tenant_id].get(one) == fault}
        if faults:
            found[tenant_id] = faults
    return found
