"""A bought token's allowance, on fakeredis and on a real Redis: its streams never get more, together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.adapters.limiter_redis import RedisLimiter
from api.ports import Allowance, AllowanceSpent, Permit, StreamsExhausted
from auth.principal import Limit
from tests.contracts.helpers import BOUND_SECONDS, bounded, eventually

if TYPE_CHECKING:
    from redis.asyncio import Redis

TOKEN = "jti"


def caps(tenant: str = "tn_a", limit: int = 100) -> tuple[Limit, ...]:
    """The tenant's cap and the token's own; wide unless it is said."""
    return (Limit("tenant", tenant, limit), Limit("token", TOKEN, 100))


async def reserve(
    limiter: RedisLimiter,
    permit_id: str,
    least: int,
    most: int,
    *,
    total: int = 100,
    spent: int | None = 0,
    tenant: str = "tn_a",
    token: str = TOKEN,
) -> Permit | None:
    """What the limiter says to a stream that asks for so many tokens."""
    return await limiter.acquire(tenant, permit_id, caps(tenant), Allowance(token, total, least, most, spent))


async def granted(limiter: RedisLimiter, permit_id: str, least: int, most: int, **more: int) -> int:
    """How many tokens it got; 0 where it was refused."""
    try:
        permit = await reserve(limiter, permit_id, least, most, **more)
    except AllowanceSpent:
        return 0
    assert permit is not None
    return permit.granted_tokens


async def kill(client: Redis, permit_id: str) -> None:
    """The worker of a permit died some time ago: its leases are over, under each cap."""
    for key in await client.keys("*streams*"):
        await client.zadd(key, {permit_id: 1}, xx=True)


# --- reserving --------------------------------------------------------------------------------------


async def test_a_permit_says_what_was_reserved_and_of_what(limiter) -> None:
    """The most that was asked for, where there is as much."""
    permit = await reserve(limiter, "p", 10, 30)
    assert permit == Permit("p", "tn_a", caps(), allowance_of=TOKEN, granted_tokens=30)
    assert await limiter.live("tn_a") == 1


async def test_who_has_no_allowance_is_granted_no_tokens(limiter, client) -> None:
    """Most callers have none: nothing is counted for them."""
    assert await limiter.acquire("tn_a", "p", caps()) == Permit("p", "tn_a", caps(), None, 0)
    assert [name for name in await client.keys("*") if b"streams" not in name] == []


async def test_a_request_is_cut_down_to_what_is_left(limiter) -> None:
    """It gets as much as there is, as long as that is the least it needs; then the next one gets nothing."""
    assert await granted(limiter, "p", 10, 70) == 70
    assert await granted(limiter, "q", 31, 70) == 0
    assert await granted(limiter, "q", 30, 70) == 30
    assert await granted(limiter, "r", 1, 1) == 0


async def test_a_refusal_takes_nothing(limiter) -> None:
    """Neither a slot nor a token: after ten of them there is as much left as before."""
    assert await granted(limiter, "p", 1, 60) == 60
    for n in range(10):
        with pytest.raises(AllowanceSpent, match="allowance"):
            await reserve(limiter, f"x{n}", 41, 100)
    assert await limiter.live("tn_a") == 1
    assert await granted(limiter, "q", 40, 100) == 40


async def test_a_full_cap_takes_no_tokens(limiter) -> None:
    """All or nothing: who gets no slot has nothing reserved."""
    asked = Allowance(TOKEN, 100, 1, 90, spent=0)
    with pytest.raises(StreamsExhausted):
        await limiter.acquire("tn_a", "p", caps(limit=0), asked)
    assert await granted(limiter, "q", 100, 100) == 100


async def test_many_at_once_never_get_more_than_the_total(limiter) -> None:
    """50 streams that each want 30 of 100, at the same moment: together they get just what there is."""
    asked = (granted(limiter, f"{n}", 7, 30) for n in range(50))
    got = await bounded(asyncio.gather(*asked))
    assert sorted(tokens for tokens in got if tokens) == [10, 30, 30, 30]


# --- giving back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [0, 1, 59, 60])
async def test_giving_back_charges_what_was_used_and_returns_the_rest(limiter, client, used) -> None:
    """A stream that ends early leaves the others what it did not use, and of itself nothing."""
    permit = await reserve(limiter, "p", 10, 60)
    await limiter.release(permit, used_tokens=used)
    (name,) = await client.keys("*")
    assert await client.hvals(name) == [b"%d" % used]
    assert await granted(limiter, "q", 1, 1000) == 100 - used


async def test_what_was_used_beyond_the_reservation_is_charged_too(limiter) -> None:
    """A provider that reports more than was asked for is paid, and so is it charged."""
    permit = await reserve(limiter, "p", 10, 60)
    await limiter.release(permit, used_tokens=95)
    assert await granted(limiter, "q", 6, 10) == 0
    assert await granted(limiter, "q", 5, 10) == 5


async def test_a_spent_allowance_stays_spent(limiter) -> None:
    """Streams one after the other add up; a total that was used up gives nothing ever again."""
    for n in range(4):
        permit = await reserve(limiter, f"p{n}", 1, 25)
        await limiter.release(permit, used_tokens=25)
    assert [await granted(limiter, "x", 1, most) for most in (1, 50)] == [0, 0]


async def test_a_dead_workers_reservation_counts_as_spent(client) -> None:
    """P5: nobody knows what it did not use, so none of it is given to others; the slot is free again."""
    limiter = RedisLimiter(client, lease_seconds=0.2, timeout_seconds=BOUND_SECONDS)
    assert await granted(limiter, "dead", 1, 80) == 80

    async def gone() -> bool:
        return await limiter.live("tn_a") == 0

    await eventually(gone)
    assert await granted(limiter, "heir", 21, 50) == 0
    assert await granted(limiter, "heir", 1, 50) == 20
    counted = await client.hgetall(f"sg:{{tn_a}}:allowance:{TOKEN}")
    assert counted == {b"spent": b"80", b"heir": b"20"}


async def test_a_live_stream_keeps_its_reservation(limiter) -> None:
    """However long it runs: as long as its lease is renewed nobody else gets its tokens."""
    permit = await reserve(limiter, "p", 1, 80)
    for _ in range(3):
        assert await limiter.renew({"p": permit}) == set()
        assert await granted(limiter, "x", 21, 30) == 0


# --- what is known ----------------------------------------------------------------------------------


async def test_what_nobody_knows_is_asked_for_and_nothing_taken_meanwhile(limiter, client) -> None:
    """None, no slot, no reservation; with the ledger's answer it goes on, and nobody is asked again."""
    for _ in range(2):
        assert await reserve(limiter, "p", 1, 10, spent=None) is None
    assert await limiter.live("tn_a") == 0
    assert await client.keys("*") == []
    assert await granted(limiter, "p", 1, 1000, spent=70) == 30
    with pytest.raises(AllowanceSpent):
        await reserve(limiter, "q", 1, 10, spent=None)


