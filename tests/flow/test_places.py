"""A worker that is full: who gets the next place, who is sent away, and that no place is ever lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from api.core.booking import Happening
from api.core.sse import HEARTBEAT
from api.flow.tend import tick
from api.ports import LedgerUnavailable, LimiterUnavailable, UpstreamFailed
from tests.contracts.helpers import bounded
from tests.support.hall import LONG_US, Hall, now_us
from tests.support.hand import token

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CAP = 100
"""More than any tenant needs here: it is the worker that is full."""


# --- who is next ------------------------------------------------------------------------------------


async def test_places_are_given_out_by_weight_and_inside_a_tenant_in_order() -> None:
    """With weights of 3 and 1 the first twelve turns are nine and three, whoever came first."""
    hall = Hall(places=1)
    running = {"held": await hall.flowing("held", tenant="tn_0")}
    for number in range(9):
        running[f"light {number}"] = await hall.queued(f"light {number}", tenant="tn_1", cap=CAP)
    for number in range(9):
        heavy = await hall.queued(f"heavy {number}", tenant="tn_2", cap=CAP, weight=3)
        running[f"heavy {number}"] = heavy
    for turn in range(19):
        await hall.until(lambda turn=turn: len(hall.opened) == turn + 1)
        assert len(hall.gate.live) == 1
        await hall.finish(hall.opened[-1], running[hall.opened[-1]])
    assert Counter(name.split()[0] for name in hall.opened[1:13]) == {"light": 3, "heavy": 9}
    for kind in ("light", "heavy"):
        assert [name for name in hall.opened if kind in name] == [f"{kind} {n}" for n in range(9)]
    assert hall.empty()


async def test_there_are_never_more_streams_than_places() -> None:
    """Twelve requests of three tenants at three places: three at a time, and all of them get through."""
    hall = Hall(places=3)
    running = {}
    for number in range(3):
        running[str(number)] = await hall.flowing(str(number), tenant=f"tn_{number}", cap=CAP)
    for number in range(3, 12):
        running[str(number)] = await hall.queued(str(number), tenant=f"tn_{number % 3}", cap=CAP)
    for turn in range(12):
        await hall.until(lambda turn=turn: len(hall.opened) == min(turn + 3, 12))
        assert len(hall.gate.live) == min(3, 12 - turn)
        await hall.finish(hall.opened[turn], running[hall.opened[turn]])
    assert hall.empty()


async def test_who_may_not_wait_is_sent_away_at_once() -> None:
    """503 `gateway_full` with Retry-After, for a tenant without a queue; one with a queue gets in later."""
    hall = Hall(places=1)
    held = await hall.flowing("held")
    waits = await hall.queued("waits", tenant="tn_2")
    await bounded(hall.ask("hasty", tenant="tn_3", max_waiters=0))
    assert hall.error("hasty") == (503, "gateway_full")
    assert int(hall.headers("hasty")["retry-after"]) >= 1
    assert "x-should-retry" not in hall.headers("hasty")
    await hall.finish("held", held)
    await hall.finish("waits", waits)
    assert (hall.opened, hall.empty()) == (["held", "waits"], True)


async def test_a_tenants_queue_for_places_is_its_own_and_bounded() -> None:
    """One that has as many waiting as it may is sent away; another's queue has room all the same."""
    hall = Hall(places=1)
    running = {"held": await hall.flowing("held", tenant="tn_0")}
    for name in ("a", "b"):
        running[name] = await hall.queued(name, tenant="tn_1", cap=CAP, max_waiters=2)
    await bounded(hall.ask("late", tenant="tn_1", cap=CAP, max_waiters=2))
    assert hall.error("late") == (503, "gateway_full")
    running["other"] = await hall.queued("other", tenant="tn_2", cap=CAP, max_waiters=1)
    for turn in range(4):
        await hall.until(lambda turn=turn: len(hall.opened) == turn + 1)
        await hall.finish(hall.opened[turn], running[hall.opened[turn]])
    assert sorted(hall.opened) == ["a", "b", "held", "other"]


async def test_who_waits_for_its_own_limit_holds_no_place() -> None:
    """One place, and a tenant whose cap is used up elsewhere: another's stream has the place meanwhile."""
    hall = Hall(places=1)
    hall.limiter.book("tn_1").slots["streams"] = {"elsewhere": now_us() + LONG_US}
    waits = await hall.queued("waits")
    other = await hall.flowing("other", tenant="tn_2")
    del hall.limiter.book("tn_1").slots["streams"]["elsewhere"]
    await hall.finish("other", other)
    await hall.finish("waits", waits)
    assert hall.empty()


async def test_who_waits_for_a_place_gets_heartbeats_too() -> None:
    """It is as silent as any other wait; and the limiter is not asked before there is a place."""
    hall = Hall(places=1, heartbeat_seconds=0)
    held = await hall.flowing("held")
    running = await hall.queued("a", tenant="tn_2")
    assert "tn_2" not in hall.limiter.books
    await tick(hall.gate)
    await hall.until(lambda: hall.hands["a"].body == HEARTBEAT)
    await hall.finish("held", held)
    await hall.finish("a", running)


# --- no place is lost -------------------------------------------------------------------------------


async def upstream_refuses(hall: Hall) -> None:
    """The provider answers 500."""
    running = hall.ask("a")
    refused: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    refused.set_result(UpstreamFailed("no", status=500))
    hall.hands["a"].upstream.opens = refused
    await bounded(running)
    assert hall.error("a") == (502, "upstream_failed")


