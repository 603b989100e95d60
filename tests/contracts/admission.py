"""What tests ask of a limiter, in few words; and a Redis whose time is in the test's hand."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from api.adapters.limiter_redis import RedisLimiter
from api.core.demand import STREAMS, Ask, Demand, Shape, Verdict
from api.ports import Permit, Used
from tests.contracts.helpers import BOUND_SECONDS, TERMS
from tests.contracts.inventories import retime

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from api.adapters.limiter_share import ShareLimiter
    from api.core.demand import Reply, Terms

    Limiter = RedisLimiter | ShareLimiter

SECOND = 1_000_000
DAY = "tokens_per_day:2026-03-04"


def cap(amount: int = 9, counter: str = STREAMS, *, of: str = "tenant", shadow: bool = False) -> Demand:
    """A cap on streams: the tenant's, unless it is said."""
    return Demand(Shape.CAP, counter, amount, shadow=shadow, of=of)


def key_cap(amount: int, key: str = "k") -> Demand:
    """That of a key."""
    return cap(amount, f"streams:key:{key}", of="key")


def budget(amount: int, base: int = 0, *, counter: str = DAY, each: int = 1, shadow: bool = False) -> Demand:
    """A budget of tokens."""
    return Demand(Shape.BUDGET, counter, amount, base, each, 9999, shadow, name="tokens_per_day")


def requests(amount: int, *, shadow: bool = False) -> Demand:
    """A rate of requests."""
    name = "requests_per_minute"
    return Demand(Shape.RATE, name, amount, 1, 0, 0, shadow, name=name)


def tokens(amount: int, base: int = 0, *, shadow: bool = False) -> Demand:
    """A rate of tokens."""
    name = "tokens_per_minute"
    return Demand(Shape.RATE, name, amount, base, 1, 0, shadow, name=name)


def lenient(client: Redis, terms: Terms = TERMS) -> RedisLimiter:
    """A limiter that waits for its answers however loaded the machine is."""
    return RedisLimiter(client, terms, timeout_seconds=BOUND_SECONDS)


async def ask(
    limiter: Limiter,
    permit_id: str,
    *demands: Demand,
    least: int = 0,
    most: int = 0,
    share: int = 1,
    waiters: int = 0,
    tenant: str = "tn_a",
    spent: int = 0,
    running: int = 0,
    elsewhere: int = 0,
) -> Reply:
    """The answer; where the limiter asks the ledger, the ledger says `spent`, `running` and `elsewhere`."""
    asked = Ask(permit_id, demands, least, most, share, max_waiters=waiters)
    reply = await limiter.acquire(tenant, asked)
    for _ in range(3):  # as the flow does: Redis asks, and then the worker that is alone
        if reply.verdict is not Verdict.UNKNOWN:
            break
        told = {**asked.spent, **{i: spent for i in reply.unknown if i >= 0}}
        asked = replace(asked, spent=told)
        if -1 in reply.unknown:
            asked = replace(asked, running=running, elsewhere=elsewhere)
        reply = await limiter.acquire(tenant, asked)
    return reply


async def take(limiter: Limiter, permit_id: str, *demands: Demand, **more: int | str) -> Permit:
    """A permit, which there must be."""
    reply = await ask(limiter, permit_id, *demands, **more)  # type: ignore[arg-type]
    assert reply.verdict is Verdict.GRANTED, reply
    return Permit(permit_id, str(more.get("tenant", "tn_a")), demands, reply.tokens, reply.degraded)


async def verdict(limiter: Limiter, permit_id: str, *demands: Demand, **more: int | str) -> Verdict:
    """What becomes of a request."""
    return (await ask(limiter, permit_id, *demands, **more)).verdict  # type: ignore[arg-type]


async def more(limiter: Limiter, permit: Permit, least: int, most: int, share: int = 1) -> Reply:
    """More credit for a permit."""
    demands = tuple(demand for demand in permit.demands if demand.each)
    return await limiter.extend(permit.tenant_id, Ask(permit.id, demands, least, most, share))


async def left(limiter: Limiter, *demands: Demand, tenant: str = "tn_a") -> list[int]:
    """What is left of each."""
    return [state.remaining for state in (await limiter.peek(tenant, demands)).states]


def used(count: int) -> Used:
    """So many tokens, and a dollar a thousand."""
    return Used(count, count * SECOND)


class Dial:
    """A limiter on a Redis whose time stands still until it is turned."""

    def __init__(self, client: Redis, terms: Terms = TERMS) -> None:
        self.client = client
        self.limiter = lenient(client, terms)
        retime(self.limiter._script)
        self.now = 1_770_000_000 * SECOND

    async def turn(self, micros: int = 0) -> None:
        """Also after Redis was emptied."""
        self.now += micros
        await self.client.hset("clock", mapping={"s": self.now // SECOND, "us": self.now % SECOND})

    async def flush(self) -> None:
        """Redis has forgotten everything but the time."""
        await self.client.flushall()
        await self.turn()
