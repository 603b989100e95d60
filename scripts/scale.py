"""What so many open streams need, of measured costs and of the real scripts of the limiter.

A request's and a chunk's cost in the gate and in PostgreSQL are what `scripts/bench gate --json` wrote to
`docs/figures.json`. Redis' are measured here: a real one is filled with leases of many tenants, each with
caps, rates and budgets, and its own CPU is read while requests come and go and all leases are renewed.
Streams arrive as fast as others end. Nothing is said of networks, which a gateway fills last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from api.adapters.redis_connect import connect
from api.ports import Renewal
from scripts.benchmarks.admission import CASES, USED, Bench, demands_for, redis_cpu
from scripts.stage import stop_on_sigterm
from tests.support.servers import ROOT, RedisServer, running

_OF_A_TENANT = 50
_AT_ONCE = 100
_PAIRS = 3000
_FULL_WORKER = 0.7
"""Of a core: above that, those who wait are felt at the first token."""

_FULL_STORE = 0.6


class RedisCosts(NamedTuple):
    """Redis' CPU in microseconds, where so many leases are held."""

    leases: int
    request_us: float
    renewal_us: float


class Load(NamedTuple):
    """What comes: open streams, how long each lasts, chunks of each in a second, seconds between renewals."""

    streams: int
    seconds: float
    chunks_per_second: float
    tick_seconds: float


def needs(figures: dict[str, float], redis: RedisCosts, load: Load) -> dict[str, float]:
    """Cores, gigabytes and rows that it takes."""
    streams, requests = load.streams, load.streams / load.seconds
    stream_us = load.chunks_per_second * figures["paced_chunk_us"] + figures["open_us_per_second"]
    gate = (requests * figures["request_us"] + streams * stream_us) / 1e6
    store = (requests * redis.request_us + streams / load.tick_seconds * redis.renewal_us) / 1e6
    ledger = (requests * figures["database_us"] + streams * figures["database_stream_us_per_second"]) / 1e6
    return {
        "streams": streams,
        "requests_per_second": requests,
        "gate_cores": gate,
        "workers": math.ceil(gate / _FULL_WORKER),
        "gate_gigabytes": figures["memory_mb_per_1000"] * streams / 1e6,
        "redis_cores": store,
        "redis_shards": math.ceil(store / _FULL_STORE),
        "ledger_cores": ledger,
        "ledger_rows_per_second": 2 * requests + streams / load.tick_seconds,
    }


async def redis_costs(url: str, leases: int) -> RedisCosts:
    """With so many held, by tenants of fifty each."""
    client = connect(url, timeout_seconds=30)
    try:
        await client.flushdb()
        bench, demands = Bench(client, 0), demands_for(CASES["caps, rates, 4 budgets"])
        tenants = max(1, leases // _OF_A_TENANT)

        async def crowd(begin: int, end: int) -> list[Renewal]:
            asked = (bench.take(f"tn_{number % tenants}", demands) for number in range(begin, end))
            return [Renewal(permit, USED) for permit in await asyncio.gather(*asked)]

        held: list[Renewal] = []
        for begin in range(0, leases, _AT_ONCE):
            held += await crowd(begin, min(leases, begin + _AT_ONCE))
        before = await redis_cpu(client)
        for begin in range(0, _PAIRS, _AT_ONCE):
            come = await crowd(begin, begin + _AT_ONCE)
            await asyncio.gather(*(bench.limiter.release(one.permit, USED) for one in come))
        between = await redis_cpu(client)
        if (await bench.limiter.renew(held, {})).lost:
            raise RuntimeError("a lease was lost")
        after = await redis_cpu(client)
    finally:
        await client.aclose()
    return RedisCosts(leases, 1e6 * (between - before) / _PAIRS, 1e6 * (after - between) / leases)


def medians(report: dict[str, Any]) -> dict[str, float]:
    """Of the gate's figures."""
    return {name: statistics.median(values) for name, values in report["figures"]["sluicegate"].items()}


def simulate(figures: dict[str, float], populations: list[int], loads: list[Load]) -> dict[str, Any]:
    """All of it. A load goes by the costs at the population that is nearest to it from below."""
    with running(RedisServer()) as server:
        server.start()
        costs = []
        for leases in sorted(populations):
            print(f"filling Redis with {leases:,} leases", file=sys.stderr, flush=True)
            costs.append(uvloop.run(redis_costs(f"redis://127.0.0.1:{server.port}/0", leases)))
    found = []
    for load in loads:
        near = [one for one in costs if one.leases <= load.streams] or costs[:1]
        found.append(needs(figures, near[-1], load))
    return {"redis": [one._asdict() for one in costs], "needs": found}


def lines_of(found: dict[str, Any]) -> list[str]:
    """Two tables."""
    lines = ["Redis' CPU, with so many leases held        a request        a renewal"]
    lines += [
        f"{one['leases']:37,} {one['request_us']:13.0f} us {one['renewal_us']:13.1f} us"
        for one in found["redis"]
    ]
    rows = {name: [one[name] for one in found["needs"]] for name in found["needs"][0]}
    cells = {name: "".join(f"{value:16,.6g}" for value in row) for name, row in rows.items()}
    return [*lines, "", *(f"{name.replace('_', ' '):24}{row}" for name, row in cells.items())]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/simulate_scale", description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--seconds", type=float, default=20, help="how long a stream lasts")
    parser.add_argument("--chunks-per-second", type=float, default=50, help="of each stream")
    parser.add_argument("--tick-seconds", type=float, default=1, help="between renewals, as TICK_SECONDS")
    parser.add_argument(
        "--leases", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="to fill Redis with"
    )
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures.json")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if min(*asked.streams, *asked.leases, asked.seconds, asked.chunks_per_second, asked.tick_seconds) <= 0:
        parser.error("more than nothing of each")
    stop_on_sigterm()
    figures = medians(json.loads(asked.figures.read_text()))
    loads = [
        Load(count, asked.seconds, asked.chunks_per_second, asked.tick_seconds) for count in asked.streams
    ]
    found = simulate(figures, asked.leases, loads)
    print(json.dumps(found) if asked.json else "\n".join(lines_of(found)))


if __name__ == "__main__":
    main()
