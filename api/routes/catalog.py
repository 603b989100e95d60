"""Upstreams, models and tenants' own keys, for admins. Every worker goes by a change within a second."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Path, Query, Request

from api.cataloging import KeptModel, KeptUpstream
from api.core.base_url import check_base_url
from api.deps import Admin, By, GateDep
from api.errors import BadRequest
from api.flow.gate import Gate
from api.ports import AccountsUnavailable
from api.routes.bodies import openapi_body, read_body
from api.schema import PRINTABLE, ModelName
from api.schema_accounts import TenantId
from api.schema_catalog import (
    UPSTREAM_NAME,
    CatalogChangeOut,
    CatalogIn,
    ModelIn,
    ModelOut,
    ProviderKeyOut,
    Secret,
    UpstreamIn,
    UpstreamOut,
    prices_of,
)
from api.schema_prices import Amounts, amounts_out

if TYPE_CHECKING:
    from collections.abc import Mapping

    from api.accounts import Actor
    from api.core.catalog import UpstreamSpec
    from api.core.money import Price

router = APIRouter(prefix="/admin", tags=["admin: models"])

Name = Annotated[str, Path(pattern=UPSTREAM_NAME)]
Of = Annotated[str | None, Query(max_length=40, pattern=PRINTABLE, description="A tenant's own.")]


# --- upstreams --------------------------------------------------------------------------------------


@router.get("/upstreams")
async def list_upstreams(_admin: Admin, gate: GateDep) -> list[UpstreamOut]:
    """All upstreams by name, those of the environment among them."""
    kept = {one.spec.name: one for one in await gate.catalog_book.upstreams()}
    fixed = [provider.spec for name, provider in gate.providers.fixed.items() if name not in kept]
    shown = [_upstream_out(gate, one.spec, one) for one in kept.values()]
    return sorted([*shown, *(_upstream_out(gate, spec) for spec in fixed)], key=lambda one: one.name)


@router.put("/upstreams/{name}", openapi_extra=openapi_body(UpstreamIn))
async def put_upstream(_admin: Admin, by: By, gate: GateDep, name: Name, request: Request) -> UpstreamOut:
    """Add an upstream, or change it. Its key is never shown again; without one it keeps what it has."""
    asked, _ = await read_body(request, UpstreamIn)
    _check_address(gate, asked, "base_url")
    kept = await gate.catalog_book.put_upstream(asked.spec(name), asked.secret, by=by)
    await changed(gate)
    return _upstream_out(gate, kept.spec, kept)


@router.delete("/upstreams/{name}", status_code=204)
async def remove_upstream(_admin: Admin, by: By, gate: GateDep, name: Name) -> None:
    """Remove an upstream that no model names any more. What it is answering goes on to its end."""
    await gate.catalog_book.remove_upstream(name, by=by)
    await changed(gate)


# --- models -----------------------------------------------------------------------------------------


@router.get("/models")
async def list_models(_admin: Admin, gate: GateDep, tenant: Of = None) -> list[ModelOut]:
    """All models by name, or a tenant's own alone. While there are none, names go to the environment's."""
    return [_model_out(gate, one) for one in await gate.catalog_book.models(tenant)]


@router.put("/models", openapi_extra=openapi_body(ModelIn))
async def put_model(_admin: Admin, by: By, gate: GateDep, request: Request) -> ModelOut:
    """Add a model, or change it: with the first one, names that are not said are not found any more."""
    asked, _ = await read_body(request, ModelIn)
    prices = _prices([asked])
    spec = asked.spec(asked.name, asked.tenant_id or "")
    kept = await gate.catalog_book.put_model(spec, by=by, known=_known(gate))
    await _priced(gate, prices, by)
    await changed(gate)
    return _model_out(gate, kept)


@router.delete("/models", status_code=204)
async def remove_model(
    _admin: Admin,
    by: By,
    gate: GateDep,
    name: Annotated[ModelName, Query(min_length=1)],
    tenant: Of = None,
) -> None:
    """Remove a model; its price and its usage stay."""
    await gate.catalog_book.remove_model(name, tenant or "", by=by)
    await changed(gate)


@router.post("/models/import", openapi_extra=openapi_body(CatalogIn))
async def import_catalog(_admin: Admin, by: By, gate: GateDep, request: Request) -> list[CatalogChangeOut]:
    """Make a whole file of upstreams and models hold; the answer is what that changes."""
    asked, _ = await read_body(request, CatalogIn)
    for name, one in asked.upstreams.items():
        _check_address(gate, one, f"upstreams.{name}.base_url")
    prices = {} if asked.dry_run else _prices(asked.models)
    done = await gate.catalog_book.import_file(
        asked.file, by=by, known=_known(gate), prune=asked.prune, dry_run=asked.dry_run
    )
    await _priced(gate, prices, by)
    if done and not asked.dry_run:
        await changed(gate)
    return [CatalogChangeOut(what=one.what, kind=one.kind, name=one.name) for one in done]


# --- tenants' own keys ------------------------------------------------------------------------------


@router.get("/tenants/{tenant_id}/provider-keys")
async def list_provider_keys(_admin: Admin, gate: GateDep, tenant_id: TenantId) -> list[ProviderKeyOut]:
    """A tenant's own keys, by upstream."""
    found = await gate.catalog_book.provider_keys(tenant_id)
    return [ProviderKeyOut.model_validate(one, from_attributes=True) for one in found]


