"""Rows of a period: those whose requests came in from a moment on, and before another."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from api.core.ids import first_id

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def first_booking(moment: datetime) -> str:
    """What sorts before the ids of all bookings from that millisecond on, and after all earlier ones."""
    return first_id("bk_", max(0, (moment - _EPOCH) // _MILLISECOND))


def within(
    id_of: ColumnElement[Any], started_at: ColumnElement[Any], start: datetime, end: datetime
) -> tuple[ColumnElement[bool], ...]:
    """Conditions for a period. An id begins with the milliseconds of `started_at`, and is what is indexed."""
    return (
        id_of >= first_booking(start),
        id_of < first_booking(end + _MILLISECOND),
        started_at >= start,
        started_at < end,
    )
