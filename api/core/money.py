"""Money: integer nano-dollars, rounded up. Prices are nano-dollars per million tokens."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from api.core.usage import Usage

_MILLION = 1_000_000
_NANO = 10**9
_MAX_DOLLARS = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in nano-dollars per million tokens. Cached input is part of the input."""

    input: int
    cached_input: int
    output: int

    def of_input(self, tokens: int) -> int:
        """What a prompt costs, nothing of it cached."""
        return -(-tokens * self.input // _MILLION)

    @property
    def of_output_token(self) -> int:
        """What a token of output costs, rounded up."""
        return -(-self.output // _MILLION)

    def of(self, usage: Usage) -> int:
        """What a request cost."""
        cached = min(usage.cached_tokens, usage.input_tokens)
        fresh = usage.input_tokens - cached
        total = fresh * self.input + cached * self.cached_input + usage.output_tokens * self.output
        return -(-total // _MILLION)


class Prices:
    """Prices by model name, or by the beginning of one and a `*`. The longest that fits wins."""

    def __init__(self, prices: Mapping[str, Price]) -> None:
        self._exact = {name: price for name, price in prices.items() if not name.endswith("*")}
        wild = sorted((name for name in prices if name.endswith("*")), key=len, reverse=True)
        self._wild = [(name[:-1], prices[name]) for name in wild]

    def of(self, model: str) -> Price | None:
        """What a model costs; None where nobody said."""
        exact = self._exact.get(model)
        if exact is not None:
            return exact
        return next((price for start, price in self._wild if model.startswith(start)), None)


SCRIPTED = Price(1_000_000_000, 500_000_000, 2_000_000_000)
"""What the scripted model is made to cost: one dollar per million tokens of input, two of output."""


def read_prices(document: Any) -> Prices:
    """From `{"gpt-4o-mini": {"input": "0.15", "cached_input": "0.075", "output": "0.60"}}`.

    Amounts are dollars per million tokens, as strings or numbers; `cached_input` is `input` where it is left
    out. Raises ValueError.
    """
    if not isinstance(document, dict):
        raise ValueError(  # noqa: TRY004 - a wrong file is a wrong value
            'must be an object such as {"gpt-4o-mini": {"input": "0.15", "output": "0.60"}}'
        )
    prices = {"scripted*": SCRIPTED}
    for model, row in document.items():
        if not isinstance(row, dict) or not {"input", "output"} <= set(row) <= {
            "input",
            "cached_input",
            "output",
        }:
            raise ValueError(f"{model}: needs `input` and `output`, and may have `cached_input`")
        amounts = {name: _nano(model, name, row[name]) for name in row}
        prices[model] = Price(
            amounts["input"], amounts.get("cached_input", amounts["input"]), amounts["output"]
        )
    return Prices(prices)


def _nano(model: str, name: str, dollars: Any) -> int:
    try:
        amount = Decimal(str(dollars)) if not isinstance(dollars, bool) else Decimal("NaN")
    except InvalidOperation:
        amount = Decimal("NaN")
    if not (amount.is_finite() and 0 <= amount <= _MAX_DOLLARS):
        raise ValueError(f"{model}: `{name}` must be dollars per million tokens, from 0 to {_MAX_DOLLARS}")
    return int((amount * _NANO).to_integral_value(ROUND_CEILING))
