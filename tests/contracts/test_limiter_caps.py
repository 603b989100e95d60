"""Several caps at one time, on fakeredis and on a real Redis: one slot under each of them, or none at all."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from redis.crc import key_slot

from api.adapters.limiter_redis import RedisLimiter
from api.ports import Allowance, AllowanceSpent, Permit, StreamsExhausted
from auth.principal import Limit
from tests.contracts.helpers import BOUND_SECONDS, LEASE_MS, bounded, eventually
from tests.contracts.wires import Proxy

if TYPE_CHECKING:
    from redis.asyncio import Redis

TEXTS = {
    "tenant": "You have 2 streams open, which is your limit.",
    "key": "You have 2 streams open with this key, which is your limit.",
    "token": "You have 2 streams open with this token, which is your limit.",
}


def caps(tenant: str = "tn_a", *, of: int = 9, key: int = 9, token: int = 9) -> tuple[Limit, ...]:
    """A tenant's, a key's and a bought token's; wide unless it is said."""
    return (Limit("tenant", tenant, of), Limit("key", "k", key), Limit("token", "t", token))


async def slots(client: Redis) -> dict[str, set[str]]:
    """Who stands in which set, the tenant's being the one with the shortest name; found by looking."""
    found = {}
    for key in sorted(await client.keys("*")):
        found[key.decode()] = {member.decode() for member in await client.zrange(key, 0, -1)}
    return found


async def age(client: Redis, permit_id: str, *, of: str = "*") -> None:
    """Let a permit's leases be over, in the sets whose names fit."""
    for key in await client.keys(of):
        await client.zadd(key, {permit_id: 1}, xx=True)


async def attempt(limiter: RedisLimiter, permit_id: str, *asked: Cap) -> Permit | str:
    """A permit, or which cap is full, as the refusal says it."""
    try:
        return await limiter.acquire(asked[0].id, permit_id, asked)
    except StreamsExhausted as refused:
        return str(refused).partition(" Retry")[0]


# --- taking -----------------------------------------------------------------------------------------


async def test_a_permit_stands_under_each_cap(limiter, client) -> None:
    """One call takes them all; the permit says which, and the tenant's slots are what is live."""
    assert await limiter.acquire("tn_a", "p", caps()) == Permit("p", "tn_a", caps())
    assert list((await slots(client)).values()) == [{"p"}] * 3
    await limiter.acquire("tn_a", "q", caps()[:1])
    assert sorted(map(len, (await slots(client)).values())) == [1, 1, 2]
    assert await limiter.live("tn_a") == 2


@pytest.mark.parametrize("kind", TEXTS)
async def test_a_refusal_names_the_cap_that_is_full_and_takes_nothing(limiter, client, kind) -> None:
    """All or nothing: whichever cap is full, no slot is taken under the others."""
    limits = {name: 2 if name == kind else 9 for name in TEXTS}
    asked = caps(of=limits["tenant"], key=limits["key"], token=limits["token"])
    for n in range(2):
        await limiter.acquire("tn_a", f"p{n}", asked)
    before = await slots(client)
    for n in range(5):
        assert await attempt(limiter, f"x{n}", *asked) == TEXTS[kind]
    assert await slots(client) == before
    assert list(before.values()) == [{"p0", "p1"}] * 3


async def test_where_several_caps_are_full_the_tenants_is_named(limiter) -> None:
    """A key's holder who frees one of its own streams would not be helped."""
    for n in range(2):
        await limiter.acquire("tn_a", f"p{n}", caps(of=2, key=2, token=2))
    assert await attempt(limiter, "x", *caps(of=2, key=2, token=2)) == TEXTS["tenant"]
    assert await attempt(limiter, "x", *caps(key=2, token=2)) == TEXTS["key"]
    assert await attempt(limiter, "x", *caps(token=2)) == TEXTS["token"]


