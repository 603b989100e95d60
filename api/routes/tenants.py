"""Tenants, for admins. Every change stands in the audit log, and all workers know it within a second."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from api.deps import Admin, By, GateDep
from api.routes.bodies import openapi_body, read_body
from api.schema_accounts import TenantId, TenantIn, TenantOut, TenantPatch

router = APIRouter(prefix="/admin", tags=["admin: tenants"])


@router.post("/tenants", status_code=201, openapi_extra=openapi_body(TenantIn))
async def create_tenant(_admin: Admin, by: By, gate: GateDep, request: Request) -> TenantOut:
    """Create a tenant."""
    asked, _ = await read_body(request, TenantIn)
    tenant = await gate.accounts.create_tenant(asked.fields(gate.policy.default_max_streams), by=by)
    await gate.accounts_changed()
    return TenantOut.model_validate(tenant)


@router.get("/tenants")
async def list_tenants(
    _admin: Admin, gate: GateDep, *, deleted: Annotated[bool, Query(description="Also deleted ones.")] = False
) -> list[TenantOut]:
    """All tenants, oldest first."""
    return [TenantOut.model_validate(tenant) for tenant in await gate.accounts.tenants(deleted=deleted)]


@router.get("/tenants/{tenant_id}")
async def show_tenant(_admin: Admin, gate: GateDep, tenant_id: TenantId) -> TenantOut:
    """One tenant, also a deleted one."""
    return TenantOut.model_validate(await gate.accounts.tenant(tenant_id))


@router.patch("/tenants/{tenant_id}", openapi_extra=openapi_body(TenantPatch))
async def change_tenant(
    _admin: Admin, by: By, gate: GateDep, tenant_id: TenantId, request: Request
) -> TenantOut:
    """Change what is given, leave the rest."""
    asked, _ = await read_body(request, TenantPatch)
    tenant = await gate.accounts.change_tenant(tenant_id, asked.model_dump(exclude_unset=True), by=by)
    await gate.accounts_changed()
    return TenantOut.model_validate(tenant)


@router.post("/tenants/{tenant_id}/suspend")
async def suspend_tenant(_admin: Admin, by: By, gate: GateDep, tenant_id: TenantId) -> TenantOut:
    """Refuse all its credentials and cut its streams, until it is resumed."""
    tenant = await gate.accounts.suspend(tenant_id, by=by)
    await gate.accounts_changed()
    return TenantOut.model_validate(tenant)


@router.post("/tenants/{tenant_id}/resume")
async def resume_tenant(_admin: Admin, by: By, gate: GateDep, tenant_id: TenantId) -> TenantOut:
    """Let a suspended tenant in again."""
    tenant = await gate.accounts.resume(tenant_id, by=by)
    await gate.accounts_changed()
    return TenantOut.model_validate(tenant)


@router.delete("/tenants/{tenant_id}")
async def delete_tenant(_admin: Admin, by: By, gate: GateDep, tenant_id: TenantId) -> TenantOut:
    """Revoke all its keys and cut its streams, for ever. Its usage stays."""
    tenant = await gate.accounts.delete(tenant_id, by=by)
    await gate.accounts_changed()
    return TenantOut.model_validate(tenant)
