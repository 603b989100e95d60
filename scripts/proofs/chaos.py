"""P2 and P3 in chaos: whatever happens, the ledger is what the upstream sent.

Clients finish, hang up anywhere, stall and flood, in every dialect; the upstream refuses, fails, breaks off
and falls silent; workers are killed with SIGKILL and stopped for longer than their lease; Redis and the
upstream fall silent, PostgreSQL crashes and comes back. The upstream keeps the truth of each request. At the
last kill all clients leave: within 30 seconds nothing is in flight any more. Then `sluicegate verify` has to
find nothing, and every event has to be what the upstream says. Exits with 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from api.adapters.database_sql import open_engine
from api.adapters.tables_sql import in_flight, rollup_queue, usage_events
from scripts.proofs.caps import all_serve
from scripts.proofs.chaos_check import Audit, Findings, Truth, entries_of
from scripts.proofs.chaos_clients import Hordes
from scripts.proofs.chaos_faults import Faults, Spools
from scripts.stage import allow_open_files, gate_on, servers, stop_on_sigterm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from scripts.stage import Stage
    from tests.support.gates import GateProcess

_START_SECONDS = 60.0
_POLL_SECONDS = 0.1
_TELL_SECONDS = 10.0
_TENANTS = 3
_FLOODED_CAP = 3
_PRICES = {"scripted*": {"input": "0.15", "output": "0.60"}}
_LOG_WORDS = (
    "Traceback",
    "ERROR",
    "could not",
    "refused",
    "cannot be read",
    "not written",
    "database is away",
)
CLOSED_SECONDS = 30.0
"""How long after the last kill nothing may be in flight any more."""


@dataclass(frozen=True)
class Plan:
    """What happens, and how often. `slack_seconds` is what a checkpoint may take to be on the disk."""

    seconds: float = 180.0
    workers: int = 3
    clients: int = 60
    flooders: int = 8
    kills: int = 15
    redis_pauses: int = 9
    postgres_restarts: int = 9
    upstream_pauses: int = 6
    stops: int = 3
    longest_outage_seconds: float = 4.0
    lease_seconds: float = 15.0
    send_seconds: float = 4.0
    redis_timeout_seconds: float = 0.25
    slack_seconds: float = 0.5
    seed: int = 1

    @classmethod
    def of_minutes(cls, minutes: float, **changes: Any) -> Plan:
        """As much trouble a minute as by default."""
        whole, part = cls(), minutes * 60 / cls.seconds
        counts = ("kills", "redis_pauses", "postgres_restarts", "upstream_pauses", "stops")
        scaled = {name: max(1, round(getattr(whole, name) * part)) for name in counts}
        return replace(whole, seconds=minutes * 60, **scaled | changes)


@dataclass
class Report:
    """The figures, and each promise with whatever broke it."""

    plan: dict[str, Any]
    requests: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    most_open: int = 0
    no_connection: int = 0
    happened: dict[str, int] = field(default_factory=dict)
    away_seconds: dict[str, float] = field(default_factory=dict)
    closed_after_seconds: float = 0.0
    settled_after_seconds: float = 0.0
    spool_replays: int = 0
    spool_most_bytes: int = 0
    findings: Findings = field(default_factory=Findings)
    verify: dict[str, Any] = field(default_factory=dict)
    gate_log: dict[str, int] = field(default_factory=dict)
    timeline: list[tuple[float, str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    promises: dict[str, list[str]] = field(default_factory=dict)

    @property
    def broken(self) -> bool:
        """Whether a promise was."""
        return any(self.promises.values())


async def prove(plan: Plan, stage: Stage, say: Callable[[str], None]) -> Report:
    """Run it. The stage's servers run on; the gate is started and stopped here."""
    report = Report(asdict(plan))
    with gate_on(
        stage,
        plan.workers,
        LEASE_SECONDS=str(plan.lease_seconds),
        SEND_SECONDS=str(plan.send_seconds),
        REDIS_TIMEOUT_SECONDS=str(plan.redis_timeout_seconds),
    ) as gate:
        async with asyncio.timeout(_START_SECONDS):
            await all_serve(stage, gate, plan.workers)
        hordes = await asyncio.to_thread(_prepare, plan, stage, gate)
        faults, spools = Faults(plan, stage, gate), Spools(stage.directory / "data" / "spool")
        say(f"{plan.clients} clients, {plan.flooders} flooders, {plan.seconds:g} s; seed {plan.seed}")
        watching = asyncio.create_task(spools.watch())
        try:
            await _run(plan, hordes, faults, say)
            say("The last kill; all clients left.")
            wrong = await _aftermath(stage, faults, spools, report)
        finally:
            watching.cancel()
        await _audit(plan, stage, gate, hordes=hordes, faults=faults, report=report)
        report.promises |= wrong
        log = gate.log
    _tell(report, hordes, faults, spools, log)
    return report


