"""Budgets and credit, on fakeredis and on a real Redis: the whole of a budget is granted, and never more."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from api.core.demand import NEVER_US, Ask, Verdict
from api.ports import Permit, Renewal, Used
from tests.contracts.admission import (
    DAY,
    SECOND,
    Dial,
    ask,
    budget,
    cap,
    left,
    more,
    take,
    tokens,
    used,
    verdict,
)
from tests.contracts.helpers import TERMS, bounded
from tests.contracts.inventories import in_redis


@pytest.fixture
async def dial(client) -> Dial:
    """A Redis whose time the test turns."""
    dialled = Dial(client)
    await dialled.turn()
    return dialled


async def budgets(dial: Dial) -> tuple[int | None, int, int | None]:
    """What Redis counts of the day's budget: spent, reserved, late."""
    counts: tuple[int | None, int, int | None] = (await in_redis(dial.client))["budgets"].get(
        DAY, (None, 0, None)
    )
    return counts


# --- granting ---------------------------------------------------------------------------------------


async def test_credit_is_cut_down_to_what_is_left(limiter) -> None:
    """A request gets as much as there is, if that is the least it needs; then the next one gets nothing."""
    asked = budget(100, 10)
    assert (await take(limiter, "p", cap(), asked, least=1, most=50)).tokens == 50
    refused = await ask(limiter, "q", cap(), asked, least=31, most=50)
    assert (refused.verdict, refused.at, refused.wait_us) == (Verdict.REFUSED, 1, NEVER_US)
    assert (await take(limiter, "q", cap(), asked, least=30, most=50)).tokens == 30
    assert await left(limiter, asked) == [0]
    assert await verdict(limiter, "r", cap(), budget(100), least=1) is Verdict.REFUSED


async def test_a_grant_says_how_much_there_is_room_for(limiter) -> None:
    """`allowed` is the tightest budget, in tokens of output; a step is a share of what is left at most."""
    money = budget(3000, 30, counter="nano_dollars_per_day", each=3)
    reply = await ask(limiter, "p", cap(), budget(5000, 10), money, least=1, most=256, share=4)
    assert (reply.tokens, reply.allowed) == (247, 990)
    again = await ask(limiter, "p", cap(), budget(5000, 10), money, least=1, most=256, share=4)
    assert (again.tokens, again.allowed) == (247, 990)


async def test_fifty_takers_get_the_whole_of_a_budget_and_never_more(limiter) -> None:
    """P5: they start, extend and end beside each other until 10,000 tokens are granted to the last one."""
    asked, granted = budget(10_000, 7), []

    async def taker(name: str) -> None:
        first = await ask(limiter, name, cap(99), asked, least=1, most=20, share=4)
        if first.verdict is Verdict.REFUSED:
            return
        permit = Permit(name, "tn_a", (cap(99), asked), first.tokens)
        granted.append(7 + permit.tokens)
        while True:
            reply = await more(limiter, permit, 1, 64, share=4)
            if reply.verdict is not Verdict.GRANTED:
                assert (reply.verdict, reply.wait_us) == (Verdict.REFUSED, NEVER_US)
                break
            granted.append(reply.tokens)
            permit = replace(permit, tokens=permit.tokens + reply.tokens)
        await limiter.release(permit, used(7 + permit.tokens))

    await bounded(asyncio.gather(*(taker(f"p{n}") for n in range(50))))
    shut = sum(granted)
    late = await ask(limiter, "late", cap(99), budget(10_000), most=10_000)  # what was too little for 7 and 1
    assert shut + late.tokens == 10_000
    assert late.tokens < 8
    assert await left(limiter, asked) == [0]
    assert await verdict(limiter, "x", cap(99), budget(10_000), least=1) is Verdict.REFUSED
    assert await verdict(limiter, "x", cap(99), budget(10_001), least=1) is Verdict.GRANTED


async def test_a_rate_holds_an_extension_up_and_a_budget_ends_it(dial) -> None:
    """The rate says when to come again; and of both, the one that never passes is named."""
    permit = await take(dial.limiter, "p", cap(), tokens(60), budget(70), most=60)
    reply = await more(dial.limiter, permit, 5, 10)
    assert (reply.verdict, reply.at, reply.wait_us) == (Verdict.REFUSED, 0, 5 * SECOND)
    await dial.turn(reply.wait_us)
    assert (await more(dial.limiter, permit, 5, 10)).tokens == 5
    over = await more(dial.limiter, permit, 6, 10)
    assert (over.verdict, over.at, over.wait_us) == (Verdict.REFUSED, 1, NEVER_US)


async def test_budgets_are_exact_up_to_the_largest(limiter) -> None:
    """Two to the power of 52, to the last of them, though Lua has no integers."""
    total = 1 << 52
    permit = await take(limiter, "p", cap(), budget(total, total - 100), most=99)
    assert await left(limiter, budget(total)) == [1]
    await limiter.release(permit, used(total - 3))
    assert await left(limiter, budget(total)) == [3]


