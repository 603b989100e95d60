"""What one tenant's flood costs the others, and what one refusal costs the gate.

A tenant holds its whole cap and asks for 50 times as much: its clients come back at once after each 429.
Other tenants stream at a steady rate, whether anybody answers or not; their time to first token counts from
the moment that a request was due. Rounds without anybody, with the others alone, and with the flood beside
them take turns in the same run. CPU is of all of the gate's workers. Of the clients the flood is a process of
its own: if one of the two comes near 100 % of a core, the figures are the client's and not the gate's.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
import uvloop

from scripts.load import Line, dial, request_bytes
from scripts.stage import (
    allow_open_files,
    are_serving,
    cpu_seconds,
    gate_on,
    servers,
    stop_on_sigterm,
    workers_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.stage import Stage
    from tests.support.gates import GateProcess

_OK = 200
_ONSET_SECONDS = 3.0
_SETTLE_SECONDS = 0.5
_KEPT_SECONDS = 3.0  # uvicorn closes a connection that is idle for five
_KINDS = ("idle", "quiet", "flood")


@dataclass
class Round:
    """What was counted in one round. CPU is in seconds."""

    seconds: float = 0.0
    first_ms: list[float] = field(default_factory=list)
    admitted: int = 0
    failed: Counter[str] = field(default_factory=Counter)  # by status and code
    degraded: int = 0
    refused: int = 0
    lost: int = 0
    redis_calls: int = 0
    cpu: dict[str, float] = field(default_factory=dict)


class Flooder:
    """The process that floods."""

    def __init__(self, url: str, request: bytes, clients: int, pause_seconds: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scripts.flooder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        told = {"url": url, "request": request.decode(), "clients": clients, "pause_seconds": pause_seconds}
        self.tell(json.dumps(told))

    def tell(self, line: str) -> dict[str, Any]:
        """Say something; returns what it answers."""
        assert self.process.stdin is not None  # noqa: S101 - a pipe
        assert self.process.stdout is not None  # noqa: S101 - a pipe
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def flooder(url: str, key: str, clients: int, pause_ms: int) -> Iterator[Flooder]:
    """The flood's process, until the end."""
    request = request_bytes(url, key, tokens=4, pace_ms=20)
    process = Flooder(url, request, clients, pause_ms / 1000)
    try:
        yield process
    finally:
        process.stop()


class Others:
    """Tenants that stream normally, each request at its moment."""

    def __init__(self, url: str, keys: list[str], rate: float, tokens: int) -> None:
        self._url = url
        self._requests = [request_bytes(url, key, tokens=tokens, pace_ms=20) for key in keys]
        self._rate = rate
        self._idle: list[tuple[Line, float]] = []

    async def stream(self, seconds: float, into: Round) -> None:
        """Ask at the given rate for so long; returns when the last answer is there."""
        begun, loop = asyncio.get_running_loop().time(), asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            for number in range(int(seconds * self._rate)):
                due = begun + number / self._rate
                await asyncio.sleep(due - loop.time())
                group.create_task(self._one(self._requests[number % len(self._requests)], due, into))

    async def _one(self, request: bytes, due: float, into: Round) -> None:
        line = self._kept() or await dial(self._url)
        line.ask(request)
        assert line.ended is not None  # noqa: S101 - it was asked
        answer = await line.ended
        if answer.status == _OK and answer.finished and answer.first_at is not None:
            into.admitted += 1
            into.first_ms.append(1000 * (answer.first_at - due))
        else:
            into.failed[f"{answer.status} {answer.code}".strip()] += 1
        into.degraded += answer.degraded
        if line.open:
            self._idle.append((line, asyncio.get_running_loop().time()))

    def _kept(self) -> Line | None:
        """A connection that the gate will not close in this very moment."""
        while self._idle:
            line, since = self._idle.pop()
            if line.open and asyncio.get_running_loop().time() - since < _KEPT_SECONDS:
                return line
            line.leave()
        return None


