"""Calendar months in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from api.core.months import month_of, months_on


@pytest.mark.parametrize(
    ("at", "month"),
    [
        (datetime(2026, 11, 1, tzinfo=UTC), (2026, 11)),
        (datetime(2026, 11, 30, 23, 59, 59, 999999, tzinfo=UTC), (2026, 11)),
        (datetime(2028, 2, 29, 12, tzinfo=UTC), (2028, 2)),
        (datetime(2026, 12, 1, 4, 59, tzinfo=timezone(timedelta(hours=5))), (2026, 11)),
        (datetime(2026, 12, 31, 20, tzinfo=timezone(timedelta(hours=-5))), (2027, 1)),
    ],
)
def test_a_moment_is_in_the_month_of_utc(at, month) -> None:
    """Whatever zone it is told in, to the microsecond."""
    assert month_of(at) == datetime(*month, 1, tzinfo=UTC)


def test_months_are_counted_over_the_ends_of_years() -> None:
    """Forth and back by the same number is where one was."""
    november = datetime(2026, 11, 1, tzinfo=UTC)
    assert months_on(november, 2) == datetime(2027, 1, 1, tzinfo=UTC)
    assert months_on(november, -11) == datetime(2025, 12, 1, tzinfo=UTC)
    for count in range(-40, 40):
        assert months_on(months_on(november, count), -count) == november
        assert month_of(months_on(november, count + 1) - timedelta(microseconds=1)) == months_on(
            november, count
        )


def test_there_is_no_month_before_the_first() -> None:
    """Whoever keeps events for longer than there were years keeps all."""
    assert months_on(datetime(2026, 11, 1, tzinfo=UTC), -(10**9)) == datetime(1, 1, 1, tzinfo=UTC)
