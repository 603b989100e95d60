"""The life of one booking, as a table.

A booking is written before the first byte of an answer and ends as exactly one usage event.
Several things may want to end it at the same moment (the client leaves while the deadline passes
while the provider breaks off); the first one that is noticed decides what the event says, and all
later ones change nothing:

    OPENING  --first event-->  FLOWING  --any ending-->  ENDED  --settled-->  SETTLED
       '---------------------any ending------------------^

Who wins the race:

| what happens                           | event says | cause            | client sees                      |
| -------------------------------------- | ---------- | ---------------- | -------------------------------- |
| the terminal event arrives             | finished   | terminal         | the terminal event, once settled |
| the client leaves, before that         | left       | client_left      |                                  |
| the client leaves, after that          | finished   | terminal         |                                  |
| the provider refuses, nothing sent yet | failed     | upstream_refused | a status and a JSON error        |
| the provider breaks off                | failed     | upstream_broke   | an error event                   |
| the gate fails, or its ledger          | failed     | gate_failed      | a 5xx or an error event          |
| the stream's time is up                | cut        | deadline         | an error event                   |
| the client does not read               | cut        | slow_reader      | an error event, if it fits       |
| the slot was lost to another worker    | cut        | lease_lost       | an error event                   |
| shutdown, and the grace is over        | cut        | drain            | an error event                   |
| its key, token or tenant was revoked   | cut        | revoked          | an error event                   |
| its key or token has expired           | cut        | expired          | an error event                   |
| an admin ended it                      | cut        | ended_by_admin   | an error event                   |
| a budget has no room for more          | cut        | budget           | `length`, or an error event      |
| the worker died                        | lost       | worker_lost      | a broken connection              |
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType


class State(StrEnum):
    """Where a booking stands."""

    OPENING = "opening"
    FLOWING = "flowing"
    ENDED = "ended"
    SETTLED = "settled"


class Ended(StrEnum):
    """How a stream ended, as the usage event says it."""

    FINISHED = "finished"
    LEFT = "left"
    FAILED = "failed"
    CUT = "cut"
    LOST = "lost"


class Happening(StrEnum):
    """What can happen to a booking. Those with a row in ENDINGS end it, and are then its cause."""

    FIRST_EVENT = "first_event"
    TERMINAL = "terminal"
    CLIENT_LEFT = "client_left"
    UPSTREAM_REFUSED = "upstream_refused"
    UPSTREAM_BROKE = "upstream_broke"
    GATE_FAILED = "gate_failed"
    DEADLINE = "deadline"
    SLOW_READER = "slow_reader"
    LEASE_LOST = "lease_lost"
    DRAIN = "drain"
    REVOKED = "revoked"
    EXPIRED = "expired"
    ENDED_BY_ADMIN = "ended_by_admin"
    BUDGET = "budget"
    WORKER_LOST = "worker_lost"
    SETTLED = "settled"


class Correction(StrEnum):
    """Why an event corrects an earlier one of the same booking; its cause."""

    LATE_WORKER = "late_worker"  # the worker came back after its booking had been closed without it
    REPRICED = "repriced"


ENDINGS = MappingProxyType(
    {
        Happening.TERMINAL: Ended.FINISHED,
        Happening.CLIENT_LEFT: Ended.LEFT,
        Happening.UPSTREAM_REFUSED: Ended.FAILED,
        Happening.UPSTREAM_BROKE: Ended.FAILED,
        Happening.GATE_FAILED: Ended.FAILED,
        Happening.DEADLINE: Ended.CUT,
        Happening.SLOW_READER: Ended.CUT,
        Happening.LEASE_LOST: Ended.CUT,
        Happening.DRAIN: Ended.CUT,
        Happening.REVOKED: Ended.CUT,
        Happening.EXPIRED: Ended.CUT,
        Happening.ENDED_BY_ADMIN: Ended.CUT,
        Happening.BUDGET: Ended.CUT,
        Happening.WORKER_LOST: Ended.LOST,
    }
)

_LIVE = (State.OPENING, State.FLOWING)

TABLE = MappingProxyType(
    {(State.OPENING, Happening.FIRST_EVENT): State.FLOWING}
    | {(state, ending): State.ENDED for state in _LIVE for ending in ENDINGS}
    # Too late to matter: the first ending stands.
    | {(State.ENDED, ending): State.ENDED for ending in ENDINGS}
    | {(State.SETTLED, ending): State.SETTLED for ending in ENDINGS}
    | {(State.ENDED, Happening.FIRST_EVENT): State.ENDED}
    | {(State.ENDED, Happening.SETTLED): State.SETTLED}
)


class IllegalStep(Exception):  # noqa: N818 - a bug in the gate, never an answer to a caller
    """A step that the table does not have."""


class Account:
    """One booking walking through the table. `cause` is None until something ended it."""

    __slots__ = ("cause", "state")

    def __init__(self) -> None:
        self.state = State.OPENING
        self.cause: Happening | None = None

    @property
    def ended(self) -> Ended | None:
        """What the usage event will say, or None while the stream lives."""
        return None if self.cause is None else ENDINGS[self.cause]

    def happen(self, happening: Happening) -> bool:
        """Take a step. True if this is the happening that ended the booking.

        Raises IllegalStep where the table has no row (a first event twice, a settlement too early).
        """
        try:
            after = TABLE[self.state, happening]
        except KeyError:
            raise IllegalStep(f"{happening} in state {self.state}") from None
        decides = self.cause is None and after is State.ENDED
        if decides:
            self.cause = happening
        self.state = after
        return decides
