"""Money is integer nano-dollars, rounded up once; a price is the version that held then."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core.money import MAX_COST, Markup, Price, Prices, PriceVersion, dollars
from api.core.usage import Certainty, Source, Usage

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
AMOUNTS = st.integers(0, 10**12)
TOKENS = st.integers(0, 10**7)
MARKUPS = st.integers(-10_000, 100_000)
PRICES = st.builds(Price, AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS, MARKUPS)


def usage(tokens_in: int, tokens_out: int, cached: int = 0, reasoning: int = 0) -> Usage:
    """So many tokens."""
    return Usage(tokens_in, tokens_out, cached, reasoning, Source.PROVIDER, Certainty.EXACT)


def version(number: int, model: str, valid_from: datetime = NOON, amount: int | None = None) -> PriceVersion:
    """A version whose four amounts are one; by default its number."""
    amount = number if amount is None else amount
    return PriceVersion(number, model, valid_from, amount, amount, amount, amount)


def held(prices: Prices, model: str, at: datetime = NOON, tenant: str = "tn_a") -> str | None:
    """The name of the version that holds."""
    price = prices.of(model, tenant, at)
    return None if price is None else price.version


# --- what a request costs ---------------------------------------------------------------------------


@given(price=PRICES, tokens=st.tuples(TOKENS, TOKENS, TOKENS, TOKENS))
def test_a_request_costs_what_it_costs_and_less_than_a_nano_dollar_more(
    price: Price, tokens: tuple[int, int, int, int]
) -> None:
    """Rounded up once, with the markup in it; cached is part of the input, reasoning of the output."""
    tokens_in, tokens_out, cached, reasoning = tokens
    kept, thought = min(cached, tokens_in), min(reasoning, tokens_out)
    amount = (tokens_in - kept) * price.input + kept * price.cached_input
    amount += (tokens_out - thought) * price.output + thought * price.reasoning
    exact = Fraction(amount * (10_000 + price.markup), 10**6 * 10_000)
    cost = price.of(usage(*tokens))
    assert 0 <= cost - exact < 1 or cost == MAX_COST < exact


@given(price=PRICES, tokens_in=TOKENS, tokens_out=TOKENS, reasoning=TOKENS)
def test_what_is_reserved_covers_what_it_costs(
    price: Price, tokens_in: int, tokens_out: int, reasoning: int
) -> None:
    """A prompt, and its output token by token, whatever of it is reasoning; where nothing was cached."""
    reserved = price.of_input(tokens_in) + tokens_out * price.of_output_token
    assert price.of(usage(tokens_in, tokens_out, 0, reasoning)) <= reserved
    if price.cached_input <= price.input:
        assert price.of(usage(tokens_in, tokens_out, tokens_in, reasoning)) <= reserved


@pytest.mark.parametrize(
    ("price", "used", "cost"),
    [
        (Price(10**9, 5 * 10**8, 2 * 10**9, 2 * 10**9), usage(1000, 500, 400), 600_000 + 200_000 + 1_000_000),
        (Price(10**9, 10**9, 2 * 10**9, 8 * 10**9), usage(0, 10, 0, 3), 7 * 2000 + 3 * 8000),
        (Price(1, 1, 1, 1), usage(1, 0), 1),
        (Price(1, 1, 1, 1), usage(500_000, 500_000), 1),
        (Price(1, 1, 1, 1), usage(500_000, 500_001), 2),
        (Price(1, 1, 1, 1, markup=2000), usage(500_000, 500_000), 2),
        (Price(10**9, 0, 0, 0, markup=2025), usage(10, 0), 12_025),
        (Price(10**9, 0, 0, 0, markup=-500), usage(10, 0), 9_500),
        (Price(10**9, 10**9, 10**9, 10**9, markup=-10_000), usage(10**7, 10**7), 0),
        (Price(0, 0, 0, 0, markup=2000), usage(10**7, 10**7), 0),
        (Price(10**9, 10**9, 10**9, 10**9), usage(0, 0), 0),
        (Price(10**15, 10**15, 10**15, 10**15), usage(10**12, 10**12), MAX_COST),
    ],
)
def test_what_some_requests_cost(price: Price, used: Usage, cost: int) -> None:
    """By hand: cached, reasoning, rounding once and up, markups up and down to nothing, and the most."""
    assert price.of(used) == cost


def test_sums_of_the_greatest_costs_fit_the_ledger() -> None:
    """A thousand of the dearest requests there can be are no overflow of a BIGINT."""
    assert 1000 * MAX_COST < 2**63


@given(nano=st.integers(0, 10**16))
def test_dollars_say_exactly_what_they_are(nano: int) -> None:
    """As a price file would have them: no exponent, no zeros at the end, no nano-dollar lost."""
    text = dollars(nano)
    assert Decimal(text) * 10**9 == nano
    assert "E" not in text
    assert not ("." in text and text.endswith(("0", ".")))


# --- which version holds ----------------------------------------------------------------------------


def test_a_price_holds_from_its_moment_on() -> None:
    """To the microsecond, until the next one's; before the first there is none, not a price of nothing."""
    prices = Prices([version(1, "m", NOON), version(2, "m", NOON + timedelta(days=1))])
    later = NOON + timedelta(days=1)
    asked = (NOON - MICROSECOND, NOON, later - MICROSECOND, later, later + timedelta(days=999))
    assert [held(prices, "m", at) for at in asked] == [None, "1", "1", "2", "2"]


