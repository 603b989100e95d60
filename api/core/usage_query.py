"""What is asked of usage, and where the answer stands: intervals of a time zone, and cubes of the roll-ups.

Roll-ups have three cubes. `quarter` has a row for each quarter of an hour, tenant, key, model and upstream;
`day` the same for UTC days; `user` has quarters too, and end users. Every time zone is whole quarters away
from UTC, so that quarters make up its hours, days and months exactly; the days of UTC in the middle of an
interval come from `day`.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

from api.core.demands import midnight

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

GROUPS = ("tenant", "key", "end_user", "model", "upstream")
FILTERS = GROUPS[1:]
INTERVALS = ("hour", "day", "month")
QUARTER = timedelta(minutes=15)
DAY = timedelta(days=1)
MAX_INTERVALS = 10_000
"""So many hours or days may be asked for at once."""

FIRST = datetime(1970, 1, 1, tzinfo=UTC)
LAST = datetime(9999, 1, 1, tzinfo=UTC)
_YEARS = range(2000, 2200)
"""Before, there were time zones that no quarters fit."""
_LENGTHS = {"hour": timedelta(hours=1), "day": DAY}
_DECEMBER = 12
_HALF = re.compile("[\ud800-\udfff]")
"""Half a character, which no database takes."""


class BadQuery(ValueError):  # noqa: N818 - reads as what happened
    """What was asked cannot be; `param` is what is wrong with it."""

    def __init__(self, param: str, text: str) -> None:
        super().__init__(f"`{param}` {text}.")
        self.param = param


class Span(NamedTuple):
    """From a moment to just before another, in UTC."""

    starts_at: datetime
    ends_at: datetime


class Segment(NamedTuple):
    """A part of a span, and the cube whose rows make it up."""

    cube: str
    starts_at: datetime
    ends_at: datetime


class Place(NamedTuple):
    """Where a page ends: the beginning of an interval, and the groups of the last row; None: before any."""

    starts_at: datetime
    groups: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over usage events and their corrections. `events` are requests: a correction is none."""

    events: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nano_dollars: int = 0


class UsageRow(NamedTuple):
    """The sums of one interval and group. `groups` are by name; "" stands for none."""

    span: Span
    groups: Mapping[str, str]
    sums: Sums


class UsagePage(NamedTuple):
    """Some rows, where the next page begins, and, if they were asked for, the sums of the whole query."""

    rows: tuple[UsageRow, ...]
    after: Place | None
    totals: Sums | None


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which sums. `tenant_id` None is all tenants, `since` None from the first, `until` None to the last.

    Both ends are on a quarter of an hour. `filters` are by name: "" is what has no key, or no end user.
    """

    tenant_id: str | None
    since: datetime | None = None
    until: datetime | None = None
    time_zone: str = "UTC"
    interval: str | None = None
    group_by: tuple[str, ...] = ()
    filters: Mapping[str, str] = field(default_factory=dict)

    @property
    def whole(self) -> Span:
        """All of the time that is asked for."""
        return Span(self.since or FIRST, self.until or LAST)

    @property
    def is_one_row(self) -> bool:
        """Whether the answer is the sums alone."""
        return self.interval is None and not self.group_by

    @property
    def order(self) -> tuple[str, ...]:
        """The groups in the order that rows come in: end users first, as an index has them."""
        return tuple(sorted(self.group_by, key=lambda name: (name != "end_user", GROUPS.index(name))))

    def spans(self, start: datetime | None = None) -> Iterator[Span]:
        """The intervals in their order, of one that begins at `start` on; the first and the last may be cut.

        An hour that a time zone has twice is two intervals, and days are as long as they are there.
        """
        begin, end = self.whole
        at = start or begin
        if self.interval is None:
            yield Span(at, end)
            return
        zone = ZoneInfo(self.time_zone)
        following = {"hour": _next_hour, "day": _next_day, "month": _next_month}[self.interval]
        while at < end:
            after = min(following(at, zone), end)
            yield Span(at, after)
            at = after

    def segments(self, span: Span) -> Iterator[Segment]:
        """Where a span's sums stand: together its segments are the span, and no two overlap."""
        begin, end = span
        if "end_user" in self.group_by or "end_user" in self.filters:
            yield Segment("user", begin, end)
            return
        first, last = _day(begin + DAY - QUARTER), _day(end)
        if first >= last:
            yield Segment("quarter", begin, end)
            return
        if begin < first:
            yield Segment("quarter", begin, first)
        yield Segment("day", first, last)
        if last < end:
            yield Segment("quarter", last, end)

    def merged(self, spans: Iterable[Span]) -> list[Segment]:
        """The segments of neighbouring spans, those of one cube in one where they are neighbours too."""
        found: list[Segment] = []
        for span in spans:
            for one in self.segments(span):
                if found and found[-1].cube == one.cube and found[-1].ends_at == one.starts_at:
                    found[-1] = found[-1]._replace(ends_at=one.ends_at)
                else:
                    found.append(one)
        return found


def _day(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0)


def _next_hour(at: datetime, zone: ZoneInfo) -> datetime:
    def hour(moment: datetime) -> tuple[int, timedelta | None]:
        local = moment.astimezone(zone)
        return local.hour, local.utcoffset()

    now, after = hour(at), at + QUARTER
    while hour(after) == now:
        after += QUARTER
    return after


