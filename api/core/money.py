"""Money: integer nano-dollars, rounded up once. Prices are nano-dollars per million tokens.

A price is a version of what a model costs from a moment on; a markup is what a tenant pays on top, from a
moment on. Neither ever changes: a new version takes over. An event keeps the names of both (`Price.version`).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from api.core.usage import Usage

_MILLION = 1_000_000
_NANO = 10**9
_WHOLE = 10_000
"""A hundred per cent in basis points."""

MAX_COST = 1 << 52
"""No request costs more, whatever a provider reports: 4.5 million dollars; sums of such fit a BIGINT."""


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in nano-dollars per million tokens. Cached input is part of the input.

    Reasoning is part of the output. `markup` is in basis points of it all.
    """

    input: int
    cached_input: int
    output: int
    reasoning: int
    markup: int = 0
    version: str = ""

    def of_input(self, tokens: int) -> int:
        """What a prompt costs, nothing of it cached."""
        return self._sum(tokens * self.input)

    @property
    def of_output_token(self) -> int:
        """What a token of output costs at most, rounded up."""
        return self._sum(max(self.output, self.reasoning))

    def of(self, usage: Usage) -> int:
        """What a request cost."""
        cached = min(usage.cached_tokens, usage.input_tokens)
        reasoning = min(usage.reasoning_tokens, usage.output_tokens)
        return self._sum(
            (usage.input_tokens - cached) * self.input
            + cached * self.cached_input
            + (usage.output_tokens - reasoning) * self.output
            + reasoning * self.reasoning
        )

    def _sum(self, amount: int) -> int:
        return min(-(-amount * (_WHOLE + self.markup) // (_MILLION * _WHOLE)), MAX_COST)


@dataclass(frozen=True, slots=True)
class PriceVersion:
    """A row of the price list. `model` is a name, or the beginning of one and a `*`."""

    version: int
    model: str
    valid_from: datetime
    input: int
    cached_input: int
    output: int
    reasoning: int


@dataclass(frozen=True, slots=True)
class Markup:
    """What a tenant pays on top from a moment on, in basis points: 2000 is 20 per cent more."""

    version: int
    tenant_id: str
    valid_from: datetime
    basis_points: int


class Prices:
    """All versions. Of two that are valid the later `valid_from` holds, then the later version."""

    def __init__(self, prices: Iterable[PriceVersion], markups: Iterable[Markup] = ()) -> None:
        self._by_model: dict[str, list[PriceVersion]] = {}
        self._markups: dict[str, list[Markup]] = {}
        for price in sorted(prices, key=lambda row: (row.valid_from, row.version)):
            self._by_model.setdefault(price.model, []).append(price)
        for markup in sorted(markups, key=lambda row: (row.valid_from, row.version)):
            self._markups.setdefault(markup.tenant_id, []).append(markup)
        self._lengths = sorted({len(name) - 1 for name in self._by_model if name.endswith("*")}, reverse=True)

    def of(self, model: str, tenant_id: str, at: datetime) -> Price | None:
        """What a model costs a tenant at a moment; None where nobody said.

        The price of that very name, else of the longest beginning that fits and had a price then.
        """
        row = _valid(self._by_model.get(model, ()), at)
        if row is None:
            starts = (model[:length] for length in self._lengths if length <= len(model))
            fitting = (_valid(self._by_model.get(start + "*", ()), at) for start in starts)
            row = next((found for found in fitting if found is not None), None)
        if row is None:
            return None
        price = Price(row.input, row.cached_input, row.output, row.reasoning, version=str(row.version))
        markup = _valid(self._markups.get(tenant_id, ()), at)
        if markup is None:
            return price
        return replace(price, markup=markup.basis_points, version=f"{row.version}+{markup.version}")


def _valid(rows: Any, at: datetime) -> Any:
    """The last row that is valid by then, of rows in order."""
    position = bisect_right(rows, at, key=lambda row: row.valid_from)
    return rows[position - 1] if position else None


def dollars(nano_dollars: int) -> str:
    """An amount in dollars, exactly, as a price file has it."""
    whole, rest = divmod(nano_dollars, _NANO)
    return f"{whole}.{rest:09d}".rstrip("0").rstrip(".")