# --- giving back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 37, 60, 95])
async def test_a_release_gives_back_what_was_not_used_and_charges_once(dial, count) -> None:
    """What was used beyond the reservation is charged too; and the same release again changes nothing."""
    permit = await take(dial.limiter, "p", cap(), budget(100, 10), most=50)
    for _ in range(3):
        await dial.limiter.release(permit, used(count))
        assert await budgets(dial) == (count, 0, None)


async def test_a_release_whose_answer_was_lost_charges_once_after_a_renewal(dial) -> None:
    """The renewal registers what has ended; the second release finds it, and the rate is settled once."""
    permit = await take(dial.limiter, "p", cap(), tokens(1000), budget(100, 10), most=50)
    await dial.limiter.release(permit, used(20))
    rate = (await in_redis(dial.client))["debts"]
    for _ in range(3):
        await dial.limiter.renew([Renewal(permit, used(15))], {})
        assert await budgets(dial) == (0, 60, None)
        await dial.limiter.release(permit, used(20))
        assert await budgets(dial) == (20, 0, None)
        assert (await in_redis(dial.client))["debts"] == rate


async def test_an_extension_whose_answer_was_lost_is_given_back_too(dial) -> None:
    """Redis knows what it granted; what the worker believes is no matter."""
    permit = await take(dial.limiter, "p", cap(), tokens(1000), budget(100), most=20)
    await more(dial.limiter, permit, 30, 30)
    await dial.limiter.release(permit, used(12))
    assert await left(dial.limiter, tokens(1000), budget(100)) == [988, 88]


async def test_a_budget_in_shadow_is_counted_and_stops_nobody(limiter) -> None:
    """Its reservations are given back like any other's."""
    shadow = budget(10, 6, shadow=True)
    permits = [await take(limiter, f"p{n}", cap(), shadow, least=9, most=50) for n in range(2)]
    assert [permit.tokens for permit in permits] == [50, 50]
    assert (await more(limiter, permits[0], 9, 9)).tokens == 9
    for permit in permits:
        await limiter.release(permit, used(4))
    peek = await limiter.peek("tn_a", (shadow,))
    assert ([state.remaining for state in peek.states], peek.would_refuse) == (
        [2],
        {"tenant:tokens_per_day": 2},
    )


# --- the dead ---------------------------------------------------------------------------------------


async def test_a_dead_worker_is_charged_what_it_is_known_to_have_used(dial) -> None:
    """SIGKILL is no more renewals: a lease later the rest of its credit is there for others."""
    permit = await take(dial.limiter, "dead", cap(1), budget(100, 10), most=80)
    await dial.limiter.renew([Renewal(permit, used(33))], {})
    await dial.turn(TERMS.lease_us - 1)
    assert await verdict(dial.limiter, "x", cap(9), budget(100), least=20) is Verdict.REFUSED
    await dial.turn(1)
    assert (await take(dial.limiter, "heir", cap(1), budget(100), most=100)).tokens == 67
    assert await budgets(dial) == (33, 67, None)


async def test_who_comes_back_late_is_charged_once(dial) -> None:
    """Its credit lapsed, and what it used counts: a release after that charges only what is new."""
    permit = await take(dial.limiter, "late", cap(), budget(100), most=80)
    await dial.limiter.renew([Renewal(permit, used(30))], {})
    await dial.turn(TERMS.lease_us)
    await dial.limiter.renew([], {"tn_a": []})
    assert await budgets(dial) == (30, 0, None)
    assert (await more(dial.limiter, permit, 1, 9)).unknown == (-1,)
    for _ in range(3):
        await dial.limiter.release(permit, used(42))
        assert await budgets(dial) == (42, 0, None)
    await dial.limiter.renew([Renewal(permit, used(42))], {})
    await dial.limiter.release(permit, used(42))
    assert await budgets(dial) == (42, 0, None)


async def test_who_comes_back_late_and_runs_on_has_its_credit_again(dial) -> None:
    """The renewal takes back what was folded, and reserves what the worker has."""
    permit = await take(dial.limiter, "late", cap(), tokens(1000), budget(100), most=80)
    await dial.limiter.renew([Renewal(permit, used(30))], {})
    await dial.turn(TERMS.lease_us)
    await dial.limiter.renew([], {"tn_a": []})
    assert (await dial.limiter.renew([Renewal(permit, used(35))], {})).lost == set()
    assert await budgets(dial) == (0, 80, None)
    assert (await more(dial.limiter, permit, 1, 50)).tokens == 20
    await dial.limiter.release(permit, used(90))
    assert await budgets(dial) == (90, 0, None)


async def test_a_stream_that_lost_its_slot_holds_no_credit(dial) -> None:
    """Nobody would see it lapse: it counts as if it had, and its release charges the rest of what it used."""
    permit = await take(dial.limiter, "late", cap(1), budget(100), most=80)
    await dial.turn(TERMS.lease_us)
    rival = await take(dial.limiter, "rival", cap(1), budget(100), most=5)
    for _ in range(2):
        assert (await dial.limiter.renew([Renewal(permit, used(35))], {})).lost == {"late"}
        assert await budgets(dial) == (35, 5, None)
    await dial.limiter.release(permit, used(41))
    await dial.limiter.release(rival, used(5))
    assert await budgets(dial) == (46, 0, None)


