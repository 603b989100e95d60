"""From limits to demands: periods without gaps in any time zone, counters that are nobody else's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from api.core.demand import STREAMS, Demand, Shape
from api.core.demands import demands_of, period_of, seconds_left
from api.core.money import Price
from auth.principal import LIMITS, Limit

ZONES = ("UTC", "Europe/Berlin", "America/Sao_Paulo", "Pacific/Apia", "Asia/Kathmandu", "America/Havana")
"""Whole and half hours, both sides of the date line; midnights that do not exist, and that come twice."""
NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
_INSTANTS = st.datetimes(datetime(2005, 1, 1), datetime(2037, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001
_KINDS = ("tenant", "key", "user", "token")


def demand(limit: Limit, now: datetime = NOW, time_zone: str = "UTC", **more) -> Demand:
    """The one demand of a limit."""
    (made,) = demands_of((limit,), now=now, time_zone=time_zone, **more)
    return made


# --- periods ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("name", ["tokens_per_day", "nano_dollars_per_month"])
@given(now=_INSTANTS)
def test_a_period_ends_where_the_next_one_begins(zone, name, now) -> None:
    """Each instant is in exactly one, by the clock on the tenant's wall; no budget is counted twice."""
    period = period_of(name, now, zone)
    assert period is not None
    assert period.starts_at <= now < period.ends_at
    local = now.astimezone(ZoneInfo(zone))
    assert period.label == f"{local:%Y-%m-%d}"[: 10 if name.endswith("day") else 7]
    after = period_of(name, period.ends_at, zone)
    assert after is not None
    assert (after.starts_at, after.label > period.label) == (period.ends_at, True)
    last = period_of(name, period.ends_at - timedelta(microseconds=1), zone)
    assert last == period
    assert all(one.utcoffset() == timedelta() for one in period[1:])


@pytest.mark.parametrize(
    ("zone", "now", "label", "starts", "hours"),
    [
        ("Europe/Berlin", "2026-03-29T12:00", "2026-03-29", "2026-03-28T23:00", 23),
        ("Europe/Berlin", "2026-10-25T12:00", "2026-10-25", "2026-10-24T22:00", 25),
        ("Europe/Berlin", "2026-06-30T22:00", "2026-07-01", "2026-06-30T22:00", 24),
        ("America/Sao_Paulo", "2018-11-04T12:00", "2018-11-04", "2018-11-04T03:00", 23),
        ("America/Sao_Paulo", "2018-02-17T12:00", "2018-02-17", "2018-02-17T02:00", 25),
        ("America/Havana", "2025-11-02T12:00", "2025-11-02", "2025-11-02T04:00", 25),
        ("Pacific/Apia", "2011-12-29T12:00", "2011-12-29", "2011-12-29T10:00", 24),
        ("Pacific/Apia", "2011-12-30T10:00", "2011-12-31", "2011-12-30T10:00", 24),
        ("Asia/Kathmandu", "2026-03-04T18:15", "2026-03-05", "2026-03-04T18:15", 24),
    ],
)
def test_days_are_as_long_as_they_are(zone, now, label, starts, hours) -> None:
    """Daylight saving, a midnight that does not exist or comes twice, a day that a country left out."""
    period = period_of("tokens_per_day", datetime.fromisoformat(f"{now}+00:00"), zone)
    assert period is not None
    assert (period.label, period.starts_at) == (label, datetime.fromisoformat(f"{starts}+00:00"))
    assert period.ends_at - period.starts_at == timedelta(hours=hours)


def test_only_days_and_months_are_periods() -> None:
    """A minute is a rate's, and an allowance is for all time."""
    ends = {name: period_of(name, NOW, "UTC") for name in LIMITS}
    assert {name for name, period in ends.items() if period} == {
        f"{unit}_per_{time}" for unit in ("tokens", "nano_dollars") for time in ("day", "month")
    }


@given(now=_INSTANTS, zone=st.sampled_from(ZONES))
def test_a_budgets_counter_outlives_its_period_by_a_day(now, zone) -> None:
    """For what began in it; and callers are told when the period ends, never that it is over."""
    made = demand(Limit("tenant", "tn_a", 5, "tokens_per_month"), now, zone)
    period = period_of("tokens_per_month", now, zone)
    assert period is not None
    left = (period.ends_at - now).total_seconds()
    assert 0 < made.keep_seconds - 86400 - left <= 1
    assert seconds_left(made) == made.keep_seconds - 86400
    assert seconds_left(demand(Limit("token", "t", 5, "tokens_in_all"))) is None
    assert seconds_left(demand(Limit("tenant", "tn_a", 5, "requests_per_minute"))) is None


