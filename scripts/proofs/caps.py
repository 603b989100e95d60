"""P4 under fire: workers are killed with SIGKILL under load, and no tenant is ever over its cap.

More clients than the caps have room for hold all the streams they get; whoever is refused or cut comes
back. The upstream itself keeps the most streams that it ever saw of each tenant at one time. With the last
kill all clients leave: once the leases of the dead are over every slot is free, and each tenant gets its
whole cap again, and not one stream more. Exits with 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from scripts.proofs.crowd import Crowd, Plan, Tenant, fill
from scripts.stage import allow_open_files, are_serving, gate_on, servers, stop_on_sigterm, workers_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import psutil

    from scripts.load import Line
    from scripts.stage import Stage
    from tests.support.gates import GateProcess

_LEAST_FILL, _MOST_FILL = 0.5, 0.9  # caps, as parts of what a tenant's clients want
_START_SECONDS = 60.0
_POLL_SECONDS = 0.05
_TELL_SECONDS = 5.0
_LOG_WORDS = ("Redis does not answer", "Traceback", "ERROR", "died")


@dataclass
class Report:
    """The figures, and each promise with whatever broke it."""

    plan: dict[str, Any]
    tenants: list[dict[str, Any]] = field(default_factory=list)
    kills: int = 0
    most_held: int = 0
    no_connection: int = 0
    respawn_seconds: list[float] = field(default_factory=list)
    back_seconds: list[float] = field(default_factory=list)
    free_seconds: float = 0.0
    released_seconds: float = 0.0
    codes: dict[str, int] = field(default_factory=dict)
    gate_log: dict[str, int] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    promises: dict[str, list[str]] = field(default_factory=dict)

    @property
    def broken(self) -> bool:
        """Whether a promise was."""
        return any(self.promises.values())


class Fire:
    """Kills workers, and sees others come in their place."""

    def __init__(self, plan: Plan, stage: Stage, gate: GateProcess) -> None:
        self._plan = plan
        self._stage = stage
        self._gate = gate
        self._random = random.Random(plan.seed + 1)  # noqa: S311 - nobody has to guess
        self._watching: list[asyncio.Task[None]] = []
        self.kills = 0
        self.last_at = 0.0
        self.respawn_seconds: list[float] = []  # until the supervisor has started another one
        self.back_seconds: list[float] = []  # until all workers serve

    async def run(self, begun: float) -> None:
        """All kills but the last one, each at a moment that nobody chose."""
        span = self._plan.seconds
        moments = [self._random.uniform(0.15 * span, 0.95 * span) for _ in range(self._plan.kills - 1)]
        for moment in sorted(moments):
            await asyncio.sleep(begun + moment - time.monotonic())
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL to one of those that are there."""
        while not (found := workers_of(self._gate)):  # noqa: ASYNC110 - other processes
            await asyncio.sleep(_POLL_SECONDS)
        victim = self._random.choice(found)
        victim.kill()
        self.kills += 1
        self.last_at = time.monotonic()
        self._watching.append(asyncio.create_task(self._watch(victim, self.last_at)))

    async def _watch(self, victim: psutil.Process, begun: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                while await asyncio.to_thread(self._is_missed, victim):  # noqa: ASYNC110 - other processes
                    await asyncio.sleep(2 * _POLL_SECONDS)
                self.respawn_seconds.append(round(time.monotonic() - begun, 1))
                await all_serve(self._stage, self._gate, self._plan.workers)
                self.back_seconds.append(round(time.monotonic() - begun, 1))

    def _is_missed(self, victim: psutil.Process) -> bool:
        found = workers_of(self._gate)
        return victim in found or len(found) < self._plan.workers

    async def over(self) -> None:
        """Until all are back, or they never are."""
        await asyncio.gather(*self._watching)

    async def stop(self) -> None:
        """Look no longer."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)


async def all_serve(stage: Stage, gate: GateProcess, workers: int) -> None:
    """Until every worker is there and has said so."""
    while not await asyncio.to_thread(are_serving, stage, gate, workers):  # noqa: ASYNC110 - other processes
        await asyncio.sleep(2 * _POLL_SECONDS)


def slots_taken(stage: Stage, tenants: list[Tenant]) -> int:
    """Slots whose lease runs, by Redis' own clock."""
    with stage.redis.client() as client:
        seconds, micros = client.time()
        pipe = client.pipeline(transaction=False)
        for tenant in tenants:
            pipe.zcount(f"sg:{{{tenant.id}}}:streams", f"({seconds * 1_000_000 + micros}", "+inf")
        return sum(pipe.execute())


async def until_free(stage: Stage, tenants: list[Tenant], since: float, most_seconds: float) -> float:
    """Seconds from `since` until no slot is taken; gives up after so many, and a half more."""
    while await asyncio.to_thread(slots_taken, stage, tenants):
        if time.monotonic() - since > 1.5 * most_seconds:
            break
        await asyncio.sleep(_POLL_SECONDS)
    return time.monotonic() - since


def _make_tenants(plan: Plan, gate: GateProcess) -> list[Tenant]:
    """Each with its cap, none with room for all of its clients."""
    made = []
    clients = plan.streams // plan.tenants
    for number in range(plan.tenants):
        fill_to = _LEAST_FILL + (_MOST_FILL - _LEAST_FILL) * number / max(1, plan.tenants - 1)
        cap = max(1, min(clients - 1, round(clients * fill_to)))
        asked = {"name": f"caps {number}", "max_streams": cap, "max_waiters": plan.queue}
        answer = gate.http("POST", "/admin/tenants", gate.admin, json=asked)
        answer.raise_for_status()
        tenant = answer.json()["id"]
        key = gate.http("POST", f"/admin/tenants/{tenant}/keys", gate.admin).json()["key"]
        made.append(Tenant(tenant, key, cap, clients, f"caps-{tenant}"))
    return made


async def _progress(report: Report, tenants: list[Tenant], fire: Fire, say: Callable[[str], None]) -> None:
    begun = told = time.monotonic()
    while True:
        await asyncio.sleep(4 * _POLL_SECONDS)
        held = sum(tenant.held for tenant in tenants)
        report.most_held = max(report.most_held, held)
        if time.monotonic() - told >= _TELL_SECONDS:
            told = time.monotonic()
            refused, cut = sum(t.refused for t in tenants), sum(t.cut for t in tenants)
            counts = f"{held} streams held, {refused} refused, {cut} cut, {fire.kills} kills"
            say(f"{told - begun:5.0f} s: {counts}")


async def _load(plan: Plan, crowd: Crowd, fire: Fire, progress: Any) -> None:
    """Everybody comes, workers are killed; with the last kill everybody leaves."""
    telling = asyncio.create_task(progress)
    begun = time.monotonic()
    crowd.start()
    try:
        await fire.run(begun)
        await asyncio.sleep(begun + plan.seconds - time.monotonic())
        await fire.kill()
    finally:
        telling.cancel()
        await asyncio.gather(crowd.stop(), telling, return_exceptions=True)


async def prove(plan: Plan, stage: Stage, say: Callable[[str], None]) -> Report:
    """Run it. The stage's servers stay as they are; the gate is started and stopped here."""
    report = Report(asdict(plan))
    with gate_on(
        stage,
        plan.workers,
        LEASE_SECONDS=str(plan.lease_seconds),
        TICK_SECONDS=str(plan.tick_seconds),
        REDIS_TIMEOUT_SECONDS=str(plan.redis_timeout_seconds),
    ) as gate:
        async with asyncio.timeout(_START_SECONDS):
            await all_serve(stage, gate, plan.workers)
        tenants = await asyncio.to_thread(_make_tenants, plan, gate)
        room = sum(tenant.cap for tenant in tenants)
        say(f"{plan.streams} streams are wanted, the caps have room for {room}; seed {plan.seed}")
        fire, crowd = Fire(plan, stage, gate), Crowd(plan, gate.url, tenants)
        try:
            await _load(plan, crowd, fire, _progress(report, tenants, fire, say))
            say("The last kill; all clients left.")
            wrong = await _aftermath(plan, stage, gate, tenants, fire=fire, report=report)
        finally:
            await fire.stop()
        stats = [await asyncio.to_thread(stage.upstream.stats, tenant.label) for tenant in tenants]
        log = gate.log
    report.kills, report.no_connection = fire.kills, crowd.no_connection
    report.codes = dict(crowd.codes)
    report.respawn_seconds, report.back_seconds = fire.respawn_seconds, fire.back_seconds
    report.gate_log = {word: log.count(word) for word in _LOG_WORDS}
    report.said = [line for line in log.splitlines() if any(word in line for word in _LOG_WORDS)][-50:]
    figures = ("id", "cap", "clients", "refused", "unavailable", "finished", "left", "cut", "degraded")
    report.tenants = [
        {name: getattr(tenant, name) for name in figures} | {"peak": one["peak"], "opened": one["opened"]}
        for tenant, one in zip(tenants, stats, strict=True)
    ]
    report.promises = {
        "no tenant was ever over its cap": [
            f"{t['id']}: {t['peak']} streams at one time, the cap is {t['cap']}"
            for t in report.tenants
            if t["peak"] > t["cap"]
        ],
        **wrong,
        "nobody got an answer that is none of 200, 429 and 503": crowd.strange,
        "the caps were full, and clients were refused (or all this says nothing)": [
            f"{t['id']}: cap {t['cap']}, peak {t['peak']}, {t['refused']} refused"
            for t in report.tenants
            if t["peak"] < t["cap"] or not (t["refused"] or plan.queue)
        ],
    }
    return report


async def _aftermath(
    plan: Plan, stage: Stage, gate: GateProcess, tenants: list[Tenant], *, fire: Fire, report: Report
) -> dict[str, list[str]]:
    """Are all slots free in time, and can all of them be had again? Promises, and what broke them."""
    patience = plan.lease_seconds + plan.tick_seconds
    report.free_seconds = await until_free(stage, tenants, fire.last_at, patience)
    late = []
    if report.free_seconds > patience:
        late = [f"it took {report.free_seconds:.1f} s; {slots_taken(stage, tenants)} are still taken"]
    await fire.over()
    whole = await asyncio.to_thread(are_serving, stage, gate, plan.workers)
    lines: list[Line] = []
    try:
        refill = await fill(plan, gate.url, tenants, lines)
    finally:
        for line in lines:
            line.leave()
    report.released_seconds = await until_free(stage, tenants, time.monotonic(), patience)
    return {
        f"all slots were free {patience:g} s after the last kill": late,
        "every killed worker was replaced": [] if whole else [f"{len(workers_of(gate))} of {plan.workers}"],
        "then each tenant got its whole cap again, and not one stream more": refill,
    }


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} s, at most {max(seconds):.1f} s" if seconds else "never"


