"""Many streams open at once: none fails, no chunk is lost, and several workers share them.

The provider's chunks are paced, so that all streams are open when the last begins. The gate is as shipped,
on real Redis and PostgreSQL, with every limit on. A worker's share is how many of the clients' connections it
has when all are open.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import psutil

from scripts.benchmarks.gate import Load, percentile
from scripts.rigs import targets
from scripts.stage import allow_open_files, servers, stop_on_sigterm


def shares(target: targets.Target) -> list[int]:
    """Clients' connections of each process that has any, least first."""
    port = urlsplit(target.url).port
    found = (
        sum(
            one.status == psutil.CONN_ESTABLISHED and one.laddr.port == port
            for one in process.net_connections()
        )
        for process in target.processes
    )
    return sorted(count for count in found if count)


def prove(streams: int, workers: int, chunks: int, pace_ms: int, stagger_ms: int) -> dict[str, Any]:
    """All of it. Raises SystemExit where a stream failed."""
    with ExitStack() as stack:
        stage = stack.enter_context(servers("postgresql"))
        url, _ = stack.enter_context(targets.providing())
        load = Load(stack.enter_context(targets.talking("scripts.rigs.client")))
        target = stack.enter_context(targets.gate_target(stage, url, workers))
        target.memory_before, cpu, begun = target.memory_bytes(), target.cpu_seconds(), time.monotonic()
        with ThreadPoolExecutor(1) as pool:
            model = f"bench?chunks={chunks}&pace_ms={pace_ms}"
            running = pool.submit(load.run, target, model, streams, streams, gaps=True, stagger_ms=stagger_ms)
            time.sleep((streams * stagger_ms + chunks * pace_ms) / 2000)  # half-way between last and end
            open_by_worker, memory = shares(target), target.memory_bytes()
            told = running.result()
        took = time.monotonic() - begun
        return {
            "streams": streams,
            "workers": workers,
            "chunks": told["chunks"],
            "failed": told["failed"],
            "open_by_worker": open_by_worker,
            "gap_p50_ms": percentile(told["gaps_ms"], 50),
            "gap_p99_ms": percentile(told["gaps_ms"], 99),
            "cores": (target.cpu_seconds() - cpu) / took,
            "memory_mb": (memory - target.memory_before) / 1e6,
        }


def lines_of(found: dict[str, Any], pace_ms: int) -> list[str]:
    """For people."""
    counts = ", ".join(str(count) for count in found["open_by_worker"])
    p50, p99 = found["gap_p50_ms"], found["gap_p99_ms"]
    return [
        f"{found['streams']} streams on {found['workers']} worker(s): none failed, {found['chunks']} chunks",
        f"open at once, by worker: {counts}",
        f"gaps of chunks sent every {pace_ms} ms: p50 {p50:.0f} ms, p99 {p99:.0f} ms",
        f"the gate: {found['cores']:.2f} cores, {found['memory_mb']:.0f} MB more than before",
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/prove streams", description=__doc__)
    for name, value in {
        "streams": 5000,
        "workers": 1,
        "chunks": 30,
        "pace-ms": 1000,
        "stagger-ms": 2,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", action="store_true")
    asked = vars(parser.parse_args())
    as_json = asked.pop("json")
    if (
        min(asked.values()) < 1
        or asked["streams"] * asked["stagger_ms"] >= asked["chunks"] * asked["pace_ms"]
    ):
        parser.error("at least 1 of each, and the last stream begins before the first ends")
    stop_on_sigterm()
    allow_open_files(asked["streams"])
    found = prove(**asked)
    print(json.dumps(found) if as_json else "\n".join(lines_of(found, asked["pace_ms"])))
    sys.exit(sum(found["open_by_worker"]) != asked["streams"])


if __name__ == "__main__":
    main()