# --- what is known ----------------------------------------------------------------------------------


async def test_what_redis_does_not_know_is_asked_for_and_nothing_taken_meanwhile(dial) -> None:
    """UNKNOWN names the budgets, and -1 the streams that run; told of both, it goes on."""
    asked = Ask("p", (cap(), budget(100), tokens(50), budget(90, counter="other")), 1, 20)
    for _ in range(2):
        reply = await dial.limiter.acquire("tn_a", asked)
        assert (reply.verdict, reply.unknown) == (Verdict.UNKNOWN, (-1, 1, 3))
    half = await dial.limiter.acquire("tn_a", replace(asked, spent={1: 95}, running=0))
    assert (half.verdict, half.unknown) == (Verdict.UNKNOWN, (3,))
    assert (await in_redis(dial.client))["slots"] == {}
    reply = await dial.limiter.acquire("tn_a", replace(asked, spent={3: 80}, running=0))
    assert (reply.verdict, reply.tokens, reply.allowed) == (Verdict.GRANTED, 5, 5)
    assert await verdict(dial.limiter, "q", *asked.demands, least=1, spent=0) is Verdict.REFUSED


async def test_after_redis_was_emptied_workers_tell_what_runs_before_anybody_gets_in(dial) -> None:
    """SETTLING, until each worker has had a tick; where the ledger knows of no stream, there is no wait."""
    assert await verdict(dial.limiter, "p", cap(), running=0) is Verdict.GRANTED
    await dial.flush()
    reply = await ask(dial.limiter, "p", cap(), running=2)
    assert (reply.verdict, reply.wait_us) == (Verdict.SETTLING, TERMS.settle_us)
    await dial.turn(TERMS.settle_us - 1)
    assert (await ask(dial.limiter, "p", cap())).wait_us == 1
    await dial.turn(1)
    assert await verdict(dial.limiter, "p", cap()) is Verdict.GRANTED


async def test_a_renewal_tells_what_runs_too(dial) -> None:
    """The first one after Redis was emptied begins the time in which the others tell."""
    permit = Permit("p", "tn_a", (cap(1), tokens(50), budget(100)), 20)
    await dial.limiter.renew([Renewal(permit, used(4))], {})
    reply = await ask(dial.limiter, "x", cap(1), budget(100), spent=30)
    assert (reply.verdict, reply.wait_us) == (Verdict.SETTLING, TERMS.settle_us)
    assert await budgets(dial) == (30, 20, None)
    for least, granted in ((31, 31), (1, 19)):
        reply = await more(dial.limiter, permit, least, 31)
        assert reply.tokens == granted


async def test_a_stream_with_a_rate_alone_goes_on_after_redis_was_emptied(dial) -> None:
    """Its renewal makes it known again, and at its end the rate gets nothing that it never gave."""
    permit = await take(dial.limiter, "p", cap(), tokens(60), most=50)
    await dial.flush()
    assert (await more(dial.limiter, permit, 1, 10)).unknown == (-1,)
    await dial.limiter.renew([Renewal(permit, Used())], {})
    assert (await more(dial.limiter, permit, 1, 10)).tokens == 10
    await dial.limiter.release(permit, used(1))
    assert await left(dial.limiter, tokens(60)) == [50]


async def test_what_ends_while_the_ledger_is_asked_is_not_forgotten(dial) -> None:
    """Its event may have come too late for the answer, so it counts beside it."""
    permit = await take(dial.limiter, "p", cap(), budget(100), most=50)
    await dial.flush()
    await dial.limiter.renew([Renewal(permit, Used())], {})
    asked = Ask("q", (cap(), budget(100)), 1, 100)
    assert (await dial.limiter.acquire("tn_a", asked)).unknown == (1,)
    await dial.limiter.release(permit, used(40))
    assert await budgets(dial) == (None, 0, 40)
    await dial.limiter.acquire("tn_a", replace(asked, spent={1: 10}))
    assert await budgets(dial) == (50, 0, None)
    await dial.limiter.acquire("tn_a", replace(asked, spent={1: 99}))  # the answer of another who asked
    assert await budgets(dial) == (50, 0, None)


async def test_what_nobody_asked_about_is_the_ledgers_matter(dial) -> None:
    """After Redis was emptied a stream may end before anybody asks: no counter is left wrong by it."""
    permit = await take(dial.limiter, "p", cap(), budget(100), most=50)
    await dial.flush()
    await dial.limiter.release(permit, used(40))
    assert await budgets(dial) == (None, 0, None)
    await dial.limiter.renew([Renewal(permit, used(40))], {})
    await dial.turn(TERMS.lease_us)
    await dial.limiter.renew([], {"tn_a": []})
    await dial.limiter.acquire("tn_a", Ask("q", (cap(), budget(100)), 1, 1))
    await dial.limiter.renew([Renewal(permit, used(40))], {})
    assert await budgets(dial) == (None, 50, 0)
