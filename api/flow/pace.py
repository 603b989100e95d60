"""Refusals, at a pace: a tenant that comes back at once after each one must not keep the worker busy (P10).

The first refusals of a tenant are answered at once. One that has many in a second gets the next ones late,
so that clients that wait for an answer before they ask again come more slowly, whatever they make of
Retry-After. It costs a timer, and nothing that others wait for.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from api.ports import Clock

_PER_SECOND = 20
_AT_ONCE = 40
_MAX_SECONDS = 2.0
_TENANTS = 10_000


class Pace:
    """When each tenant's refusals are due, as a leaky bucket."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: OrderedDict[str, float] = OrderedDict()

    def delay_seconds(self, tenant_id: str) -> float:
        """How late this refusal of the tenant is to be: three seconds at most.

        Those for whom there is no turn within two seconds are spread, so that they do not come back together.
        """
        now = self._clock.monotonic()
        most = _AT_ONCE / _PER_SECOND + _MAX_SECONDS
        ahead = min(max(self._due.get(tenant_id, now) - now, 0.0) + 1 / _PER_SECOND, most)
        self._due[tenant_id] = now + ahead
        self._due.move_to_end(tenant_id)
        if len(self._due) > _TENANTS:
            self._due.popitem(last=False)
        if ahead >= most:
            return _MAX_SECONDS * (0.5 + random.random())  # noqa: S311 - nobody gains by guessing it
        return max(ahead - _AT_ONCE / _PER_SECOND, 0.0)
