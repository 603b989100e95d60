"""Between the ledger's values and its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api.core.booking import Correction, Ended, Happening
from api.core.record import Booking, InFlight, UsageEvent, fields_of
from api.core.usage import Certainty, Source, Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import RowMapping

    from api.core.record import Checkpoint


def booking_row(booking: Booking) -> dict[str, Any]:
    """A row of `in_flight`."""
    return {**fields_of(booking), "input_tokens": 0, "output_tokens": 0, "checkpoint_at": None}


def checkpoint_row(checkpoint: Checkpoint) -> dict[str, Any]:
    """The parameters of a checkpoint's update."""
    return {
        "booking_id": checkpoint.booking_id,
        "inputs": checkpoint.input_tokens,
        "outputs": checkpoint.output_tokens,
        "at": checkpoint.at,
    }


def open_booking(row: RowMapping | Mapping[str, Any]) -> InFlight:
    """The value of a row of `in_flight`."""
    return InFlight(
        booking=Booking(**{name: row[name] for name in Booking.__dataclass_fields__}),
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        checkpoint_at=row["checkpoint_at"],
    )


def usage_event(row: RowMapping | Mapping[str, Any]) -> UsageEvent:
    """The value of a row of `usage_events`."""
    labels = {name: row[name] for name in Booking.__dataclass_fields__}
    number, cause = 0, row["cause"]
    if row["corrects"] is not None:
        labels["id"], number = row["corrects"], int(row["id"].rpartition("-")[2])
    return UsageEvent(
        booking=Booking(**labels),
        answered_model=row["answered_model"],
        usage=Usage(
            input_tokens=row["input_tokens"],
            output_tokens=row["output_tokens"],
            cached_tokens=row["cached_tokens"],
            reasoning_tokens=row["reasoning_tokens"],
            source=Source(row["source"]),
            certainty=Certainty(row["certainty"]),
            tokenizer=row["tokenizer"],
        ),
        ended=Ended(row["ended"]),
        cause=Correction(cause) if cause in set(Correction) else Happening(cause),
        first_token_ms=row["first_token_ms"],
        duration_ms=row["duration_ms"],
        ended_at=row["ended_at"],
        cost_nano_dollars=row["cost_nano_dollars"],
        price_version=row["price_version"],
        number=number,
    )
