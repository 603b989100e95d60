"""Intervals without gaps in any time zone, segments that make them up exactly, and texts that are refused."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core.demands import period_of
from api.core.usage_query import (
    DAY,
    FILTERS,
    GROUPS,
    INTERVALS,
    MAX_INTERVALS,
    QUARTER,
    BadQuery,
    Place,
    UsageQuery,
    cursor_of,
    moment,
    place_of,
    read_query,
)

ZONES = sorted(available_timezones() - {"localtime"})
ODD = ("Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns", "Pacific/Apia", "America/Havana")
"""Quarters and halves of hours, half an hour of daylight saving, days left out, midnights that come twice."""
NOW = datetime(2026, 11, 23, 22, 7, 8, 9, tzinfo=UTC)
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
MOMENTS = st.integers(0, 40 * 365 * 96).map(lambda quarters: EPOCH + quarters * QUARTER)
LENGTHS = st.one_of(st.integers(1, 400), st.integers(1, 70_000)).map(lambda quarters: quarters * QUARTER)


@st.composite
def queries(draw: st.DrawFn, interval: str | None = None) -> UsageQuery:
    """A query with both ends, of any zone; the odd ones more often."""
    since = draw(MOMENTS)
    length = min(draw(LENGTHS), timedelta(days=20)) if interval == "hour" else draw(LENGTHS)
    zone = draw(st.sampled_from(ODD) | st.sampled_from(ZONES))
    groups = tuple(name for name in GROUPS if draw(st.booleans()))
    filters = {name: "x" for name in FILTERS if draw(st.integers(0, 4)) == 0}
    return UsageQuery(None, since, since + length, zone, interval, groups, filters)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# --- intervals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [*INTERVALS, None])
@given(data=st.data())
def test_intervals_are_all_of_the_time_and_overlap_nowhere(interval, data) -> None:
    """From `from` to `to`, each begins where the one before ends, on a quarter of an hour; none is empty."""
    query = data.draw(queries(interval))
    spans = list(query.spans())
    assert (spans[0].starts_at, spans[-1].ends_at) == query.whole
    assert all(one.ends_at == after.starts_at for one, after in itertools.pairwise(spans))
    assert all(one.starts_at < one.ends_at for one in spans)
    assert all(at.timestamp() % 900 == 0 and at.utcoffset() == timedelta() for one in spans for at in one)
    start = data.draw(st.sampled_from(spans)).starts_at
    assert list(query.spans(start)) == [one for one in spans if one.starts_at >= start]


@given(query=queries("hour"))
def test_an_hour_is_one_on_the_wall(query) -> None:
    """All its quarters have the same day, hour and offset, and the next hour has not."""
    zone = ZoneInfo(query.time_zone)

    def label(at: datetime) -> tuple[object, ...]:
        local = at.astimezone(zone)
        return local.date(), local.hour, local.utcoffset()

    spans = list(query.spans())
    for one in spans:
        assert label(one.ends_at - QUARTER) == label(one.starts_at)
        assert one.ends_at - one.starts_at <= timedelta(hours=1)
    assert all(label(one.starts_at) != label(after.starts_at) for one, after in itertools.pairwise(spans))


@pytest.mark.parametrize(("interval", "limit"), [("day", "tokens_per_day"), ("month", "tokens_per_month")])
@given(data=st.data())
def test_days_and_months_are_those_of_budgets(interval, limit, data) -> None:
    """What a tenant is billed for a day is what its budget of that day counted."""
    zone, at = data.draw(st.sampled_from(sorted({*ODD, "Europe/Berlin"}))), data.draw(MOMENTS)
    period = period_of(
        limit, at + timedelta(days=365 * 13), zone
    )  # until 2011 a day began at 00:01 somewhere
    assert period is not None
    query = UsageQuery(None, period.starts_at, period.ends_at + 40 * DAY, zone, interval)
    first = next(query.spans())
    assert first == (period.starts_at, period.ends_at)


@pytest.mark.parametrize(
    ("zone", "since", "hours", "minutes"),
    [
        ("Europe/Berlin", "2026-10-24T23:00", 3, [60, 60, 60]),  # 01, 02, 02 again
        ("Europe/Berlin", "2026-03-29T00:00", 2, [60, 60]),  # 01, 03
        ("Asia/Kathmandu", "2026-03-29T00:00", 2, [15, 60, 45]),
        ("Australia/Lord_Howe", "2026-04-04T14:00", 2, [60, 30, 30]),  # 01, the second half of 01 again, 02
        ("Australia/Lord_Howe", "2026-10-03T14:30", 2, [60, 30, 30]),  # 01, 02 from half past on, 03
    ],
)
def test_hours_that_come_twice_are_two(zone, since, hours, minutes) -> None:
    """Neither added up under one name nor left out; hours begin where the zone's clock shows a full one."""
    start = utc(since)
    query = UsageQuery(None, start, start + timedelta(hours=hours), zone, "hour")
    assert [(one.ends_at - one.starts_at) // timedelta(minutes=1) for one in query.spans()] == minutes


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29", [23, 24]),
        ("Europe/Berlin", "2026-10-25", [25, 24]),
        ("Pacific/Apia", "2011-12-29", [24, 24]),  # the 30th never was
        ("America/Havana", "2026-11-01", [25, 24]),
        ("Australia/Lord_Howe", "2026-04-05", [24.5, 24]),
    ],
)
def test_days_are_as_long_as_they_are(zone, day, hours) -> None:
    """23, 25 and 24 and a half hours, and a day that a country left out."""
    start = moment("from", day, zone)
    query = UsageQuery(None, start, start + timedelta(hours=sum(hours)), zone, "day")
    assert [(one.ends_at - one.starts_at) / timedelta(hours=1) for one in query.spans()] == hours


