"""The fair queue: order inside a tenant, shares between tenants, and nothing that is kept for ever."""

from __future__ import annotations

import pickle
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core.fair import FairQueue

TENANTS = ("a", "b", "c", "d")
EPSILON = 1e-6
"""Virtual times are floats: sums of thirds and sevenths are not exact."""

weights_of_all = st.fixed_dictionaries({name: st.integers(1, 1000) for name in TENANTS})
steps = st.lists(
    st.tuples(st.sampled_from(["push", "pop", "remove"]), st.sampled_from(TENANTS), st.integers(0, 5)),
    max_size=200,
)


def filled(counts: dict[str, int], weights: dict[str, int]) -> FairQueue[tuple[str, int]]:
    """A queue in which so many items of each tenant wait; an item is its tenant and its number."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for name, count in counts.items():
        for number in range(count):
            queue.push(name, weights[name], (name, number))
    return queue


def served(queue: FairQueue[tuple[str, int]], turns: int) -> Counter[str]:
    """Whose items the next turns take."""
    return Counter(queue.pop()[0] for _ in range(turns))


# --- order ------------------------------------------------------------------------------------------


@given(steps, weights_of_all)
def test_inside_a_tenant_the_first_comes_first(did: list[tuple[str, str, int]], weights: dict[str, int]):
    """Whatever is pushed, taken and taken out in between; and all counts are right at every step."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    wait: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for number, (verb, name, at) in enumerate(did):
        if verb == "push":
            queue.push(name, weights[name], (name, number))
            wait[name].append((name, number))
        elif verb == "remove" and at < len(wait[name]):
            queue.remove(name, wait[name].pop(at))
        elif verb == "pop" and any(wait.values()):
            taken = queue.pop()
            assert wait[taken[0]].pop(0) == taken
        assert len(queue) == sum(map(len, wait.values()))
        assert [queue.waiting(each) for each in TENANTS] == [len(wait[each]) for each in TENANTS]


def test_nobody_is_popped_from_an_empty_queue():
    """IndexError, before the first item and after the last one; `bool` says it beforehand."""
    queue: FairQueue[int] = FairQueue()
    for _ in range(2):
        assert not queue
        with pytest.raises(IndexError):
            queue.pop()
        queue.push("a", 1, 7)
        assert queue
        assert queue.pop() == 7


# --- shares -----------------------------------------------------------------------------------------


@given(weights_of_all, st.integers(0, 300), st.integers(1, 2000), steps)
def test_while_two_wait_neither_gets_ahead_by_more_than_a_turn_each(
    weights: dict[str, int], before: int, turns: int, others: list[tuple[str, str, int]]
):
    """Goyal, Vin, Cheng 1996, theorem 1: over any interval, whoever else comes and goes in it."""
    queue = filled({"a": before + turns, "b": before + turns}, weights)
    served(queue, before)
    got: Counter[str] = Counter()
    strangers = iter(others)
    for _ in range(turns):
        verb, name, _at = next(strangers, ("", "", 0))
        if verb == "push" and name in "cd":
            queue.push(name, weights[name], (name, -1))
        elif verb == "remove":
            queue.remove(name, (name, -1))
        got[queue.pop()[0]] += 1
        ahead = abs(got["a"] / weights["a"] - got["b"] / weights["b"])
        assert ahead <= 1 / weights["a"] + 1 / weights["b"] + EPSILON


@given(weights_of_all)
def test_over_a_long_run_shares_are_as_the_weights(weights: dict[str, int]):
    """Of 4000 turns each of four gets what its weight says, but for a few."""
    turns, total = 4000, sum(weights.values())
    got = served(filled(dict.fromkeys(TENANTS, turns), weights), turns)
    for name, weight in weights.items():
        assert abs(got[name] - turns * weight / total) <= 1 + len(TENANTS) * weight / min(weights.values())


def test_one_with_twice_the_weight_gets_two_turns_for_each_of_anothers():
    """However many the other has waiting."""
    got = served(filled({"light": 1000, "heavy": 20}, {"light": 1, "heavy": 2}), 30)
    assert got == {"light": 10, "heavy": 20}


def test_a_flood_of_one_tenant_does_not_hold_up_another():
    """One item behind ten thousand of somebody else's: it is taken at the first or the second turn."""
    queue = filled({"flood": 10_000}, {"flood": 1})
    served(queue, 100)
    queue.push("quiet", 1, ("quiet", 0))
    assert served(queue, 2)["quiet"] == 1


