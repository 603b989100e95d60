"""What stands on the ledger: bookings, their checkpoints, and the usage events that they become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from api.core.booking import Ended, Happening
from api.core.usage import Certainty, Source, Usage

if TYPE_CHECKING:
    from datetime import datetime

    from api.core.booking import Correction
    from api.core.money import Price


class Spending(NamedTuple):
    """Which spending of a tenant the ledger sums up, from `since` on.

    `of` is tenant, key, user or token, `id` which of them.
    """

    of: str
    id: str
    money: bool
    since: datetime | None


def fields_of(value: Booking | Usage) -> dict[str, Any]:
    """Its fields by name; `dataclasses.asdict` would copy each value as well."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class Booking:
    """The row that says: this request is in flight. Times are UTC."""

    id: str
    request_id: str
    tenant_id: str
    key_id: str | None
    token_id: str | None
    end_user: str | None
    dialect: str
    model: str
    upstream: str
    worker: str
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The running count of a booking."""

    booking_id: str
    input_tokens: int
    output_tokens: int
    at: datetime


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """The ledger's row for one booking. Appended once, never changed.

    `number` 0 is the booking's own event; those above it correct it: their tokens and cost are differences.
    `cost_nano_dollars` is None where there was no price; `price_version` names the price (core.money).
    """

    booking: Booking
    answered_model: str
    usage: Usage
    ended: Ended
    cause: Happening | Correction
    first_token_ms: int | None
    duration_ms: int
    ended_at: datetime
    cost_nano_dollars: int | None = None
    price_version: str | None = None
    number: int = 0

    @property
    def id(self) -> str:
        """The booking's id; of a correction with its number behind it, which sorts right after it."""
        return f"{self.booking.id}-{self.number}" if self.number else self.booking.id

    def flat(self) -> dict[str, Any]:
        """All of it by field name: a row of the ledger, and what the API and the CLI show."""
        parts = fields_of(self.booking) | fields_of(self.usage)
        rest = (
            "answered_model",
            "ended",
            "cause",
            "first_token_ms",
            "duration_ms",
            "ended_at",
            "cost_nano_dollars",
            "price_version",
            "id",
        )
        corrects = self.booking.id if self.number else None
        return parts | {name: getattr(self, name) for name in rest} | {"corrects": corrects}


@dataclass(frozen=True, slots=True)
class InFlight:
    """A booking that is open, and its last checkpoint: how many tokens, and when that was written."""

    booking: Booking
    input_tokens: int
    output_tokens: int
    checkpoint_at: datetime | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over a tenant's usage events."""

    events: int
    input_tokens: int
    output_tokens: int


def lost_event(one: InFlight, price: Price | None, at: datetime) -> UsageEvent:
    """What is known of a booking whose worker died: its last checkpoint, and that there was perhaps more."""
    booking = one.booking
    usage = Usage(one.input_tokens, one.output_tokens, 0, 0, Source.CHECKPOINT, Certainty.AT_LEAST)
    lasted = (one.checkpoint_at or booking.started_at) - booking.started_at
    return UsageEvent(
        booking=booking,
        answered_model=booking.model,
        usage=usage,
        ended=Ended.LOST,
        cause=Happening.WORKER_LOST,
        first_token_ms=None,
        duration_ms=max(0, round(lasted.total_seconds() * 1000)),
        ended_at=at,
        cost_nano_dollars=None if price is None else price.of(usage),
        price_version=None if price is None else price.version,
    )
