"""Prices and markups, for admins: versions that are added, and that every worker goes by within a second."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from api.core.price_file import PriceFile, read_prices
from api.deps import Admin, By, GateDep
from api.errors import BadRequest
from api.flow.gate import Gate
from api.ports import AccountsUnavailable
from api.routes.bodies import openapi_body, read_body
from api.schema import PRINTABLE, ModelName
from api.schema_accounts import Moment
from api.schema_prices import (
    ImportedOut,
    MarkupIn,
    MarkupOut,
    MarkupPage,
    Pattern,
    PriceHistory,
    PriceOut,
    PricePage,
    PricesIn,
    imported_out,
    price_out,
)

router = APIRouter(prefix="/admin", tags=["admin: prices"])

Model = Annotated[Pattern | None, Query(description="What this model, or name with a `*`, falls under.")]
Limit = Annotated[int, Query(ge=1, le=1000)]
Before = Annotated[int | None, Query(ge=1, le=2**63 - 1)]


@router.get("/prices")
async def list_prices(
    _admin: Admin,
    gate: GateDep,
    model: Model = None,
    at: Annotated[Moment | None, Query(description="Now, unless it is said.")] = None,
    after: Annotated[ModelName | None, Query(min_length=1)] = None,
    limit: Limit = 100,
) -> PricePage:
    """What holds at a moment, by model. Of a `model` all that it falls under; the last of them holds."""
    found = await gate.price_book.listed(model=model, at=at, after=after or "", limit=limit)
    more = found[-1].model if model is None and len(found) == limit else None
    return PricePage(data=[PriceOut(**price_out(row)) for row in found], next=more)


@router.get("/prices/history")
async def price_history(
    _admin: Admin, gate: GateDep, model: Model = None, before: Before = None, limit: Limit = 100
) -> PriceHistory:
    """All versions that there ever were, newest first."""
    found = await gate.price_book.history(model=model, before=before, limit=limit)
    more = found[-1].version if len(found) == limit else None
    return PriceHistory(data=[PriceOut(**price_out(row)) for row in found], next=more)


@router.post("/prices", openapi_extra=openapi_body(PricesIn))
async def import_prices(_admin: Admin, by: By, gate: GateDep, request: Request) -> ImportedOut:
    """Add a version of each price that differs. Events that are written already keep theirs."""
    asked, _ = await read_body(request, PricesIn)
    file = await _read(asked.prices)
    done = await gate.price_book.import_prices(file.prices, asked.valid_from, by=by, dry_run=asked.dry_run)
    if done.changes and not asked.dry_run:
        await _changed(gate)
    shown = imported_out(done, left_out=file.left_out, tiered=file.tiered, dry_run=asked.dry_run)
    return ImportedOut(**shown)


@router.get("/markups")
async def list_markups(
    _admin: Admin,
    gate: GateDep,
    tenant: Annotated[str | None, Query(max_length=40, pattern=PRINTABLE)] = None,
    before: Before = None,
    limit: Limit = 100,
) -> MarkupPage:
    """What tenants pay on top: all versions that there ever were, newest first."""
    found = await gate.price_book.markups(tenant, before=before, limit=limit)
    more = found[-1].version if len(found) == limit else None
    return MarkupPage(data=[MarkupOut.model_validate(row) for row in found], next=more)


@router.post("/markups", openapi_extra=openapi_body(MarkupIn))
async def set_markup(_admin: Admin, by: By, gate: GateDep, request: Request) -> MarkupOut:
    """What a tenant pays on top from a moment on; the answer is the version that holds then."""
    asked, _ = await read_body(request, MarkupIn)
    kept = await gate.price_book.set_markup(asked.tenant_id, asked.basis_points, asked.valid_from, by=by)
    await _changed(gate)
    return MarkupOut.model_validate(kept)


async def _read(prices: dict[str, Any]) -> PriceFile:
    """Beside the event loop: a long list takes a while. Raises BadRequest."""
    try:
        return await asyncio.to_thread(read_prices, prices)
    except ValueError as error:
        raise BadRequest(f"`prices`: {error}.", "prices") from None


async def _changed(gate: Gate) -> None:
    """This worker goes by it on return, the others in a moment."""
    await gate.accounts_changed()
    with suppress(AccountsUnavailable):  # it is written all the same, and the watch reads it
        await gate.read_prices()