async def test_keys_and_tokens_of_one_tenant_have_sets_of_their_own(limiter, client) -> None:
    """Another key's streams fill the tenant's cap and not this key's; a token named like a key is no key."""
    one, other = Limit("key", "same", 1), Limit("key", "other", 1)
    token, tenant = Limit("token", "same", 1), Limit("tenant", "tn_a", 9)
    for n, cap in enumerate((one, other, token)):
        assert isinstance(await attempt(limiter, f"p{n}", tenant, cap), Permit)
    for cap in (one, other, token):
        assert isinstance(await attempt(limiter, "x", tenant, cap), str)
    assert sorted(map(len, (await slots(client)).values())) == [1, 1, 1, 3]


async def test_a_key_of_another_tenant_with_the_same_id_is_another(limiter, client) -> None:
    """P10: nothing that one tenant names or does fills, frees or renews what is another's."""
    mine = await limiter.acquire("tn_a", "p", caps(key=1, token=1))
    theirs = await limiter.acquire("tn_b", "p", caps("tn_b", key=1, token=1))
    await limiter.release(mine)
    assert (await limiter.live("tn_a"), await limiter.live("tn_b")) == (0, 1)
    assert await attempt(limiter, "x", *caps("tn_b", key=1)) == TEXTS["key"].replace("2", "1")
    assert await limiter.renew({"p": theirs}) == set()
    assert all("tn_b" in name for name in await slots(client))


async def test_never_more_than_any_of_the_caps(limiter, client) -> None:
    """P4: 200 at once, of two keys, get just what the tenant's cap of 7 and one key's of 3 allow."""
    narrow, wide = Limit("key", "narrow", 3), Limit("key", "wide", 100)
    asked = [attempt(limiter, f"{n}", Limit("tenant", "tn_a", 7), (narrow, wide)[n % 2]) for n in range(200)]
    permits = [got for got in await bounded(asyncio.gather(*asked)) if isinstance(got, Permit)]
    assert len(permits) == 7
    assert sum(permit.caps[1] == narrow for permit in permits) <= 3
    by_size = sorted((await slots(client)).values(), key=len)
    assert by_size[-1] == {permit.id for permit in permits}
    assert by_size[0] | by_size[1] == by_size[-1]


# --- renewing ---------------------------------------------------------------------------------------


async def leases(client: Redis) -> list[float]:
    """What is left of every lease under every cap, in ms."""
    seconds, micros = await client.time()
    now = seconds * 1000 + micros // 1000
    sets = [await client.zrange(key, 0, -1, withscores=True) for key in await client.keys("*")]
    return [score - now for members in sets for _, score in members]


async def test_renewing_renews_under_every_cap(limiter, client) -> None:
    """Permits of several keys and tenants at once: all leases are as new, and nobody is lost."""
    permits = {}
    for n, tenant in enumerate(("tn_a", "tn_a", "tn_b")):
        permit = await limiter.acquire(tenant, f"p{n}", (*caps(tenant)[:1], Limit("key", f"k{n % 2}", 9)))
        permits[permit.id] = permit
    seconds, _ = await client.time()
    for key in await client.keys("*"):
        for member in await client.zrange(key, 0, -1):
            await client.zadd(key, {member: seconds * 1000 + 20_000})
    assert await limiter.renew(permits) == set()
    left = await leases(client)
    assert len(left) == 6
    assert all(LEASE_MS - 10_000 < ms <= LEASE_MS for ms in left)


async def test_emptied_sets_are_registered_again_under_every_cap(limiter, client) -> None:
    """After a restart of Redis one tick puts every stream back where it stood."""
    permits = {f"p{n}": await limiter.acquire("tn_a", f"p{n}", caps(of=4, key=3, token=2)) for n in range(2)}
    before = await slots(client)
    await client.flushall()
    assert await limiter.renew(permits) == set()
    assert await slots(client) == before
    assert await attempt(limiter, "x", *caps(of=4, key=3, token=2)) == TEXTS["token"]


