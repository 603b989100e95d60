"""Models of prices and markups, as admins set and read them. docs/prices.md says what each means."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from api.core.money import dollars
from api.core.price_file import MAX_MODELS
from api.schema import PRINTABLE, ModelName
from api.schema_accounts import Moment

if TYPE_CHECKING:
    from api.core.money import Price, PriceVersion
    from api.pricing import Imported, KeptPrice

LEAST_BASIS_POINTS = -10_000
MOST_BASIS_POINTS = 100_000

BasisPoints = Annotated[int, Field(strict=True, ge=LEAST_BASIS_POINTS, le=MOST_BASIS_POINTS)]
AMOUNTS = ("input", "cached_input", "output", "reasoning")


class PricesIn(BaseModel):
    """Prices by model, in dollars per million tokens; LiteLLM's shape is understood too.

    They hold from `valid_from` on, or from now. In a `dry_run` nothing is changed.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "valid_from": "2026-04-01T00:00:00Z",
                "prices": {"gpt-4o-mini": {"input": "0.15", "cached_input": "0.075", "output": "0.60"}},
            }
        },
    )

    prices: Annotated[dict[str, Any], Field(min_length=1, max_length=MAX_MODELS)]
    valid_from: Moment | None = None
    dry_run: bool = False


class Amounts(BaseModel):
    """Dollars per million tokens, exactly. Cached input is part of the input, reasoning of the output."""

    input: str
    cached_input: str
    output: str
    reasoning: str


class PriceOut(Amounts):
    """A version of a model's price. `model` is a name, or the beginning of one and a `*`."""

    version: int
    model: str
    valid_from: datetime
    created_at: datetime
    created_by: str


class PricePage(BaseModel):
    """Prices by model; `next` is the `after` of the page behind it, null on the last one."""

    data: list[PriceOut]
    next: str | None


class PriceHistory(BaseModel):
    """Versions, newest first; `next` is the `before` of the page behind it, null on the last one."""

    data: list[PriceOut]
    next: int | None


class PriceChangeOut(BaseModel):
    """What was changed of a model; `before` is null for a new one, `version` where it was only tried."""

    model: str
    version: int | None
    before: Amounts | None
    after: Amounts


class ImportedOut(BaseModel):
    """What an import changed. Entries without a price for tokens were `left_out`.

    `tiered` of the prices are higher for long prompts; they are taken as they are for short ones.
    """

    valid_from: datetime
    dry_run: bool
    changes: list[PriceChangeOut]
    unchanged: int
    left_out: int
    tiered: int


class MarkupIn(BaseModel):
    """What a tenant pays on top, in basis points: 2000 is 20 per cent more, -500 is 5 per cent less."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"tenant_id": "tn_...", "basis_points": 2000}}
    )

    tenant_id: Annotated[str, Field(max_length=40, pattern=PRINTABLE)]
    basis_points: BasisPoints
    valid_from: Moment | None = None


class MarkupOut(BaseModel):
    """A version of a tenant's markup."""

    model_config = ConfigDict(from_attributes=True)

    version: int
    tenant_id: str
    valid_from: datetime
    basis_points: int
    created_at: datetime
    created_by: str


class MarkupPage(BaseModel):
    """Markups, newest first; `next` is the `before` of the page behind it, null on the last one."""

    data: list[MarkupOut]
    next: int | None


Pattern = Annotated[ModelName, Field(min_length=1)]


def amounts_out(price: Price | PriceVersion) -> dict[str, str]:
    """A price's amounts, as a file has them."""
    return {name: dollars(getattr(price, name)) for name in AMOUNTS}


def price_out(row: KeptPrice) -> dict[str, Any]:
    """A version, as the API and the CLI show it."""
    named = {name: getattr(row, name) for name in ("version", "model", "valid_from")}
    return {**named, **amounts_out(row), "created_at": row.created_at, "created_by": row.created_by}


def imported_out(done: Imported, *, left_out: int, tiered: int, dry_run: bool) -> dict[str, Any]:
    """What an import changed, as the API and the CLI show it."""
    changes = [
        {
            "model": one.model,
            "version": one.version,
            "before": None if one.before is None else amounts_out(one.before),
            "after": amounts_out(one.after),
        }
        for one in done.changes
    ]
    return {
        "valid_from": done.valid_from,
        "dry_run": dry_run,
        "changes": changes,
        "unchanged": done.unchanged,
        "left_out": left_out,
        "tiered": tiered,
    }
