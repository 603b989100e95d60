"""What an admin does: tenants and their keys."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request

from api.deps import Admin, GateDep
from api.errors import NotFound
from api.routes.bodies import openapi_body, read_body
from api.schema import KeyIn, KeyIssued, KeyOut, TenantIn, TenantOut, UsageTotals
from auth.principal import TENANT_SCOPES

router = APIRouter(prefix="/admin", tags=["admin"])


@router.post("/tenants", status_code=201, openapi_extra=openapi_body(TenantIn))
async def create_tenant(_admin: Admin, gate: GateDep, request: Request) -> TenantOut:
    """Create a tenant."""
    asked, _ = await read_body(request, TenantIn)
    max_streams = asked.max_streams or gate.policy.default_max_streams
    return TenantOut.model_validate(await gate.accounts.create_tenant(asked.name, max_streams))


@router.get("/tenants")
async def list_tenants(_admin: Admin, gate: GateDep) -> list[TenantOut]:
    """All tenants, oldest first."""
    return [TenantOut.model_validate(tenant) for tenant in await gate.accounts.tenants()]


@router.post("/tenants/{tenant_id}/keys", status_code=201, openapi_extra=openapi_body(KeyIn))
async def issue_key(_admin: Admin, gate: GateDep, tenant_id: str, request: Request) -> KeyIssued:
    """Issue a key. Its text is in this answer and can never be had again."""
    asked, _ = await read_body(request, KeyIn, optional=True)
    scopes = frozenset(asked.scopes) if asked.scopes else TENANT_SCOPES
    info, text = await gate.accounts.issue_key(tenant_id, asked.name, scopes)
    return KeyIssued.model_validate({**asdict(info), "key": text})


@router.get("/tenants/{tenant_id}/keys")
async def list_keys(_admin: Admin, gate: GateDep, tenant_id: str) -> list[KeyOut]:
    """A tenant's keys, oldest first."""
    if await gate.accounts.tenant(tenant_id) is None:
        raise NotFound("No tenant has that id.")
    return [KeyOut.model_validate(key) for key in await gate.accounts.keys(tenant_id)]


@router.delete("/keys/{key_id}")
async def revoke_key(_admin: Admin, gate: GateDep, key_id: str) -> KeyOut:
    """Revoke a key: within a second every worker refuses it."""
    key = await gate.accounts.revoke_key(key_id)
    if key is None:
        raise NotFound("No key has that id.")
    return KeyOut.model_validate(key)


@router.get("/usage")
async def tenant_usage(
    _admin: Admin, gate: GateDep, tenant: Annotated[str, Query(max_length=40)]
) -> UsageTotals:
    """Sums over a tenant's requests."""
    if await gate.accounts.tenant(tenant) is None:
        raise NotFound("No tenant has that id.")
    return UsageTotals(**asdict(await gate.ledger.totals(tenant)))
