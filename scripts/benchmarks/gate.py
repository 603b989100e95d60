"""What the gate costs: CPU per request and per relayed chunk, time to first token, gaps, memory, round trips.

Sluicegate as shipped, one worker with real Redis, a real database, authentication, limits and metering, has
one core for itself; a cheap provider, the clients, Redis and the database share the others. CPU is what the
system says of the gate's process, the request's part and the chunk's fitted over answers of few and of many
chunks. `burst`: the provider writes as fast as it can. `paced`: many streams, each chunk a write of its own.
`--vs nginx`, `litellm`, `portkey` or an address measures that in turn with it, in the same run; LiteLLM and
Portkey are asked for a tenth, which is what they manage. Medians of the rounds, and their spread. An
answer that lacks a chunk ends the run. Memory is what the process has more than before its first load.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url

from scripts.rigs import targets
from scripts.rigs.peers import NAMES, Peer
from scripts.rigs.targets import Target
from scripts.stage import allow_open_files, cpu_seconds, family, servers, stop_on_sigterm

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from scripts.stage import Stage

_BUSY = 0.85
"""From this part of their core's time on, those who measure are what is measured."""


@dataclass(frozen=True)
class Plan:
    """How much of each. `pace_ms` is between two chunks of a paced stream."""

    rounds: int = 3
    few: int = 10
    many: int = 500
    requests: int = 1500
    many_requests: int = 300
    at_once: int = 32
    streams: int = 200
    pace_ms: int = 20
    paced_chunks: int = 200
    singles: int = 200
    open_streams: int = 1000
    hold_seconds: int = 4


@dataclass
class Measured:
    """One target's figures, a number for each round. CPU in microseconds, times in milliseconds."""

    figures: dict[str, list[float]] = field(default_factory=dict)

    def note(self, **figures: float) -> None:
        """Of one round."""
        for name, figure in figures.items():
            self.figures.setdefault(name, []).append(figure)


