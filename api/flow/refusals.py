"""From a limiter's refusal to what the caller is told: which limit, how long, and whether waiting helps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.core.demand import NEVER_US, Shape
from api.core.demands import seconds_left
from api.core.limit_headers import limit_headers
from api.ports import BudgetSpent, LimitReached

if TYPE_CHECKING:
    from collections.abc import Sequence

    from api.core.demand import Demand, Reply

_WHOSE = {"tenant": "", "key": " with this key", "token": " with this token", "user": " for this end user"}
_OF = {
    "requests_per_minute": "requests per minute",
    "tokens_per_minute": "tokens per minute",
    "tokens_per_day": "tokens per day",
    "tokens_per_month": "tokens per month",
    "nano_dollars_per_day": "nano-dollars per day",
    "nano_dollars_per_month": "nano-dollars per month",
}


def refusal(demands: Sequence[Demand], reply: Reply) -> LimitReached:
    """What to raise for a reply that refuses, or for somebody who has waited long enough."""
    demand = demands[reply.at]
    headers = limit_headers(demands, reply.states)
    if reply.degraded:
        headers["x-sluicegate-mode"] = "degraded"
    whose, amount = _WHOSE[demand.of], demand.amount
    if demand.shape is Shape.BUDGET:
        return spent(demand, headers)
    wait = None if reply.wait_us >= NEVER_US else reply.wait_us / 1_000_000
    if demand.shape is Shape.CAP:
        text = f"You have {amount} streams open{whose}, which is your limit. Retry when one has ended."
    elif wait is None:
        text = f"This request needs more than your limit of {amount} {_OF[demand.name]}{whose}."
    else:
        text = f"You have reached your limit of {amount} {_OF[demand.name]}{whose}. Retry after a moment."
    return LimitReached(text, wait, headers, limit=demand.name, of=demand.of)


def spent(demand: Demand, headers: dict[str, str] | None = None) -> BudgetSpent:
    """A budget that is used up."""
    if demand.name == "tokens_in_all":
        text = "This token's allowance is used up, or too small for this request."
    else:
        text = (
            f"Your budget of {demand.amount} {_OF[demand.name]}{_WHOSE[demand.of]} is used up, "
            "or what is left is too small for this request."
        )
    return BudgetSpent(text, seconds_left(demand), headers or {}, limit=demand.name, of=demand.of)
