"""What is seen in one booking's events, where no database would let it happen, or only by bad luck."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from api.core.invariants import (
    SHOWN,
    Check,
    PriceList,
    by_booking,
    correction_faults,
    cost_faults,
    single_faults,
)
from api.core.money import Markup, PriceVersion

CAME = datetime(2026, 3, 4, tzinfo=UTC)
PRICES = PriceList(
    {
        1: PriceVersion(1, "m", CAME, 2_000_000, 1_000_000, 3_000_000, 4_000_000),
        2: PriceVersion(2, "m*", CAME, 10_000_000, 10_000_000, 10_000_000, 10_000_000),
    },
    {5: Markup(5, "tn_a", CAME, 5000)},
)


def row(name: str, corrects: str | None = None, **changes: Any) -> dict[str, Any]:
    """A row of a booking."""
    labels = dict.fromkeys(("request_id", "key_id", "token_id", "end_user", "dialect", "upstream"))
    tokens = {"input_tokens": 10, "output_tokens": 10, "cached_tokens": 4, "reasoning_tokens": 5}
    rest = {"tenant_id": "tn_a", "model": "m", "started_at": CAME, "cost_nano_dollars": 51}
    return {"id": name, "corrects": corrects, **labels, **tokens, **rest, "price_version": "1", **changes}


def of(*rows: dict[str, Any]) -> Any:
    [group] = by_booking(rows)
    return group


NONE = dict.fromkeys(("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens"), 0)


def test_rows_are_told_apart_by_their_bookings() -> None:
    """A booking's corrections stand behind it, in whatever order a database has their numbers."""
    rows = [row("b1"), row("b2"), row("b2-1", "b2"), row("b2-10", "b2"), row("b2-2", "b2"), row("b3")]
    groups = list(by_booking(rows))
    assert [[one["id"] for one in group.ordered] for group in groups] == [
        ["b1"],
        ["b2", "b2-1", "b2-2", "b2-10"],
        ["b3"],
    ]
    assert list(by_booking([])) == []


def test_two_events_of_one_booking_are_one_too_many() -> None:
    """Partitions cannot keep an id from standing in two of them."""
    assert list(single_faults(of(row("b1")))) == []
    assert list(single_faults(of(row("b1"), row("b1")))) == [("b1", "2 events of one booking")]


@pytest.mark.parametrize("name", ["b1-0", "b1-x", "b1", "b2-1", "b1-", "b1--1", "b1-²"])
def test_an_id_that_is_none_of_a_correction_is_told(name: str) -> None:
    """Who reads the ledger goes by ids."""
    found = list(correction_faults(of(row("b1"), row(name, "b1"))))
    assert found == [(name, "an id that fits neither an event nor a correction of b1")]


def test_an_event_that_looks_like_a_correction_is_told() -> None:
    """It says of nothing that it corrects it."""
    assert [name for name, _ in correction_faults(of(row("b1-1")))] == ["b1-1"]


def test_corrections_are_numbered_from_one_on() -> None:
    """The first that is out of order is told; those behind it are so by necessity."""
    good = of(row("b1"), row("b1-1", "b1"), row("b1-2", "b1"))
    assert list(correction_faults(good)) == []
    gap = of(row("b1"), row("b1-1", "b1"), row("b1-3", "b1"), row("b1-4", "b1"))
    assert list(correction_faults(gap)) == [("b1-3", "number 3 where 2 comes next")]


def test_costs_follow_tokens_through_corrections() -> None:
    """A late worker's difference, a repricing with no tokens, an event that had no price at first."""
    # 6 * 2 + 4 * 1 + 5 * 3 + 5 * 4
    assert list(cost_faults(of(row("b1")), PRICES)) == []
    late = row("b1-1", "b1", **(NONE | {"input_tokens": 5}), cost_nano_dollars=10)
    assert list(cost_faults(of(row("b1"), late), PRICES)) == []
    repriced = row("b1-2", "b1", **NONE, cost_nano_dollars=250 - 61, price_version="2")
    assert list(cost_faults(of(row("b1"), late, repriced), PRICES)) == []
    marked_up = row("b1-1", "b1", **NONE, cost_nano_dollars=77 - 51, price_version="1+5")
    assert list(cost_faults(of(row("b1"), marked_up), PRICES)) == []
    free = row("b1", cost_nano_dollars=None, price_version=None)
    priced = row("b1-1", "b1", **NONE, cost_nano_dollars=51)
    assert list(cost_faults(of(free, priced), PRICES)) == []
    assert list(cost_faults(of(free), PRICES)) == []


def test_a_cost_that_is_wrong_is_told_with_what_is_right() -> None:
    """At the row after which it is wrong."""
    fault = "costs 52 nano-dollars; by price 1 it is 51"
    assert list(cost_faults(of(row("b1", cost_nano_dollars=52)), PRICES)) == [("b1", fault)]
    late = row("b1-1", "b1", **(NONE | {"input_tokens": 5}), cost_nano_dollars=0)
    assert [name for name, _ in cost_faults(of(row("b1"), late), PRICES)] == ["b1-1"]
    nothing = row("b1", cost_nano_dollars=None)
    assert [fault for _, fault in cost_faults(of(nothing), PRICES)] == [
        "costs 0 nano-dollars; by price 1 it is 51"
    ]


@pytest.mark.parametrize("version", ["", "+", "3", "1+6", "1+", "-1", "1+5+5", "²", "2+5"])
def test_a_price_of_a_strange_name_is_told(version: str) -> None:
    """Whatever stands there, nothing breaks; a price for all names that begin so is one for this model."""
    found = list(cost_faults(of(row("b1", price_version=version)), PRICES))
    assert len(found) == 1
    assert found[0][1].startswith("costs" if version == "2+5" else "there is no")


def test_a_check_counts_all_and_shows_some() -> None:
    """And holds where nothing was found, and everything could be looked at."""
    check = Check("name", "says")
    assert check.held
    for number in range(30):
        check.found("fault", id=number)
    assert not check.held
    assert (check.broken, len(check.rows)) == (30, SHOWN)
    check.add("One.")
    check.add("Two.")
    assert check.told() == {
        "name": "name",
        "held": False,
        "broken": 30,
        "rows": [{"id": number, "fault": "fault"} for number in range(20)],
        "note": "One. Two.",
    }
    assert not Check("name", "says", unknown=True).held
