"""A limit on unknown keys by address, so that a flood of invented ones does not reach the database.

A key's form and checksum are public, so anybody can invent ids that must be looked up. After `limit` of them
within a minute an address gets no more look-ups of new keys for the rest of it; keys that are known to the
worker go on working, also from there. Counted for each worker by itself, in bounded memory.
"""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from auth.memory import put
from auth.principal import TooManyFailures

if TYPE_CHECKING:
    from auth.memory import Clock

_WINDOW_SECONDS = 60.0
_ADDRESSES = 10_000


def household(address: str) -> str:
    """What counts as one caller: an IPv4 address, or the /64 that an IPv6 customer gets; else the text."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return address
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((int(ip), 64), strict=False))


class Door:
    """Counts failures by household."""

    def __init__(self, clock: Clock, *, limit: int = 100) -> None:
        self._clock = clock
        self._limit = limit
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def failed(self, address: str) -> None:
        """A key from there was looked up, and there is none."""
        now, address = self._clock.monotonic(), household(address)
        since, count = self._failures.get(address, (now, 0))
        if now - since >= _WINDOW_SECONDS:
            since, count = now, 0
        put(self._failures, address, (since, count + 1), _ADDRESSES)

    def open_for(self, address: str) -> None:
        """Whether something may be looked up for that address. Raises TooManyFailures."""
        since, count = self._failures.get(household(address), (0.0, 0))
        left = since + _WINDOW_SECONDS - self._clock.monotonic()
        if count >= self._limit and left > 0:
            raise TooManyFailures(math.ceil(left))
