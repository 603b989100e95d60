"""What runs and what is left: for admins, and for callers who want to know their limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from api.core.demand import Shape
from api.core.demands import demands_of, period_of, seconds_left
from api.core.record import Spending
from api.ports import LimiterUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from api.core.demand import Demand, State
    from api.core.record import InFlight
    from api.ports import Clock, Ledger, Limiter
    from auth.principal import Limit


class Leases(Protocol):
    """Whoever knows which streams' leases hold."""

    async def live(self, tenant_id: str) -> list[str]:
        """The permits of a tenant's live streams. Raises LimiterUnavailable."""
        ...


async def limits_now(
    limiter: Limiter,
    ledger: Ledger,
    tenant_id: str,
    limits: Sequence[Limit],
    *,
    now: datetime,
    time_zone: str,
) -> list[dict[str, Any]]:
    """What is left of each limit; `reset_seconds` is None where that is not a matter of time.

    Raises LimiterUnavailable, LedgerUnavailable.
    """
    demands = demands_of(limits, now=now, time_zone=time_zone)
    states, would_refuse = await limiter.peek(tenant_id, demands)
    found: list[dict[str, Any]] = []
    for limit, demand, state in zip(limits, demands, states, strict=True):
        remaining = state.remaining
        if demand.shape is Shape.BUDGET and remaining == demand.amount:  # or Redis has forgotten it
            period = period_of(limit.name, now, time_zone)
            since = period.starts_at if period else None
            spending = Spending(limit.kind, limit.id, demand.is_money, since)
            remaining = max(0, remaining - await ledger.spent(tenant_id, spending))
        found.append(
            {
                "limit": limit.name,
                "of": limit.kind,
                "amount": limit.amount,
                "remaining": remaining,
                "reset_seconds": _reset(demand, state),
                "shadow": limit.shadow,
                "would_refuse": would_refuse.get(f"{limit.kind}:{limit.name}", 0),
            }
        )
    return found


def _reset(demand: Demand, state: State) -> int | None:
    if demand.shape is Shape.RATE:
        return -(-state.reset_us // 1_000_000)
    return seconds_left(demand)


async def streams_now(
    limiter: Limiter, ledger: Ledger, clock: Clock, tenant_id: str | None = None
) -> list[dict[str, Any]]:
    """The streams that run, over all workers, oldest first: bookings, and whether their leases hold."""
    found = await ledger.in_flight(tenant_id)
    return await described(limiter, clock, found)


async def described(limiter: Leases, clock: Clock, found: Sequence[InFlight]) -> list[dict[str, Any]]:
    """Each as people want to see it."""
    tenants = {one.booking.tenant_id for one in found}
    live: Mapping[str, set[str]] | None
    try:
        live = {tenant_id: set(await limiter.live(tenant_id)) for tenant_id in tenants}
    except LimiterUnavailable:
        live = None
    now = clock.now()
    shown = ("id", "tenant_id", "key_id", "token_id", "end_user", "model", "worker", "request_id")
    rows = []
    for one in found:
        booking = one.booking
        there = live is not None and booking.id in live[booking.tenant_id]
        rows.append(
            {name: getattr(booking, name) for name in shown}
            | {
                "state": "unknown" if live is None else "live" if there else "lost",
                "started_at": booking.started_at,
                "age_seconds": round((now - booking.started_at).total_seconds(), 3),
                "input_tokens": one.input_tokens,
                "output_tokens": one.output_tokens,
            }
        )
    return rows