class Bench:
    """One gate, a tenant that floods, and others."""

    def __init__(self, asked: argparse.Namespace, stage: Stage, gate: GateProcess) -> None:
        self._asked = asked
        self._stage = stage
        self._url = gate.url
        self._flooder_key = gate.tenant(asked.cap)[1]
        self._others = Others(
            gate.url, [gate.tenant(1000)[1] for _ in range(asked.others)], asked.rate, asked.tokens
        )
        assert stage.redis.process is not None  # noqa: S101 - it runs
        self._processes = {
            "gate": workers_of(gate),
            "redis": [psutil.Process(stage.redis.process.pid)],
            "upstream": [psutil.Process(stage.upstream.process.pid)],
            "client": [psutil.Process()],
        }

    async def run(self) -> dict[str, list[Round]]:
        """All rounds by kind."""
        asked = self._asked
        rounds: dict[str, list[Round]] = {kind: [] for kind in _KINDS}
        holders = [await dial(self._url) for _ in range(asked.cap)]
        for line in holders:
            line.ask(request_bytes(self._url, self._flooder_key, tokens=100_000, pace_ms=1000))
            assert line.begun is not None  # noqa: S101 - it was asked
            await line.begun
        with flooder(self._url, self._flooder_key, asked.times * asked.cap, asked.pause_ms) as flood:
            await self._others.stream(1, Round())  # nothing is measured that happens but once
            for _ in range(asked.rounds):
                for kind in _KINDS:
                    rounds[kind].append(await self._round(kind, flood))
            if not all(line.open for line in holders):
                raise RuntimeError("the tenant that floods did not hold its cap")
        return rounds

    async def _round(self, kind: str, flood: Flooder) -> Round:
        await asyncio.sleep(_SETTLE_SECONDS)
        into = Round()
        before, calls = self._cpu(), self._redis_calls()
        begun = time.monotonic()
        if kind == "flood":
            flood.tell("go")
            await asyncio.sleep(
                _ONSET_SECONDS
            )  # all its clients at once, before any was refused: not measured
        if kind == "idle":
            await asyncio.sleep(self._asked.seconds)
        else:
            await self._others.stream(self._asked.seconds, into)
        if kind == "flood":
            told = await asyncio.to_thread(flood.tell, "stop")
            into.refused, into.lost = told["refused"], told["lost"]
            into.failed += Counter(told["other"])
            into.degraded += told["degraded"]
            into.cpu["flood"] = told["cpu_seconds"]
        await asyncio.sleep(_SETTLE_SECONDS)  # what a stream leaves to be done is part of its cost
        into.seconds = time.monotonic() - begun
        after = self._cpu()
        into.cpu |= {name: after[name] - before[name] for name in before}
        into.redis_calls = self._redis_calls() - calls
        return into

    def _cpu(self) -> dict[str, float]:
        return {name: cpu_seconds(processes) for name, processes in self._processes.items()}

    def _redis_calls(self) -> int:
        """Scripts that were called; there is one call for each question to the limiter."""
        with self._stage.redis.client() as client:
            stats = client.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


def _yardstick(count: int = 20_000) -> float:
    """CPU microseconds of one SHA-256 of 200 bytes."""
    data = bytes(200)
    begun = time.process_time()
    for _ in range(count):
        hashlib.sha256(data).digest()
    return (time.process_time() - begun) / count * 1e6


def _percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def _row(values: list[float], yardstick: float) -> dict[str, float]:
    middle = statistics.median(values)
    return {"median": middle, "least": min(values), "most": max(values), "ratio": middle / yardstick}