def _prepare(plan: Plan, stage: Stage, gate: GateProcess) -> Hordes:
    """Tenants with room for everybody, one without, and a price for all that is served."""
    prices = stage.directory / "prices.json"
    prices.write_text(json.dumps(_PRICES))
    gate.cli("prices", "import", str(prices))
    keys = [gate.tenant(plan.clients)[1] for _ in range(_TENANTS)]
    _, flooded = gate.tenant(_FLOODED_CAP)
    return Hordes(gate.url, keys, flooded, plan.clients, plan.flooders, plan.seed)


async def _run(plan: Plan, hordes: Hordes, faults: Faults, say: Callable[[str], None]) -> None:
    """Everybody comes, and everything goes wrong; with the last kill everybody leaves."""
    begun = time.monotonic()

    async def progress() -> None:
        while True:
            await asyncio.sleep(_TELL_SECONDS)
            passed = time.monotonic() - begun
            say(f"{passed:5.0f} s: {len(hordes.heard)} requests, {faults.happened}")

    telling = asyncio.create_task(progress())
    hordes.start()
    try:
        await faults.run(begun)
        await asyncio.sleep(max(0.0, begun + plan.seconds - time.monotonic()))
        await faults.kill()
        faults.happened["kill"] += 1
    finally:
        telling.cancel()
        await hordes.stop()


async def _aftermath(stage: Stage, faults: Faults, spools: Spools, report: Report) -> dict[str, list[str]]:
    """Until nothing is in flight, and then until nothing waits for anything."""
    since, engine = faults.kills[-1].at, open_engine(stage.database_url, connections=2)
    try:
        left = await _until_none(since, lambda: _open_bookings(engine))
        report.closed_after_seconds = time.monotonic() - since

        async def waiting() -> list[str]:
            return [*await _waits(engine), *([f"{spools.look()} bytes are spooled"] if spools.look() else [])]

        late = await _until_none(since, waiting)
        report.settled_after_seconds = time.monotonic() - since
    finally:
        await engine.dispose()
    return {
        f"nothing was in flight {CLOSED_SECONDS:g} s after the last kill": left,
        "and no spool and no event waited for anything": late,
    }


async def _until_none(since: float, look: Callable[[], Any]) -> list[str]:
    """Look until there is nothing; returns what there is still when it is too late."""
    while left := await look():
        if time.monotonic() - since > CLOSED_SECONDS:
            return list(left)
        await asyncio.sleep(_POLL_SECONDS)
    return []


