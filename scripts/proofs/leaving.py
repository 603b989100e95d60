"""Clients that leave after megabytes: the event loop goes on, and every token is counted.

Clients come one after another, read so much text from the scripted model side by side, and go away without a
word. The gate is one worker in a process of its own; a probe in its event loop asks to be woken every
millisecond and notes how late that was, while streams run and while they are settled. Beside it stands what
the same probe notes when nothing happens, and when others have the machine's cores. Then each event is held
against another tokeniser's count of all that the gate had read. Exits with 1 where one differs, or the loop
stood still for too long.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from api.core.script import Script, text_of
from scripts.load import Line, dial, request_bytes
from scripts.stage import allow_open_files, servers, stop_on_sigterm
from tests.support.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from scripts.load import Answer
    from scripts.stage import Stage

_PER_CHUNK = 200  # words, of about four bytes
_MEGABYTE = 1_000_000
_BURN = "while True: pass"


@dataclass(frozen=True)
class Plan:
    """What happens. `pace_ms` is between two chunks, `apart_ms` between the arrivals of two clients.

    `most_ms` is how long the loop may stand still.
    """

    clients: int = 30
    megabytes: float = 5.0
    pace_ms: int = 4
    apart_ms: int = 20
    together: bool = False
    most_ms: float = 20.0
    yardstick_seconds: float = 3.0


@dataclass
class Report:
    """The figures, and each promise with whatever broke it."""

    plan: dict[str, Any]
    cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    tokens_each: int = 0
    seconds: float = 0.0
    settled_seconds: float = 0.0
    idle: dict[str, Any] = field(default_factory=dict)
    busy: dict[str, Any] = field(default_factory=dict)
    streaming: dict[str, Any] = field(default_factory=dict)
    leaving: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    promises: dict[str, list[str]] = field(default_factory=dict)

    @property
    def broken(self) -> bool:
        """Whether a promise was."""
        return any(self.promises.values())


class Gate:
    """The gate's process, which is told what to do."""

    def __init__(self, stage: Stage) -> None:
        words = {
            "directory": stage.directory / "gate",
            "upstream": f"{stage.upstream.url}/v1",
            "database": stage.database_url,
            "redis": stage.redis.url,
        }
        options = [part for name, value in words.items() for part in (f"--{name}", str(value))]
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "scripts.proofs.leaving_gate", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        told = self._answer()
        self.url, self.key = told["url"], told["key"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - a pipe
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the gate has stopped by itself")
        return dict(json.loads(line))

    def do(self, word: str) -> dict[str, Any]:
        """Say a word; returns what it answers. Blocks."""
        assert self._process.stdin is not None  # noqa: S101 - a pipe
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self._answer()

    async def tell(self, word: str) -> dict[str, Any]:
        """The same, without blocking."""
        return await asyncio.to_thread(self.do, word)

    def stop(self) -> None:
        """In an orderly way, or else."""
        try:
            self._process.communicate(timeout=20)
        finally:
            self._process.kill()


@contextmanager
def gate_of(stage: Stage) -> Iterator[Gate]:
    """It runs as long as this lasts."""
    gate = Gate(stage)
    try:
        yield gate
    finally:
        gate.stop()


@contextmanager
def somebody_else() -> Iterator[None]:
    """A process for each core, which does nothing and takes its time."""
    command = [sys.executable, "-c", _BURN]
    burning = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]  # noqa: S603 - ours
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.wait()


def chunks_of(megabytes: float) -> int:
    """How many chunks of the scripted model's text have so many bytes."""
    sample = len(text_of(Script(), 1, 1 + 100 * _PER_CHUNK)) / 100
    return int(megabytes * _MEGABYTE / sample) + 1


class Reader(Line):
    """Reads so many chunks, then leaves; or stops reading, and leaves when it is told."""

    def __init__(self, chunks: int, *, waits: bool) -> None:
        super().__init__()
        self._chunks, self._waits = chunks, waits
        self.has_enough = self._loop.create_future()

    def _read_stream(self, data: bytes) -> None:
        super()._read_stream(data)
        if self.answer.tokens >= self._chunks and not self.has_enough.done():
            self.has_enough.set_result(None)
            if self._waits:
                self.transport.pause_reading()
            else:
                self.leave()

    def over(self) -> None:
        """It broke off, perhaps."""
        if not self.has_enough.done():
            self.has_enough.set_result(None)