async def test_what_redis_knows_counts_and_not_what_the_ledger_said(limiter) -> None:
    """Of two that asked the ledger at the same time the second does not undo what the first has reserved."""
    assert await granted(limiter, "p", 1, 60, spent=0) == 60
    assert await granted(limiter, "q", 1, 100, spent=0) == 40
    permit = Permit("p", "tn_a", caps(), TOKEN, 60)
    await limiter.release(permit, used_tokens=60)
    assert await granted(limiter, "r", 1, 100, spent=0) == 0


async def test_after_redis_was_emptied_the_ledger_is_asked(limiter, client) -> None:
    """A stream that ends in between charges nobody: the ledger has its event, and is believed."""
    permit = await reserve(limiter, "p", 1, 60)
    await client.flushall()
    await limiter.release(permit, used_tokens=60)
    assert await client.keys("*") == []
    assert await reserve(limiter, "q", 1, 100, spent=None) is None
    assert await granted(limiter, "q", 1, 100, spent=60) == 40


async def test_a_ledger_that_knows_of_more_than_the_total_gives_nothing(limiter) -> None:
    """An allowance that was overdrawn, by a provider's count, is refused and not negative."""
    assert await granted(limiter, "p", 1, 10, spent=150) == 0
    assert await limiter.live("tn_a") == 0


async def test_a_token_of_another_tenant_with_the_same_id_is_another(limiter) -> None:
    """P10: what one spends, the other has."""
    mine = await reserve(limiter, "p", 1, 100)
    assert await granted(limiter, "p", 1, 100, tenant="tn_b") == 100
    await limiter.release(mine, used_tokens=100)
    theirs = Permit("p", "tn_b", caps("tn_b"), TOKEN, 100)
    await limiter.release(theirs, used_tokens=1)
    assert await granted(limiter, "x", 1, 100) == 0
    assert await granted(limiter, "x", 1, 100, tenant="tn_b") == 99