@pytest.mark.parametrize("kind", TEXTS)
async def test_what_is_lost_under_one_cap_is_lost(limiter, client, kind) -> None:
    """P4: a stream whose slot under any of its caps went to another must end; the others go on."""
    kept = await limiter.acquire("tn_a", "kept", caps(of=2)[:1])
    asleep = await limiter.acquire("tn_a", "asleep", caps(of=2, key=1, token=1))
    names = sorted(await slots(client), key=len)
    full = names[0] if kind == "tenant" else next(name for name in names if f":{kind}:" in name)
    await age(client, "asleep", of=full)
    seconds, _ = await client.time()
    await client.zadd(full, {"rival": seconds * 1000 + LEASE_MS})
    assert await limiter.renew({"kept": kept, "asleep": asleep}) == {"asleep"}


async def test_a_dead_workers_slots_come_back_under_every_cap(client) -> None:
    """P4: when its leases have run out, and not before; the next one takes all of them."""
    limiter = RedisLimiter(client, lease_seconds=0.2, timeout_seconds=BOUND_SECONDS)
    narrow = caps(of=1, key=1, token=1)
    await limiter.acquire("tn_a", "dead", narrow)
    assert isinstance(await attempt(limiter, "early", *narrow), str)

    async def heir() -> bool:
        return isinstance(await attempt(limiter, "heir", *narrow), Permit)

    await eventually(heir)
    assert list((await slots(client)).values()) == [{"heir"}] * 3


# --- giving back ------------------------------------------------------------------------------------


async def test_giving_back_frees_every_cap_and_only_ones_own(limiter, client) -> None:
    """A released permit stands nowhere any more, others stay; twice is as once."""
    one, other = [await limiter.acquire("tn_a", name, caps(of=2, key=2, token=2)) for name in ("p", "q")]
    for _ in range(2):
        await limiter.release(one)
        assert list((await slots(client)).values()) == [{"q"}] * 3
    assert isinstance(await attempt(limiter, "r", *caps(of=2, key=2, token=2)), Permit)
    assert await attempt(limiter, "s", *caps(of=2)) == TEXTS["tenant"]
    await limiter.release(other)


# --- keys of Redis ----------------------------------------------------------------------------------


async def test_all_keys_of_a_permit_share_the_tenants_hash_tag_and_do_not_stay(limiter, client) -> None:
    """One call is one slot of a cluster, the allowance's too; what nobody comes back to goes by itself."""
    allowance = Allowance("t", 100, 1, 10, spent=0)
    permit = await limiter.acquire("tn_a", "p", caps(), allowance)
    names = await client.keys("*")
    assert len(names) == 4
    assert {key_slot(name) for name in names} == {key_slot(b"{tn_a}")}
    assert all([await client.pttl(name) > 0 for name in names])
    await limiter.release(permit, used_tokens=3)
    assert all([await client.pttl(name) > 0 for name in await client.keys("*")])


async def test_all_caps_and_an_allowance_cost_one_round_trip(redis_server, redis_url) -> None:
    """P8: taking and giving back are one call each, whatever is asked."""
    from api.adapters import limiter_redis

    async with Proxy(lambda: asyncio.open_connection("127.0.0.1", redis_server.port)) as proxy:
        client = limiter_redis.connect(f"redis://127.0.0.1:{proxy.port}/0", timeout_seconds=BOUND_SECONDS)
        limiter = RedisLimiter(client, lease_seconds=60, timeout_seconds=BOUND_SECONDS)
        for spent in (0, None):  # the first loads the scripts
            before = proxy.round_trips
            permit = await limiter.acquire("tn_a", "p", caps(), Allowance("t", 100, 1, 10, spent=spent))
            await limiter.release(permit, used_tokens=1)
        assert proxy.round_trips - before == 2
        await client.aclose()


async def test_a_refused_allowance_takes_no_slot(limiter, client) -> None:
    """All or nothing goes for the allowance too: who gets no tokens stands under no cap."""
    with pytest.raises(AllowanceSpent):
        await limiter.acquire("tn_a", "p", caps(), Allowance("t", 5, 6, 10, spent=0))
    assert await limiter.live("tn_a") == 0
    assert [name for name in await client.keys("*") if b"streams" in name] == []
