"""API keys: under `/admin` those of all tenants, under `/v1` a tenant admin's own, by the same code.

What tells the two apart is `Keys`: a tenant's own view has its id in every query, so another tenant's key
answers as one that does not exist (P10), and so does one that carries the gateway's own scope `admin`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request

from api.deps import Admin, By, GateDep, TenantAdmin
from api.errors import BadRequest
from api.routes.bodies import openapi_body, read_body
from api.schema_accounts import KeyId, KeyIn, KeyIssued, KeyOut, KeyPatch, RotateIn, TenantId
from auth.principal import Scope

if TYPE_CHECKING:
    from api.accounts import Actor
    from api.flow.gate import Gate

admin = APIRouter(prefix="/admin", tags=["admin: keys"])
own = APIRouter(prefix="/v1", tags=["your keys"])


# --- for admins -------------------------------------------------------------------------------------


@admin.post("/tenants/{tenant_id}/keys", status_code=201, openapi_extra=openapi_body(KeyIn))
async def issue_key(_admin: Admin, by: By, gate: GateDep, tenant_id: TenantId, request: Request) -> KeyIssued:
    """Issue a key. Its text is in this answer and can never be had again."""
    return await _issue(gate, None, tenant_id, by, request)


@admin.get("/tenants/{tenant_id}/keys")
async def list_keys(_admin: Admin, gate: GateDep, tenant_id: TenantId) -> list[KeyOut]:
    """A tenant's keys, oldest first."""
    return [KeyOut.model_validate(key) for key in await gate.accounts.keys(None).all_of(tenant_id)]


@admin.get("/keys/{key_id}")
async def show_key(_admin: Admin, gate: GateDep, key_id: KeyId) -> KeyOut:
    """One key."""
    return KeyOut.model_validate(await gate.accounts.keys(None).get(key_id))


@admin.patch("/keys/{key_id}", openapi_extra=openapi_body(KeyPatch))
async def change_key(_admin: Admin, by: By, gate: GateDep, key_id: KeyId, request: Request) -> KeyOut:
    """Change what is given, leave the rest."""
    return await _change(gate, None, key_id, by, request)


@admin.post("/keys/{key_id}/rotate", openapi_extra=openapi_body(RotateIn))
async def rotate_key(_admin: Admin, by: By, gate: GateDep, key_id: KeyId, request: Request) -> KeyIssued:
    """Give the key a new secret; the one before holds for the grace period."""
    return await _rotate(gate, None, key_id, by, request)


@admin.delete("/keys/{key_id}")
async def revoke_key(_admin: Admin, by: By, gate: GateDep, key_id: KeyId) -> KeyOut:
    """Revoke a key: within a second every worker refuses it and has cut its streams."""
    return await _revoke(gate, None, key_id, by)


# --- for a tenant's own admin -----------------------------------------------------------------------


@own.post("/keys", status_code=201, openapi_extra=openapi_body(KeyIn))
async def issue_own_key(caller: TenantAdmin, by: By, gate: GateDep, request: Request) -> KeyIssued:
    """Issue a key of your own. Its text is in this answer and can never be had again."""
    assert caller.tenant_id is not None  # noqa: S101 - the dependency has seen to it
    return await _issue(gate, caller.tenant_id, caller.tenant_id, by, request)


@own.get("/keys")
async def list_own_keys(caller: TenantAdmin, gate: GateDep) -> list[KeyOut]:
    """Your keys, oldest first."""
    assert caller.tenant_id is not None  # noqa: S101 - the dependency has seen to it
    keys = await gate.accounts.keys(caller.tenant_id).all_of(caller.tenant_id)
    return [KeyOut.model_validate(key) for key in keys]


@own.get("/keys/{key_id}")
async def show_own_key(caller: TenantAdmin, gate: GateDep, key_id: KeyId) -> KeyOut:
    """One of your keys."""
    return KeyOut.model_validate(await gate.accounts.keys(caller.tenant_id).get(key_id))


@own.patch("/keys/{key_id}", openapi_extra=openapi_body(KeyPatch))
async def change_own_key(
    caller: TenantAdmin, by: By, gate: GateDep, key_id: KeyId, request: Request
) -> KeyOut:
    """Change what is given, leave the rest."""
    return await _change(gate, caller.tenant_id, key_id, by, request)


@own.post("/keys/{key_id}/rotate", openapi_extra=openapi_body(RotateIn))
async def rotate_own_key(
    caller: TenantAdmin, by: By, gate: GateDep, key_id: KeyId, request: Request
) -> KeyIssued:
    """Give the key a new secret; the one before holds for the grace period."""
    return await _rotate(gate, caller.tenant_id, key_id, by, request)


@own.delete("/keys/{key_id}")
async def revoke_own_key(caller: TenantAdmin, by: By, gate: GateDep, key_id: KeyId) -> KeyOut:
    """Revoke a key: within a second every worker refuses it and has cut its streams."""
    return await _revoke(gate, caller.tenant_id, key_id, by)


# --- what both do -----------------------------------------------------------------------------------


async def _issue(gate: Gate, view: str | None, tenant_id: str, by: Actor, request: Request) -> KeyIssued:
    asked, _ = await read_body(request, KeyIn, optional=True)
    _grantable(view, asked.scopes)
    info, text = await gate.accounts.keys(view).issue(tenant_id, asked.fields(), by=by)
    await gate.accounts_changed()
    return KeyIssued.model_validate({**asdict(info), "key": text})


async def _change(gate: Gate, view: str | None, key_id: str, by: Actor, request: Request) -> KeyOut:
    asked, _ = await read_body(request, KeyPatch)
    _grantable(view, asked.scopes)
    info = await gate.accounts.keys(view).change(key_id, asked.model_dump(exclude_unset=True), by=by)
    await gate.accounts_changed()
    return KeyOut.model_validate(info)


async def _rotate(gate: Gate, view: str | None, key_id: str, by: Actor, request: Request) -> KeyIssued:
    asked, _ = await read_body(request, RotateIn, optional=True)
    keys = gate.accounts.keys(view)
    info, text = await keys.rotate(key_id, grace_seconds=asked.grace_seconds, by=by)
    await gate.accounts_changed()
    return KeyIssued.model_validate({**asdict(info), "key": text})


async def _revoke(gate: Gate, view: str | None, key_id: str, by: Actor) -> KeyOut:
    info = await gate.accounts.keys(view).revoke(key_id, by=by)
    await gate.accounts_changed()
    return KeyOut.model_validate(info)


def _grantable(view: str | None, scopes: list[Scope] | None) -> None:
    """A tenant's admin decides over its tenant alone."""
    if view is not None and Scope.ADMIN in (scopes or ()):
        raise BadRequest("Only an admin of the gateway can grant the scope `admin`.", "scopes")