@router.put("/tenants/{tenant_id}/provider-keys/{name}", openapi_extra=openapi_body(Secret))
async def put_provider_key(
    _admin: Admin, by: By, gate: GateDep, tenant_id: TenantId, name: Name, request: Request
) -> ProviderKeyOut:
    """Let a tenant's requests go to an upstream with its own key, which is never shown again."""
    asked, _ = await read_body(request, Secret)
    if name not in gate.providers.all():
        raise BadRequest(f"There is no upstream `{name}`.", "name", status=404)
    kept = await gate.catalog_book.put_key(tenant_id, name, asked.api_key.get_secret_value(), by=by)
    await changed(gate)
    return ProviderKeyOut.model_validate(kept, from_attributes=True)


@router.delete("/tenants/{tenant_id}/provider-keys/{name}", status_code=204)
async def remove_provider_key(_admin: Admin, by: By, gate: GateDep, tenant_id: TenantId, name: Name) -> None:
    """Its requests go with the upstream's own key again."""
    await gate.catalog_book.remove_key(tenant_id, name, by=by)
    await changed(gate)


# --- what they share --------------------------------------------------------------------------------


async def changed(gate: Gate) -> None:
    """This worker goes by it on return, the others in a moment."""
    await gate.accounts_changed()
    with suppress(AccountsUnavailable):  # it is written all the same, and the watch reads it
        await gate.read_catalog()


def _known(gate: Gate) -> frozenset[str]:
    return frozenset(gate.providers.fixed)


def _check_address(gate: Gate, asked: UpstreamIn, param: str) -> None:
    if asked.base_url:
        try:
            check_base_url(asked.base_url, metadata_hosts=gate.policy.metadata_hosts)
        except ValueError as error:
            raise BadRequest(f"`{param}` {error}.", param) from None


def _prices(models: list[ModelIn]) -> Mapping[str, Price]:
    """The prices that come with models. Raises BadRequest."""
    try:
        return prices_of(models)
    except ValueError as error:
        raise BadRequest(f"`price`: {error}.", "price") from None


async def _priced(gate: Gate, prices: Mapping[str, Price], by: Actor) -> None:
    if prices:
        await gate.price_book.import_prices(prices, None, by=by)
        with suppress(AccountsUnavailable):
            await gate.read_prices()


def _upstream_out(gate: Gate, spec: UpstreamSpec, kept: KeptUpstream | None = None) -> UpstreamOut:
    provider = gate.providers.get(spec.name)
    return UpstreamOut(
        **asdict(spec) | {"dialects": list(spec.spoken)},
        key_hint=None if kept is None else kept.key_hint,
        standing=None if provider is None else provider.breaker.standing(gate.clock.monotonic()),
        updated_at=None if kept is None else kept.updated_at,
        updated_by="environment" if kept is None else kept.updated_by,
    )


def _model_out(gate: Gate, kept: KeptModel) -> ModelOut:
    spec = kept.spec
    price = gate.prices.of(spec.name, spec.tenant_id, gate.clock.now())
    return ModelOut(
        **asdict(spec) | {"tenant_id": spec.tenant_id or None},
        price=None if price is None else Amounts(**amounts_out(price)),
        updated_at=kept.updated_at,
        updated_by=kept.updated_by,
    )
