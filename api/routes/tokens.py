"""Revoking tokens by their `jti`, and the audit log.

A revocation counts within the caller's tenant alone, and answers the same whether or not there is such a
token: nobody learns of another's (P10).
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.deps import Admin, By, GateDep, Tenant
from api.errors import BadRequest
from api.schema import PRINTABLE
from api.schema_accounts import AuditPage, TokenId

router = APIRouter()
own = APIRouter(prefix="/v1", tags=["your keys"])


@own.delete("/tokens/{token_id:path}", status_code=204)
async def revoke_own_token(caller: Tenant, by: By, gate: GateDep, token_id: TokenId) -> Response:
    """Revoke a token of your tenant, with an API key. Its streams are cut."""
    if caller.token_id is not None:
        raise BadRequest("A token cannot revoke others; use an API key, or POST /auth/logout.", status=403)
    await gate.accounts.revoke_token(caller.tenant_id, token_id, by=by)
    await gate.accounts_changed()
    return Response(status_code=204)


@router.delete("/admin/tokens/{token_id:path}", status_code=204, tags=["admin: tokens"])
async def revoke_token(
    _admin: Admin,
    by: By,
    gate: GateDep,
    token_id: TokenId,
    tenant: Annotated[
        str | None, Query(max_length=40, pattern=PRINTABLE, description="None: an admin's own token.")
    ] = None,
) -> Response:
    """Revoke a token of a tenant, or of an admin. Its streams are cut."""
    if tenant is not None:
        await gate.accounts.tenant(tenant)
    await gate.accounts.revoke_token(tenant, token_id, by=by)
    await gate.accounts_changed()
    return Response(status_code=204)


@router.get("/admin/audit", tags=["admin: audit"])
async def audit(
    _admin: Admin,
    gate: GateDep,
    tenant: Annotated[str | None, Query(max_length=40, pattern=PRINTABLE)] = None,
    actor: Annotated[
        str | None, Query(max_length=400, pattern=PRINTABLE, description="`user:...` or `key:...`")
    ] = None,
    action: Annotated[
        str | None, Query(max_length=40, pattern=PRINTABLE, description="such as `key.revoke`")
    ] = None,
    before: Annotated[int | None, Query(ge=1, le=1 << 62)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> AuditPage:
    """Who changed what, when, from where; newest first."""
    entries = await gate.accounts.audit(
        tenant_id=tenant, actor=actor, action=action, before=before, limit=limit
    )
    more = entries[-1].id if len(entries) == limit else None
    return AuditPage.model_validate({"data": entries, "next": more}, from_attributes=True)
