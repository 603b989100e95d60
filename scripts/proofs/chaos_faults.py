"""What goes wrong in a chaos run: workers die and stop, servers fall silent, PostgreSQL crashes.

All of it in one task each and at moments that a seed has chosen, so that troubles come together.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import psutil

from scripts.proofs.chaos_check import Kill
from scripts.stage import beginning_of, workers_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from scripts.proofs.chaos import Plan
    from scripts.stage import Stage
    from tests.support.gates import GateProcess

_POLL_SECONDS = 0.05
_CALM_SECONDS = 4.0
"""So long after it was stopped a worker is not killed: its last checkpoint is as old as its stop was long."""
_START_SECONDS = 3.0
"""A worker that began later than this has no streams yet."""
_STOP_LEASES = 1.6
"""A stopped worker is taken for dead after 0.8 of a lease, and is gone for so many leases."""


class Fault(NamedTuple):
    """One of them: when it begins and how long it lasts."""

    at: float
    kind: str
    seconds: float


def schedule(plan: Plan) -> list[Fault]:
    """All but the last kill, in the order of time."""
    rng = random.Random(f"{plan.seed} faults")  # noqa: S311 - nobody has to guess
    span, stop = plan.seconds, _STOP_LEASES * plan.lease_seconds

    def moments(count: int, most_seconds: float) -> list[float]:
        """Spread over the run: one in each of so many parts of it."""
        part = max(0.0, 0.95 * span - most_seconds) / max(1, count)
        return [0.03 * span + (number + rng.random()) * part for number in range(count)]

    faults = [Fault(at, "kill", 0.0) for at in moments(plan.kills - 1, 0.0)]
    for kind, count, least, most in (
        ("redis", plan.redis_pauses, 0.3, plan.longest_outage_seconds),
        ("postgres", plan.postgres_restarts, 0.1, plan.longest_outage_seconds),
        ("upstream", plan.upstream_pauses, 0.2, 2.0),
        ("stop", plan.stops, stop, stop),
    ):
        faults += [Fault(at, kind, rng.uniform(least, most)) for at in moments(count, most)]
    return sorted(faults)


class Faults:
    """They happen, and whatever is stopped runs again in the end."""

    def __init__(self, plan: Plan, stage: Stage, gate: GateProcess) -> None:
        self._stage = stage
        self._gate = gate
        self._random = random.Random(f"{plan.seed} victims")  # noqa: S311 - the same
        self._schedule = schedule(plan)
        self._calm_at: dict[int, float] = {}
        self._turns = {name: asyncio.Lock() for name in ("redis", "postgres", "upstream", "stop", "kill")}
        self.kills: list[Kill] = []
        self.timeline: list[tuple[float, str]] = []
        self.happened: dict[str, int] = dict.fromkeys(self._turns, 0)
        self.away_seconds: dict[str, float] = dict.fromkeys(self._turns, 0.0)

    async def run(self, begun: float) -> None:
        """All that is scheduled; returns when it is over."""
        happen: dict[str, Callable[[float], Awaitable[None]]] = {
            "kill": lambda _: self.kill(),
            "redis": self._redis,
            "postgres": self._postgres,
            "upstream": self._upstream,
            "stop": self._stop,
        }

        async def one(fault: Fault) -> None:
            await asyncio.sleep(max(0.0, begun + fault.at - time.monotonic()))
            async with self._turns[fault.kind]:
                since = time.monotonic()
                await happen[fault.kind](fault.seconds)
                self.happened[fault.kind] += 1
                self.away_seconds[fault.kind] += time.monotonic() - since

        async with asyncio.TaskGroup() as group:
            for fault in self._schedule:
                group.create_task(one(fault))

    async def kill(self) -> None:
        """SIGKILL to a worker that runs, and has run for a while."""
        victim = await self._victim()
        name = beginning_of(victim)
        victim.kill()
        self._note(f"killed {name}")
        self.kills.append(Kill(name, time.monotonic(), time.time()))
        await asyncio.to_thread(_dead, victim)

    def _note(self, what: str) -> None:
        self.timeline.append((time.monotonic(), what))

    async def _victim(self) -> psutil.Process:
        while not (found := self._running()):
            if self._gate.process.poll() is not None:
                raise RuntimeError(f"The gate has stopped by itself:\n{self._gate.log[-5000:]}")
            await asyncio.sleep(_POLL_SECONDS)
        return self._random.choice(found)

    def _running(self) -> list[psutil.Process]:
        now, found = time.monotonic(), []
        for one in workers_of(self._gate):
            with suppress(psutil.NoSuchProcess):
                young = time.time() - one.create_time() < _START_SECONDS
                if not young and self._calm_at.get(one.pid, 0.0) < now:
                    found.append(one)
        return found

    async def _redis(self, seconds: float) -> None:
        self._stage.redis.pause()
        self._note("Redis stopped")
        try:
            await asyncio.sleep(seconds)
        finally:
            self._stage.redis.resume()
            self._note("Redis goes on")

    async def _postgres(self, seconds: float) -> None:
        postgres = self._stage.postgres
        assert postgres is not None  # noqa: S101 - chaos is for PostgreSQL
        try:
            self._note("PostgreSQL crashes")
            await asyncio.to_thread(postgres.kill)
            await asyncio.sleep(seconds)
        finally:
            await asyncio.shield(asyncio.to_thread(postgres.start))
            self._note("PostgreSQL is back")

    async def _upstream(self, seconds: float) -> None:
        self._stage.upstream.pause()
        self._note("the upstream stopped")
        try:
            await asyncio.sleep(seconds)
        finally:
            self._stage.upstream.resume()
            self._note("the upstream goes on")

    async def _stop(self, seconds: float) -> None:
        """A worker is gone for so long that it is taken for dead, and comes back."""
        victim = await self._victim()
        self._calm_at[victim.pid] = float("inf")
        try:
            victim.send_signal(signal.SIGSTOP)
            self._note(f"stopped {beginning_of(victim)}")
            await asyncio.sleep(seconds)
        finally:
            with suppress(psutil.NoSuchProcess):
                victim.send_signal(signal.SIGCONT)
            self._note(f"goes on: {victim.pid}")
            self._calm_at[victim.pid] = time.monotonic() + _CALM_SECONDS


def _dead(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        process.wait(5)


class Spools:
    """Looks at the spools of a gate's workers, and counts how often one that held something was emptied."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sizes: dict[str, int] = {}
        self.replays = 0
        self.most_bytes = 0

    def look(self) -> int:
        """How many bytes wait now."""
        sizes = {}
        for path in self._directory.glob("*.spool"):
            with suppress(FileNotFoundError):
                sizes[path.name] = path.stat().st_size
        self.replays += sum(size > 0 and not sizes.get(name) for name, size in self._sizes.items())
        self._sizes = sizes
        self.most_bytes = max(self.most_bytes, sum(sizes.values()))
        return sum(sizes.values())

    async def watch(self) -> None:
        """Until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_POLL_SECONDS)
