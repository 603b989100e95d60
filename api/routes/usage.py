"""What was used: sums and single events, as JSON in pages or as CSV. A tenant's own; for admins all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from api.core.usage_query import FILTERS, BadQuery, moment, place_of, read_query
from api.deps import Admin, GateDep, UsageReader
from api.errors import BadRequest
from api.routes.csv_pages import MEDIA_TYPE, PAGE_ROWS, csv_answer, wants_csv
from api.schema_usage import (
    EVENT_FIELDS,
    AdminEventsAsked,
    AdminUsageAsked,
    EventsAsked,
    UsageAsked,
    UsageEventPage,
    UsageReport,
    columns,
    event_out,
    report_out,
    values,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from api.core.record import UsageEvent
    from api.core.usage_query import Place, UsageQuery
    from api.flow.gate import Gate
    from api.ports import UsageReports

router = APIRouter(tags=["usage"])
_CSV: dict[int | str, dict[str, Any]] = {200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}}


@router.get(
    "/v1/usage",
    summary="What you used: sums by time, key, end user, model or upstream",
    response_model=UsageReport,
    response_model_exclude_unset=True,
    responses=_CSV,
)
async def usage(
    caller: UsageReader, gate: GateDep, request: Request, asked: Annotated[UsageAsked, Query()]
) -> Response | dict[str, Any]:
    """Without any parameter: the sums of all of your requests. Days begin in your tenant's time zone."""
    own = caller.tenant_id or ""  # the dependency has seen to it; None would be all tenants
    return await _usage(gate, request, asked, own, caller.terms.time_zone)


@router.get(
    "/admin/usage",
    tags=["admin: usage"],
    response_model=UsageReport,
    response_model_exclude_unset=True,
    responses=_CSV,
)
async def tenants_usage(
    _admin: Admin, gate: GateDep, request: Request, asked: Annotated[AdminUsageAsked, Query()]
) -> Response | dict[str, Any]:
    """The same of a tenant, also of a deleted one, or of all of them."""
    zone = asked.time_zone or await _zone_of(gate, asked.tenant)
    return await _usage(gate, request, asked, asked.tenant, zone)


@router.get(
    "/v1/usage/events",
    summary="Your single requests, oldest first",
    response_model=UsageEventPage,
    responses=_CSV,
)
async def usage_events(
    caller: UsageReader, gate: GateDep, request: Request, asked: Annotated[EventsAsked, Query()]
) -> Response | dict[str, Any]:
    """A page of events. Pass `next` as `after` to get the one behind it."""
    return await _events(gate, request, asked, caller.tenant_id or "", caller.terms.time_zone)


@router.get("/admin/usage/events", tags=["admin: usage"], response_model=UsageEventPage, responses=_CSV)
async def tenants_events(
    _admin: Admin, gate: GateDep, request: Request, asked: Annotated[AdminEventsAsked, Query()]
) -> Response | dict[str, Any]:
    """The same of a tenant, also of a deleted one."""
    return await _events(gate, request, asked, asked.tenant, await _zone_of(gate, asked.tenant))


async def _zone_of(gate: Gate, tenant_id: str | None) -> str:
    return "UTC" if tenant_id is None else (await gate.accounts.tenant(tenant_id)).time_zone


async def _usage(
    gate: Gate, request: Request, asked: UsageAsked, tenant_id: str | None, time_zone: str
) -> Response | dict[str, Any]:
    try:
        query = read_query(
            tenant_id,
            now=gate.clock.now(),
            since=asked.from_,
            until=asked.to,
            time_zone=time_zone,
            interval=asked.interval,
            group_by=asked.group_by,
            filters={name: getattr(asked, name) for name in FILTERS},
        )
        after = None if asked.after is None else place_of(asked.after, query)
    except BadQuery as error:
        raise BadRequest(str(error), error.param) from None
    if wants_csv(request, asked.format):
        return await csv_answer(request, "usage", columns(query), _rows(gate.usage, query, after))
    return report_out(query, await gate.usage.page(query, after=after, limit=asked.limit))


async def _rows(
    usage: UsageReports, query: UsageQuery, after: Place | None
) -> AsyncIterator[Sequence[Sequence[Any]]]:
    while True:
        page = await usage.page(query, after=after, limit=PAGE_ROWS, totals=False)
        yield [values(query, row) for row in page.rows]
        if page.after is None:
            return
        after = page.after


async def _events(
    gate: Gate, request: Request, asked: EventsAsked, tenant_id: str, time_zone: str
) -> Response | dict[str, Any]:
    try:
        since = None if asked.from_ is None else moment("from", asked.from_, time_zone)
        until = None if asked.to is None else moment("to", asked.to, time_zone)
    except BadQuery as error:
        raise BadRequest(str(error), error.param) from None

    async def pages() -> AsyncIterator[Sequence[Sequence[Any]]]:
        after = asked.after
        while True:
            found = await gate.usage.events(tenant_id, since=since, until=until, after=after, limit=PAGE_ROWS)
            yield [tuple(event_out(event).values()) for event in found]
            if len(found) < PAGE_ROWS:
                return
            after = found[-1].id

    if wants_csv(request, asked.format):
        return await csv_answer(request, "usage_events", EVENT_FIELDS, pages())
    found = await gate.usage.events(tenant_id, since=since, until=until, after=asked.after, limit=asked.limit)
    return {"data": [event_out(event) for event in found], "next": _next(found, asked.limit)}


def _next(found: list[UsageEvent], limit: int) -> str | None:
    return found[-1].id if len(found) == limit else None
