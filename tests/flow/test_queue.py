"""Waiting for a limit of one's own: the order, the end of patience, heartbeats, and giving up.

The clock by which the first of a line asks again, because a stream may have ended elsewhere, is stopped where
a test shows that somebody is called. Places of a full worker are in test_places.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from api.core.sse import HEARTBEAT
from api.flow import turns
from api.flow.tend import tick
from tests.contracts.helpers import bounded
from tests.support.hall import LONG_US, Hall, now_us
from tests.support.hand import DONE, token


@pytest.fixture
def nobody_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only who is called asks again."""
    monkeypatch.setattr(turns, "_POLL_SECONDS", 3600.0)
    monkeypatch.setattr(turns, "_MAX_POLL_SECONDS", 3600.0)


@pytest.fixture
def all_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of each line asks all the time."""
    monkeypatch.setattr(turns, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(turns, "_MAX_POLL_SECONDS", 0.001)


# --- over a limit -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("nobody_polls")
async def test_who_waits_gets_in_when_a_stream_ends_and_the_first_comes_first() -> None:
    """Five wait at a cap of one; each stream that ends calls the next, in the order in which they came."""
    hall = Hall()
    running = {"held": await hall.flowing("held")}
    for number in range(5):
        running[str(number)] = await hall.queued(str(number))
    assert hall.limiter.waiting == 5
    for name in ("held", *"01234"):
        await hall.until(lambda name=name: hall.opened[-1] == name)
        assert len(hall.gate.live) == 1
        await hall.finish(name, running[name])
    assert hall.opened == ["held", *"01234"]
    assert hall.empty()


@pytest.mark.usefixtures("all_poll")
async def test_who_waits_gets_in_when_streams_end_elsewhere() -> None:
    """Nobody on this worker calls: the first of the line asks again by itself, and then the next one does."""
    hall = Hall()
    slots = hall.limiter.book("tn_1").slots
    slots["streams"] = dict.fromkeys(("elsewhere", "there", "and there"), now_us() + LONG_US)
    running = [await hall.queued(name, cap=3) for name in "abc"]
    assert hall.opened == []
    slots["streams"].clear()
    await hall.until(lambda: len(hall.opened) == 3)
    assert hall.opened == ["a", "b", "c"]
    for name, task in zip("abc", running, strict=True):
        await hall.finish(name, task)


@pytest.mark.usefixtures("all_poll")
async def test_one_waiter_more_than_allowed_is_refused_at_once() -> None:
    """With a queue of two, the third is a 429 with Retry-After; the two keep their places."""
    hall = Hall()
    held = await hall.flowing("held")
    running = [await hall.queued(name, max_waiters=2) for name in "ab"]
    await bounded(hall.ask("late", max_waiters=2))
    assert hall.error("late") == (429, "rate_limit_exceeded")
    assert int(hall.headers("late")["retry-after"]) >= 1
    assert "late" not in hall.opened
    await hall.finish("held", held)
    for name, task in zip("ab", running, strict=True):
        await hall.finish(name, task)


@pytest.mark.parametrize("stream", [True, False])
async def test_who_has_waited_long_enough_is_refused_with_its_limit(stream: bool) -> None:
    """429 with Retry-After and the headers of its limits; its place is free, and nothing is booked."""
    hall = Hall()
    held = await hall.flowing("held")
    await bounded(hall.ask("late", max_wait_seconds=0.05, stream=stream))
    assert hall.error("late") == (429, "rate_limit_exceeded")
    headers = hall.headers("late")
    assert int(headers["retry-after"]) >= 1
    assert int(headers["retry-after-ms"]) >= 1
    assert headers["ratelimit"] == '"streams";r=0'
    await hall.gate.chores.join()
    assert hall.limiter.waiting == 0
    assert len(hall.ledger.bookings) == 1
    await hall.finish("held", held)
    assert hall.empty()


async def test_a_shorter_wait_than_that_is_no_refusal() -> None:
    """Who may wait for a minute is still there when others have been sent away, and gets in."""
    hall = Hall()
    held = await hall.flowing("held")
    patient = await hall.queued("patient")
    await bounded(hall.ask("hasty", max_wait_seconds=0.05))
    assert hall.error("hasty")[0] == 429
    await hall.finish("held", held)
    await hall.finish("patient", patient)


# --- heartbeats -------------------------------------------------------------------------------------


async def test_who_waits_gets_heartbeats_when_they_are_due_and_not_before() -> None:
    """One comment of one newline for each `heartbeat_seconds` of silence, and nothing else."""
    hall = Hall(heartbeat_seconds=15)
    held = await hall.flowing("held")
    running = await hall.queued("a")
    [waiting] = hall.gate.waiting.values()
    waiting.sent_at -= 14
    await tick(hall.gate)
    await hall.gate.chores.join()
    assert hall.hands["a"].sent == []
    for count in (1, 2):
        waiting.sent_at -= 15.1
        for _ in range(3):  # no more often than that
            await tick(hall.gate)
            await hall.gate.chores.join()
        assert (hall.hands["a"].body, HEARTBEAT) == (HEARTBEAT * count, b": keep-alive\n")
    assert hall.hands["a"].status == 200
    assert hall.headers("a")["content-type"].startswith("text/event-stream")
    await hall.finish("held", held)
    await hall.finish("a", running)
    assert [message["type"] for message in hall.hands["a"].sent].count("http.response.start") == 1
    assert hall.hands["a"].body.replace(HEARTBEAT, b"") == b'data: {"token":"water"}\n\n' + DONE


async def test_an_answer_in_one_piece_gets_no_heartbeat() -> None:
    """Its status line must wait until it is known; the JSON that comes in the end is whole."""
    hall = Hall(heartbeat_seconds=0)
    held = await hall.flowing("held")
    running = await hall.queued("whole", stream=False)
    for _ in range(3):
        await tick(hall.gate)
        await hall.gate.chores.join()
    assert hall.hands["whole"].sent == []
    await hall.finish("held", held)
    hall.hands["whole"].upstream.feed(b'{"choices": []}')
    hall.hands["whole"].upstream.feed(b"")
    await bounded(running)
    assert (hall.hands["whole"].status, hall.hands["whole"].body) == (200, b'{"choices": []}')


async def test_after_a_heartbeat_no_byte_of_an_answer_is_sent_before_its_booking_is_durable() -> None:
    """P1: the headers are out already, and all the same the first token waits for the ledger."""
    hall = Hall(heartbeat_seconds=0)
    held = await hall.flowing("held")
    running = await hall.queued("a")
    await tick(hall.gate)
    await hall.gate.chores.join()
    assert hall.hands["a"].body == HEARTBEAT
    hall.ledger.hold_booking = True
    hall.hands["a"].upstream.feed(token("water"))
    await hall.finish("held", held)
    await hall.until(lambda: "a" in hall.opened)
    await tick(hall.gate)
    for _ in range(50):
        await asyncio.sleep(0)
    assert hall.hands["a"].body == HEARTBEAT
    assert hall.ledger.booked is not None
    hall.ledger.booked.set_result(None)
    await hall.finish("a", running)
    assert b"water" in hall.hands["a"].body


@pytest.mark.usefixtures("all_poll")
@pytest.mark.parametrize("dialect", ["plain", "openai_chat"])
async def test_after_a_heartbeat_a_refusal_is_an_error_event(dialect: str) -> None:
    """The status was 200: who has waited long enough gets the same code, as the last event."""
    hall = Hall(heartbeat_seconds=0)
    held = await hall.flowing("held")
    running = await hall.queued("a", dialect=dialect)
    [waiting] = hall.gate.waiting.values()
    await tick(hall.gate)
    await hall.until(lambda: hall.hands["a"].body == HEARTBEAT)
    waiting.wait_until = 0  # now it has waited long enough
    await bounded(running)
    assert hall.hands["a"].body.startswith(HEARTBEAT)
    assert hall.error("a") == (200, "rate_limit_exceeded")
    assert not hall.hands["a"].sent[-1]["more_body"]
    await hall.finish("held", held)


# --- giving up --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nobody_polls")
async def test_a_waiter_that_leaves_gives_up_its_place_at_once() -> None:
    """The one behind it moves up; on the ledger there is nothing of it, and its provider is not called."""
    hall = Hall()
    held = await hall.flowing("held")
    gone, next_one = await hall.queued("gone", max_waiters=2), await hall.queued("next", max_waiters=2)
    hall.hands["gone"].left.set()
    await bounded(gone)
    await hall.until(lambda: hall.limiter.waiting == 1)
    after = await hall.queued("after", max_waiters=2)  # there is room for one again
    await hall.finish("held", held)
    await hall.finish("next", next_one)
    await hall.finish("after", after)
    assert hall.opened == ["held", "next", "after"]
    assert len(hall.ledger.bookings) == len(hall.ledger.events) == 3
    assert hall.hands["gone"].sent == []
    assert hall.empty()


@pytest.mark.parametrize("places", [0, 1])
@pytest.mark.parametrize("told", [False, True], ids=["silent", "after a heartbeat"])
async def test_a_drain_refuses_who_waits_at_once(places: int, told: bool) -> None:
    """503, or an error event: for those at a limit and those at a full worker; what runs goes on."""
    hall = Hall(places, heartbeat_seconds=0 if told else 3600)
    held = await hall.flowing("held")
    names = "ab"[: 1 + places]  # b is another tenant's, which only a full worker keeps waiting
    running = [await hall.queued(name, tenant=f"tn_{number}") for number, name in enumerate(names, 1)]
    await tick(hall.gate)
    await hall.until(lambda: hall.hands["a"].body == HEARTBEAT * told)
    hall.gate.begin_drain()
    await bounded(asyncio.gather(*running))
    status = 200 if told else 503
    assert {hall.error(name) for name in names} == {(status, "shutting_down")}
    await hall.finish("held", held)
    await hall.until(hall.empty)
    assert hall.opened == ["held"]


async def test_a_credential_that_expires_in_the_queue_gets_no_answer() -> None:
    """401 at the next tick, and the place is free."""
    hall = Hall()
    held = await hall.flowing("held")
    running = await hall.queued("a")
    [waiting] = hall.gate.waiting.values()
    waiting.caller = replace(waiting.caller, expires_at=hall.gate.clock.unix() - 1)
    await tick(hall.gate)
    await bounded(running)
    assert hall.error("a") == (401, "expired")
    await hall.finish("held", held)
    assert (hall.opened, hall.empty()) == (["held"], True)
