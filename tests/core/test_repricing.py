"""A correction brings what a booking cost to what it costs, whatever stands there already."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core.booking import Correction, Ended
from api.core.money import Price
from api.core.repricing import Repriced, repriced
from api.core.usage import Certainty, Source, Usage
from tests.contracts.helpers import START, booking, event

if TYPE_CHECKING:
    from api.core.record import UsageEvent

AT = START + timedelta(days=40)
OLD = Price(1000, 500, 2000, 3000, version="1")
NEW = Price(1500, 700, 2500, 4000, markup=1000, version="2+1")
USAGE = Usage(10**6, 2 * 10**6, 10**5, 10**4, Source.PROVIDER, Certainty.EXACT)
NO_TOKENS = Usage(0, 0, 0, 0, Source.PROVIDER, Certainty.EXACT)


def priced(price: Price | None, usage: Usage = USAGE) -> UsageEvent:
    """An event that was charged by that price."""
    cost, version = (None, None) if price is None else (price.of(usage), price.version)
    return event(booking(), usage=usage, cost_nano_dollars=cost, price_version=version)


def test_a_correction_says_the_difference_and_nothing_else() -> None:
    """No tokens, the labels of what it corrects, when it was made, by which price, and the next number."""
    one = priced(OLD)
    correction = repriced([one], NEW, AT)
    assert correction == replace(
        one,
        usage=NO_TOKENS,
        cause=Correction.REPRICED,
        ended_at=AT,
        cost_nano_dollars=NEW.of(USAGE) - OLD.of(USAGE),
        price_version="2+1",
        number=1,
    )
    assert correction.id == f"{one.booking.id}-1"


def test_what_costs_the_same_needs_no_correction() -> None:
    """By the same price, and by another that comes to the same."""
    one = priced(OLD)
    assert repriced([one], OLD, AT) is None
    assert repriced([one], replace(OLD, version="9"), AT) is None


@pytest.mark.parametrize("price", [NEW, Price(0, 0, 0, 0, version="3")])
def test_what_had_no_price_gets_one(price: Price) -> None:
    """Also one of nothing: that it is free was not known before. Then it is known."""
    one = priced(None)
    correction = repriced([one], price, AT)
    assert correction is not None
    assert correction.cost_nano_dollars == price.of(USAGE)
    assert repriced([one, correction], price, AT) is None


def test_the_tokens_of_earlier_corrections_count() -> None:
    """A worker that came late knew of more tokens; all of them are charged, and the number goes on."""
    lost = replace(priced(OLD, replace(NO_TOKENS, input_tokens=7)), ended=Ended.LOST)
    late = replace(lost, usage=replace(USAGE, input_tokens=10**6 - 7), number=1, cost_nano_dollars=5)
    correction = repriced([lost, late], NEW, AT)
    assert correction is not None
    before = (lost.cost_nano_dollars or 0) + 5
    assert (correction.number, correction.cost_nano_dollars) == (2, NEW.of(USAGE) - before)
    assert correction.ended is Ended.LOST


@given(prices=st.lists(st.tuples(*[st.integers(0, 10**12)] * 4, st.integers(-10_000, 100_000)), max_size=5))
def test_after_each_repricing_the_sum_is_the_price(prices: list[tuple[int, ...]]) -> None:
    """However often, up and down: all events of a booking together cost what its last price says."""
    standing = [priced(OLD)]
    for number, amounts in enumerate(prices):
        price = Price(*amounts, version=f"{number + 2}")
        correction = repriced(standing, price, AT)
        standing += [] if correction is None else [correction]
        assert sum(one.cost_nano_dollars or 0 for one in standing) == price.of(USAGE)
        assert repriced(standing, price, AT) is None
    assert [one.number for one in standing] == list(range(len(standing)))


def test_what_came_of_it_is_added_up() -> None:
    """Page by page: what was looked at, corrected and without a price, and the sum of the differences."""
    one, other = priced(OLD), priced(None)
    corrections = [found for found in (repriced([each], NEW, AT) for each in (one, other)) if found]
    done = Repriced(5, 1, 2, -7).plus(corrections, bookings=4, unpriced=1)
    assert done == Repriced(9, 3, 3, -7 + 2 * NEW.of(USAGE) - OLD.of(USAGE))
