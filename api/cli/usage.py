"""`sluicegate usage` and `sluicegate usage-rebuild`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.adapters.clock_system import SystemClock
from api.adapters.database_sql import open_engine
from api.adapters.lease_sql import Lease
from api.adapters.rollups_sql import NotKept, Rollups
from api.adapters.usage_sql import SqlUsage
from api.cli.periods import From, Until, period
from api.cli.shared import Json, checked, fail, run, show, table
from api.core.csv_text import csv_text
from api.core.usage_query import FILTERS, BadQuery, moment, read_query
from api.schema_usage import (
    EVENT_FIELDS,
    MAX_ROWS,
    AdminUsageAsked,
    columns,
    event_out,
    report_out,
    values,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import date

    from api.cli.shared import Office
    from api.core.record import UsageEvent
    from api.core.usage_query import UsagePage, UsageQuery

_SECONDS = 600.0
_LEASE_SECONDS = 6.0
_SHOWN = (
    "started_at",
    "request_id",
    "model",
    "input_tokens",
    "output_tokens",
    "ended",
    "source",
    "certainty",
)
_WHEN = "2026-11-01, or 2026-11-01T12:00; in the time zone."


@dataclass(frozen=True, slots=True)
class _Asked:
    """The command line."""

    given: AdminUsageAsked
    csv: bool
    as_json: bool

    def query(self, time_zone: str) -> UsageQuery:
        given = self.given
        try:
            return read_query(
                given.tenant,
                now=SystemClock().now(),
                since=given.from_,
                until=given.to,
                time_zone=time_zone,
                interval=given.interval,
                group_by=given.group_by,
                filters={name: getattr(given, name) for name in FILTERS},
            )
        except BadQuery as error:
            raise _wrong(error) from None


def _wrong(error: BadQuery) -> typer.BadParameter:
    return typer.BadParameter(str(error).replace(f"`{error.param}`", f"--{error.param.replace('_', '-')}", 1))


def usage(
    tenant: Annotated[
        str | None, typer.Option(help="The tenant's id; all of them if it is left out.")
    ] = None,
    events: Annotated[bool, typer.Option("--events", help="The single events instead of sums.")] = False,
    start: Annotated[str | None, typer.Option("--from", metavar="WHEN", help=_WHEN)] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="WHEN", help="The same; up to then.")] = None,
    interval: Annotated[str | None, typer.Option(help="hour, day or month.")] = None,
    group_by: Annotated[
        str | None, typer.Option(help="Of tenant, key, end_user, model, upstream, with commas between.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Of this key alone, by its id.")] = None,
    end_user: Annotated[str | None, typer.Option(help="Of this end user alone.")] = None,
    model: Annotated[str | None, typer.Option(help="Of this model alone.")] = None,
    upstream: Annotated[str | None, typer.Option(help="Of this upstream alone.")] = None,
    time_zone: Annotated[
        str | None, typer.Option(help="Where days begin; the tenant's, or UTC, if it is left out.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Json = False,
) -> None:
    """What was used: sums, or single events."""
    if tenant is None and group_by is None and not events:
        group_by = "tenant"
    times = {"from": start, "to": end, "time_zone": time_zone}
    filters = {"key": key, "end_user": end_user, "model": model, "upstream": upstream}
    given = checked(AdminUsageAsked, tenant=tenant, interval=interval, group_by=group_by, **times, **filters)
    asked = _Asked(given, as_csv, as_json)
    if events:
        if tenant is None:
            raise typer.BadParameter("--events needs --tenant")
        if any(value is not None for value in (interval, group_by, *filters.values())):
            raise typer.BadParameter("--events takes --from and --to alone")
        _moments(asked, "UTC")
    else:
        asked.query("UTC")
    run(lambda office: _work(office, asked, _show_events if events else _show_sums))


async def _work(office: Office, asked: _Asked, shows: Any) -> None:
    zone = asked.given.time_zone
    if asked.given.tenant is not None:
        of_tenant = (await office.accounts.tenant(asked.given.tenant)).time_zone
        zone = zone or of_tenant
    engine = open_engine(office.settings.ledger_url, connections=2, seconds=_SECONDS)
    try:
        await shows(SqlUsage(engine, seconds=_SECONDS), asked, zone or "UTC")
    finally:
        await engine.dispose()


async def _pages(reports: SqlUsage, query: UsageQuery, *, totals: bool) -> AsyncIterator[UsagePage]:
    page = await reports.page(query, limit=MAX_ROWS, totals=totals)
    yield page
    while page.after is not None:
        page = await reports.page(query, after=page.after, limit=MAX_ROWS, totals=False)
        yield page


async def _show_sums(reports: SqlUsage, asked: _Asked, time_zone: str) -> None:
    query = asked.query(time_zone)
    pages = _pages(reports, query, totals=not asked.csv)
    if asked.csv:
        typer.echo(csv_text([columns(query)]), nl=False)
        async for page in pages:
            typer.echo(csv_text(values(query, row) for row in page.rows), nl=False)
        return
    report = report_out(query, await anext(pages))
    async for page in pages:
        report["data"] += [dict(zip(columns(query), values(query, row), strict=True)) for row in page.rows]
    report["next"] = None
    text = "{events} requests, {input_tokens} input and {output_tokens} output tokens".format(**report)
    if not query.is_one_row:
        rows = [tuple(row.values()) for row in report["data"]]
        text = "\n".join(filter(None, (table(columns(query), rows), text)))
    show(report, asked.as_json, text)


def _moments(asked: _Asked, time_zone: str) -> dict[str, Any]:
    texts = {"since": ("from", asked.given.from_), "until": ("to", asked.given.to)}
    try:
        return {name: text and moment(param, text, time_zone) for name, (param, text) in texts.items()}
    except BadQuery as error:
        raise _wrong(error) from None


async def _show_events(reports: SqlUsage, asked: _Asked, time_zone: str) -> None:
    found: list[dict[str, Any]] = []
    if asked.csv:
        typer.echo(csv_text([EVENT_FIELDS]), nl=False)
    async for page in _event_pages(reports, asked, time_zone):
        rows = [event_out(event) for event in page]
        if asked.csv:
            typer.echo(csv_text(tuple(row.values()) for row in rows), nl=False)
        else:
            found += rows
    if not asked.csv:
        text = table(_SHOWN, [tuple(event[column] for column in _SHOWN) for event in found])
        show(found, asked.as_json, text or "No usage yet.")


async def _event_pages(reports: SqlUsage, asked: _Asked, time_zone: str) -> AsyncIterator[list[UsageEvent]]:
    after, times = None, _moments(asked, time_zone)
    while page := await reports.events(str(asked.given.tenant), **times, after=after, limit=MAX_ROWS):
        yield page
        after = page[-1].id


def rebuild(start: From, end: Until, as_json: Json = False) -> None:
    """Make the roll-ups of whole days of UTC anew from their events; a repair, while workers run.

    Says which days' sums were wrong. What `verify` finds wrong in the roll-ups is right after it.
    """
    begins, ends = period(start, end)
    first, last = begins.date(), (ends - timedelta(microseconds=1)).date()
    days = run(lambda office: _rebuild(office, first, last))
    text = "\n".join(f"The sums of {day} were wrong." for day in days) or "All sums were right."
    show({"from": first, "to": last, "changed": days}, as_json, text)


async def _rebuild(office: Office, first: date, last: date) -> list[date]:
    engine = open_engine(office.settings.ledger_url, connections=2, seconds=_SECONDS)
    try:
        lease = Lease(engine, SystemClock(), "usage-rebuild", seconds=_LEASE_SECONDS)
        return await Rollups(engine, lease).rebuild(first, last)
    except NotKept as error:
        fail(str(error))
        raise
    finally:
        await engine.dispose()