def lines_of(report: Report) -> list[str]:
    """A report for people."""
    names = ("cap", "peak", "opened", "refused", "503", "cut")
    lines = [f"{'tenant':38}" + "".join(f"{name:>8}" for name in names)]
    for t in report.tenants:
        values = (t["cap"], t["peak"], t["opened"], t["refused"], t["unavailable"], t["cut"])
        lines.append(f"{t['id']:38}" + "".join(f"{value:8}" for value in values))
    counted = ("cap", "opened", "refused", "unavailable", "cut", "degraded")
    total = {name: sum(t[name] for t in report.tenants) for name in counted}
    became = f"{total['opened']}, {total['refused']}, {total['unavailable']}, {total['cut']}"
    lines += [
        "",
        f"streams held at one time, most   {report.most_held} (room for {total['cap']})",
        f"opened, refused, 503, cut        {became}",
        f"codes of the 503s                {report.codes}",
        f"decided without Redis            {total['degraded']}",
        f"kills                            {report.kills}",
        f"until another worker started     {_spread(report.respawn_seconds)}",
        f"until all workers served         {_spread(report.back_seconds)}",
        f"all slots free                   {report.free_seconds:.1f} s after the last kill",
        f"the same, with nobody killed     {report.released_seconds:.1f} s after the clients left",
        f"in the gate's log                {report.gate_log}",
        "",
    ]
    for promise, broken in report.promises.items():
        lines.append(f"{'BROKEN' if broken else 'holds':8}{promise}")
        lines += [f"          {what}" for what in broken[:10]]
    return lines


