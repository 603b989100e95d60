"""A queue that is fair between tenants: start-time fair queueing (Goyal, Vin, Cheng, 1996), pure.

Inside a tenant, first come first served. Between tenants, by weight: one with weight 2 gets two turns for
each of another's, however many it has waiting; one that was away has saved up nothing.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of tenants, each taken in its turn."""

    def __init__(self) -> None:
        self._items: dict[str, deque[T]] = {}
        self._starts: dict[str, float] = {}  # the virtual time at which a tenant's next turn begins
        self._weights: dict[str, int] = {}
        self._now = 0.0

    def __len__(self) -> int:
        return sum(len(items) for items in self._items.values())

    def waiting(self, tenant: str) -> int:
        """How many items of a tenant wait."""
        return len(self._items.get(tenant, ()))

    def push(self, tenant: str, weight: int, item: T) -> None:
        """Put an item behind all others of its tenant."""
        self._weights[tenant] = weight
        if tenant not in self._items:
            self._items[tenant] = deque()
            self._starts[tenant] = max(self._now, self._starts.get(tenant, 0.0))
        self._items[tenant].append(item)

    def pop(self) -> T:
        """Take the item whose turn it is. Raises IndexError where there is none."""
        if not self._items:
            raise IndexError("nobody waits")
        tenant = min(self._items, key=lambda name: self._starts[name])
        item = self._items[tenant].popleft()
        self._now = self._starts[tenant]
        self._starts[tenant] += 1 / self._weights[tenant]
        self._tidy(tenant)
        return item

    def remove(self, tenant: str, item: T) -> None:
        """Take out an item that waits no longer; nothing where it is not there."""
        if tenant in self._items and item in self._items[tenant]:
            self._items[tenant].remove(item)
            self._tidy(tenant)

    def _tidy(self, tenant: str) -> None:
        if not self._items[tenant]:
            del self._items[tenant]
        if not self._items:  # nobody waits, so nobody is behind
            self._starts.clear()
            self._weights.clear()
            return
        for name in [n for n, start in self._starts.items() if start <= self._now and n not in self._items]:
            del self._starts[name], self._weights[name]
