"""The limiter's contract, on fakeredis and on a real Redis: all limits or none, and no slot is lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from redis.crc import key_slot

from api.adapters import redis_connect
from api.core.demand import MAX_TOKENS, NEVER_US, STREAMS, Verdict
from api.ports import Renewal, Used
from tests.contracts.admission import (
    SECOND,
    Dial,
    ask,
    budget,
    cap,
    key_cap,
    left,
    lenient,
    requests,
    take,
    tokens,
    used,
    verdict,
)
from tests.contracts.helpers import BOUND_SECONDS, TERMS, bounded
from tests.contracts.inventories import in_redis
from tests.contracts.wires import Proxy

EVERY = (cap(3), key_cap(3), requests(60), tokens(1000), budget(5000))
"""A request's limits of every shape, all of them wide enough for one."""


@pytest.fixture
async def dial(client) -> Dial:
    """A Redis whose time the test turns."""
    dialled = Dial(client)
    await dialled.turn()
    return dialled


# --- all or nothing ---------------------------------------------------------------------------------


async def test_never_more_than_any_of_the_caps(limiter, client) -> None:
    """P4: of 200 that ask at once, of two keys, as many get in as the tenant's and a key's cap allow."""
    asked = [
        ask(limiter, f"p{n}", cap(7), key_cap((3, 100)[n % 2], ("narrow", "wide")[n % 2])) for n in range(200)
    ]
    replies = await bounded(asyncio.gather(*asked))
    assert sum(reply.verdict is Verdict.GRANTED for reply in replies) == 7
    slots = (await in_redis(client))["slots"]
    assert len(slots[STREAMS]) == 7
    assert len(slots.get("streams:key:narrow", ())) <= 3
    assert sum(len(members) for name, members in slots.items() if name != STREAMS) == 7


async def test_several_workers_share_one_cap(limiter, client) -> None:
    """P4: the cap is the tenant's, not the worker's."""
    workers = (limiter, lenient(client))
    asked = [verdict(workers[n % 2], f"p{n}", cap(5)) for n in range(40)]
    assert (await bounded(asyncio.gather(*asked))).count(Verdict.GRANTED) == 5


@pytest.mark.parametrize("full", range(len(EVERY)))
async def test_a_refusal_names_the_limit_and_takes_nothing(dial, full) -> None:
    """All or nothing: whichever limit is full, nothing is counted under the others."""
    narrow = (cap(1), key_cap(1), requests(1), tokens(60), budget(60))[full]
    demands = tuple(narrow if i == full else demand for i, demand in enumerate(EVERY))
    await take(dial.limiter, "first", *demands, most=60)
    before = await in_redis(dial.client)
    for n in range(5):
        reply = await ask(dial.limiter, f"x{n}", *demands, least=1, most=60)
        assert (reply.verdict, reply.at) == (Verdict.REFUSED, full)
        assert reply.wait_us > 0
    assert await in_redis(dial.client) == before


async def test_of_several_that_refuse_the_one_that_lasts_longest_is_named(dial) -> None:
    """Who waits for anything shorter would be refused again; and of two equals the tenant's is named."""
    demands = (cap(1), key_cap(1), requests(2), budget(10, 10))
    await take(dial.limiter, "first", *demands)
    first = await ask(dial.limiter, "x", *demands)
    assert (first.at, first.wait_us) == (3, NEVER_US)
    second = await ask(dial.limiter, "x", *demands[:2])
    assert (second.at, second.wait_us) == (0, SECOND)
    await take(dial.limiter, "other", cap(9), requests(2))
    third = await ask(dial.limiter, "x", *demands[:3])
    assert (third.at, third.wait_us) == (2, 30 * SECOND)


async def test_what_is_left_is_told_of_each_limit(dial) -> None:
    """With the grant and with the refusal alike, in the order of the demands."""
    demands = (cap(3), requests(60), tokens(1000, 100), budget(5000, 100))
    states = (await ask(dial.limiter, "p", *demands, most=50)).states
    assert [state.remaining for state in states] == [2, 59, 850, 4850]
    assert [state.reset_us for state in states] == [0, SECOND, 9 * SECOND, 0]
    assert (await dial.limiter.peek("tn_a", demands)).states == states
    refused = await ask(dial.limiter, "q", *demands, least=5000)
    assert refused.verdict is Verdict.REFUSED
    assert refused.states == states


async def test_the_same_again_is_the_same(dial) -> None:
    """An answer that was lost on its way is given again, and nothing is taken twice."""
    first = await ask(dial.limiter, "p", *EVERY, least=1, most=400)
    before = await in_redis(dial.client)
    assert [await ask(dial.limiter, "p", *EVERY, least=1, most=400) for _ in range(3)] == [first] * 3
    assert await in_redis(dial.client) == before
    assert (first.tokens, first.allowed) == (400, 5000)
    plain = await ask(dial.limiter, "q", cap(3))
    assert (plain.allowed, await ask(dial.limiter, "q", cap(3))) == (MAX_TOKENS, plain)


# --- rates ------------------------------------------------------------------------------------------


