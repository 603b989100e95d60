"""What proofs and benchmarks stand on: real servers, each its own process, and a gate as operators run it.

Whatever starts here is stopped, also on Ctrl-C and on SIGTERM.
"""

from __future__ import annotations

import resource
import signal
import socket
import sys
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import psutil

from tests.support.gates import SECRET_KEY, gate_process
from tests.support.servers import PostgresServer, RedisServer, ScriptedProcess, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.gates import GateProcess

_SPARE_FILES = 512


@dataclass(frozen=True)
class Stage:
    """The servers around a gate, and a directory for its files."""

    redis: RedisServer
    database_url: str
    upstream: ScriptedProcess
    directory: Path
    postgres: PostgresServer | None = None

    def store_pids(self) -> dict[str, int]:
        """The first processes of Redis and of PostgreSQL; SQLite has none."""
        found = {"redis": self.redis.process.pid}
        return found if self.postgres is None else found | {"database": self.postgres.server.get_pid()}


@contextmanager
def servers(database: str) -> Iterator[Stage]:
    """Redis, a `sqlite` or `postgresql` database, and the scripted model, until the end."""
    with ExitStack() as stack:
        stack.callback(_kill_the_rest)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sg-stage-")))
        redis = stack.enter_context(running(RedisServer()))
        redis.start()
        url, postgres = f"sqlite+aiosqlite:///{directory / 'ledger.db'}", None
        if database == "postgresql":
            postgres = stack.enter_context(running(PostgresServer()))
            url = postgres.new_database()
        upstream = stack.enter_context(running(ScriptedProcess()))
        yield Stage(redis, url, upstream, directory, postgres)


@contextmanager
def gate_on(stage: Stage, workers: int, **environment: str) -> Iterator[GateProcess]:
    """`sluicegate serve` with so many workers; none of them outlives it, however it ends."""
    left: list[psutil.Process] = []
    try:
        with gate_process(
            stage.directory,
            DATABASE_URL=stage.database_url,
            REDIS_URL=stage.redis.url,
            WEB_CONCURRENCY=str(workers),
            SECRET_KEY=SECRET_KEY,
            ADMIN_PASSWORD="correct horse battery staple",  # noqa: S106 - of nothing but this
            DRAIN_SECONDS="1",
            **{"OPENAI_BASE_URL": f"{stage.upstream.url}/v1"} | environment,
        ) as gate:
            try:
                yield gate
            finally:
                left = family(gate.process.pid)
    finally:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def family(pid: int) -> list[psutil.Process]:
    """A process and its descendants; empty where it is gone."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    return []


def workers_of(gate: GateProcess) -> list[psutil.Process]:
    """The processes that serve: of several the supervisor's children, a single one itself."""
    if gate.environment["WEB_CONCURRENCY"] == "1":
        return [psutil.Process(gate.process.pid)]
    found = []
    for process in family(gate.process.pid)[1:]:
        with suppress(psutil.NoSuchProcess):
            if any("spawn_main" in word for word in process.cmdline()):
                found.append(process)
    return found


def beginning_of(worker: psutil.Process) -> str:
    """How the name begins that a worker has in Redis and in the ledger (api.settings.worker_name)."""
    return f"{socket.gethostname()[-80:]}:{worker.pid}:"


def are_serving(stage: Stage, gate: GateProcess, workers: int) -> bool:
    """Whether so many workers are there, and each has said so in Redis."""
    found = workers_of(gate)
    with stage.redis.client() as client:
        known = [name.decode() for name in client.zrange("sg:workers", 0, -1)]
    here = [any(name.startswith(beginning_of(worker)) for name in known) for worker in found]
    return len(found) == workers and all(here)


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """CPU time that they have had so far, in user and system mode."""
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def allow_open_files(streams: int) -> None:
    """Let each process that is started have a file for each end of so many streams.

    Raises SystemExit where it may not.
    """
    count = 2 * streams + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise SystemExit(f"{count} open files are needed, `ulimit -Hn` allows {hard}: ask for fewer streams.")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def stop_on_sigterm() -> None:
    """A SIGTERM ends this process as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _stop)


def _stop(_number: int, _frame: object) -> NoReturn:
    sys.exit(143)


def _kill_the_rest() -> None:
    """Who was being started when all was called off."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
