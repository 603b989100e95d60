"""Models of the export, for admins. docs/export.md says what is behind them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.schema import PRINTABLE

EventId = Annotated[str, Field(min_length=1, max_length=40, pattern=PRINTABLE)]


class ExportOut(BaseModel):
    """How the export stands. `pending` events wait, the oldest since `oldest_pending_at`.

    `delivered_last_day` and `last_delivered_at` are about requests that came in within a day. `last_error`
    is what keeps events waiting, else what the last dead letter died of.
    """

    model_config = ConfigDict(from_attributes=True)

    pending: int
    oldest_pending_at: datetime | None
    delivered_last_day: int
    last_delivered_at: datetime | None
    dead: int
    last_error: str | None


class DeadLetterOut(BaseModel):
    """An event that the receiver refused by itself, `attempts` times. `error` is what it said last."""

    model_config = ConfigDict(from_attributes=True)

    event_id: str
    tenant_id: str | None
    started_at: datetime
    attempts: int
    dead_at: datetime
    error: str | None


class DeadLetterPage(BaseModel):
    """Dead letters by event id. Pass `next` as `after` to get those behind them."""

    data: list[DeadLetterOut]
    next: str | None


class RetryIn(BaseModel):
    """Which dead letters to send again: those of `event_ids`, or all."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"all": True}})

    event_ids: Annotated[list[EventId], Field(min_length=1, max_length=1000)] | None = None
    all: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _one_of_both(self) -> RetryIn:
        if self.all == (self.event_ids is not None):
            raise ValueError("either `event_ids`, or `all` as true")
        return self


class RetryOut(BaseModel):
    """How many dead letters are sent again; an id that is none of a dead letter is not counted."""

    retried: int