def test_of_two_from_the_same_moment_the_later_version_holds() -> None:
    """Whoever corrects a price does it by adding one; the order in which rows are read changes nothing."""
    rows = [version(9, "m"), version(10, "m"), version(8, "m")]
    for order in (rows, rows[::-1]):
        assert held(Prices(order), "m") == "10"


def test_a_version_that_was_added_later_for_earlier_does_not_take_over() -> None:
    """The later moment counts, not the higher number; in between the one that was added holds."""
    prices = Prices([version(1, "m", NOON), version(2, "m", NOON - timedelta(days=1))])
    assert [held(prices, "m", at) for at in (NOON - MICROSECOND, NOON)] == ["2", "1"]


def test_the_longest_name_that_fits_has_the_price() -> None:
    """An exact name before any pattern, and of patterns the one that says most."""
    names = ("*", "gpt-*", "gpt-4o*", "gpt-4o-mini")
    prices = Prices([version(n, name) for n, name in enumerate(names)])
    asked = ("gpt-4o-mini", "gpt-4o-mini-2", "gpt-4o", "gpt-4", "gpt-", "gpt", "claude", "", "4o-mini")
    assert [held(prices, name) for name in asked] == ["3", "2", "2", "1", "1", "0", "0", "0", "0"]
    assert held(Prices([version(1, "gpt-*")]), "claude") is None
    assert held(Prices([]), "gpt") is None


def test_a_pattern_holds_where_the_name_has_no_price_yet() -> None:
    """A model that gets a price of its own tomorrow costs today what its pattern says, and so on outwards."""
    tomorrow, after = NOON + timedelta(days=1), NOON + timedelta(days=2)
    prices = Prices([version(1, "m-1", after), version(2, "m-*", tomorrow), version(3, "*", NOON)])
    assert [held(prices, "m-1", at) for at in (NOON, tomorrow, after)] == ["3", "2", "1"]


@given(
    rows=st.lists(st.tuples(st.sampled_from(["a", "ab", "a*", "ab*", "*", "b"]), st.integers(0, 5))),
    model=st.sampled_from(["a", "ab", "abc", "b", "c"]),
    hour=st.integers(-1, 6),
)
def test_the_version_is_the_one_that_a_look_through_all_of_them_finds(
    rows: list[tuple[str, int]], model: str, hour: int
) -> None:
    """As the rule is said: the name that fits best, of that the last moment, of those the last number."""
    at = NOON + timedelta(hours=hour)
    versions = [version(n, name, NOON + timedelta(hours=h)) for n, (name, h) in enumerate(rows)]

    def fits(row: PriceVersion) -> bool:
        return row.model == model or (row.model[-1] == "*" and model.startswith(row.model[:-1]))

    def rank(row: PriceVersion) -> Any:
        return (row.model == model, len(row.model), row.valid_from, row.version)

    valid = [row for row in versions if fits(row) and row.valid_from <= at]
    best = max(valid, key=rank, default=None)
    assert held(Prices(versions), model, at) == (None if best is None else str(best.version))


# --- markups ----------------------------------------------------------------------------------------


def test_a_markup_is_its_tenants_from_its_moment_on() -> None:
    """On every model, to the microsecond; others pay the price alone. The event can name both versions."""
    later = NOON + timedelta(hours=1)
    marks = [Markup(1, "tn_a", NOON, 2000), Markup(2, "tn_a", later, -500), Markup(3, "tn_b", NOON, 0)]
    prices = Prices([version(7, "m", NOON - timedelta(days=1), 10**9)], marks)
    cost = {}
    for tenant, at in (("tn_a", NOON - MICROSECOND), ("tn_a", NOON), ("tn_a", later), ("tn_b", NOON)):
        price = prices.of("m", tenant, at)
        assert price is not None
        cost[price.version] = price.of(usage(10, 0))
    assert cost == {"7": 10_000, "7+1": 12_000, "7+2": 9_500, "7+3": 10_000}
    assert held(prices, "m", tenant="tn_c") == "7"


def test_of_two_markups_from_the_same_moment_the_later_version_holds() -> None:
    """As of prices; and a markup of what has no price is nothing."""
    marks = [Markup(2, "tn_a", NOON, 1), Markup(3, "tn_a", NOON, 2), Markup(1, "tn_a", NOON, 3)]
    assert held(Prices([version(1, "m")], marks), "m") == "1+3"
    assert held(Prices([], marks), "m") is None