# --- segments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [*INTERVALS, None])
@given(data=st.data())
def test_segments_are_the_interval_exactly(interval, data) -> None:
    """One after the other, from its beginning to its end; days are whole days of UTC, and never of users."""
    query = data.draw(queries(interval))
    of_users = "end_user" in query.group_by or "end_user" in query.filters
    for span in itertools.islice(query.spans(), 60):
        segments = list(query.segments(span))
        assert (segments[0].starts_at, segments[-1].ends_at) == span
        assert all(one.ends_at == after.starts_at for one, after in itertools.pairwise(segments))
        for cube, starts_at, ends_at in segments:
            assert starts_at < ends_at
            assert (cube == "user") == of_users
            if cube == "day":
                assert {at.timestamp() % 86400 for at in (starts_at, ends_at)} == {0}
            elif not of_users:
                assert ends_at - starts_at < 2 * DAY


def test_a_month_is_read_by_days() -> None:
    """That is what makes its summary quick: with two edges in quarters where midnight is not that of UTC."""
    for zone, cubes in (("UTC", ["day"]), ("Asia/Kathmandu", ["quarter", "day", "quarter"])):
        query = read_query("tn", now=NOW, since="2026-10-01", until="2026-11-01", time_zone=zone)
        assert [one.cube for one in query.segments(query.whole)] == cubes
    everything = UsageQuery("tn")
    assert [one.cube for one in everything.segments(everything.whole)] == ["day"]


# --- texts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("2026-11-01", "UTC", "2026-11-01T00:00"),
        ("2026-11-01", "Europe/Berlin", "2026-10-31T23:00"),
        ("2026-11-01", "Asia/Kathmandu", "2026-10-31T18:15"),
        ("2026-11-01T08:30", "Europe/Berlin", "2026-11-01T07:30"),
        ("2026-11-01T08:30:00Z", "Europe/Berlin", "2026-11-01T08:30"),
        ("2026-11-01T08:30:00-03:30", "Europe/Berlin", "2026-11-01T12:00"),
        ("2026-10-25T02:30", "Europe/Berlin", "2026-10-25T00:30"),  # comes twice: the first
    ],
)
def test_days_and_times_are_the_zones_own(text, zone, expected) -> None:
    """A day is its midnight there; a time without an offset is one of its clocks."""
    assert moment("from", text, zone) == utc(expected)


BAD = [
    ("from", {"since": "yesterday"}),
    ("from", {"since": ""}),
    ("from", {"since": "2026-13-01"}),
    ("from", {"since": "2026-11-01T08:07:00Z"}),
    ("from", {"since": "2026-11-01T08:00:00.000001Z"}),
    ("from", {"since": "1999-12-31"}),
    ("from", {"since": "0001-01-01T00:00+14:00"}),
    ("to", {"until": "9999-12-31T23:45-14:00"}),
    ("to", {"until": "2026-11-01T00:00:00 02:00"}),
    ("to", {"since": "2026-11-01", "until": "2026-11-01"}),
    ("to", {"since": "2026-11-02", "until": "2026-11-01"}),
    ("interval", {"interval": "week", "since": "2026-11-01"}),
    ("interval", {"interval": "day", "until": "2026-11-01"}),
    ("interval", {"interval": "hour", "since": "2020-01-01", "until": "2022-01-01"}),
    ("to", {"interval": "hour", "since": "2027-01-01"}),
    ("group_by", {"group_by": "colour"}),
    ("group_by", {"group_by": "model,"}),
]


