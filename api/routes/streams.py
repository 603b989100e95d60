"""Streams that run, for admins: see them, and end one, on whichever worker it is."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import Admin, By, GateDep
from api.errors import NotFound
from api.flow.overview import described, streams_now
from api.schema import PRINTABLE, StreamOut
from api.schema_accounts import StreamId

router = APIRouter(prefix="/admin", tags=["admin: streams"])


@router.get("/streams")
async def list_streams(
    _admin: Admin,
    gate: GateDep,
    tenant: Annotated[str | None, Query(max_length=40, pattern=PRINTABLE)] = None,
) -> list[StreamOut]:
    """The streams that run on all workers, oldest first, as their last checkpoints have them."""
    found = await streams_now(gate.limiter, gate.ledger, gate.clock, tenant)
    return [StreamOut.model_validate(one) for one in found]


@router.delete("/streams/{stream_id}", status_code=202)
async def end_stream(_admin: Admin, by: By, gate: GateDep, stream_id: StreamId) -> StreamOut:
    """End a stream: its worker cuts it within a second, and what it used is on the ledger."""
    found = await gate.ledger.in_flight(booking_id=stream_id)
    if not found:
        raise NotFound("No stream with that id runs.")
    await gate.accounts.note("end", "stream", stream_id, by=by, tenant_id=found[0].booking.tenant_id)
    await gate.accounts_changed()
    return StreamOut.model_validate((await described(gate.limiter, gate.clock, found))[0])
