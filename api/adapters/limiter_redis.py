"""Admission in Redis: all limits of a request in one Lua call, all leases of a worker in one round trip.

The same Lua runs on Redis, on a Redis Cluster and on fakeredis (`memory://`). Redis' own TIME is the clock,
so workers need not agree on theirs. Keys of one tenant share a hash tag. A call answers within
`timeout_seconds` (250 ms) or raises LimiterUnavailable; what to do then is `limiter_share`'s matter.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, RedisError

from api.core.demand import MAX_TOKENS, STREAMS, Reply, Shape, State, Verdict
from api.ports import Fleet, LimiterUnavailable, Peek, Renewed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence

    from redis.asyncio import Redis

    from api.core.demand import Ask, Demand, Terms
    from api.ports import Permit, Renewal, Used

_LUA = Path(__file__).parent / "lua"
_HEAD = 5  # verdict, tokens, allowed, at, wait; then two numbers for each demand
_WORKERS = "sg:workers"
_LATE_SECONDS = 0.02
"""A timer that fires later than this was held up by our own loop, and Redis gets the time back."""


class Script:
    """A Lua script that any Redis may have forgotten: after a restart, a failover, on a new node."""

    def __init__(self, client: Redis, *files: str) -> None:
        self._client = client
        self.text = "\n".join((_LUA / file).read_text() for file in files)
        self._sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, key: str, args: Sequence[Any]) -> Any:
        """Run it where `key` lives."""
        try:
            return await self._client.evalsha(self._sha, 1, key, *args)
        except NoScriptError:
            return await self._client.eval(self.text, 1, key, *args)

    async def each(self, calls: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
        """Run it for several keys in one round trip."""
        pipe = self._client.pipeline(transaction=False)
        for key, args in calls:
            pipe.evalsha(self._sha, 1, key, *args)
        replies = await pipe.execute(raise_on_error=False)
        for i, reply in enumerate(replies):
            if isinstance(reply, NoScriptError):
                replies[i] = await self._client.eval(self.text, 1, calls[i][0], *calls[i][1])
            elif isinstance(reply, Exception):
                raise reply
        return list(replies)


class RedisLimiter:
    """Limits of tenants. `client` is a redis.asyncio client of any kind, or fakeredis' twin of one."""

    def __init__(self, client: Redis, terms: Terms, *, timeout_seconds: float = 0.25) -> None:
        self._client = client
        self._terms = terms
        self._timeout_seconds = timeout_seconds
        self._script = Script(client, "limits.lua", "calls.lua")
        self._workers = Script(client, "workers.lua")

    async def acquire(self, tenant_id: str, ask: Ask) -> Reply:
        """All that a request asks, or nothing."""
        running = -1 if ask.running is None else ask.running
        head = ["acquire", ask.permit_id, *self._terms, ask.least, ask.most, ask.share, running]
        args = [*head, ask.max_waiters, *_demands(ask.demands), *_spent(ask)]
        return _reply(await self._call(tenant_id, args), ask.demands)

    async def extend(self, tenant_id: str, ask: Ask) -> Reply:
        """More tokens of output for a permit."""
        head = ["extend", ask.permit_id, ask.least, ask.most, ask.share]
        return _reply(await self._call(tenant_id, [*head, *_demands(ask.demands), *_spent(ask)]), ())

    async def renew(self, renewals: Iterable[Renewal], waiters: Mapping[str, Sequence[str]]) -> Renewed:
        """Renew the leases of all streams and waiters of a worker, in one round trip."""
        tenants: dict[str, list[Renewal]] = {tenant_id: [] for tenant_id in waiters}
        for renewal in renewals:
            tenants.setdefault(renewal.permit.tenant_id, []).append(renewal)
        calls = [
            (_key(tenant_id), self._renewal(mine, waiters.get(tenant_id, ())))
            for tenant_id, mine in tenants.items()
        ]
        if not calls:
            return Renewed(set(), {})
        replies = await self._bounded(self._script.each(calls))
        lost = {permit_id.decode() for _, *ids in replies for permit_id in ids}
        return Renewed(lost, {tenant_id: reply[0] for tenant_id, reply in zip(tenants, replies, strict=True)})

    def _renewal(self, renewals: Sequence[Renewal], waiters: Sequence[str]) -> list[Any]:
        args: list[Any] = ["renew", *self._terms, len(renewals)]
        for permit, used in renewals:
            caps = [demand for demand in permit.demands if demand.shape is Shape.CAP]
            args += [permit.id, len(caps)]
            for cap in caps:
                args += [cap.counter, MAX_TOKENS if cap.shadow else cap.amount]
            budgets = [demand for demand in permit.demands if demand.shape is Shape.BUDGET]
            credit = any(demand.each for demand in permit.demands)
            args += [permit.tokens if credit else -1, len(budgets)]
            for budget in budgets:
                args += [budget.counter, permit.reserved(budget), used.of(budget), budget.keep_seconds]
        return [*args, len(waiters), *waiters]

    async def release(self, permit: Permit, used: Used) -> None:
        """Give back what a permit has and did not use. Again is the same. Raises LimiterUnavailable."""
        spent = [used.of(demand) for demand in permit.demands]
        await self._call(permit.tenant_id, ["release", permit.id, *_demands(permit.demands), *spent])

    async def peek(self, tenant_id: str, demands: Sequence[Demand]) -> Peek:
        """What is left of each limit, and what those in shadow would have refused."""
        reply = await self._call(tenant_id, ["peek", *_demands(demands)])
        end = _HEAD + 2 * len(demands)
        refused = {name.decode(): int(count) for name, count in _pairs(reply[end:])}
        return Peek(_reply(reply[:end], demands).states, refused)

    async def enlist(self, worker: str) -> Fleet:
        """Say that this worker is there; returns how many there are, and which of them this is."""
        reply = await self._bounded(self._workers(_WORKERS, [worker, self._terms.lease_us // 1000]))
        return Fleet(*reply)

    async def live(self, tenant_id: str) -> list[str]:
        """The permits of a tenant's streams, over all workers."""
        seconds, micros = await self._bounded(self._client.time())
        now = seconds * 1_000_000 + micros
        ids = await self._bounded(self._client.zrangebyscore(_key(tenant_id), f"({now}", "+inf"))
        return [permit_id.decode() for permit_id in ids]

    async def ping(self) -> None:
        """Raises LimiterUnavailable."""
        await self._bounded(self._client.ping())

    async def _call(self, tenant_id: str, args: Sequence[Any]) -> Any:
        return await self._bounded(self._script(_key(tenant_id), args))

    async def _bounded(self, work: Awaitable[Any]) -> Any:
        """Wait for Redis, and not for longer."""
        try:
            async with patience(self._timeout_seconds):
                return await work
        except (RedisError, OSError, TimeoutError) as error:
            raise LimiterUnavailable(f"Redis: {type(error).__name__}") from error


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout`, but what our own loop was late is not somebody else's silence.

    A loop that was busy finds the answer and the time-out in the same round: the answer has to be read first.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as scope:
        timers: list[asyncio.TimerHandle] = []

        def over(due: float) -> None:
            late = loop.time() - due
            if late > _LATE_SECONDS:
                later = loop.time() + min(late, seconds)
                timers.append(loop.call_at(later, over, later))
            else:
                scope.reschedule(due)

        first = loop.time() + seconds
        timers.append(loop.call_at(first, over, first))
        try:
            yield
        finally:
            timers[-1].cancel()


def _key(tenant_id: str) -> str:
    """The set of a tenant's live streams. The braces keep all of its keys in one slot of a cluster."""
    return f"sg:{{{tenant_id}}}:{STREAMS}"


def _demands(demands: Sequence[Demand]) -> list[Any]:
    args: list[Any] = [len(demands)]
    for demand in demands:
        shape, counter, amount, base, each, keep_seconds, shadow, of, name = demand
        args += [shape.value, counter, amount, base, each, keep_seconds, int(shadow), of, name]
    return args


def _spent(ask: Ask) -> list[Any]:
    return [ask.spent.get(i, "") for i in range(len(ask.demands))]


def _reply(reply: Sequence[int], demands: Sequence[Demand]) -> Reply:
    verdict = Verdict(reply[0])
    if verdict is Verdict.UNKNOWN:
        return Reply(verdict, unknown=tuple(reply[1:]))
    states = tuple(State(*pair) for pair in _pairs(reply[_HEAD:])) if demands else ()
    tokens, allowed, at, wait_us = reply[1:_HEAD]
    return Reply(verdict, tokens, allowed, at, wait_us, states)


def _pairs(flat: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)