def _next_day(at: datetime, zone: ZoneInfo) -> datetime:
    day = at.astimezone(zone).date() + DAY
    while midnight(day, zone) <= at:  # a day that a time zone left out
        day += DAY
    return midnight(day, zone)


def _next_month(at: datetime, zone: ZoneInfo) -> datetime:
    day = _month_after(at.astimezone(zone).date())
    while midnight(day, zone) <= at:
        day = _month_after(day)
    return midnight(day, zone)


def _month_after(day: date) -> date:
    return date(day.year + 1, 1, 1) if day.month == _DECEMBER else date(day.year, day.month + 1, 1)


# --- from texts, as they come over HTTP and on the command line -------------------------------------


def moment(param: str, text: str, time_zone: str) -> datetime:
    """A day (its midnight) or a time of ISO 8601, of `time_zone` where it names no other. Raises BadQuery."""
    try:
        at = datetime.fromisoformat(text)
        at = (at.replace(tzinfo=ZoneInfo(time_zone)) if at.tzinfo is None else at).astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadQuery(
            param, "must be a day such as 2026-11-01, or a time such as 2026-11-01T08:00:00Z (`+` is %2B)"
        ) from None
    if at.year not in _YEARS:
        raise BadQuery(param, f"must be of the years {_YEARS[0]} to {_YEARS[-1]}")
    return at


def _on_a_quarter(param: str, text: str | None, time_zone: str) -> datetime | None:
    if text is None:
        return None
    at = moment(param, text, time_zone)
    if (at - FIRST) % QUARTER:
        raise BadQuery(param, "must be on a quarter of an hour, such as 08:00, 08:15, 08:30 or 08:45")
    return at


def read_query(
    tenant_id: str | None,
    *,
    now: datetime,
    since: str | None = None,
    until: str | None = None,
    time_zone: str = "UTC",
    interval: str | None = None,
    group_by: str | None = None,
    filters: Mapping[str, str | None] | None = None,
) -> UsageQuery:
    """A query from its texts; `group_by` is names with commas between. Raises BadQuery."""
    first, last = _on_a_quarter("from", since, time_zone), _on_a_quarter("to", until, time_zone)
    if interval is not None:
        if interval not in INTERVALS:
            raise BadQuery("interval", f"must be one of {', '.join(INTERVALS)}")
        if first is None and last is not None:
            raise BadQuery("interval", "needs `from` where there is a `to`")
        first, last = first or _begin(interval, now, time_zone), last or _quarter_after(now)
    if first is not None and last is not None:
        if first >= last:
            raise BadQuery("to", "must be later than `from`")
        if interval in _LENGTHS and last - first > MAX_INTERVALS * _LENGTHS[interval]:
            raise BadQuery("interval", f"would make more than {MAX_INTERVALS} intervals; ask for less time")
    return UsageQuery(
        tenant_id,
        first,
        last,
        time_zone,
        interval,
        _groups(group_by),
        {name: value for name, value in (filters or {}).items() if value is not None},
    )


def _begin(interval: str, now: datetime, time_zone: str) -> datetime:
    """The hours of this day, the days of this month, the months of this year."""
    zone = ZoneInfo(time_zone)
    day = now.astimezone(zone).date()
    begin = {"hour": day, "day": day.replace(day=1), "month": day.replace(month=1, day=1)}[interval]
    return midnight(begin, zone)


def _quarter_after(now: datetime) -> datetime:
    return now - (now - FIRST) % QUARTER + QUARTER


def _groups(text: str | None) -> tuple[str, ...]:
    named = {name.strip() for name in text.split(",")} if text else set()
    if not named <= set(GROUPS):
        raise BadQuery("group_by", f"must be of {', '.join(GROUPS)}, with commas between")
    return tuple(name for name in GROUPS if name in named)


# --- cursors ----------------------------------------------------------------------------------------


def cursor_of(place: Place) -> str:
    """A place as text, for the next page's `after`."""
    value = [int(place.starts_at.timestamp()), place.groups]
    return base64.urlsafe_b64encode(json.dumps(value, ensure_ascii=False).encode()).decode().rstrip("=")


def place_of(cursor: str, query: UsageQuery) -> Place:
    """The place that a cursor of this query names. Raises BadQuery."""
    try:
        value: Any = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        seconds, groups = value
        place = Place(datetime.fromtimestamp(seconds, UTC), None if groups is None else tuple(groups))
        fits = isinstance(seconds, int) and seconds % int(QUARTER.total_seconds()) == 0
        fits &= query.whole.starts_at <= place.starts_at < query.whole.ends_at and not query.is_one_row
    except (ValueError, TypeError, OverflowError, OSError, RecursionError):
        fits = False
    if not fits or not _are_groups(place.groups, query):
        raise BadQuery("after", "must be the `next` of a page of the same query")
    return place


def _are_groups(groups: tuple[Any, ...] | None, query: UsageQuery) -> bool:
    if groups is None:
        return query.interval is not None
    if not groups:
        return False
    return len(groups) == len(query.group_by) and all(
        isinstance(value, str) and "\0" not in value and not _HALF.search(value) for value in groups
    )