async def upstream_breaks_off(hall: Hall) -> None:
    """The provider goes away in mid-stream."""
    running = await hall.flowing("a")
    hall.hands["a"].upstream.feed(b"")
    await bounded(running)
    assert hall.error("a") == (200, "upstream_failed")


async def client_leaves_in_mid_stream(hall: Hall) -> None:
    """The client goes while tokens flow."""
    running = await hall.flowing("a")
    hall.hands["a"].left.set()
    await bounded(running)


async def client_leaves_while_it_waits_for_its_limit(hall: Hall) -> None:
    """The client goes while it waits for its tenant's cap."""
    hall.limiter.book("tn_1").slots["streams"] = {"elsewhere": now_us() + LONG_US}
    running = await hall.queued("a")
    hall.hands["a"].left.set()
    await bounded(running)
    hall.limiter.books.clear()


async def client_leaves_while_it_waits_for_a_place(hall: Hall) -> None:
    """The client goes while others have all places, and one of those ends."""
    held = await hall.flowing("held", tenant="tn_2")
    running = await hall.queued("a")
    hall.hands["a"].left.set()
    await bounded(running)
    await hall.finish("held", held)


async def waits_too_long_for_its_limit(hall: Hall) -> None:
    """The wait for its tenant's cap is over."""
    hall.limiter.book("tn_1").slots["streams"] = {"elsewhere": now_us() + LONG_US}
    await bounded(hall.ask("a", max_wait_seconds=0.01))
    assert hall.error("a") == (429, "rate_limit_exceeded")
    hall.limiter.books.clear()


async def waits_too_long_for_a_place(hall: Hall) -> None:
    """The wait for a place is over."""
    held = await hall.flowing("held", tenant="tn_2")
    await bounded(hall.ask("a", max_wait_seconds=0.01))
    assert hall.error("a") == (503, "gateway_full")
    await hall.finish("held", held)


async def limiter_refuses(hall: Hall) -> None:
    """Its tenant is over the cap and has no queue."""
    hall.limiter.book("tn_1").slots["streams"] = {"elsewhere": now_us() + LONG_US}
    await bounded(hall.ask("a", max_waiters=0))
    assert hall.error("a") == (429, "rate_limit_exceeded")
    hall.limiter.books.clear()


async def limiter_is_away(hall: Hall) -> None:
    """Redis does not answer."""
    await _fails(hall, LimiterUnavailable("away"), 503, "limiter_unavailable")


async def limiter_has_a_bug(hall: Hall) -> None:
    """Whatever is raised."""
    await _fails(hall, RuntimeError("nobody foresaw it"), 500, "internal_error")


async def _fails(hall: Hall, fault: Exception, status: int, code: str) -> None:
    hall.limiter.fault = fault
    await bounded(hall.ask("a"))
    assert hall.error("a") == (status, code)
    hall.limiter.fault = None


async def ledger_refuses(hall: Hall) -> None:
    """The booking cannot be written."""
    hall.ledger.hold_booking = True
    running = hall.ask("a")
    await hall.until(lambda: hall.ledger.booked is not None)
    assert hall.ledger.booked is not None
    hall.ledger.booked.set_exception(LedgerUnavailable("away"))
    await bounded(running)
    assert hall.error("a") == (503, "ledger_unavailable")
    hall.ledger.hold_booking = False


async def left_at_its_turn(hall: Hall) -> None:
    """The client goes, and in the same moment a place is free."""
    hall.gate.places._taken = 1  # ours
    running = await hall.queued("a")
    [waiting] = hall.gate.waiting.values()
    waiting.cut(Happening.CLIENT_LEFT)
    hall.gate.places.give_back()
    hall.hands["a"].left.set()
    await bounded(running)


@pytest.mark.parametrize(
    "way",
    [
        upstream_refuses,
        upstream_breaks_off,
        client_leaves_in_mid_stream,
        client_leaves_while_it_waits_for_its_limit,
        client_leaves_while_it_waits_for_a_place,
        waits_too_long_for_its_limit,
        waits_too_long_for_a_place,
        limiter_refuses,
        limiter_is_away,
        limiter_has_a_bug,
        ledger_refuses,
        left_at_its_turn,
    ],
)
async def test_no_place_is_lost(way: Callable[[Hall], Awaitable[None]]) -> None:
    """However a request ends, the only place is free afterwards, and exactly once."""
    hall = Hall(places=1)
    await way(hall)
    await bounded(hall.gate.walks.join())
    await bounded(hall.gate.chores.join())
    await hall.until(hall.empty)
    after = await hall.flowing("after", tenant="tn_9")
    await bounded(hall.ask("too many", tenant="tn_9", cap=CAP, max_waiters=0))
    assert hall.error("too many") == (503, "gateway_full")
    await hall.finish("after", after)
    assert hall.empty()


async def test_a_stream_that_ends_gives_its_place_to_exactly_one() -> None:
    """Of two that wait one gets in; the other stays in the queue until that one has ended."""
    hall = Hall(places=1)
    held = await hall.flowing("held")
    a, b = [await hall.queued(name, tenant="tn_2", cap=CAP) for name in "ab"]
    hall.hands["a"].upstream.feed(token("water"))
    await hall.finish("held", held)
    await bounded(hall.hands["a"].log.until('data: {"token":"water"}'))
    assert hall.opened == ["held", "a"]
    await hall.finish("a", a)
    await hall.finish("b", b)
