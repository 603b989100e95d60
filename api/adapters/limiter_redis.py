"""Admission in Redis: all limits of a request in one Lua call, all leases of a worker in one round trip.

The same Lua runs on Redis, on a Redis Cluster and on fakeredis (`memory://`). Redis' own TIME is the clock,
so workers need not agree on theirs. Keys of one tenant share a hash tag. A call answers within
`timeout_seconds` (250 ms) or raises LimiterUnavailable; what to do then is `limiter_share`'s matter.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, RedisError, ResponseError

from api.adapters.redis_connect import direct_pool
from api.adapters.redis_flights import Direct, Flights
from api.core.demand import MAX_TOKENS, STREAMS, Reply, Shape, State, Verdict
from api.ports import Fleet, LimiterUnavailable, Peek, Renewed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

    from redis.asyncio import Redis

    from api.adapters.redis_flights import Call
    from api.core.demand import Ask, Demand, Terms
    from api.ports import Permit, Renewal, Used

log = logging.getLogger("sluicegate.limiter")

_LUA = Path(__file__).parent / "lua"
_HEAD = 5  # verdict, tokens, allowed, at, wait; then two numbers for each demand
_WORKERS = "sg:workers"
_CALLS_AT_ONCE = 24  # fewer than a client has connections: the doorbell needs one too
_PERMITS_AT_ONCE = 200
_ARGUMENTS_AT_ONCE = 3000
_STATES = ("READONLY", "OOM", "MISCONF", "NOREPLICAS", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY")
"""What Redis says where it is not a script's fault that it failed."""
_LATE_SECONDS = 0.02
"""A timer that fires later than this was held up by our own loop, and Redis gets the time back."""
_LOOKS = 5


class Script:
    """A Lua script that any Redis may have forgotten: after a restart, a failover, on a new node."""

    def __init__(self, client: Redis, *files: str) -> None:
        self._client = client
        self.text = "\n".join((_LUA / file).read_text() for file in files)
        self._sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        pool = direct_pool(client)
        self._direct = None if pool is None else Direct(pool)

    @property
    def flies(self) -> bool:
        """Whether there is such a lower price: not on a Cluster, where one dead node would fail a flight."""
        return self._direct is not None

    async def __call__(self, key: str, args: Sequence[Any]) -> Any:
        """Run it where `key` lives."""
        try:
            return await self._client.evalsha(self._sha, 1, key, *args)
        except NoScriptError:
            return await self._client.eval(self.text, 1, key, *args)

    async def each(self, calls: Sequence[Call]) -> list[Any]:
        """Run it for several keys in one round trip; where it failed for one, its reply is the error."""
        pipe = self._client.pipeline(transaction=False)
        for key, args in calls:
            pipe.evalsha(self._sha, 1, key, *args)
        return await self._made_good(calls, await pipe.execute(raise_on_error=False))

    async def flight(self, calls: Sequence[Call]) -> list[Any]:
        """The same where it `flies`; not to be called while such a call is under way."""
        assert self._direct is not None  # noqa: S101 - it flies
        return await self._made_good(calls, await self._direct.each(self._sha, calls))

    async def _made_good(self, calls: Sequence[Call], replies: list[Any]) -> list[Any]:
        for i, reply in enumerate(replies):
            if isinstance(reply, NoScriptError):
                replies[i] = await self._client.eval(self.text, 1, calls[i][0], *calls[i][1])
            elif isinstance(reply, Exception) and not _is_broken(reply):
                raise reply
            elif isinstance(reply, Exception):  # what is wrong with one tenant is no other's matter
                log.error("a script failed for %s: %s", calls[i][0], reply)
                replies[i] = RuntimeError("a script of the limiter failed")
        return replies


def _is_broken(error: Exception) -> bool:
    """Whether a script failed by what it was given, and not by the state that Redis is in."""
    text = str(error)
    return isinstance(error, ResponseError) and "user_script" in text and not any(s in text for s in _STATES)