async def test_a_rate_gives_a_minutes_worth_at_once_and_then_as_time_goes_on(dial) -> None:
    """An odd amount, to the microsecond: the eighth of 7 a minute is granted when a seventh of it is over."""
    for n in range(7):
        await take(dial.limiter, f"p{n}", cap(99), requests(7))
    refused = await ask(dial.limiter, "x", cap(99), requests(7))
    assert (refused.verdict, refused.wait_us) == (Verdict.REFUSED, -(-60 * SECOND // 7))
    await dial.turn(refused.wait_us - 1)
    assert await verdict(dial.limiter, "x", cap(99), requests(7)) is Verdict.REFUSED
    await dial.turn(1)
    assert await verdict(dial.limiter, "x", cap(99), requests(7)) is Verdict.GRANTED


async def test_tokens_that_were_not_used_are_the_rates_again_once(dial) -> None:
    """P5: a short answer costs what it used, however often the release is told."""
    permit = await take(dial.limiter, "p", cap(), tokens(1000, 100), most=600)
    await take(dial.limiter, "q", cap(), tokens(1000), most=300)
    for _ in range(3):
        await dial.limiter.release(permit, used(150))
        assert await left(dial.limiter, tokens(1000)) == [550]


async def test_a_clock_that_jumps_back_neither_pays_nor_forgives(dial) -> None:
    """A failover to a machine whose clock is an hour behind: the debt is what it was, and is paid off on."""
    await take(dial.limiter, "p", cap(), tokens(60), most=60)
    await dial.turn(-3600 * SECOND)
    assert await left(dial.limiter, tokens(60)) == [0]
    assert await verdict(dial.limiter, "x", cap(), tokens(60, 1)) is Verdict.REFUSED
    assert await verdict(dial.limiter, "y", cap(), requests(60)) is Verdict.GRANTED


# --- leases -----------------------------------------------------------------------------------------


async def test_a_released_slot_is_free_at_once(limiter) -> None:
    """P4: no waiting for a lease; and giving back twice frees no second slot."""
    permits = [await take(limiter, f"p{n}", cap(3), key_cap(3)) for n in range(3)]
    assert await verdict(limiter, "x", cap(3), key_cap(3)) is Verdict.REFUSED
    for _ in range(2):
        await limiter.release(permits[1], Used())
    assert await verdict(limiter, "y", cap(3), key_cap(3)) is Verdict.GRANTED
    assert await verdict(limiter, "z", cap(3), key_cap(3)) is Verdict.REFUSED
    assert sorted(await limiter.live("tn_a")) == ["p0", "p2", "y"]


async def test_a_lease_that_nobody_renews_frees_its_slot(dial) -> None:
    """P4: a dead worker's slots come back by themselves, under each cap, to the microsecond."""
    await take(dial.limiter, "dead", cap(1), key_cap(1))
    await dial.turn(TERMS.lease_us - 1)
    assert await verdict(dial.limiter, "x", cap(1), key_cap(1)) is Verdict.REFUSED
    await dial.turn(1)
    assert await verdict(dial.limiter, "x", cap(1), key_cap(1)) is Verdict.GRANTED
    assert {name: set(ids) for name, ids in (await in_redis(dial.client))["slots"].items()} == {
        STREAMS: {"x"},
        "streams:key:k": {"x"},
    }


async def test_renewing_keeps_a_lease(dial) -> None:
    """A renewed lease is as long as a new one, and its slot stays taken."""
    permit = await take(dial.limiter, "p", cap(1), key_cap(1))
    for _ in range(3):
        await dial.turn(TERMS.lease_us - 1)
        renewed = await dial.limiter.renew([Renewal(permit, Used())], {})
        assert (renewed.lost, renewed.streams) == (set(), {"tn_a": 1})
        assert await verdict(dial.limiter, "x", cap(1)) is Verdict.REFUSED
        assert await verdict(dial.limiter, "x", cap(9), key_cap(1)) is Verdict.REFUSED


async def test_a_renewal_sweeps_up_the_dead_under_every_cap(dial) -> None:
    """A key whose streams run for long and that nobody else uses keeps no list of those that died."""
    await take(dial.limiter, "dead", cap(), key_cap(9))
    await dial.turn(SECOND)
    alive = await take(dial.limiter, "alive", cap(), key_cap(9))
    await dial.turn(TERMS.lease_us - SECOND)
    await dial.limiter.renew([Renewal(alive, Used())], {})
    slots = (await in_redis(dial.client))["slots"]
    assert {name: set(ids) for name, ids in slots.items()} == {
        counter: {"alive"} for counter in (STREAMS, "streams:key:k")
    }


@pytest.mark.parametrize("rivals", [0, 1, 3])
async def test_after_redis_was_emptied_streams_are_registered_again_but_not_over_the_cap(
    dial, rivals
) -> None:
    """P4: where others have filled the cap meanwhile, the renewal says which permits are lost."""
    permits = [await take(dial.limiter, f"p{n}", cap(3), key_cap(9)) for n in range(3)]
    await dial.flush()
    for n in range(rivals):
        await take(dial.limiter, f"rival{n}", cap(3), key_cap(9, "other"))
    renewed = await dial.limiter.renew([Renewal(permit, Used()) for permit in permits], {})
    assert len(renewed.lost) == rivals
    assert renewed.lost <= {permit.id for permit in permits}
    assert renewed.streams == {"tn_a": 3}


async def test_a_lowered_cap_ends_nobody_and_lets_nobody_in(limiter) -> None:
    """Streams over a cap that was lowered run on; no new one starts until there is room under it."""
    permits = [await take(limiter, f"p{n}", cap(4)) for n in range(4)]
    lowered = [replace(permit, demands=(cap(2),)) for permit in permits]
    for known in (permits, lowered):
        assert (await limiter.renew([Renewal(one, Used()) for one in known], {})).lost == set()
    await limiter.release(permits[0], Used())
    assert await verdict(limiter, "x", cap(2)) is Verdict.REFUSED


async def test_live_tells_what_holds_now(limiter, client) -> None:
    """The permits, also before anybody has swept up the dead; and of a tenant that nobody knows, none."""
    for n in range(3):
        await take(limiter, f"p{n}", cap())
    await client.zadd("sg:{tn_a}:streams", {"p1": 1})
    assert sorted(await limiter.live("tn_a")) == ["p0", "p2"]
    assert await limiter.live("tn_nobody") == []


# --- keys and scripts -------------------------------------------------------------------------------


async def test_a_tenants_keys_share_a_hash_tag_and_do_not_stay(limiter, client) -> None:
    """On a cluster one call needs one slot; and a tenant that stops coming leaves nothing for ever."""
    permit = await take(limiter, "p", *EVERY, cap(0, "streams:user:u", shadow=True), most=10)
    dead = await take(limiter, "dead", *EVERY, most=10)
    await ask(limiter, "w", cap(2), waiters=3)
    await limiter.renew([Renewal(permit, used(3))], {"tn_a": ["w"]})
    await client.zadd("sg:{tn_a}:streams", {dead.id: 1})
    await ask(limiter, "x", cap(2), waiters=3)
    await limiter.release(permit, used(5))
    keys = await client.keys("*")
    assert len(keys) >= 12
    assert {key_slot(key) for key in keys} == {key_slot(b"{tn_a}")}
    assert all([await client.pttl(key) > 0 for key in keys])


@pytest.mark.parametrize("tenant", ["tn}a", "{tn", "tn:streams", "tn a\n"])
async def test_any_tenant_id_will_do(limiter, tenant) -> None:
    """Ids that look like pieces of a key, or of the protocol, are ids and nothing else."""
    permits = [await take(limiter, f"p{n}", cap(2), budget(50), most=10, tenant=tenant) for n in range(2)]
    assert await verdict(limiter, "x", cap(2), tenant=tenant) is Verdict.REFUSED
    renewed = await limiter.renew([Renewal(permit, used(1)) for permit in permits], {})
    assert (renewed.lost, renewed.streams) == (set(), {tenant: 2})
    assert len(await limiter.live(tenant)) == 2


async def test_tenants_are_apart(limiter) -> None:
    """P10: nothing that one tenant takes, frees or spends is another's, whatever its permits are called."""
    mine = await take(limiter, "p", *EVERY, most=100)
    theirs = await take(limiter, "p", *EVERY, most=10, tenant="tn_b")
    await limiter.release(mine, used(100))
    assert await left(limiter, *EVERY) == [3, 3, 59, 900, 4900]
    assert await left(limiter, *EVERY, tenant="tn_b") == [2, 2, 59, 990, 4990]
    assert (await limiter.renew([Renewal(theirs, Used())], {})).streams == {"tn_b": 1}


async def test_renewing_nothing_is_nothing(limiter, client) -> None:
    """An idle worker's tick neither fails nor writes."""
    assert await limiter.renew([], {}) == (set(), {})
    assert await client.keys("*") == []


async def test_all_tenants_are_renewed_in_one_round_trip(redis_server, redis_url) -> None:
    """A tick costs one round trip, whether a worker serves one tenant or thirty, of any limits."""
    async with Proxy(lambda: asyncio.open_connection("127.0.0.1", redis_server.port)) as proxy:
        client = redis_connect.connect(f"redis://127.0.0.1:{proxy.port}/0", timeout_seconds=BOUND_SECONDS)
        limiter = lenient(client)
        permits = [
            await take(limiter, f"p{n}", *EVERY, most=10, tenant=f"tn_{t}")
            for n in range(3)
            for t in range(30)
        ]
        renewals = [Renewal(permit, used(4)) for permit in permits]
        await limiter.ping()  # ticks have another connection than the calls of requests
        before = proxy.round_trips
        renewed = await limiter.renew(renewals, {"tn_waits": ["w"]})
        assert proxy.round_trips - before == 1
        assert renewed == (set(), {"tn_waits": 0} | {f"tn_{t}": 3 for t in range(30)})
        await client.aclose()