class Load:
    """The client's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def line(self, line: str) -> dict[str, Any]:
        """Say something; returns what it answers."""
        assert self._process.stdin is not None  # noqa: S101 - a pipe
        assert self._process.stdout is not None  # noqa: S101 - a pipe
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def run(self, target: Target, model: str, streams: int, requests: int, **more: Any) -> dict[str, Any]:
        """A job. Raises SystemExit where a request failed: then no figure means anything."""
        job: dict[str, Any] = {"url": target.url, "key": target.key, "headers": target.headers}
        job |= {"model": model, "streams": streams, "requests": requests}
        told = self.line(json.dumps(job | more))
        if told.get("failed"):
            raise SystemExit(f"{told['failed']} of {told['requests']} requests to {target.name} failed")
        return told


def fitted(few: tuple[int, float], many: tuple[int, float]) -> tuple[float, float]:
    """What a request and what a chunk costs, of the cost of a request with so many chunks each."""
    chunk = (many[1] - few[1]) / (many[0] - few[0])
    return few[1] - few[0] * chunk, chunk


def percentile(values: list[float], percent: int) -> float:
    """The least value that so many percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def plan_of(plan: Plan, part: int) -> Plan:
    """A part of its loads."""
    if part == 1:
        return plan
    cut = ("requests", "many_requests", "at_once", "streams", "singles", "open_streams")
    return replace(plan, **{name: max(10, getattr(plan, name) // part) for name in cut})


class Bench:
    """One run."""

    def __init__(self, plan: Plan, load: Load, direct: Target, stage: Stage, provider: int) -> None:
        self.plan, self.load, self.direct, self.stage = plan, load, direct, stage
        self._provider = family(provider)
        self.busiest = 0.0

    def _cpu(self, target: Target, model: str, streams: int, requests: int, **more: Any) -> dict[str, Any]:
        """A job, with the target's CPU microseconds for each request."""
        cpu, beside, begun = target.cpu_seconds(), cpu_seconds(self._provider), time.monotonic()
        told = self.load.run(target, model, streams, requests, **more)
        took, used = time.monotonic() - begun, cpu_seconds(self._provider) - beside
        self.busiest = max(self.busiest, (used + told["cpu_seconds"]) / took)
        return told | {"cpu_us": 1e6 * (target.cpu_seconds() - cpu) / told["requests"]}

    def burst(self, target: Target, into: Measured) -> None:
        """CPU of a request and a chunk, chunks each second of a core, what a request costs the stores."""
        plan, redis, commits, stores = self._plan(target), self.redis_calls(), self.commits(), self._stores()
        few = self._cpu(target, f"bench?chunks={plan.few}", plan.at_once, plan.requests)
        if target.name == "sluicegate":
            into.note(
                **{
                    f"{name}_us": 1e6 * (now - stores[name]) / plan.requests
                    for name, now in self._stores().items()
                }
            )
            into.note(redis_calls=(self.redis_calls() - redis) / plan.requests)
            if self.stage.postgres is not None:
                into.note(database_commits=(self.commits() - commits) / plan.requests)
        many = self._cpu(target, f"bench?chunks={plan.many}", plan.at_once, plan.many_requests)
        if target.processes:
            request, chunk = fitted((plan.few, few["cpu_us"]), (plan.many, many["cpu_us"]))
            chunks_per_second = plan.many * 1e6 / many["cpu_us"]
            into.note(request_us=request, chunk_us=chunk, chunks_per_core_second=chunks_per_second)

    def paced(self, target: Target, into: Measured) -> None:
        """CPU of a chunk that comes by itself, and the gaps between chunks."""
        plan = self._plan(target)
        script = f"bench?chunks={plan.paced_chunks}&pace_ms={plan.pace_ms}"
        stagger, stores = plan.pace_ms / plan.streams, self._stores()
        told = self._cpu(target, script, plan.streams, plan.streams, gaps=True, stagger_ms=stagger)
        if target.processes:
            of_chunks = told["cpu_us"] - into.figures["request_us"][-1]
            into.note(paced_chunk_us=of_chunks / plan.paced_chunks)
        if target.name == "sluicegate":
            seconds = plan.streams * plan.paced_chunks * plan.pace_ms / 1000
            for name, now in self._stores().items():
                of_requests = plan.streams * into.figures[f"{name}_us"][-1]
                of_streams = 1e6 * (now - stores[name]) - of_requests
                into.note(**{f"{name}_stream_us_per_second": max(0.0, of_streams) / seconds})
        into.note(gap_p50_ms=percentile(told["gaps_ms"], 50), gap_p99_ms=percentile(told["gaps_ms"], 99))

    def first_token(self, target: Target, into: Measured) -> None:
        """One request at a time, in turn with one that goes to the provider itself."""
        firsts: dict[str, list[float]] = {"direct": [], "through": []}
        for _ in range(10):
            for name, one in (("direct", self.direct), ("through", target)):
                firsts[name] += self.load.run(one, "bench?chunks=10", 1, self._plan(target).singles // 10)[
                    "first_ms"
                ]
        for percent in (50, 99):
            added = percentile(firsts["through"], percent) - percentile(firsts["direct"], percent)
            into.note(**{f"first_token_p{percent}_ms": added})

    def memory(self, target: Target, into: Measured) -> None:
        """Of streams that are open and silent: megabytes for a thousand, and what each costs in a second."""
        plan = self._plan(target)
        count, hold = plan.open_streams, plan.hold_seconds
        told = self.load.run(
            target, "bench?chunks=1000&pace_ms=60000", count, count, hold_seconds=hold, stagger_ms=1
        )
        if told["chunks"] != count:
            raise SystemExit(f"{told['chunks']} of {count} streams to {target.name} were open")
        grown = target.memory_bytes() - target.memory_before
        before, own = self._stores(), target.cpu_seconds()
        time.sleep(hold)
        if target.processes:
            into.note(memory_mb_per_1000=grown / 1e6 * 1000 / count)
            into.note(open_us_per_second=1e6 * (target.cpu_seconds() - own) / hold / count)
        if target.name == "sluicegate":
            for name, now in self._stores().items():
                into.note(**{f"{name}_open_us_per_second": 1e6 * (now - before[name]) / hold / count})
        self.load.line("")

    def idle(self, target: Target, into: Measured) -> None:
        """What it does where nothing is asked of it, in percent of a core."""
        own = target.cpu_seconds()
        time.sleep(self.plan.hold_seconds)
        into.note(idle_percent=100 * (target.cpu_seconds() - own) / self.plan.hold_seconds)

    def _plan(self, target: Target) -> Plan:
        return plan_of(self.plan, target.part)

    def _stores(self) -> dict[str, float]:
        """CPU seconds of Redis and of the database so far."""
        return {name: cpu_seconds(family(pid)) for name, pid in self.stage.store_pids().items()}

    def redis_calls(self) -> int:
        """Scripts that Redis was asked to run; the gate's ticks are among them."""
        with self.stage.redis.client() as client:
            found = client.info("commandstats")
        return sum(int(found.get(f"cmdstat_{name}", {"calls": 0})["calls"]) for name in ("evalsha", "eval"))

    def commits(self) -> int:
        """Transactions that PostgreSQL has had, once its statistics are there."""
        if self.stage.postgres is None:
            return 0
        time.sleep(1.2)
        name = make_url(self.stage.database_url).database
        said = self.stage.postgres.server.psql(
            f"SELECT 'n', xact_commit FROM pg_stat_database WHERE datname = '{name}'"  # noqa: S608 - our own
        )
        return int(said.rpartition("|")[2].split()[0])


def measure(plan: Plan, database: str, vs: list[Peer], say: Callable[[str], None]) -> dict[str, Any]:
    """All of it."""
    own, others = targets.cores()
    with ExitStack() as stack:
        stack.enter_context(targets.pinned(others))
        stage = stack.enter_context(servers(database))
        url, provider = stack.enter_context(targets.providing())
        client = stack.enter_context(targets.talking("scripts.rigs.client"))
        with targets.pinned(own):
            measured = [stack.enter_context(targets.gate_target(stage, url))]
            measured += [stack.enter_context(peer.target(stage.directory, url)) for peer in vs]
        bench = Bench(plan, Load(client), Target("direct", url), stage, provider)
        found = {target.name: Measured() for target in measured}
        for target in measured:  # what each does once in its life
            once = plan_of(plan, target.part).at_once
            bench.load.run(target, "bench?chunks=10", once, 10 * once)
            target.memory_before = target.memory_bytes()
        for number in range(plan.rounds):
            for target in measured:
                for part in (bench.idle, bench.burst, bench.paced, bench.first_token, bench.memory):
                    say(f"round {number + 1} of {plan.rounds}: {target.name}, {part.__name__}")
                    part(target, found[target.name])
    return {
        "plan": asdict(plan),
        "database": database,
        "busiest": bench.busiest,
        "figures": {name: one.figures for name, one in found.items()},
    }


_NAMES = {
    "request_us": "CPU of a request, us",
    "chunk_us": "CPU of a chunk, burst, us",
    "paced_chunk_us": "CPU of a chunk, paced, us",
    "chunks_per_core_second": "chunks/s of a core, burst",
    "first_token_p50_ms": "first token, added, p50, ms",
    "first_token_p99_ms": "first token, added, p99, ms",
    "gap_p50_ms": "gap between chunks, p50, ms",
    "gap_p99_ms": "gap between chunks, p99, ms",
    "memory_mb_per_1000": "memory of 1,000 streams, MB",
    "open_us_per_second": "CPU of a silent stream, us/s",
    "idle_percent": "CPU without requests, % of a core",
    "redis_us": "Redis' CPU of a request, us",
    "database_us": "PostgreSQL's CPU of a request, us",
    "redis_stream_us_per_second": "Redis' CPU of a paced stream, us/s",
    "database_stream_us_per_second": "PostgreSQL's, us/s",
    "redis_open_us_per_second": "Redis' CPU of a silent stream, us/s",
    "database_open_us_per_second": "PostgreSQL's, us/s",
    "redis_calls": "Redis calls of a request",
    "database_commits": "transactions of a request",
}


def lines_of(report: dict[str, Any]) -> list[str]:
    """A table for people."""
    figures = report["figures"]
    own, *others = figures
    titles = [f"{name} (least to most)" for name in figures] + [f"/ {name}" for name in others]
    widths = [max(34, len(title) + 2) for title in titles[: len(figures)]] + [
        max(9, len(name) + 4) for name in others
    ]
    lines = [f"{'':36}" + "".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True))]
    for name, text in _NAMES.items():
        medians = {one: statistics.median(found[name]) for one, found in figures.items() if found.get(name)}
        cells = []
        for one, found in figures.items():
            values = found.get(name, [])
            spread = f" ({min(values):.4g} to {max(values):.4g})" if values else ""
            cells.append(f"{medians[one]:.4g}{spread}" if values else "-")
        for one in others:
            known = own in medians and medians.get(one, 0) > 0
            cells.append(f"{medians[own] / medians[one]:.3g}" if known else "")
        lines.append(
            f"{text:36}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        )
    lines += ["", f"client and provider together were busy for {report['busiest']:.0%} of their core at most"]
    if report["busiest"] > _BUSY:
        lines.append(
            "THEY WERE THE BOTTLENECK in at least one part: times are theirs there; CPU figures stand."
        )
    return lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/bench gate", description=__doc__)
    for name, value in asdict(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--vs", action="append", default=[], metavar="|".join([*NAMES, "URL"]))
    parser.add_argument("--vs-key", default="", help="what is sent to URL as the bearer token")
    parser.add_argument("--vs-pid", type=int, help="URL's process, whose CPU and memory are looked at")
    parser.add_argument("--json", action="store_true")
    asked = vars(parser.parse_args())
    as_json, database, vs = asked.pop("json"), asked.pop("database"), asked.pop("vs")
    key, pid = asked.pop("vs_key"), asked.pop("vs_pid")
    if wrong := [name for name in vs if name not in NAMES and not name.startswith("http")]:
        parser.error(f"--vs: {wrong[0]} is none of {', '.join(NAMES)}, and no address")
    plan = Plan(**asked)
    if min(asked.values()) < 1 or plan.many <= plan.few:
        parser.error("at least 1 of each, and more chunks in many than in few")
    stop_on_sigterm()
    allow_open_files(max(plan.open_streams, plan.streams))
    report = measure(
        plan,
        database,
        [Peer(name, key, pid) for name in vs],
        lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(json.dumps(report) if as_json else "\n".join(lines_of(report)))


if __name__ == "__main__":
    main()