@given(st.integers(1, 500), weights_of_all)
def test_who_was_away_has_saved_up_nothing(away: int, weights: dict[str, int]):
    """One that waited, went, and comes back later has its share from then on, and no turns beyond it."""
    queue = filled({"a": 3, "b": away + 400}, weights)
    while queue.waiting("a"):
        queue.pop()
    served(queue, min(away, queue.waiting("b") - 200))
    for number in range(200):
        queue.push("a", weights["a"], ("a", number))
    got: Counter[str] = Counter()
    while queue.waiting("a") and queue.waiting("b"):
        got[queue.pop()[0]] += 1
        assert got["a"] / weights["a"] <= (got["b"] + 1) / weights["b"] + 1 / weights["a"] + EPSILON


def test_coming_one_at_a_time_wins_nothing():
    """Who has one item in the queue and pushes the next when that was taken gets its half and no more."""
    queue = filled({"many": 1000}, {"many": 1})
    queue.push("one", 1, ("one", 0))
    got: Counter[str] = Counter()
    for _ in range(200):
        name, number = queue.pop()
        got[name] += 1
        if name == "one":
            queue.push("one", 1, ("one", number + 1))
    assert got == {"many": 100, "one": 100}


def test_leaving_and_coming_back_at_once_wins_nothing():
    """A turn that was taken is not forgotten because its tenant had nothing waiting for a moment."""
    queue = filled({"steady": 100, "fickle": 1}, {"steady": 1, "fickle": 1})
    got: Counter[str] = Counter()
    for number in range(50):
        got[queue.pop()[0]] += 1
        for other in range(3):
            queue.push("fickle", 1, ("fickle", 100 * number + other))
            queue.remove("fickle", ("fickle", 100 * number + other))
        if not queue.waiting("fickle"):
            queue.push("fickle", 1, ("fickle", number))
    assert got == {"steady": 25, "fickle": 25}


def test_a_weight_that_changes_holds_from_the_next_turn_on():
    """A tenant is given more: with the next item that it pushes it has more turns."""
    queue = filled({"a": 500, "b": 500}, {"a": 1, "b": 1})
    assert served(queue, 100) == {"a": 50, "b": 50}
    queue.push("a", 4, ("a", 500))
    got = served(queue, 100)
    assert abs(got["a"] - 80) <= 2


# --- taking out, and forgetting ---------------------------------------------------------------------


def test_what_is_taken_out_is_never_popped_and_costs_no_turn():
    """Who gave up waiting is skipped, and its tenant's next one has the turn."""
    queue = filled({"a": 4, "b": 4}, {"a": 1, "b": 1})
    for gone in (("a", 0), ("a", 2)):
        queue.remove("a", gone)
    left = [queue.pop() for _ in range(6)]
    assert [item for item in left if item[0] == "a"] == [("a", 1), ("a", 3)]
    assert [name for name, _ in left[:4]] == ["a", "b", "a", "b"]
    assert not queue


def test_taking_out_what_is_not_there_does_nothing():
    """Neither an item that was taken already, nor one of a tenant that nobody knows."""
    queue = filled({"a": 2}, {"a": 1})
    first = queue.pop()
    queue.remove("a", first)
    queue.remove("stranger", first)
    assert (len(queue), queue.pop()) == (1, ("a", 1))
    queue.remove("a", ("a", 1))
    assert len(queue) == 0


def test_what_is_kept_does_not_grow():
    """Ten thousand tenants come and go, by being served or by giving up: only who waits is kept."""
    queue = filled({"steady": 30_000}, {"steady": 1})
    sizes = []
    for number in range(10_000):
        queue.push(f"served-{number:05}", 1, (f"served-{number:05}", 0))
        queue.push(f"gone-{number:05}", 1, (f"gone-{number:05}", 0))
        queue.remove(f"gone-{number:05}", (f"gone-{number:05}", 0))
        queue.pop()
        queue.pop()
        if number % 5000 == 4999:
            sizes.append(len(pickle.dumps((queue._starts, queue._weights))))
    assert sizes[1] <= sizes[0] + 100
    assert sizes[1] < 500


def test_tenants_that_come_one_after_the_other_are_forgotten() -> None:
    """Ten thousand tenants of whom one waits at a time: nothing of them is kept."""
    queue: FairQueue[int] = FairQueue()
    for number in range(10_000):
        queue.push(f"tenant {number}", 1, number)
        queue.pop()
    assert len(queue._starts) < 100