def figures(rounds: dict[str, list[Round]], sha_us: float) -> dict[str, Any]:
    """From rounds to rows: median, least and most of the rounds, and the ratio to a yardstick."""
    rows: dict[str, dict[str, float]] = {}
    for name, part in (("p50", 0.5), ("p99", 0.99)):
        quiet, flood = ([_percentile(r.first_ms, part) for r in rounds[k]] for k in ("quiet", "flood"))
        yardstick = statistics.median(quiet)
        rows[f"first token {name}, ms, alone"] = _row(quiet, yardstick)
        rows[f"first token {name}, ms, with the flood"] = _row(flood, yardstick)
    idle = statistics.median(r.cpu["gate"] / r.seconds for r in rounds["idle"])
    admitted = [1e6 * (r.cpu["gate"] - idle * r.seconds) / r.admitted for r in rounds["quiet"]]
    rows["CPU us of one admitted request"] = _row(admitted, sha_us)
    one = statistics.median(admitted)
    refused = [
        (1e6 * (r.cpu["gate"] - idle * r.seconds) - one * r.admitted) / max(r.refused, 1)
        for r in rounds["flood"]
    ]
    rows["CPU us of one refusal"] = _row(refused, sha_us)
    calls = statistics.median(r.redis_calls for r in rounds["quiet"])
    each = statistics.median((r.redis_calls - calls) / max(r.refused, 1) for r in rounds["flood"])
    shares = {
        kind: {
            name: statistics.median(100 * r.cpu[name] / r.seconds for r in of_kind) for name in of_kind[0].cpu
        }
        for kind, of_kind in rounds.items()
    }
    every = [r for of_kind in rounds.values() for r in of_kind]
    return {
        "rows": rows,
        "sha256_us": sha_us,
        "refusals_per_second": statistics.median(r.refused / r.seconds for r in rounds["flood"]),
        "redis_calls_per_refusal": each,
        "streams_of_the_others": sum(r.admitted for r in every),
        "failed": dict(sum((r.failed for r in every), Counter())),
        "degraded": sum(r.degraded for r in every),
        "connections_lost": sum(r.lost for r in every),
        "cpu_percent_of_a_core": shares,
    }


def _print(found: dict[str, Any]) -> None:
    print(f"{'':44}{'median':>9}{'least':>9}{'most':>9}{'ratio':>9}")
    for name, row in found["rows"].items():
        values = "".join(f"{row[column]:9.1f}" for column in ("median", "least", "most", "ratio"))
        print(f"{name:44}{values}")
    for line in (
        "",
        f"The ratio of CPU is to one SHA-256 of 200 bytes: {found['sha256_us']:.2f} us.",
        f"Refusals a second: {found['refusals_per_second']:.0f}.",
        f"Calls of Redis for each: {found['redis_calls_per_refusal']:.2f}.",
        f"Streams of the others: {found['streams_of_the_others']}.",
        f"Answers that were decided without Redis: {found['degraded']}.",
        f"Answers that were no 200 of the others and no 429 of the flood: {found['failed']}.",
        f"Connections of the flood that were lost: {found['connections_lost']}.",
    ):
        print(line)
    print(
        "\n% of a core" + "".join(f"{name:>10}" for name in ("gate", "redis", "upstream", "client", "flood"))
    )
    for kind, shares in found["cpu_percent_of_a_core"].items():
        names = ("gate", "redis", "upstream", "client", "flood")
        print(f"{kind:11}" + "".join(f"{shares.get(name, 0):10.1f}" for name in names))


async def _all_serve(stage: Stage, gate: GateProcess, workers: int) -> None:
    while not await asyncio.to_thread(are_serving, stage, gate, workers):  # noqa: ASYNC110 - other processes
        await asyncio.sleep(0.1)


async def measure(asked: argparse.Namespace, stage: Stage) -> dict[str, Any]:
    """The figures of one run."""
    patience = str(asked.redis_timeout_seconds)
    with gate_on(stage, asked.workers, STREAM_SECONDS="86400", REDIS_TIMEOUT_SECONDS=patience) as gate:
        async with asyncio.timeout(60):
            await _all_serve(stage, gate, asked.workers)
        before = _yardstick()
        rounds = await Bench(asked, stage, gate).run()
    return figures(rounds, statistics.median([before, _yardstick()]))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/bench flood", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of each round")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cap", type=int, default=4, help="of the tenant that floods")
    parser.add_argument("--times", type=int, default=50, help="so many times its cap are its clients")
    parser.add_argument("--pause-ms", type=int, default=0, help="before a client comes back")
    parser.add_argument("--others", type=int, default=5, help="tenants")
    parser.add_argument("--rate", type=float, default=40, help="their streams in a second, all together")
    parser.add_argument("--tokens", type=int, default=10, help="of each of their streams")
    parser.add_argument("--redis-timeout-seconds", type=float, default=0.25)
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    stop_on_sigterm()
    allow_open_files(asked.cap * asked.times + int(asked.rate * asked.seconds))
    with servers(asked.database) as stage, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(measure(asked, stage))
    if asked.json:
        print(json.dumps(found))
    else:
        _print(found)


if __name__ == "__main__":
    main()
