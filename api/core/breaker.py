"""A circuit breaker: who failed again and again is left alone for a while, then tried with one request.

    closed --5 failures in a row--> open --its time is up--> half open --success--> closed
                                      ^------------------------- failure --'

Each time it opens again it stays open for twice as long, up to a minute. A provider that asks for rest
(`Retry-After`) gets it, whatever it did before.
"""

from __future__ import annotations

from enum import StrEnum

FAILURES = 5
FIRST_SECONDS, MOST_SECONDS = 2.0, 60.0
MOST_REST_SECONDS = 300.0
"""However long a provider asks for."""


class Standing(StrEnum):
    """What a breaker does with the next request."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Of one upstream and worker. Times are monotonic seconds; `jitter` is from [0, 1)."""

    __slots__ = ("_failures", "_open_until", "_opened", "_probing_until")

    def __init__(self) -> None:
        self._failures = 0
        self._opened = 0  # times in a row
        self._open_until = 0.0
        self._probing_until = 0.0

    def standing(self, now: float) -> Standing:
        """Where it stands."""
        if now < self._open_until:
            return Standing.OPEN
        return Standing.HALF_OPEN if self._opened else Standing.CLOSED

    def admits(self, now: float) -> bool:
        """Whether a request should go there: all do while it is closed, one at a time while half open."""
        standing = self.standing(now)
        return standing is Standing.CLOSED or (standing is Standing.HALF_OPEN and now >= self._probing_until)

    def tried(self, now: float) -> None:
        """A request goes there; while half open no other does, until it is known what became of it."""
        if self.standing(now) is Standing.HALF_OPEN:
            self._probing_until = now + MOST_SECONDS

    def succeeded(self) -> None:
        """It answered."""
        self._failures = self._opened = 0
        self._open_until = self._probing_until = 0.0

    def given_up(self) -> None:
        """Nobody waited for what would become of a request: the next one may try."""
        self._probing_until = 0.0

    def failed(self, now: float, jitter: float) -> None:
        """It did not."""
        self._failures += 1
        self._probing_until = 0.0
        if self._failures < FAILURES and not self._opened:
            return
        seconds = min(FIRST_SECONDS * 2**self._opened, MOST_SECONDS) * (1 + jitter / 4)
        if now >= self._open_until:  # what failed beside it is no second time
            self._opened += 1
            self._open_until = now + seconds

    def rests(self, now: float, seconds: float) -> None:
        """It asked to be left alone."""
        self._probing_until = 0.0
        self._opened = max(self._opened, 1)
        self._open_until = max(self._open_until, now + min(seconds, MOST_REST_SECONDS))
