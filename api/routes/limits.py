"""What limits there are, and what is left of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.accounts import NoSuchTenant
from api.deps import Admin, GateDep, Tenant
from api.flow.gate import Gate
from api.flow.overview import limits_now
from api.schema import LimitState, Name
from api.schema_accounts import TenantId
from auth.principal import Limit, Terms

router = APIRouter(tags=["limits"])


@router.get("/v1/limits", summary="Your limits, and what is left of them")
async def limits(
    caller: Tenant,
    gate: GateDep,
    end_user: Annotated[Name | None, Query(min_length=1, description="Also those of this end user.")] = None,
) -> list[LimitState]:
    """Those of your tenant, your key and your token; the tightest wins."""
    assert caller.tenant_id is not None  # noqa: S101 - the dependency has seen to it
    bound = caller if end_user is None else caller.acting_for(end_user)
    return await _limits(gate, caller.tenant_id, bound.limits, bound.terms)


@router.get("/admin/tenants/{tenant_id}/limits", tags=["admin: tenants"])
async def tenant_limits(_admin: Admin, gate: GateDep, tenant_id: TenantId) -> list[LimitState]:
    """A tenant's own limits, and what is left of them."""
    tenant = await gate.credentials.find_tenant(tenant_id)
    if tenant is None:
        raise NoSuchTenant(tenant_id)
    return await _limits(gate, tenant.id, tenant.limits, tenant.terms)


async def _limits(gate: Gate, tenant_id: str, bound: tuple[Limit, ...], terms: Terms) -> list[LimitState]:
    now = gate.clock.now()
    found = await limits_now(gate.limiter, gate.ledger, tenant_id, bound, now=now, time_zone=terms.time_zone)
    return [LimitState.model_validate(one) for one in found]