async def _clients(plan: Plan, gate: Gate, first_left: Callable[[], Awaitable[None]]) -> list[Answer]:
    """All of them at once; each leaves when it has read enough, or all of them when the last one has."""
    chunks = chunks_of(plan.megabytes)
    tokens = 3 * chunks * _PER_CHUNK
    made = [await dial(gate.url, lambda: Reader(chunks, waits=plan.together)) for _ in range(plan.clients)]
    lines = [line for line in made if isinstance(line, Reader)]
    for number, line in enumerate(lines):
        script = {"label": f"leaving{number}", "tokens": tokens, "per_chunk": _PER_CHUNK, "usage": 0}
        await asyncio.sleep(plan.apart_ms / 1000)
        line.ask(request_bytes(gate.url, gate.key, pace_ms=plan.pace_ms, **script))
    waiting = [line.has_enough for line in lines]
    await asyncio.wait(
        waiting, return_when=asyncio.ALL_COMPLETED if plan.together else asyncio.FIRST_COMPLETED
    )
    await first_left()
    await asyncio.wait(waiting)
    for line in lines:
        if line.busy:
            line.leave()
    return [line.answer for line in lines]


async def _yardstick(gate: Gate, seconds: float) -> dict[str, Any]:
    await gate.tell("begin")
    await asyncio.sleep(seconds)
    return await gate.tell("lags")


async def prove(plan: Plan, stage: Stage, say: Callable[[str], None]) -> Report:
    """Run it; the gate is started and stopped here."""
    report = Report(asdict(plan), tokens_each=chunks_of(plan.megabytes) * _PER_CHUNK)
    with gate_of(stage) as gate:
        say("The yardstick: nothing happens, then somebody else has the cores.")
        report.idle = await _yardstick(gate, plan.yardstick_seconds)
        with somebody_else():
            report.busy = await _yardstick(gate, plan.yardstick_seconds)
        say(f"{plan.clients} clients read {plan.megabytes:g} MB each.")
        await gate.tell("begin")
        begun = time.monotonic()

        async def first_left() -> None:
            report.streaming = await gate.tell("lags")
            await gate.tell("begin")

        answers = await _clients(plan, gate, first_left)
        left = time.monotonic()
        await gate.tell("settled")
        report.seconds, report.settled_seconds = left - begun, time.monotonic() - left
        report.leaving = await gate.tell("lags")
        say("All have left, and all is settled. Counting again ...")
        report.events = (await gate.tell("count"))["events"]
    report.promises = {
        "every client had all that it wanted, and left": [
            str(one) for one in answers if not one.left or one.tokens * _PER_CHUNK < report.tokens_each
        ],
        "each of them has its event": (
            [f"{len(report.events)} events"] if len(report.events) != plan.clients else []
        ),
        "each event is what another tokeniser counts": [
            str(event) for event in report.events if event["ledger"] != event["counted"]
        ],
        f"the event loop never stood still for more than {plan.most_ms:g} ms": (
            [str(one) for one in (report.streaming, report.leaving) if one["max_ms"] > plan.most_ms]
        ),
    }
    return report


def lines_of(report: Report) -> list[str]:
    """A report for people."""
    names = ("samples", "median_ms", "p99_ms", "max_ms", "over_5_ms", "over_20_ms")
    lines = [f"{'how late the probe came':32}" + "".join(f"{name:>12}" for name in names)]
    for what, lags in (
        ("nothing happens", report.idle),
        ("somebody else has the cores", report.busy),
        ("clients read", report.streaming),
        ("clients leave, and are settled", report.leaving),
    ):
        lines.append(f"{what:32}" + "".join(f"{lags[name]:12}" for name in names))
    tokens = sum(event["ledger"] for event in report.events)
    lines += [
        "",
        f"the latest of all                {report.leaving['most']}",
        f"cores                            {report.cores}",
        f"read by each client              {report.tokens_each} tokens and more",
        f"until the last one left          {report.seconds:.1f} s",
        f"until all were settled           {report.settled_seconds:.2f} s after that",
        f"events, tokens                   {len(report.events)}, {tokens}",
        "",
    ]
    for promise, broken in report.promises.items():
        lines.append(f"{'BROKEN' if broken else 'holds':8}{promise}")
        lines += [f"          {what}" for what in broken[:10]]
    return lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/prove leaving", description=__doc__)
    for name in ("clients", "pace-ms", "apart-ms"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Plan, name.replace("-", "_")))
    for name in ("megabytes", "most-ms"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Plan, name.replace("-", "_")))
    parser.add_argument("--together", action="store_true", help="nobody leaves before all have read enough")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--json", action="store_true")
    asked = vars(parser.parse_args())
    as_json, database = asked.pop("json"), asked.pop("database")
    plan = Plan(**asked)
    if plan.clients < 1 or plan.megabytes <= 0:
        parser.error("at least 1 client, and something to read")
    stop_on_sigterm()
    allow_open_files(plan.clients)
    with servers(database) as stage:
        report = asyncio.run(prove(plan, stage, lambda text: print(text, file=sys.stderr, flush=True)))
    print(json.dumps(asdict(report)) if as_json else "\n".join(lines_of(report)))
    sys.exit(report.broken)


if __name__ == "__main__":
    main()
