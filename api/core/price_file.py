"""Price lists as people have them: our own JSON, and LiteLLM's `model_prices_and_context_window.json`.

Ours is `{"gpt-4o-mini": {"input": "0.15", "cached_input": "0.075", "output": "0.60"}}`, in dollars per
million tokens. LiteLLM's has dollars per token, and much that is not about tokens: that is left out. Amounts
are rounded up to nano-dollars per million tokens, once; no float comes near them.
"""

from __future__ import annotations

import json
from decimal import ROUND_CEILING, Context, Decimal, InvalidOperation
from typing import Any, NamedTuple

from api.core.money import Price

MAX_MODELS = 10_000
MAX_NAME = 256
_MAX_DOLLARS = 1_000_000
_MILLION = 1_000_000
_NANO = 10**9
_UP = Context(prec=40, rounding=ROUND_CEILING)
"""Rounds up whenever it rounds, so that what is rounded up to a whole at the end is the first whole above."""

_OWN = {"input", "cached_input", "output", "reasoning"}
_LITELLM = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cached_input": "cache_read_input_token_cost",
    "reasoning": "output_cost_per_reasoning_token",
}
_TELLING = {"litellm_provider", *_LITELLM.values()}
_SAMPLE = "sample_spec"


class PriceFile(NamedTuple):
    """Prices by model. `left_out` entries of the file had none for tokens.

    `tiered` of the prices are higher above some size of the prompt, or at other times; the base price counts.
    """

    prices: dict[str, Price]
    left_out: int = 0
    tiered: int = 0


def parse_prices(text: str) -> PriceFile:
    """From the text of a file. Raises ValueError, which says which model and which field is wrong."""
    try:
        document = json.loads(text, parse_float=Decimal)
    except InvalidOperation:
        raise ValueError("has a number that is none") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from None
    return read_prices(document)


def read_prices(document: Any) -> PriceFile:
    """From JSON that was read, in either shape. Raises ValueError."""
    if not isinstance(document, dict):
        raise ValueError(  # noqa: TRY004 - a wrong file is a wrong value
            'must be an object such as {"gpt-4o-mini": {"input": "0.15", "output": "0.60"}}'
        )
    if len(document) > MAX_MODELS:
        raise ValueError(f"has more than {MAX_MODELS} models")
    litellm = _SAMPLE in document or any(
        isinstance(row, dict) and not _TELLING.isdisjoint(row) for row in document.values()
    )
    found = _of_litellm(document) if litellm else PriceFile(dict(map(_own, document.items())))
    if not found.prices:
        raise ValueError("has no price of any model")
    return found


def _own(entry: tuple[str, Any]) -> tuple[str, Price]:
    model, row = entry
    _check_name(model)
    if not isinstance(row, dict) or not {"input", "output"} <= set(row) <= _OWN:
        raise ValueError(
            f"{_shown(model)}: needs `input` and `output`, and may have `cached_input` and `reasoning`"
        )
    return model, _price({name: _nano(model, name, row[name], 1) for name in row})


def _of_litellm(document: dict[str, Any]) -> PriceFile:
    prices, left_out, tiered = {}, 0, 0
    for model, row in document.items():
        if model == _SAMPLE:
            continue
        if not isinstance(row, dict):
            raise ValueError(f"{_shown(model)}: must be an object")  # noqa: TRY004 - as above
        given = {name: key for name, key in _LITELLM.items() if row.get(key) is not None}
        amounts = {name: _nano(model, key, row[key], _MILLION) for name, key in given.items()}
        if row.get("mode") == "embedding":
            amounts.setdefault("output", 0)  # there is none
        if not {"input", "output"} <= set(amounts) or "*" in model[:-1]:
            left_out += 1
            continue
        _check_name(model)
        prices[model] = _price(amounts)
        tiered += any("_cost_per_token_above_" in key or key == "tiered_pricing" for key in row)
    return PriceFile(prices, left_out, tiered)


def _price(amounts: dict[str, int]) -> Price:
    return Price(
        amounts["input"],
        amounts.get("cached_input", amounts["input"]),
        amounts["output"],
        amounts.get("reasoning", amounts["output"]),
    )


def _check_name(model: str) -> None:
    if not 1 <= len(model) <= MAX_NAME or not model.isprintable():
        raise ValueError(f"{_shown(model)}: a name has 1 to {MAX_NAME} characters, all of them printable")
    if "*" in model[:-1]:
        raise ValueError(f"{_shown(model)}: may have a `*` at its end alone")


def _shown(model: str) -> str:
    """A name that can be said in an error."""
    return model[:80] if model and model.isprintable() else ascii(model[:80])


def _nano(model: str, field: str, amount: Any, tokens: int) -> int:
    """Nano-dollars per million tokens, from dollars for a `tokens`th of that."""
    try:
        dollars = Decimal(str(amount)) if isinstance(amount, int | float | Decimal | str) else Decimal("NaN")
    except (InvalidOperation, ValueError):  # the latter for an integer of thousands of digits
        dollars = Decimal("NaN")
    most = Decimal(_MAX_DOLLARS) / tokens
    if not (dollars.is_finite() and 0 <= dollars <= most):  # a bool, as text, is none
        unit = "dollars per million tokens" if tokens == 1 else "dollars per token"
        raise ValueError(f"{_shown(model)}: `{field}` must be {unit}, from 0 to {most:f}")
    return int(_UP.multiply(dollars, Decimal(tokens * _NANO)).to_integral_value(ROUND_CEILING))
