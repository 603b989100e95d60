"""The limiter's contract, on fakeredis and on a real Redis: never over the cap, and no slot is lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from redis.crc import key_slot

from api.adapters import limiter_redis
from api.adapters.limiter_redis import RedisLimiter
from api.ports import Permit, StreamsExhausted
from auth.principal import Limit
from tests.contracts.helpers import BOUND_SECONDS, LEASE_MS, bounded, eventually
from tests.contracts.wires import Proxy

if TYPE_CHECKING:
    from redis.asyncio import Redis


def lenient(client: Redis, lease_seconds: float = LEASE_MS / 1000) -> RedisLimiter:
    """A limiter that waits for its answers however loaded the machine is."""
    return RedisLimiter(client, lease_seconds=lease_seconds, timeout_seconds=BOUND_SECONDS)


def capped(limit: int, tenant: str = "tn_a") -> tuple[Limit, ...]:
    """The cap of a tenant alone."""
    return (Limit("tenant", tenant, limit),)


async def attempt(limiter: RedisLimiter, permit_id: str, cap: int, tenant: str = "tn_a") -> Permit | None:
    """A permit, or None where the tenant has its fill."""
    try:
        return await limiter.acquire(tenant, permit_id, capped(cap, tenant))
    except StreamsExhausted:
        return None


async def take(limiter: RedisLimiter, count: int, tenant: str = "tn_a") -> dict[str, Permit]:
    """So many permits, by id, as the gate keeps them."""
    permits = [await limiter.acquire(tenant, f"{tenant}-{n}", capped(count, tenant)) for n in range(count)]
    return {permit.id: permit for permit in permits}


async def now_ms(client: Redis) -> int:
    """Redis' own clock."""
    seconds, micros = await client.time()
    return int(seconds * 1000 + micros // 1000)


async def leases(client: Redis, tenant: str = "tn_a") -> dict[str, float]:
    """What is left of each lease of a tenant, in ms; found by looking at all keys."""
    now, found = await now_ms(client), {}
    for key in await client.keys(f"*{tenant}*"):
        found |= {
            member.decode(): score - now for member, score in await client.zrange(key, 0, -1, withscores=True)
        }
    return found


async def age(client: Redis, permit_id: str, ms: int, tenant: str = "tn_a") -> None:
    """Let a lease have so many ms left; negative is past."""
    (key,) = await client.keys(f"*{tenant}*")
    await client.zadd(key, {permit_id: await now_ms(client) + ms}, xx=True)


# --- the cap ----------------------------------------------------------------------------------------


async def test_never_more_than_the_cap(limiter, client) -> None:
    """P4: of 200 that ask at once exactly 7 get a slot; no interleaving gives an eighth."""
    asked = [attempt(limiter, f"p{n}", 7) for n in range(200)]
    permits = [permit for permit in await bounded(asyncio.gather(*asked)) if permit]
    assert len({permit.id for permit in permits}) == len(permits) == 7
    assert await limiter.live("tn_a") == 7
    assert set(await leases(client)) == {permit.id for permit in permits}


async def test_several_workers_share_one_cap(limiter, client) -> None:
    """P4: the cap is the tenant's, not the worker's."""
    other = lenient(client)
    asked = [attempt(worker, f"p{n}-{i}", 5) for n in range(20) for i, worker in enumerate((limiter, other))]
    assert sum(permit is not None for permit in await bounded(asyncio.gather(*asked))) == 5


async def test_a_refusal_says_when_to_come_back(limiter) -> None:
    """The hint becomes a Retry-After header, so it is whole seconds and never zero."""
    await take(limiter, 2)
    with pytest.raises(StreamsExhausted, match="2 streams") as refused:
        await limiter.acquire("tn_a", "third", capped(2))
    assert isinstance(refused.value.retry_after_seconds, int)
    assert refused.value.retry_after_seconds >= 1


async def test_a_released_slot_is_free_at_once(limiter) -> None:
    """P4: no waiting for a lease; and giving back twice frees no second slot."""
    permits = await take(limiter, 3)
    assert await attempt(limiter, "x", 3) is None
    for _ in range(2):
        await limiter.release(permits["tn_a-1"])
    assert await attempt(limiter, "y", 3) == Permit("y", "tn_a", capped(3))
    assert await attempt(limiter, "z", 3) is None


async def test_a_full_tenant_is_nobody_elses_business(limiter) -> None:
    """P10: another tenant's slots, and its releases, are its own."""
    mine, _theirs = await take(limiter, 2), await take(limiter, 2, "tn_b")
    assert await attempt(limiter, "x", 3, "tn_b") is not None
    await limiter.release(mine["tn_a-0"])
    assert (await limiter.live("tn_a"), await limiter.live("tn_b")) == (1, 3)


async def test_a_lowered_cap_holds_for_the_next_one(limiter) -> None:
    """Streams over a cap that was lowered run on; no new one starts until there is room under it."""
    permits = await take(limiter, 4)
    assert await attempt(limiter, "x", 2) is None
    lowered = {permit_id: replace(permit, caps=capped(2)) for permit_id, permit in permits.items()}
    for known in (permits, lowered):
        assert await limiter.renew(known) == set()
    await limiter.release(permits["tn_a-0"])
    assert await attempt(limiter, "x", 2) is None


# --- leases -----------------------------------------------------------------------------------------


async def test_a_lease_that_nobody_renews_frees_its_slot(client) -> None:
    """P4: a dead worker's slots come back by themselves, when their leases have run out."""
    limiter = lenient(client, lease_seconds=0.2)
    await limiter.acquire("tn_a", "dead", capped(1))
    assert await attempt(limiter, "early", 1) is None
    assert await eventually(lambda: attempt(limiter, "heir", 1))
    assert set(await leases(client)) == {"heir"}


async def test_a_lease_lasts_as_long_as_was_asked(limiter, client) -> None:
    """A live worker is not robbed between two ticks."""
    await take(limiter, 1)
    (left,) = (await leases(client)).values()
    assert LEASE_MS - 10_000 < left <= LEASE_MS


async def test_renewing_keeps_a_lease(limiter, client) -> None:
    """A renewed lease is as long as a new one, and its slot stays taken."""
    permits = await take(limiter, 2)
    await age(client, "tn_a-0", 20_000)
    assert await limiter.renew(permits) == set()
    assert all(left > LEASE_MS - 10_000 for left in (await leases(client)).values())
    assert await attempt(limiter, "x", 2) is None


async def test_renewing_after_redis_was_emptied_registers_again(limiter, client) -> None:
    """Redis is no record: streams that run are known again after one tick, and the cap counts them."""
    permits = await take(limiter, 3)
    await client.flushall()
    assert await limiter.renew(permits) == set()
    assert await limiter.live("tn_a") == 3
    assert await attempt(limiter, "x", 3) is None


@pytest.mark.parametrize("rivals", [1, 2, 3])
async def test_renewing_never_exceeds_the_cap(limiter, client, rivals) -> None:
    """P4: where others have filled the cap meanwhile, the renewal says which permits are lost."""
    permits = await take(limiter, 3)
    await client.flushall()
    for n in range(rivals):
        await limiter.acquire("tn_a", f"rival{n}", capped(3))
    lost = await limiter.renew(permits)
    assert lost <= set(permits)
    assert len(lost) == rivals
    kept = {f"rival{n}" for n in range(rivals)} | set(permits) - lost
    assert set(await leases(client)) == kept
    assert await limiter.live("tn_a") == 3


async def test_a_lease_that_ran_out_is_lost_only_if_its_slot_is_taken(limiter, client) -> None:
    """A worker that slept gets its slot back if nobody has it; if somebody has, it is told so."""
    permits = await take(limiter, 2)
    await age(client, "tn_a-0", -5)
    await age(client, "tn_a-1", -5)
    assert await attempt(limiter, "rival", 2) is not None
    lost = await limiter.renew(permits)
    assert len(lost) == 1
    assert set(await leases(client)) == {"rival"} | set(permits) - lost


async def test_a_dead_lease_keeps_nobody_from_coming_back(limiter, client) -> None:
    """A slot whose lease ran out is free for a renewal too, though nobody has swept it up yet."""
    await take(limiter, 1)
    await age(client, "tn_a-0", -1)
    assert await limiter.renew({"late": Permit("late", "tn_a", capped(1))}) == set()
    assert set(await leases(client)) == {"late"}


async def test_expired_leases_do_not_count(limiter, client) -> None:
    """`live` tells what holds now, also before anybody has swept up."""
    await take(limiter, 3)
    await age(client, "tn_a-1", -1)
    assert await limiter.live("tn_a") == 2
    assert await limiter.live("tn_nobody") == 0


async def test_a_shorter_lease_does_not_cut_a_longer_one(limiter, client) -> None:
    """P4 while LEASE_SECONDS is changed worker by worker: a lease lasts as long as its worker said."""
    brief = lenient(client, lease_seconds=0.1)
    await limiter.acquire("tn_a", "long", capped(2))
    await brief.acquire("tn_a", "short", capped(2))

    async def over() -> bool:
        return await limiter.live("tn_a") < 2

    await eventually(over)
    assert set(await leases(client)) - {"short"} == {"long"}
    assert await attempt(limiter, "x", 1) is None


# --- keys and scripts -------------------------------------------------------------------------------


async def test_keys_share_the_tenants_hash_tag_and_do_not_stay(limiter, client) -> None:
    """On a cluster one call needs one slot; and a tenant that stops coming leaves nothing in Redis."""
    for step in ("acquire", "renew", "register", "release"):
        permits = {"p": Permit("p", "tn_a", capped(2))} if step == "register" else await take(limiter, 2)
        if step in {"renew", "register"}:
            await limiter.renew(permits)
        if step == "release":
            await limiter.release(permits["tn_a-0"])
        keys = await client.keys("*")
        assert keys
        assert {key_slot(key) for key in keys} == {key_slot(b"{tn_a}")}
        assert all([0 < await client.pttl(key) <= LEASE_MS for key in keys])
        for permit in permits.values():
            await limiter.release(permit)
        await limiter.renew({"late": Permit("late", "tn_b", capped(0, "tn_b"))})
        assert await client.keys("*") == []


@pytest.mark.parametrize("tenant", ["tn}a", "{tn", "tn:streams", "tn a\n"])
async def test_any_tenant_id_will_do(limiter, tenant) -> None:
    """Ids that look like pieces of a key, or of the protocol, are ids and nothing else."""
    permits = await take(limiter, 2, tenant)
    assert await attempt(limiter, "x", 2, tenant) is None
    assert await limiter.renew(permits) == set()
    assert await limiter.live(tenant) == 2


async def test_scripts_that_redis_forgot_are_sent_again(limiter, client) -> None:
    """A restart, a failover or SCRIPT FLUSH costs a round trip, not an error."""
    permits = await take(limiter, 2)
    await client.script_flush()
    assert await limiter.renew(permits) == set()
    await client.script_flush()
    assert await attempt(limiter, "x", 2) is None
    await limiter.release(permits["tn_a-0"])
    await client.script_flush()
    assert await attempt(limiter, "y", 2) is not None


async def test_renewing_nothing_is_nothing(limiter, client) -> None:
    """An idle worker's tick neither fails nor writes."""
    assert await limiter.renew({}) == set()
    assert await client.keys("*") == []


async def test_all_tenants_are_renewed_in_one_round_trip(redis_server, redis_url) -> None:
    """A tick costs one round trip, whether a worker serves one tenant or thirty."""
    async with Proxy(lambda: asyncio.open_connection("127.0.0.1", redis_server.port)) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        client = limiter_redis.connect(url, timeout_seconds=BOUND_SECONDS)
        limiter = lenient(client)
        permits: dict[str, Permit] = {}
        for n in range(30):
            permits |= await take(limiter, 3, f"tn_{n}")
        await limiter.renew(permits)  # loads the script
        await client.flushdb()
        before = proxy.round_trips
        assert await limiter.renew(permits) == set()
        assert proxy.round_trips - before == 1
        assert [
            await limiter.live(tenant) for tenant in {permit.tenant_id for permit in permits.values()}
        ] == [3] * 30
        await client.aclose()
