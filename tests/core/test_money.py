"""Money is integer nano-dollars and never rounded down: the sum of the parts covers the whole."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core.money import SCRIPTED, Price, Prices, read_prices
from api.core.usage import Certainty, Source, Usage

_AMOUNTS = st.integers(0, 10**15)
_TOKENS = st.integers(0, 10**7)
_PRICES = st.builds(Price, _AMOUNTS, _AMOUNTS, _AMOUNTS)


def usage(tokens_in: int, tokens_out: int, cached: int = 0) -> Usage:
    """So many tokens."""
    return Usage(tokens_in, tokens_out, cached, 0, Source.PROVIDER, Certainty.EXACT)


@given(price=_PRICES, tokens_in=_TOKENS, tokens_out=_TOKENS, cached=_TOKENS)
def test_a_request_costs_what_it_costs_and_less_than_a_nano_dollar_more(
    price, tokens_in, tokens_out, cached
) -> None:
    """Rounded up once, at the end; cached input has its own price, and is no more than the input."""
    kept = min(cached, tokens_in)
    exact = Fraction((tokens_in - kept) * price.input + kept * price.cached_input + tokens_out * price.output)
    cost = price.of(usage(tokens_in, tokens_out, cached))
    assert 0 <= cost - exact / 10**6 < 1


@given(price=_PRICES, tokens_in=_TOKENS, tokens_out=_TOKENS)
def test_what_is_reserved_covers_what_it_costs(price, tokens_in, tokens_out) -> None:
    """A prompt, and its output token by token: where nothing was cached, or cached input is cheaper."""
    reserved = price.of_input(tokens_in) + tokens_out * price.of_output_token
    assert price.of(usage(tokens_in, tokens_out)) <= reserved
    if price.cached_input <= price.input:
        assert price.of(usage(tokens_in, tokens_out, tokens_in)) <= reserved


@pytest.mark.parametrize(
    ("dollars", "nano"),
    [
        ("0.15", 150_000_000),
        (0.15, 150_000_000),
        (3, 3_000_000_000),
        ("0", 0),
        ("1e-9", 1),
        ("0.0000000015", 2),
        ("1e-12", 1),
        ("1e-999999", 1),
        ("1000000", 10**15),
    ],
)
def test_prices_are_read_exactly_and_rounded_up(dollars, nano) -> None:
    """Dollars per million tokens, as strings or numbers; what is not free costs something."""
    assert read_prices({"m": {"input": dollars, "output": dollars}}).of("m") == Price(nano, nano, nano)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {"m": {}},
        {"m": "free"},
        {"m": {"input": "1"}},
        {"m": {"input": "1", "output": "1", "reasoning": "1"}},
        *(
            {"m": {"input": "1", "output": amount}}
            for amount in ("", "x", "-1", "-1e-30", "NaN", "Infinity", "1000001", True, None, [], {}, "1,5")
        ),
    ],
)
def test_what_is_no_price_is_said_to_be_none(document) -> None:
    """ValueError, with the model's name where there is one."""
    with pytest.raises(ValueError, match=r"m: |must be an object"):
        read_prices(document)


def test_the_longest_name_that_fits_has_the_price() -> None:
    """An exact name before any pattern, and of patterns the one that says most."""
    prices = Prices({name: Price(n, n, n) for n, name in enumerate(("*", "gpt-*", "gpt-4o*", "gpt-4o-mini"))})
    asked = ("gpt-4o-mini", "gpt-4o-mini-2", "gpt-4o", "gpt-4", "claude", "")
    assert [prices.of(name).input for name in asked] == [3, 2, 2, 1, 0, 0]  # type: ignore[union-attr]
    assert Prices({"gpt-*": SCRIPTED}).of("claude") is None


def test_cached_input_costs_as_much_as_input_where_nobody_says() -> None:
    """And the scripted model has a price unless it is given another."""
    prices = read_prices({"m": {"input": "2", "output": "4"}})
    assert prices.of("m") == Price(2 * 10**9, 2 * 10**9, 4 * 10**9)
    assert prices.of("scripted-slow") == SCRIPTED
    other = read_prices({"scripted*": {"input": "0", "output": "0", "cached_input": "0"}})
    assert other.of("scripted-slow") == Price(0, 0, 0)
