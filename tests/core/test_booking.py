"""The life of a booking: the table is whole, and no order of happenings gets round it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core import booking
from api.core.booking import ENDINGS, TABLE, Account, Ended, Happening, IllegalStep, State

MAY_NOT_HAPPEN = {
    (State.FLOWING, Happening.FIRST_EVENT): "a first event twice",
    (State.SETTLED, Happening.FIRST_EVENT): "a first event after the books are closed",
    (State.OPENING, Happening.SETTLED): "a settlement of what has not ended",
    (State.FLOWING, Happening.SETTLED): "a settlement of what has not ended",
    (State.SETTLED, Happening.SETTLED): "a settlement twice",
}
"""The holes of the table, each on purpose."""


def walk(happenings: list[Happening]) -> list[tuple[Account, Happening, bool | None]]:
    """An account after each happening; None stands for a step that the table refused."""
    account = Account()
    steps: list[tuple[Account, Happening, bool | None]] = []
    for happening in happenings:
        try:
            decided = account.happen(happening)
        except IllegalStep:
            decided = None
        copy = Account()
        copy.state, copy.cause = account.state, account.cause
        steps.append((copy, happening, decided))
    return steps


lives = st.lists(st.sampled_from(list(Happening)), max_size=12)


def test_every_happening_in_every_state_is_either_in_the_table_or_forbidden_on_purpose():
    """A new happening or state that nobody thought through is found here."""
    every = {(state, happening) for state in State for happening in Happening}
    assert set(TABLE) | set(MAY_NOT_HAPPEN) == every
    assert not set(TABLE) & set(MAY_NOT_HAPPEN)


def test_every_happening_but_two_ends_a_booking():
    """What does not end one is the first event and the settlement; all others say how the stream ended."""
    assert set(Happening) - set(ENDINGS) == {Happening.FIRST_EVENT, Happening.SETTLED}
    assert set(ENDINGS.values()) == set(Ended)


@given(lives)
def test_the_first_ending_wins(happenings):
    """The cause is the first happening that ends a booking, whatever else happens before and after."""
    account = Account()
    for happening in happenings:
        try:
            account.happen(happening)
        except IllegalStep:
            continue
    first = next((happening for happening in happenings if happening in ENDINGS), None)
    assert account.cause is first
    assert account.ended is (None if first is None else ENDINGS[first])


@given(lives)
def test_exactly_one_happening_decides(happenings):
    """`happen` says True once in a life that ends, and never in one that does not."""
    steps = walk(happenings)
    deciding = [happening for _, happening, decided in steps if decided]
    ended = any(happening in ENDINGS for happening in happenings)
    assert len(deciding) == ended
    if ended:
        assert steps[-1][0].cause is deciding[0]


@given(lives)
def test_a_cause_never_changes(happenings):
    """Once there is a cause it stays, through refused steps too."""
    causes = [account.cause for account, _, _ in walk(happenings)]
    known = [cause for cause in causes if cause is not None]
    assert causes == [None] * (len(causes) - len(known)) + known
    assert len(set(known)) <= 1


@given(lives)
def test_the_state_tells_whether_there_is_a_cause(happenings):
    """Live states have none; ended and settled bookings have one: nothing is settled before it ended."""
    for account, _, _ in walk(happenings):
        assert (account.cause is None) == (account.state in {State.OPENING, State.FLOWING})


@given(lives)
def test_states_never_go_back(happenings):
    """opening, flowing, ended, settled: a booking only moves on."""
    order = [list(State).index(account.state) for account, _, _ in walk(happenings)]
    assert order == sorted(order)


@pytest.mark.parametrize(("state", "happening"), MAY_NOT_HAPPEN)
def test_a_step_without_a_row_is_refused_and_changes_nothing(state, happening):
    """A bug in the gate shows at once, and leaves the account as it was."""
    account = Account()
    account.state = state
    account.cause = Happening.DRAIN if state in {State.ENDED, State.SETTLED} else None
    before = (account.state, account.cause)
    with pytest.raises(IllegalStep):
        account.happen(happening)
    assert (account.state, account.cause) == before


def test_a_whole_life():
    """An ordinary stream: it flows, finishes, is settled; the client's leaving is then too late."""
    account = Account()
    decided = [
        account.happen(happening)
        for happening in (Happening.FIRST_EVENT, Happening.TERMINAL, Happening.CLIENT_LEFT, Happening.SETTLED)
    ]
    assert decided == [False, True, False, False]
    assert (account.state, account.ended, account.cause) == (
        State.SETTLED,
        Ended.FINISHED,
        Happening.TERMINAL,
    )


def test_the_documented_table_says_what_the_code_does():
    """Each row of "who wins the race" gives the cause the value that ENDINGS gives it; none is missing."""
    rows = re.findall(r"^\|[^|]+\| (\w+) +\| (\w+) +\|", booking.__doc__ or "", re.MULTILINE)
    assert {(Happening(cause), Ended(ended)) for ended, cause in rows} == set(ENDINGS.items())
