"""The circuit breaker, by its table: when it opens, for how long, and who may try again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from api.core.breaker import FAILURES, FIRST_SECONDS, MOST_REST_SECONDS, MOST_SECONDS, Breaker, Standing


def opened(now: float = 100.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES):
        breaker.failed(now, 0.0)
    return breaker


def test_it_opens_after_failures_in_a_row():
    """Not before, and not where a success was among them."""
    breaker = Breaker()
    for _ in range(FAILURES - 1):
        breaker.failed(100, 0)
    assert breaker.standing(100) is Standing.CLOSED
    breaker.succeeded()
    breaker.failed(100, 0)
    assert breaker.admits(100)
    assert opened().standing(100) is Standing.OPEN
    assert not opened().admits(100)


def test_half_open_admits_one_at_a_time():
    """The next may try when the one before has failed, succeeded, or nobody waited for it."""
    breaker, later = opened(), 100 + FIRST_SECONDS
    assert breaker.standing(later) is Standing.HALF_OPEN
    assert breaker.admits(later)
    breaker.tried(later)
    assert not breaker.admits(later)
    breaker.given_up()
    assert breaker.admits(later)
    breaker.tried(later)
    breaker.succeeded()
    assert breaker.standing(later) is Standing.CLOSED
    assert breaker.admits(later)


def test_each_time_it_stays_open_for_twice_as_long():
    """Up to a minute; and the first failure of a try is enough."""
    breaker, now, lasted = opened(), 100.0, []
    for _ in range(8):
        seconds = next(s / 10 for s in range(10_000) if breaker.standing(now + s / 10) is Standing.HALF_OPEN)
        lasted.append(seconds)
        now += seconds
        breaker.tried(now)
        breaker.failed(now, 0.0)
    assert lasted == [2, 4, 8, 16, 32, 60, 60, 60]
    assert MOST_SECONDS == 60


def test_what_fails_beside_it_does_not_keep_it_open_for_longer():
    """Ten requests that were under way when it opened count once."""
    breaker = opened()
    for _ in range(10):
        breaker.failed(100.5, 0.0)
    assert breaker.standing(100 + FIRST_SECONDS) is Standing.HALF_OPEN


def test_a_rest_that_was_asked_for_is_given():
    """`Retry-After`, bounded, at once; a shorter one does not shorten it."""
    breaker = Breaker()
    breaker.rests(100, 20)
    breaker.rests(100, 5)
    assert breaker.standing(119) is Standing.OPEN
    assert breaker.standing(120) is Standing.HALF_OPEN
    breaker.rests(120, 10**9)
    assert breaker.standing(120 + MOST_REST_SECONDS) is Standing.HALF_OPEN


@given(st.lists(st.sampled_from(["fail", "succeed", "try", "rest", "wait", "give up"]), max_size=60))
def test_it_never_stays_shut_for_ever(steps):
    """Whatever happened: after the longest rest and a minute somebody may try again."""
    breaker, now = Breaker(), 100.0
    for step in steps:
        now += 1
        if step == "fail":
            breaker.failed(now, 0.5)
        elif step == "succeed":
            breaker.succeeded()
            assert breaker.admits(now)
        elif step == "try":
            breaker.tried(now)
        elif step == "rest":
            breaker.rests(now, 30)
        elif step == "give up":
            breaker.given_up()
    assert breaker.admits(now + MOST_REST_SECONDS + MOST_SECONDS)
