"""Streams that run: see them, and end one, on whichever worker it is. Admins all, tenants their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query

from api.deps import Admin, By, Caller, GateDep
from api.errors import NotFound
from api.flow.overview import described, streams_now
from api.schema import PRINTABLE, StreamOut
from api.schema_accounts import StreamId
from auth.principal import Principal, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from api.accounts import Actor
    from api.core.record import InFlight
    from api.flow.gate import Gate

router = APIRouter(prefix="/admin", tags=["admin: streams"])
own = APIRouter(prefix="/v1", tags=["your streams"])


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
    return await _ended(gate, await gate.ledger.in_flight(booking_id=stream_id), by)


# --- a tenant's own ---------------------------------------------------------------------------------


@own.get("/streams")
async def list_own_streams(caller: Caller, gate: GateDep) -> list[StreamOut]:
    """The streams that run for this credential; for a tenant's admin all of its tenant."""
    found = await streams_now(gate.limiter, gate.ledger, gate.clock, caller.tenant_id)
    return [StreamOut.model_validate(one) for one in found if _is_for(caller, one["key_id"], one["token_id"])]


@own.post("/streams/{stream_id}/stop", status_code=202)
async def stop_stream(caller: Caller, by: By, gate: GateDep, stream_id: StreamId) -> StreamOut:
    """Stop a stream: `x-sluicegate-stream` of its answer names it. What it has used is on the ledger."""
    found = [
        one
        for one in await gate.ledger.in_flight(caller.tenant_id, stream_id)
        if one.booking.tenant_id == caller.tenant_id
        and _is_for(caller, one.booking.key_id, one.booking.token_id)
    ]
    return await _ended(gate, found, by)


async def _ended(gate: Gate, found: Sequence[InFlight], by: Actor) -> StreamOut:
    """End the one that was found. Raises NotFound where none was."""
    if not found:
        raise NotFound("No stream with that id runs.")
    booking = found[0].booking
    await gate.accounts.note("end", "stream", booking.id, by=by, tenant_id=booking.tenant_id)
    await gate.accounts_changed()
    return StreamOut.model_validate((await described(gate.limiter, gate.clock, found))[0])


def _is_for(caller: Principal, key_id: str | None, token_id: str | None) -> bool:
    """Whether a stream is this credential's: its key's, or its own alone where it is a token."""
    if Scope.TENANT_ADMIN in caller.scopes:
        return True
    if caller.token_id is not None:
        return token_id == caller.token_id
    return key_id is not None and key_id == caller.key_id
