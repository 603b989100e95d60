"""What Redis does not know, because it is new to it or was lost: the ledger does."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from api.core.demands import period_of
from api.core.record import Spending

if TYPE_CHECKING:
    from api.core.demand import Ask, Reply
    from api.flow.gate import Gate
    from api.flow.stream import Stream

_RUNNING_SECONDS = 60


async def told(gate: Gate, stream: Stream, ask: Ask, reply: Reply) -> Ask:
    """The same, with what the ledger says of `reply.unknown`. Raises LedgerUnavailable."""
    caller = stream.caller
    assert caller.tenant_id is not None  # noqa: S101 - the route's dependency has seen to it
    running, elsewhere, spent = ask.running, ask.elsewhere, dict(ask.spent)
    for at in reply.unknown:
        if at < 0:
            since = stream.came_at - timedelta(seconds=gate.policy.stream_seconds + _RUNNING_SECONDS)
            workers = await gate.ledger.running(caller.tenant_id, since)
            running = sum(workers.values())
            elsewhere = running - workers.get(gate.policy.worker, 0)
            continue
        demand = ask.demands[at]
        limit = next(one for one in caller.limits if (one.kind, one.name) == (demand.of, demand.name))
        period = period_of(limit.name, stream.came_at, caller.terms.time_zone)
        since_then = period.starts_at if period else None
        spending = Spending(limit.kind, limit.id, demand.is_money, since_then)
        spent[at] = await gate.ledger.spent(caller.tenant_id, spending)
    return replace(ask, running=running, elsewhere=elsewhere, spent=spent)
