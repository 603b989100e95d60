"""The outbox: events that wait to be delivered, those that nobody takes, and the port to both.

An event gets its row in the transaction that writes it to the ledger, and the row is marked after the
receiver took the event: so it is delivered at least once, and none is passed over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from api.accounts import Actor
    from api.core.record import UsageEvent


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A row that is due. `event` is None where the ledger keeps it no more; `attempts` is refusals so far."""

    event_id: str
    event: UsageEvent | None
    external_id: str | None
    attempts: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that was refused by itself too often. It stays until somebody has it sent again."""

    event_id: str
    tenant_id: str | None
    started_at: datetime
    attempts: int
    dead_at: datetime
    error: str | None


@dataclass(frozen=True, slots=True)
class ExportStatus:
    """How the export stands. `delivered_last_day` are events whose requests came in within a day."""

    pending: int
    oldest_pending_at: datetime | None
    delivered_last_day: int
    last_delivered_at: datetime | None
    dead: int
    last_error: str | None


class Refusal(NamedTuple):
    """An event that was refused by itself, for the `attempts`th time. Without `next_at` it is dead."""

    event_id: str
    attempts: int
    error: str
    next_at: datetime | None


class Answer(NamedTuple):
    """What a receiver said. `status` is None where there was no answer; `text` says what happened."""

    status: int | None
    text: str
    retry_after: str | None = None


class Receiver(Protocol):
    """Whoever takes the events."""

    async def deliver(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send a batch, in bounded time. Never raises for what the receiver does."""
        ...


class Outbox(Protocol):
    """The rows of events that are to be delivered."""

    async def due(self, limit: int) -> list[Outgoing]:
        """The next rows that are due, those that wait longest first."""
        ...

    async def delivered(self, event_ids: Sequence[str]) -> None:
        """The receiver has taken them."""
        ...

    async def refused(self, refusals: Sequence[Refusal]) -> None:
        """The receiver refused them, each by itself."""
        ...

    async def failed(self, event_ids: Sequence[str], error: str) -> None:
        """The receiver was away: they stay due, and say why."""
        ...

    async def prune(self, limit: int) -> int:
        """Forget rows that were delivered thirty days ago; returns how many."""
        ...

    async def status(self) -> ExportStatus:
        """How the export stands."""
        ...

    async def dead(self, *, after: str | None, limit: int) -> list[DeadLetter]:
        """Dead letters by event id, the next `limit` after the id `after`."""
        ...

    async def retry(self, event_ids: Sequence[str] | None, *, by: Actor) -> list[str]:
        """Have dead letters sent again, None is all of them; returns which those were."""
        ...
