"""The end of a wait: whatever happens between two turns, or in the moment of the grant, is in order."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from api.core.booking import Happening
from api.core.demand import Reply, Verdict
from api.flow import turns
from api.flow.tend import tick
from auth.principal import Limit, StoredTenant
from tests.contracts.helpers import bounded
from tests.support.hall import LONG_US, Hall, now_us
from tests.support.hand import DONE, FINISH, USAGE, Hand, token


async def asked_again(hand: Hand) -> asyncio.Task[None]:
    """A request that has waited once, and that the limiter is being asked about a second time."""
    hand.limiter.replies = [Reply(Verdict.WAITING, wait_us=1000)]
    running = hand.start()
    await hand.log.until("acquire")
    hand.limiter.hold = asyncio.Event()
    while hand.log.count("acquire") < 2:
        await asyncio.sleep(0)
    return running


@pytest.fixture(autouse=True)
def fast_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of a line asks again all the time."""
    monkeypatch.setattr(turns, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(turns, "_MAX_POLL_SECONDS", 0.001)


async def test_a_client_that_leaves_while_the_limiter_is_asked_again_is_no_error() -> None:
    """Between two waits: the request ends without an exception, and what was granted goes back."""
    hand = Hand()
    running = await asked_again(hand)
    hand.left.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert hand.limiter.hold is not None
    hand.limiter.hold.set()
    await bounded(running)
    await hand.gate.walks.join()
    await hand.gate.chores.join()
    assert hand.limiter.taken == set()
    assert "book" not in hand.log


async def test_a_drain_while_the_limiter_is_asked_again_is_a_drain() -> None:
    """P12: the waiter gets its 503, and the grace of all others runs."""
    hand = Hand(drain_seconds=3600)
    running = await asked_again(hand)
    hand.gate.begin_drain()
    assert len(hand.gate.chores) == 1  # it cuts what is left after the grace
    assert hand.limiter.hold is not None
    hand.limiter.hold.set()
    await bounded(running)
    assert hand.status == 503
    await hand.gate.chores.cancel()


async def test_a_tick_while_the_limiter_is_asked_again_renews_all_the_same() -> None:
    """An expired waiter is cut in a tick, and the leases of all others are renewed in it."""
    hand = Hand()
    running = await asked_again(hand)
    [waiting] = hand.gate.waiting.values()
    waiting.connection = waiting.connection._replace(is_gone=lambda: True)
    await tick(hand.gate)
    assert "renew" in hand.log
    assert hand.limiter.hold is not None
    hand.limiter.hold.set()
    hand.left.set()
    await bounded(running)


@pytest.mark.parametrize("what", ["key", "tenant"])
async def test_a_credential_revoked_in_the_queue_gets_a_401_and_keeps_nothing(what: str) -> None:
    """P9: it waits, it is revoked, it is its turn: no byte of an answer, no slot, no place, no booking."""
    hall = Hall(places=2)
    held = await hall.flowing("held")
    running = await hall.queued("a")
    accounts = hall.first.authenticator
    accounts.revoked = True
    accounts.tenants["tn_1"] = StoredTenant("tn_1", active=what == "key", max_streams=1)
    accounts.change(what, {"key": "k9", "tenant": "tn_1"}[what])  # of somebody else's key: it is looked at
    await hall.finish("held", held)
    await bounded(running)
    assert hall.error("a") == (401, "revoked")
    await hall.until(hall.empty)
    assert hall.opened == ["held"]


async def test_a_place_that_is_free_as_its_client_leaves_is_given_on() -> None:
    """The turn came first, the client went in the same moment: the only place is free."""
    hall = Hall(places=1)
    hall.gate.places._taken = 1  # ours
    running = await hall.queued("a")
    [waiting] = hall.gate.waiting.values()
    hall.gate.places.give_back()
    waiting.cut(Happening.CLIENT_LEFT)
    hall.hands["a"].left.set()
    await bounded(running)
    await hall.until(hall.empty)


async def test_a_heartbeat_that_is_due_in_the_moment_of_the_grant_costs_nothing() -> None:
    """It is called off before it began: the stream goes on, is settled, and gives its slot back."""
    hand = Hand(heartbeat_seconds=0)
    hand.limiter.hold = asyncio.Event()
    hand.upstream.feed(token("water") + FINISH + USAGE + DONE)
    running = hand.start()
    await hand.log.until("acquire")
    hand.limiter.hold.set()  # the grant is on its way ...
    await tick(hand.gate)  # ... and a heartbeat is due before it is there
    await bounded(running)
    assert hand.body.endswith(DONE)
    assert len(hand.ledger.events) == 1
    assert hand.limiter.taken == set()


async def test_who_leaves_the_queue_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """It happens all the time: nothing is logged as an error."""
    hall = Hall()
    hall.limiter.book("tn_1").slots["streams"] = {"elsewhere": now_us() + LONG_US}
    running = await hall.queued("a")
    hall.hands["a"].left.set()
    await bounded(running)
    await bounded(hall.gate.walks.join())
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.filterwarnings("error")
async def test_a_wait_that_does_not_begin_leaves_nothing_behind(recwarn: pytest.WarningsRecorder) -> None:
    """The client went while the limiter was asked, and then it would have to wait: no coroutine is lost."""
    hand = Hand()
    hand.limiter.hold = asyncio.Event()
    hand.limiter.replies = [Reply(Verdict.WAITING, wait_us=1000)]
    running = hand.start()
    await hand.log.until("acquire")
    hand.left.set()
    for _ in range(5):
        await asyncio.sleep(0)
    hand.limiter.hold.set()
    await bounded(running)
    await hand.gate.walks.join()
    del running, hand
    gc.collect()


async def test_answers_that_overtake_each_other_keep_nobody_waiting() -> None:
    """The one with the earlier ticket hears of it later: both get in all the same."""
    hall = Hall()
    held = await hall.flowing("held")
    hall.limiter.hold_reply = asyncio.Event()
    first = await hall.queued("first")  # has its ticket, and does not know it yet
    hold, hall.limiter.hold_reply = hall.limiter.hold_reply, None
    second = await hall.queued("second")
    hold.set()
    await hall.finish("held", held)
    await hall.finish("first", first)
    await hall.finish("second", second)


async def test_who_waits_for_another_limit_now_keeps_nobody_waiting() -> None:
    """It has waited for a rate and now waits for a slot, with the ticket that it had: both get in."""
    hall = Hall()
    book = hall.limiter.book("tn_1")
    rate = (Limit("tenant", "tn_1", 60, "requests_per_minute"),)
    book.debts["requests_per_minute"] = (60 * 60_000_000, now_us())  # a second from now there is room for one
    first = await hall.queued("first", limits=rate)
    book.slots["streams"] = {"elsewhere": now_us() + LONG_US}
    second = await hall.queued("second")  # for a slot
    book.debts.clear()
    await hall.until(lambda: [waiter[0] for waiter in book.waiting.values()] == ["streams"] * 2)
    del book.slots["streams"]["elsewhere"]
    await hall.finish("first", first)
    await hall.finish("second", second)
