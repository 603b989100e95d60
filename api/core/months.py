"""Calendar months in UTC, each named by the moment it begins."""

from __future__ import annotations

from datetime import UTC, datetime


def month_of(at: datetime) -> datetime:
    """The month that a moment is in."""
    at = at.astimezone(UTC)
    return datetime(at.year, at.month, 1, tzinfo=UTC)


def months_on(month: datetime, count: int) -> datetime:
    """The month `count` after this one, or before it; none is before the year 1."""
    number = max(12, month.year * 12 + month.month - 1 + count)
    return datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC)