async def _open_bookings(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        rows = await connection.execute(select(in_flight.c.model, in_flight.c.worker).limit(20))
        return [f"{row.model} of {row.worker}" for row in rows]


async def _waits(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        count = (await connection.execute(select(func.count()).select_from(rollup_queue))).scalar_one()
        return [f"{count} events wait for the roll-ups"] if count else []


async def _audit(
    plan: Plan, stage: Stage, gate: GateProcess, *, hordes: Hordes, faults: Faults, report: Report
) -> None:
    """Hold the ledger against the truth, and have it verified."""
    engine = open_engine(stage.database_url, connections=2)
    try:
        async with engine.connect() as connection:
            rows = (await connection.execute(select(usage_events).order_by(usage_events.c.id))).mappings()
            entries = entries_of(rows)
    finally:
        await engine.dispose()
    stats = await asyncio.to_thread(stage.upstream.all_stats)
    truths = {label: Truth.of(one) for label, one in stats.items()}
    audit = Audit(faults.kills, slack_seconds=plan.slack_seconds)
    report.findings = audit.look(hordes.heard, _of_this_run(truths, hordes), entries)
    report.promises |= report.findings.promises
    report.verify = await asyncio.to_thread(_verify, gate)
    broken = [f"{one['name']}: {one}" for one in report.verify.get("checks", ()) if not one["held"]]
    if not report.verify.get("held"):
        broken = broken or [str(report.verify)]
    report.promises["`sluicegate verify` finds nothing"] = broken
    report.promises["nobody got a status that says nothing"] = hordes.strange


def _of_this_run(truths: Mapping[str, Truth], hordes: Hordes) -> dict[str, Truth]:
    """Without what others asked of the same upstream."""
    return {label: truth for label, truth in truths.items() if label in hordes.heard}


def _verify(gate: GateProcess) -> dict[str, Any]:
    """What the command says, whatever it says."""
    today = datetime.now(UTC)
    period = (
        "--from",
        f"{today - timedelta(days=1):%Y-%m-%d}",
        "--to",
        f"{today + timedelta(days=2):%Y-%m-%d}",
    )
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-m", "api.cli", "verify", *period, "--json"],
        env=gate.environment,
        cwd=gate.directory,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        return {"held": False, "status": done.returncode, "said": done.stderr[-2000:]}


def _tell(report: Report, hordes: Hordes, faults: Faults, spools: Spools, log: str) -> None:
    """The figures that are not the ledger's."""
    heard = hordes.heard.values()
    report.requests = len(heard)
    for one in heard:
        status = str(one.status) if one.status else "none"
        report.statuses[status] = report.statuses.get(status, 0) + 1
        report.kinds[one.kind] = report.kinds.get(one.kind, 0) + 1
    report.most_open, report.no_connection = hordes.most_open, hordes.no_connection
    report.happened, report.away_seconds = faults.happened, faults.away_seconds
    report.timeline = faults.timeline
    report.spool_replays, report.spool_most_bytes = spools.replays, spools.most_bytes
    report.gate_log = {word: log.count(word) for word in _LOG_WORDS}
    report.said = [line for line in log.splitlines() if any(word in line for word in _LOG_WORDS)][-50:]


def _spread(values: Sequence[float], unit: str) -> str:
    return f"median {statistics.median(values):.4g}, at most {max(values):.4g}{unit}" if values else "none"


def lines_of(report: Report) -> list[str]:
    """A report for people."""
    found, happened, away = report.findings, report.happened, report.away_seconds
    losses = found.losses
    lines = [
        f"requests                         {report.requests}: {_counts(report.kinds)}",
        f"answers by status                {_counts(report.statuses)}",
        f"open at one time, most           {report.most_open}",
        f"SIGKILL of a worker              {happened['kill']}",
        f"worker stopped for over a lease  {happened['stop']}, {away['stop']:.1f} s in all",
        f"Redis stopped                    {happened['redis']}, {away['redis']:.1f} s in all",
        f"PostgreSQL crashed and restarted {happened['postgres']}, {away['postgres']:.1f} s in all",
        f"upstream stopped                 {happened['upstream']}, {away['upstream']:.1f} s in all",
        "",
        f"events by ending                 {_counts(found.ended)}",
        f"exact events                     {found.exact_events}",
        f"  output tokens on the ledger    {found.exact_ledger}",
        f"  output tokens by the upstream  {found.exact_truth}",
        f"stopped early, exact by reports  {len(found.early)}",
        f"  tokens behind that were sent   {_spread(list(found.early.values()), '')}",
        f"at-least events                  {found.at_least_events}",
        f"  output tokens on the ledger    {found.at_least_ledger}",
        f"  output tokens by the upstream  {found.at_least_truth}",
        f"streams killed with their worker {len(losses)}",
        f"  not known of each, sent        {_spread([one.sent for one in losses], ' tokens')}",
        f"  not known of each, received    {_spread([one.got for one in losses], ' tokens')}",
        f"  the first of them was received {_spread([one.seconds for one in losses], ' s')} before the kill",
        f"  closed after the kill          {_spread(found.closed_seconds, ' s')}",
        f"corrections of late workers      {found.corrections}",
        f"spools replayed                  {report.spool_replays}, {report.spool_most_bytes} bytes at most",
        f"nothing in flight                {report.closed_after_seconds:.1f} s after the last kill",
        f"nothing waiting                  {report.settled_after_seconds:.1f} s after it",
        f"in the gate's log                {report.gate_log}",
        "",
    ]
    if report.broken:
        lines += [f"{at:12.3f} {what}" for at, what in report.timeline]
    for promise, broken in report.promises.items():
        lines.append(f"{'BROKEN' if broken else 'holds':8}{promise}")
        lines += [f"          {what}" for what in broken[:10]]
        if len(broken) > 10:  # noqa: PLR2004 - enough to begin with
            lines.append(f"          ... and {len(broken) - 10} more")
    return lines


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    for name in ("workers", "clients", "flooders"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Plan, name))
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 10**6))
    parser.add_argument("--json", action="store_true")
    asked = vars(parser.parse_args())
    as_json, minutes = asked.pop("json"), asked.pop("minutes")
    plan = Plan.of_minutes(minutes, **asked)
    if plan.workers < 2 or plan.clients < 1 or minutes < 1:  # noqa: PLR2004
        parser.error("at least 2 workers, 1 client and 1 minute")
    stop_on_sigterm()
    allow_open_files(2 * (plan.clients + plan.flooders))
    with servers("postgresql") as stage:
        report = asyncio.run(prove(plan, stage, lambda text: print(text, file=sys.stderr, flush=True)))
        if report.broken and (kept := os.environ.get("CHAOS_KEEP")):
            Path(kept).write_text((stage.directory / "gate.log").read_text())
    print(json.dumps(asdict(report)) if as_json else "\n".join(lines_of(report)))
    sys.exit(report.broken)


if __name__ == "__main__":
    main()
