"""The tenant's own usage."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query

from api.deps import GateDep, UsageReader
from api.schema import PRINTABLE, UsageEventPage, UsageTotals

if TYPE_CHECKING:
    from api.core.record import UsageEvent

router = APIRouter(tags=["usage"])


@router.get("/v1/usage", summary="Sums over all of your requests")
async def usage(caller: UsageReader, gate: GateDep) -> UsageTotals:
    """Events, input tokens and output tokens."""
    assert caller.tenant_id is not None  # noqa: S101 - the dependency has seen to it
    return UsageTotals(**asdict(await gate.ledger.totals(caller.tenant_id)))


@router.get("/v1/usage/events", summary="Your single requests, oldest first")
async def usage_events(
    caller: UsageReader,
    gate: GateDep,
    after: Annotated[str | None, Query(max_length=40, pattern=PRINTABLE)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> UsageEventPage:
    """A page of events. Pass `next` as `after` to get the one behind it."""
    assert caller.tenant_id is not None  # noqa: S101 - the dependency has seen to it
    events = await gate.ledger.events(caller.tenant_id, after=after, limit=limit)
    more = events[-1].booking.id if len(events) == limit else None
    return UsageEventPage.model_validate({"data": [event_out(event) for event in events], "next": more})


def event_out(event: UsageEvent) -> dict[str, Any]:
    """An event, flat, as the API and the CLI show it."""
    flat = event.flat()
    del flat["worker"]  # an operator's matter
    return flat