def main() -> None:
    """The command."""
    plan = Plan()
    parser = argparse.ArgumentParser(prog="scripts/prove caps", description=__doc__)
    for name in ("workers", "tenants", "streams", "kills", "pace-ms", "queue"):
        parser.add_argument(f"--{name}", type=int, default=getattr(plan, name.replace("-", "_")))
    for name in ("seconds", "leavers", "lease-seconds", "tick-seconds", "redis-timeout-seconds"):
        parser.add_argument(f"--{name}", type=float, default=getattr(plan, name.replace("-", "_")))
    parser.add_argument("--tokens", type=int, nargs=2, default=plan.tokens, metavar=("FROM", "TO"))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 10**6))
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--json", action="store_true")
    asked = vars(parser.parse_args())
    as_json, database = asked.pop("json"), asked.pop("database")
    plan = Plan(**asked | {"tokens": tuple(asked["tokens"])})
    if plan.workers < 2 or plan.kills < 1 or plan.streams < 2 * plan.tenants:  # noqa: PLR2004
        parser.error("at least 2 workers, 1 kill, and 2 streams for each tenant")
    stop_on_sigterm()
    allow_open_files(plan.streams)
    with servers(database) as stage:
        report = asyncio.run(prove(plan, stage, lambda text: print(text, file=sys.stderr, flush=True)))
    print(json.dumps(asdict(report)) if as_json else "\n".join(lines_of(report)))
    sys.exit(report.broken)


if __name__ == "__main__":
    main()
