"""Models of usage: what can be asked, rows of sums, single events. docs/usage.md says what they mean."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field

from api.core.usage_query import GROUPS, Sums, cursor_of
from api.schema import PRINTABLE
from api.schema_accounts import TimeZone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from api.core.record import UsageEvent
    from api.core.usage_query import UsagePage, UsageQuery, UsageRow

MAX_ROWS = 1000
_MAX_CURSOR = 8000
_PRINTABLE_OR_NONE = PRINTABLE.replace("+$", "*$")

Tenant = Annotated[str, Field(max_length=40, pattern=PRINTABLE)]
Moment = Annotated[str, Field(max_length=40, pattern=PRINTABLE)]
Limit = Annotated[int, Field(ge=1, le=MAX_ROWS)]
Format = Annotated[
    Literal["json", "csv"] | None, Field(description="CSV is all rows; so is `Accept: text/csv`.")
]


class UsageAsked(BaseModel):
    """The parameters of a question about usage. An unknown one is refused: it might have been a filter."""

    model_config = ConfigDict(extra="forbid")

    from_: Annotated[Moment | None, Field(alias="from", description="A day, or a time of ISO 8601.")] = None
    to: Annotated[Moment | None, Field(description="The same; up to then, and without it.")] = None
    interval: Annotated[
        Annotated[str, Field(max_length=10)] | None, Field(description="`hour`, `day` or `month`.")
    ] = None
    group_by: Annotated[
        Annotated[str, Field(max_length=100)] | None,
        Field(description="Of `tenant`, `key`, `end_user`, `model`, `upstream`, with commas between."),
    ] = None
    key: Annotated[str | None, Field(max_length=40, pattern=_PRINTABLE_OR_NONE)] = None
    end_user: Annotated[str | None, Field(max_length=200, pattern=_PRINTABLE_OR_NONE)] = None
    model: Annotated[str | None, Field(max_length=256, pattern=_PRINTABLE_OR_NONE)] = None
    upstream: Annotated[str | None, Field(max_length=100, pattern=_PRINTABLE_OR_NONE)] = None
    format: Format = None
    limit: Limit = MAX_ROWS
    after: Annotated[
        Annotated[str, Field(max_length=_MAX_CURSOR)] | None, Field(description="`next` of the page before.")
    ] = None


class AdminUsageAsked(UsageAsked):
    """The same, of a tenant or of all; days begin in the tenant's time zone, or in UTC, or in `time_zone`."""

    tenant: Tenant | None = None
    time_zone: TimeZone | None = None


class EventsAsked(BaseModel):
    """Which single events."""

    model_config = ConfigDict(extra="forbid")

    from_: Annotated[Moment | None, Field(alias="from", description="A day, or a time of ISO 8601.")] = None
    to: Annotated[Moment | None, Field(description="The same; up to then, and without it.")] = None
    format: Format = None
    limit: Limit = 100
    after: Annotated[str | None, Field(max_length=40, pattern=PRINTABLE)] = None


class AdminEventsAsked(EventsAsked):
    """A tenant's."""

    tenant: Tenant


class UsageSums(BaseModel):
    """Sums over usage events and their corrections. `events` are requests.

    Cached tokens are part of the input, reasoning of the output. 1,000,000,000 nano-dollars are a dollar.
    """

    events: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_nano_dollars: int


class UsageRowOut(BaseModel):
    """The sums of one interval and group; it has the fields that were asked for. Null: none."""

    starts_at: datetime | None = None
    ends_at: datetime | None = None
    tenant: str | None = None
    key: str | None = None
    end_user: str | None = None
    model: str | None = None
    upstream: str | None = None
    events: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_nano_dollars: int


class UsageReport(UsageSums):
    """The sums of all that was asked for, and a page of rows; `next` is the `after` of the page behind it."""

    model_config = ConfigDict(populate_by_name=True)

    from_: Annotated[datetime | None, Field(alias="from")]
    to: datetime | None
    time_zone: str
    data: list[UsageRowOut]
    next: str | None


class UsageEventOut(BaseModel):
    """One usage event. Times are UTC; durations are milliseconds.

    `corrects` is the event that a correction corrects: its tokens and cost are differences to be added.
    """

    id: str
    request_id: str
    tenant_id: str
    key_id: str | None
    token_id: str | None
    end_user: str | None
    dialect: str
    model: str
    answered_model: str
    upstream: str
    ended: str
    cause: str
    source: str
    certainty: str
    tokenizer: str | None
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    started_at: datetime
    ended_at: datetime
    first_token_ms: int | None
    duration_ms: int
    cost_nano_dollars: int | None
    price_version: str | None
    corrects: str | None


class UsageEventPage(BaseModel):
    """A page of events; `next` is the `after` of the next page, null on the last one."""

    data: list[UsageEventOut]
    next: str | None


# --- from values ------------------------------------------------------------------------------------

SUMS = tuple(Sums.__dataclass_fields__)
EVENT_FIELDS = tuple(UsageEventOut.model_fields)


def event_out(event: UsageEvent) -> dict[str, Any]:
    """An event, flat, as the API and the CLI show it; its worker is an operator's matter."""
    flat = event.flat()
    return {name: flat[name] for name in EVENT_FIELDS}


def report_out(query: UsageQuery, page: UsagePage) -> dict[str, Any]:
    """A page, as the API and the CLI show it."""
    zone = ZoneInfo(query.time_zone)
    return {
        **{name: getattr(page.totals, name) for name in SUMS},
        "from": query.since and query.since.astimezone(zone),
        "to": query.until and query.until.astimezone(zone),
        "time_zone": query.time_zone,
        "data": [dict(zip(columns(query), values(query, row), strict=True)) for row in page.rows],
        "next": page.after and cursor_of(page.after),
    }


def columns(query: UsageQuery) -> tuple[str, ...]:
    """What a row has, in this order."""
    times = ("starts_at", "ends_at") if query.interval else ()
    return (*times, *(name for name in GROUPS if name in query.group_by), *SUMS)


def values(query: UsageQuery, row: UsageRow) -> Sequence[Any]:
    """A row's values for its columns."""
    zone = ZoneInfo(query.time_zone)
    times = [at.astimezone(zone) for at in row.span] if query.interval else []
    groups = [row.groups[name] or None for name in GROUPS if name in query.group_by]
    return [*times, *groups, *(getattr(row.sums, name) for name in SUMS)]
