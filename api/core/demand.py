"""The words of admission: what a request asks of its limits, and what the answer says. Pure values.

`core/limits.py` is what they mean; the Lua in `adapters/lua` does the same in Redis.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

STREAMS = "streams"
"""The counter that every live stream of a tenant is in; it is the first demand of every request."""
MAX_TOKENS = 1 << 52
"""More than any budget or any answer."""
NEVER_US = 10**15
"""A wait that does not end by itself: the budget's period must end, or the request must be smaller."""


class Shape(StrEnum):
    """How a limit counts."""

    CAP = "c"
    RATE = "r"
    BUDGET = "b"


class Demand(NamedTuple):
    """One limit, and what a request asks of it: `base` at once, and `each` for each token of output.

    `counter` is where it is counted; `of` (tenant, key, user, token) and `name` are the limit it stands
    for. A budget is forgotten after `keep_seconds`, when its period is over. In `shadow` nothing is
    refused, and it is counted what would have been.
    """

    shape: Shape
    counter: str
    amount: int
    base: int = 0
    each: int = 0
    keep_seconds: int = 0
    shadow: bool = False
    of: str = "tenant"
    name: str = "max_streams"

    @property
    def is_money(self) -> bool:
        """Whether it counts nano-dollars; else tokens, requests or streams."""
        return self.name.startswith("nano_dollars")


class Verdict(IntEnum):
    """What becomes of a request."""

    REFUSED = 0
    GRANTED = 1
    UNKNOWN = 2  # ask the ledger, and come again
    WAITING = 3  # it has a place in the queue
    SETTLING = 4  # Redis was emptied; the workers are telling it what runs


class State(NamedTuple):
    """What is left of a limit, and in how many microseconds all of it is there again (0: not by time)."""

    remaining: int
    reset_us: int = 0


class Reply(NamedTuple):
    """The answer to `acquire` and `extend`. For WAITING, `tokens` is the number of its ticket.

    `tokens` of output are granted, of `allowed` that the budgets have room for. `at` is the demand that
    refuses, or that is waited for, and `wait_us` when to come again. `unknown` are the budgets of which it
    is not known what is spent; -1 among them means the streams that run. `degraded`: without Redis.
    """

    verdict: Verdict
    tokens: int = 0
    allowed: int = MAX_TOKENS
    at: int = 0
    wait_us: int = 0
    states: tuple[State, ...] = ()
    unknown: tuple[int, ...] = ()
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks: a slot of each cap, and `least` to `most` tokens of output on credit.

    Of what a budget has left, it takes a `share`-th at most: streams that extend their credit as they go
    take small steps when little is left. With `whole` rates must have room for the most. What was asked of
    the ledger: what is `spent`, by demand, how many streams are `running`, and `elsewhere`, on other workers.
    """

    permit_id: str
    demands: tuple[Demand, ...]
    least: int = 0
    most: int = 0
    share: int = 1
    whole: bool = False
    spent: Mapping[int, int] = field(default_factory=dict)
    running: int | None = None
    elsewhere: int | None = None
    max_waiters: int = 0


class Terms(NamedTuple):
    """Durations, in microseconds: a lease, a waiter's lease, how long workers take to tell what runs."""

    lease_us: int
    waiter_us: int
    settle_us: int


@dataclass(slots=True)
class Row:
    """What a permit has reserved of a budget, and how much of it was used when that was last heard."""

    reserved: int
    used: int = 0


@dataclass(slots=True)
class Held:
    """A permit's credit: tokens of output granted so far, and its reservations by counter.

    `told`: granted elsewhere, or forgotten, and known from a renewal. Its rates are not settled at the end,
    because nobody knows what of it they were charged for here.
    """

    tokens: int
    rows: dict[str, Row]
    told: bool = False