async def test_tokens_of_one_tenant_have_allowances_of_their_own(limiter) -> None:
    """Even those of the same key, and those whose ids look like a piece of a key of Redis."""
    for token in (TOKEN, "other", "spent", f"{TOKEN}:spent", "水 \n"):
        assert await granted(limiter, f"p {token}", 1, 100, token=token) == 100


async def test_a_permit_may_be_named_like_nothing_that_is_counted(limiter) -> None:
    """The count is not confused with a reservation, and numbers up to the largest allowance are exact."""
    total = 2**53
    permit = await reserve(limiter, "p", 1, total - 1, total=total)
    assert permit.granted_tokens == total - 1
    assert await granted(limiter, "q", 1, 5, total=total) == 1
    await limiter.release(permit, used_tokens=total - 3)
    assert await granted(limiter, "r", 1, 5, total=total) == 2


# --- any history ------------------------------------------------------------------------------------


@dataclass
class Model:
    """What an allowance is: a total, what was charged, and what is reserved by those who live."""

    total: int
    cap: int
    ledger: int = 0
    spent: int | None = None
    live: dict[str, int] = field(default_factory=dict)

    def start(self, name: str, least: int, most: int) -> int | str:
        """Tokens granted, or why there are none."""
        if len(self.live) >= self.cap:
            return "full"
        if self.spent is None:
            self.spent = self.ledger
        left = self.total - self.spent - sum(self.live.values())
        if left < least:
            return "spent"
        self.live[name] = min(left, most)
        return self.live[name]

    def end(self, name: str, used: int) -> None:
        """The ledger hears of it in any case; Redis charges it unless it has forgotten the count."""
        self.live.pop(name, None)
        self.ledger += used
        if self.spent is not None:
            self.spent += used

    def die(self, name: str) -> None:
        """Its lease has run out; nobody knows what it did not use."""
        reserved = self.live.pop(name, None)
        if reserved is not None and self.spent is not None:
            self.spent += reserved

    def empty(self) -> None:
        """Redis has forgotten everything."""
        self.spent = None
        self.live.clear()


_NUMBERS = st.integers(0, 60)
_STEPS = st.one_of(
    st.tuples(st.just("start"), st.integers(1, 40), _NUMBERS),
    st.tuples(st.just("end"), _NUMBERS, st.integers(0, 100)),
    st.tuples(st.just("die"), _NUMBERS),
    st.tuples(st.just("renew")),
    st.tuples(st.just("empty")),
)


async def start(limiter: RedisLimiter, model: Model, name: str, least: int, most: int) -> int | str:
    """As the gate does it: ask, and where it is not known, ask the ledger and ask again."""
    asked = Allowance(TOKEN, model.total, least, most)
    try:
        permit = await limiter.acquire("tn_a", name, caps(limit=model.cap), asked)
        if permit is None:
            asked = replace(asked, spent=model.ledger)
            permit = await limiter.acquire("tn_a", name, caps(limit=model.cap), asked)
    except StreamsExhausted:
        return "full"
    except AllowanceSpent:
        return "spent"
    assert permit is not None
    return permit.granted_tokens


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(total=st.integers(0, 150), cap=st.integers(1, 5), history=st.lists(_STEPS, max_size=25))
async def test_any_history_is_that_of_the_model(limiter, client, total, cap, history) -> None:
    """Whatever starts, ends, dies and is forgotten: each answer is the model's, and nobody gets more."""
    await client.flushall()
    model, permits = Model(total, cap), {}
    for number, (verb, *numbers) in enumerate(history):
        running = sorted(permits)
        if verb == "start":
            name, (least, more) = f"p{number:02}", numbers
            got = await start(limiter, model, name, least, least + more)
            assert got == model.start(name, least, least + more)
            if isinstance(got, int):
                permits[name] = Permit(name, "tn_a", caps(limit=cap), TOKEN, got)
        elif verb == "end" and running:
            permit = permits.pop(running[numbers[0] % len(running)])
            used = permit.granted_tokens * numbers[1] // 100
            await limiter.release(permit, used_tokens=used)
            model.end(permit.id, used)
        elif verb == "die" and running:
            name = running[numbers[0] % len(running)]
            await kill(client, name)
            del permits[name]
            model.die(name)
        elif verb == "renew":
            assert await limiter.renew({name: permits[name] for name in model.live}) == set()
        elif verb == "empty":
            await client.flushall()
            model.empty()
        assert await limiter.live("tn_a") == len(model.live)
        if ("empty",) not in history:
            assert sum(model.live.values()) + model.ledger <= total