# --- what is asked ----------------------------------------------------------------------------------


def test_each_limit_asks_for_its_own() -> None:
    """A slot, a request, tokens of input and output, or their price, rounded up for every single token."""
    price = Price(150_000, 75_000, 600_001, 600_001)
    made = {}
    for name in LIMITS:
        one = demand(Limit("tenant", "tn_a", 9, name), input_tokens=7, price=price)
        made[name] = (one.shape, one.amount, one.base, one.each)
    money = (Shape.BUDGET, 9, 2, 1)
    assert made == {
        "max_streams": (Shape.CAP, 9, 0, 0),
        "requests_per_minute": (Shape.RATE, 9, 1, 0),
        "tokens_per_minute": (Shape.RATE, 9, 7, 1),
        "tokens_per_day": (Shape.BUDGET, 9, 7, 1),
        "tokens_per_month": (Shape.BUDGET, 9, 7, 1),
        "nano_dollars_per_day": money,
        "nano_dollars_per_month": money,
        "tokens_in_all": (Shape.BUDGET, 9, 7, 1),
    }


def test_output_that_is_free_is_still_counted() -> None:
    """Or a stream would have no credit to be stopped by."""
    limit = Limit("tenant", "tn_a", 9, "nano_dollars_per_day")
    assert demand(limit, input_tokens=7, price=Price(0, 0, 0, 0))[3:5] == (0, 1)


def test_shadow_and_owner_are_those_of_the_limit() -> None:
    """And the order is: a refusal names the first of two that are equally tight."""
    limits = [Limit(kind, "x", 3, shadow=kind == "key") for kind in _KINDS]
    made = demands_of(limits, now=NOW, time_zone="UTC")
    assert [(one.of, one.shadow, one.name) for one in made] == [
        (kind, kind == "key", "max_streams") for kind in _KINDS
    ]


# --- counters ---------------------------------------------------------------------------------------


def test_the_tenants_cap_is_counted_where_streams_are() -> None:
    """The set that leases are in, and nothing else is counted there."""
    assert demand(Limit("tenant", "tn_a", 5)).counter == STREAMS


@given(
    limits=st.lists(
        st.tuples(st.sampled_from(_KINDS[1:]), st.text(max_size=8), st.sampled_from(LIMITS)), unique=True
    ),
    days=st.lists(st.integers(0, 400), min_size=1, max_size=3, unique=True),
)
def test_counters_differ_by_owner_limit_and_period(limits, days) -> None:
    """Whatever owners are called; and the same limit in the same period has the same counter."""
    users = [(kind, owner, name) for kind, owner, name in limits if kind == "user"]
    plain = [(kind, owner.encode().hex(), name) for kind, owner, name in limits if kind != "user"]
    seen: dict[str, tuple[str, str, str, str | None]] = {}
    for day in days:
        now = NOW + timedelta(days=day)
        for kind, owner, name in {*users, *plain, *(("tenant", "tn_a", name) for name in LIMITS)}:
            period = period_of(name, now, "UTC")
            counter = demand(Limit(kind, owner, 5, name), now).counter
            meant = (kind, owner, name, period.label if period else None)
            assert seen.setdefault(counter, meant) == meant
    assert len(set(seen.values())) == len(seen)


@given(
    names=st.lists(st.one_of(st.text(), st.text(st.sampled_from("\ud800\udfff?�"))), unique=True, min_size=2)
)
def test_hostile_end_users_neither_collide_nor_leave_the_hash_tag(names) -> None:
    """Braces, colons, line ends, halves of characters: a name is a name, of no more than 32 hex digits."""
    counters = {demand(Limit("user", name, 5, "tokens_per_day")).counter for name in names}
    assert len(counters) == len(names)
    for counter in counters:
        start, _, digits = counter.rpartition(":")
        assert start == "tokens_per_day:2026-03-04:user"
        assert len(digits) == 32
        assert set(digits) <= set("0123456789abcdef")
        assert key_slot(f"sg:{{tn_a}}:{counter}".encode()) == key_slot(b"{tn_a}")


@pytest.mark.parametrize("name", ["", "}", "{tn_b}", ":key:k", "k\n\t5\t5", "x" * 10_000, "\ud800", "?"])
def test_an_end_user_is_never_a_key_or_the_tenant(name) -> None:
    """However it is called, its counters are an end user's."""
    for limit in LIMITS:
        others = {demand(Limit(kind, name, 5, limit)).counter for kind in _KINDS if kind != "user"}
        assert demand(Limit("user", name, 5, limit)).counter not in others
