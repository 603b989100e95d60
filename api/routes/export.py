"""The export of usage events, for admins: how it stands, and what nobody takes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from api.deps import Admin, By, OutboxDep
from api.routes.bodies import openapi_body, read_body
from api.schema import PRINTABLE
from api.schema_export import DeadLetterOut, DeadLetterPage, ExportOut, RetryIn, RetryOut

router = APIRouter(prefix="/admin/export", tags=["admin: export"])


@router.get("")
async def export_status(_admin: Admin, outbox: OutboxDep) -> ExportOut:
    """What waits, what was delivered, what is dead, and what went wrong last."""
    return ExportOut.model_validate(await outbox.status())


@router.get("/dead")
async def dead_letters(
    _admin: Admin,
    outbox: OutboxDep,
    after: Annotated[str | None, Query(max_length=40, pattern=PRINTABLE)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> DeadLetterPage:
    """Events that the receiver refused too often. They stay until they are sent again."""
    found = await outbox.dead(after=after, limit=limit)
    return DeadLetterPage(
        data=[DeadLetterOut.model_validate(one) for one in found],
        next=found[-1].event_id if len(found) == limit else None,
    )


@router.post("/retry", openapi_extra=openapi_body(RetryIn))
async def retry_dead_letters(_admin: Admin, by: By, outbox: OutboxDep, request: Request) -> RetryOut:
    """Send dead letters again: once the receiver was mended, or told of a new model or tenant."""
    asked, _ = await read_body(request, RetryIn)
    return RetryOut(retried=len(await outbox.retry(asked.event_ids, by=by)))