class RedisLimiter:
    """Limits of tenants. `client` is a redis.asyncio client of any kind, or fakeredis' twin of one."""

    def __init__(self, client: Redis, terms: Terms, *, timeout_seconds: float = 0.25) -> None:
        self._client = client
        self._terms = terms
        self._timeout_seconds = timeout_seconds
        self._turns = asyncio.Semaphore(_CALLS_AT_ONCE)
        self._failures = 0
        self._script = Script(client, "limits.lua", "calls.lua")
        self._workers = Script(client, "workers.lua")
        self._flights = Flights(self._fly) if self._script.flies else None

    async def acquire(self, tenant_id: str, ask: Ask) -> Reply:
        """All that a request asks, or nothing."""
        running = -1 if ask.running is None else ask.running
        head = ["acquire", ask.permit_id, *self._terms, ask.least, ask.most, ask.share, running]
        args = [*head, ask.max_waiters, int(ask.whole), *_demands(ask.demands), *_spent(ask)]
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
        calls: list[tuple[str, list[Any]]] = []
        whose: list[str] = []
        for tenant_id, mine in tenants.items():
            waiting = waiters.get(tenant_id, ())
            for start in range(0, max(len(mine), 1), _PERMITS_AT_ONCE):
                part = mine[start : start + _PERMITS_AT_ONCE]
                calls.append((_key(tenant_id), self._renewal(part, () if start else waiting)))
                whose.append(tenant_id)
        lost: set[str] = set()
        streams: dict[str, int] = {}
        for tenant_id, reply in zip(whose, await self._each(calls), strict=True):
            if not isinstance(reply, Exception):
                streams[tenant_id] = reply[0]
                lost.update(permit_id.decode() for permit_id in reply[1:])
        return Renewed(lost, streams)

    async def _each(self, calls: Sequence[Call]) -> list[Any]:
        """The answers of many calls; so many in a round trip that none takes long."""
        batches: list[list[Call]] = [[]]
        for call in calls:
            if sum(len(args) for _, args in batches[-1]) >= _ARGUMENTS_AT_ONCE:
                batches.append([])
            batches[-1].append(call)
        return [
            reply
            for batch in batches
            if batch
            for reply in await self._bounded(functools.partial(self._script.each, batch))
        ]

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
        await self._call(permit.tenant_id, _release(permit, used))

    async def release_all(self, ended: Iterable[tuple[Permit, Used]]) -> None:
        """The same of many."""
        await self._each([(_key(permit.tenant_id), _release(permit, used)) for permit, used in ended])

    async def peek(self, tenant_id: str, demands: Sequence[Demand]) -> Peek:
        """What is left of each limit, and what those in shadow would have refused."""
        reply = await self._call(tenant_id, ["peek", *_demands(demands)])
        end = _HEAD + 2 * len(demands)
        refused = {name.decode(): int(count) for name, count in _pairs(reply[end:])}
        return Peek(_reply(reply[:end], demands).states, refused)

    async def enlist(self, worker: str) -> Fleet:
        """Say that this worker is there; returns how many there are, and which of them this is."""
        reply = await self._bounded(lambda: self._workers(_WORKERS, [worker, self._terms.lease_us // 1000]))
        return Fleet(*reply)

    async def live(self, tenant_id: str) -> list[str]:
        """The permits of a tenant's streams, over all workers."""
        seconds, micros = await self._bounded(self._client.time)
        now = seconds * 1_000_000 + micros
        key = _key(tenant_id)
        ids = await self._bounded(lambda: self._client.zrangebyscore(key, f"({now}", "+inf"))
        return [permit_id.decode() for permit_id in ids]

    async def ping(self) -> None:
        """Raises LimiterUnavailable."""
        await self._bounded(self._client.ping)

    async def _call(self, tenant_id: str, args: Sequence[Any]) -> Any:
        if self._flights is None:
            return await self._bounded(lambda: self._script(_key(tenant_id), args))
        reply = await self._flights.call((_key(tenant_id), args))
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def _fly(self, calls: Sequence[Call]) -> list[Any]:
        replies: list[Any] = await self._bounded(functools.partial(self._script.flight, calls))
        return replies

    async def _bounded(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Wait for Redis, and not for longer. Who waits for a turn first waits for us, and not for Redis.

        But when Redis fails somebody meanwhile, it will fail those who wait too.
        """
        failures = self._failures
        async with self._turns:
            if failures != self._failures:
                raise LimiterUnavailable("Redis: it failed those before")
            try:
                async with patience(self._timeout_seconds):
                    return await call()
            except (RedisError, OSError, TimeoutError) as error:
                if _is_broken(error):
                    raise RuntimeError("a script of the limiter failed") from error
                self._failures += 1
                raise LimiterUnavailable(f"Redis: {type(error).__name__}") from error


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout`, but what our own loop was late is not somebody else's silence.

    It looks at the clock a few times, and what it came late to that is given back. Where it comes late in the
    end the answer may lie there unread: it waits a little longer, but not for ever.
    """
    loop = asyncio.get_running_loop()
    step, again = seconds / _LOOKS, iter(range(_LOOKS))
    async with asyncio.timeout(None) as scope:

        def look(due: float, left: int) -> None:
            now = loop.time()
            late = now - due if now - due > _LATE_SECONDS else 0
            if left:
                due = now + step if late else due + step
            elif late and next(again, None) is not None:
                due = now + min(late, step)
            else:
                scope.reschedule(due)
                return
            timers.append(loop.call_at(due, look, due, max(0, left - 1)))

        first = loop.time() + step
        timers = [loop.call_at(first, look, first, _LOOKS - 1)]
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


def _release(permit: Permit, used: Used) -> list[Any]:
    spent = [used.of(demand) for demand in permit.demands]
    return ["release", permit.id, *_demands(permit.demands), *spent]


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
