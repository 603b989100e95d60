"""What admission costs: calls of Redis, CPU of this process and CPU of Redis, for each request.

Each row is one acquire and one release, as a stream needs them at least; a refusal is one acquire; `renew` is
one tick of a worker with 1,000 streams of 20 tenants. The limiter is the gate's own, on a real Redis and on
`memory://`, where Redis' part runs in this process too. The yardstick is a bare PING by the same client in
the same run. Calls are counted by MONITOR, in a pass that is not timed: what the client sent, what Lua ran.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import uvloop

from api.adapters.clock_system import SystemClock
from api.adapters.limiter_redis import RedisLimiter
from api.adapters.limiter_share import ShareLimiter
from api.adapters.redis_connect import connect
from api.core.demand import Ask, Terms, Verdict
from api.core.demands import demands_of
from api.core.money import Price
from api.ports import Permit, Renewal, Used
from auth.principal import Limit
from scripts.stage import stop_on_sigterm
from tests.support.servers import RedisServer, running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from api.core.demand import Demand, Reply

_TERMS = Terms(600_000_000, 600_000_000, 1_000_000)
_PATIENCE_SECONDS = 10.0
_TENANTS = 20
USED = Used(150, 15_000)
_COUNTED = 50
_PING = "PING, the yardstick"
_CAPS = [Limit("tenant", "t", 1 << 20), Limit("key", "k", 1 << 20)]
_RATES = [
    Limit("tenant", "t", 10**8, "requests_per_minute"),
    Limit("tenant", "t", 10**8, "tokens_per_minute"),
]
_BUDGETS = [
    Limit("tenant", "t", 1 << 50, "tokens_per_month"),
    Limit("tenant", "t", 1 << 50, "nano_dollars_per_month"),
    Limit("key", "k", 1 << 50, "tokens_per_day"),
    Limit("user", "u", 1 << 50, "tokens_per_day"),
]
CASES = {
    "caps": _CAPS,
    "caps, rates": _CAPS + _RATES,
    "caps, rates, 4 budgets": _CAPS + _RATES + _BUDGETS,
}


def demands_for(limits: list[Limit]) -> tuple[Demand, ...]:
    """What a request asks of them."""
    price = Price(1, 1, 1, 1)
    return demands_of(limits, now=datetime.now(UTC), time_zone="UTC", input_tokens=50, price=price)


class Bench:
    """A limiter on one Redis, and what is asked of it."""

    def __init__(self, client: Redis, streams: int) -> None:
        self.client = client
        redis = RedisLimiter(client, _TERMS, timeout_seconds=_PATIENCE_SECONDS)
        self.limiter = ShareLimiter(redis, SystemClock(), _TERMS, worker="bench")
        self._streams = streams
        self._number = 0
        self.work: dict[str, Callable[[int], Awaitable[None]]] = {_PING: self._ping}

    async def prepare(self) -> None:
        """Fill what has to be full; then `work` has a row for each."""
        for name, limits in CASES.items():
            demands = demands_for(limits)
            self.work[name] = lambda count, name=name, demands=demands: self._pairs(name, demands, count)
        full = demands_for([_CAPS[0]._replace(amount=1), *_RATES])
        await self.take("full", full)
        self.work["a refusal"] = lambda count: self._refusals(full, count)
        for name in ("caps", "caps, rates, 4 budgets"):
            demands = demands_for(CASES[name])
            renewals = [
                Renewal(await self.take(f"{name} {number % _TENANTS}", demands), USED)
                for number in range(self._streams)
            ]
            self.work[f"renew of {self._streams}: {name}"] = lambda count, renewals=renewals: self._renew(
                renewals, count
            )

    async def _ping(self, count: int) -> None:
        for _ in range(count):
            await self.client.ping()

    async def _pairs(self, tenant: str, demands: tuple[Demand, ...], count: int) -> None:
        for _ in range(count):
            await self.limiter.release(await self.take(tenant, demands), USED)

    async def take(self, tenant: str, demands: tuple[Demand, ...]) -> Permit:
        """A permit. Raises RuntimeError where it is refused."""
        reply, permit_id = await self._asked(tenant, demands)
        if reply.verdict is not Verdict.GRANTED or reply.degraded:
            raise RuntimeError(f"{tenant}: {reply}")
        return Permit(permit_id, tenant, demands, reply.tokens)

    async def _asked(self, tenant: str, demands: tuple[Demand, ...]) -> tuple[Reply, str]:
        self._number += 1
        credit = any(demand.each for demand in demands)
        ask = Ask(f"bk_{self._number:030}", demands, int(credit), 256 * credit, 4)
        reply = await self.limiter.acquire(tenant, ask)
        if reply.verdict is Verdict.UNKNOWN:  # the first of its tenant: the ledger would be asked
            spent = {at: 0 for at in reply.unknown if at >= 0}
            reply = await self.limiter.acquire(tenant, replace(ask, spent=spent, running=0))
        return reply, ask.permit_id

    async def _refusals(self, demands: tuple[Demand, ...], count: int) -> None:
        for _ in range(count):
            reply, _ = await self._asked("full", demands)
            if reply.verdict is not Verdict.REFUSED:
                raise RuntimeError(str(reply))

    async def _renew(self, renewals: list[Renewal], count: int) -> None:
        for _ in range(count):
            if (await self.limiter.renew(renewals, {})).lost:
                raise RuntimeError("a lease was lost")


async def redis_cpu(client: Redis | None) -> float:
    """CPU seconds that Redis has had so far."""
    if client is None:
        return 0.0
    found = await client.info("cpu")
    return float(found["used_cpu_user"] + found["used_cpu_sys"])


async def _rounds(bench: Bench, client: Redis | None, rounds: int, count: int) -> dict[str, dict[str, float]]:
    """Rows by name. `client` asks a real Redis for its own CPU."""
    ours: dict[str, list[float]] = {name: [] for name in bench.work}
    theirs: dict[str, list[float]] = {name: [] for name in bench.work}
    for turn in range(rounds + 1):
        for name, run in bench.work.items():
            times = max(1, count // 200) if name.startswith("renew") else count
            before, begun = await redis_cpu(client), time.process_time()
            await run(times)
            spent = time.process_time() - begun
            if turn:  # the first round warms up
                ours[name].append(1e6 * spent / times)
                theirs[name].append(1e6 * (await redis_cpu(client) - before) / times)
    yardstick = statistics.median(ours[_PING])
    rows = {}
    for name, values in ours.items():
        middle = statistics.median(values)
        rows[name] = {
            "median_us": middle,
            "least_us": min(values),
            "most_us": max(values),
            "ratio": middle / yardstick,
        }
        if client is not None:
            rows[name]["redis_us"] = statistics.median(theirs[name])
    return rows


async def _counts(bench: Bench, server: RedisServer) -> dict[str, dict[str, float]]:
    """Commands that the client sent, and commands that Lua ran, for one of each."""
    found = {}
    for name, run in bench.work.items():
        times = 1 if name.startswith("renew") else _COUNTED
        with server.client(socket_timeout=_PATIENCE_SECONDS) as watching, watching.monitor() as monitor:
            await run(times)
            await bench.client.echo("that is all")
            sent = inside = 0
            for command in monitor.listen():
                if command["command"].startswith("ECHO"):
                    break
                by_lua = command["client_type"] == "lua"
                inside, sent = inside + by_lua, sent + (not by_lua)
        found[name] = {"calls": sent / times, "in_lua": inside / times}
    return found


async def measure(rounds: int, count: int, streams: int) -> dict[str, dict[str, dict[str, float]]]:
    """Rows by where the limits are kept."""
    tables = {}
    with running(RedisServer()) as server:
        server.start()
        for where, url in (("redis", server.url), ("memory", "memory://")):
            real = where == "redis"
            client = connect(url, timeout_seconds=_PATIENCE_SECONDS)
            try:
                bench = Bench(client, streams)
                await bench.prepare()
                few = count if real else max(1, count // 20)
                rows = await _rounds(bench, client if real else None, rounds, few)
                for name, counts in (await _counts(bench, server) if real else {}).items():
                    rows[name] |= counts
                tables[where] = rows
            finally:
                await client.aclose()
    return tables


def _print(tables: dict[str, dict[str, dict[str, float]]]) -> None:
    columns = ("median_us", "least_us", "most_us", "ratio", "redis_us", "calls", "in_lua")
    titles = ("CPU us", "least", "most", "ratio", "Redis us", "calls", "in Lua")
    for where, rows in tables.items():
        print(f"{where:40}" + "".join(f"{title:>10}" for title in titles))
        for name, row in rows.items():
            print(f"{name:40}" + "".join(f"{row[c]:10.1f}" if c in row else f"{'':10}" for c in columns))
        print()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/bench admission", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=2000, help="requests in each round")
    parser.add_argument("--streams", type=int, default=1000, help="that a tick renews")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    stop_on_sigterm()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        tables = runner.run(measure(asked.rounds, asked.count, asked.streams))
    if asked.json:
        print(json.dumps(tables))
    else:
        _print(tables)


if __name__ == "__main__":
    main()
