"""Who is measured: the gate as shipped, or nobody in between (scripts.rigs.peers has the others)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scripts.stage import cpu_seconds, family, gate_on

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psutil

    from scripts.stage import Stage

_STREAMS = 10_000
_KNOWN_SECONDS = 3.0
_LIMITS = {
    "requests_per_minute": 10**6,
    "tokens_per_minute": 10**8,
    "tokens_per_day": 10**10,
    "nano_dollars_per_month": 10**15,
}


@dataclass
class Target:
    """Somebody between client and provider. `processes` are those whose CPU and memory count.

    Of one that is slow a `part` of the loads is asked: a tenth where it is 10.
    """

    name: str
    url: str
    key: str = ""
    processes: list[psutil.Process] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    part: int = 1
    memory_before: int = 0

    def cpu_seconds(self) -> float:
        """So far."""
        return cpu_seconds(self.processes)

    def memory_bytes(self) -> int:
        """Now."""
        return int(sum(process.memory_info().rss for process in self.processes))


def cores() -> tuple[set[int], set[int]]:
    """The core of whoever is measured, and those of all others. Raises SystemExit where there is but one."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:  # noqa: PLR2004 - one for the gate, one for the rest
        raise SystemExit("Two cores are needed: one for the gate, one for those who measure it.")
    return {usable[0]}, set(usable[1:])


@contextmanager
def pinned(to: set[int]) -> Iterator[None]:
    """What is started meanwhile runs there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, to)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def talking(module: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is talked to by lines."""
    process = subprocess.Popen(  # noqa: S603 - our own
        [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def providing() -> Iterator[tuple[str, int]]:
    """The cheap provider: its base URL and its process id."""
    with talking("scripts.rigs.provider") as process:
        assert process.stdout is not None  # noqa: S101 - a pipe
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1", process.pid


@contextmanager
def gate_target(stage: Stage, provider: str, workers: int = 1) -> Iterator[Target]:
    """Sluicegate, everything on: a tenant with a cap, rates, and budgets of tokens and money."""
    with gate_on(stage, workers, OPENAI_BASE_URL=provider) as gate:
        tenant, key = gate.tenant(max_streams=_STREAMS)
        for method, path, said in (
            ("POST", "/admin/prices", {"prices": {"bench*": {"input": "1", "output": "2"}}}),
            ("PATCH", f"/admin/tenants/{tenant}", {"limits": _LIMITS}),
        ):
            gate.http(method, path, gate.admin, json=said).raise_for_status()
        if workers > 1:  # the one that was asked knows the price; the others do within a second
            time.sleep(_KNOWN_SECONDS)
        yield Target("sluicegate", f"{gate.url}/v1", key, family(gate.process.pid))
