"""A gate as operators run it: two workers, real Redis, PostgreSQL, an OpenAI-compatible upstream."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.gates import SECRET_KEY, GateProcess, gate_process
from tests.support.servers import RedisServer, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.servers import PostgresServer, ScriptedProcess


@contextmanager
def two_workers(
    directory: Path, postgres_server: PostgresServer, scripted: ScriptedProcess, **more: str
) -> Iterator[GateProcess]:
    """With a Redis and a database of their own, and `more` settings."""
    with running(RedisServer()) as redis:
        redis.start()
        with gate_process(
            directory,
            DATABASE_URL=postgres_server.new_database(),
            REDIS_URL=redis.url,
            OPENAI_BASE_URL=f"{scripted.url}/v1",
            WEB_CONCURRENCY="2",
            REDIS_TIMEOUT_SECONDS="5",  # the tests share two cores with the servers
            SECRET_KEY=SECRET_KEY,
            ADMIN_EMAIL="boss@example.com",
            ADMIN_PASSWORD="correct horse battery staple",
            **more,
        ) as process:
            yield process


@pytest.fixture(scope="module")
def gate(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, scripted: ScriptedProcess
) -> Iterator[GateProcess]:
    """Two workers, shared by a module's tests; each test makes its own tenants."""
    with two_workers(tmp_path_factory.mktemp("gate"), postgres_server, scripted) as process:
        yield process


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateProcess]:
    """The gate as `./scripts/serve` runs it without settings."""
    with gate_process(tmp_path_factory.mktemp("demo")) as process:
        yield process


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For commands: a directory with a database of its own; no settings from elsewhere."""
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "DEFAULT_MAX_STREAMS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    return tmp_path