@pytest.mark.parametrize(("param", "given"), BAD, ids=lambda value: str(value)[:60])
def test_what_cannot_be_asked_is_refused_by_name(param, given) -> None:
    """BadQuery with the parameter, never another error; the text names it too."""
    with pytest.raises(BadQuery, match=f"^`{param}` ") as refused:
        read_query("tn", now=NOW, **given)
    assert refused.value.param == param


@given(text=st.text(max_size=30), zone=st.sampled_from(ODD))
def test_any_text_is_a_moment_or_refused(text, zone) -> None:
    """Nothing else can come of it."""
    try:
        query = read_query("tn", now=NOW, since=text, time_zone=zone)
    except BadQuery:
        return
    assert query.whole.starts_at.timestamp() % 900 == 0


def test_what_is_left_out_is_the_widest() -> None:
    """All of the time; an interval ends with the running quarter; groups are in one order, each once."""
    assert read_query("tn", now=NOW) == UsageQuery("tn")
    asked = read_query(None, now=NOW, since="2026-11-01", interval="day", group_by="model, tenant,model")
    assert asked.until == utc("2026-11-23T22:15")
    assert asked.group_by == ("tenant", "model")
    full = read_query("tn", now=utc("2026-11-23T22:15"), since="2026-11-01", interval="day")
    assert full.until == utc("2026-11-23T22:30")  # what comes in this very moment is in it
    begins = {"hour": "2026-11-23T18:15", "day": "2026-10-31T18:15", "month": "2025-12-31T18:15"}
    for interval, begin in begins.items():  # in Kathmandu it is the 24th already
        asked = read_query("tn", now=NOW, interval=interval, time_zone="Asia/Kathmandu")
        assert asked.since == utc(begin)
    filters = dict.fromkeys(FILTERS) | {"model": "m", "key": ""}
    assert read_query("tn", now=NOW, filters=filters).filters == {"model": "m", "key": ""}
    most = EPOCH + MAX_INTERVALS * timedelta(hours=1)
    asked = read_query("tn", now=NOW, since="2000-01-01", until=most.isoformat(), interval="hour")
    assert len(list(asked.spans())) == MAX_INTERVALS


# --- cursors ----------------------------------------------------------------------------------------


@given(data=st.data())
def test_a_cursor_is_the_place_it_was_made_of(data) -> None:
    """Whatever groups are called; and it is a word that a URL takes as it is."""
    query = data.draw(queries(data.draw(st.sampled_from(INTERVALS))))
    names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9)
    last = st.tuples(*[names for _ in query.group_by])
    groups = data.draw(st.none() | last if query.group_by else st.none())
    place = Place(query.whole.starts_at, groups)
    cursor = cursor_of(place)
    assert place_of(cursor, query) == place
    assert cursor.replace("-", "").replace("_", "").isalnum()


def test_a_cursor_of_another_query_is_refused() -> None:
    """Of other groups, of another time, of a query that has one row; and so is what never was one."""
    query = read_query("tn", now=NOW, since="2026-11-01", interval="day", group_by="key,model")
    start = query.whole.starts_at
    places = [
        Place(start, ("k",)),
        Place(start, ("k", "m", "u")),
        Place(start - QUARTER, ("k", "m")),
        Place(query.whole.ends_at, None),
        Place(start, ("k", "\0")),
        Place(start, ("k", 7)),  # type: ignore[arg-type]
    ]
    texts = [
        "",
        "x",
        "WzE",
        "W10",
        "bnVsbA",
        "é",
        "W1tdLFtdXQ",
        "WzEuNSxudWxsXQ",
        "Wzk5OTk5OTk5OTk5OTk5OSxudWxsXQ",
    ]
    half = "WzE3OTM0OTEyMDAsWyJrIiwiXHVkODAwIl1d"  # [1793491200,["k","\ud800"]]
    for cursor in [*map(cursor_of, places), *texts, half]:
        with pytest.raises(BadQuery, match=r"^`after` "):
            place_of(cursor, query)
    by_model = read_query("tn", now=NOW, group_by="model")
    by_day = read_query("tn", now=NOW, since="2026-11-01", interval="day")
    for asked, groups in ((by_model, None), (by_day, ()), (read_query("tn", now=NOW), ())):
        with pytest.raises(BadQuery, match=r"^`after` "):
            place_of(cursor_of(Place(asked.whole.starts_at, groups)), asked)
