"""Gates for tests: the production app in this loop, and the real command in a process of its own."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2
import uvicorn

from api import runtime
from api.accounts import Actor, KeyFields, TenantFields
from api.adapters.database_sql import migrate
from api.app import create_app
from api.settings import Settings
from auth.principal import TENANT_SCOPES
from tests.support.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from api.core.record import UsageEvent
    from api.deps import LifespanState
    from api.flow.gate import Gate

SECRET_KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
BY = Actor("test")


def settings_of(tmp_path: Path, **changes: Any) -> Settings:
    """Settings from arguments alone: neither the environment nor a `.env` is read."""
    values = {
        "data_dir": tmp_path / "data",
        "secret_key": SECRET_KEY,
        "tick_seconds": 0.05,
        "redis_timeout_seconds": 5,  # the tests share two cores with the servers
    } | changes
    return Settings(_env_file=None, **values)


@dataclass
class InProcess:
    """A served app whose insides can be looked at."""

    url: str
    gate: Gate
    tenant: str
    key: str

    async def settled(self) -> None:
        """Wait until no stream is being worked on."""
        await self.gate.walks.join(timeout_seconds=20)
        assert not self.gate.walks

    async def events(self) -> list[UsageEvent]:
        """What the ledger says of the tenant."""
        return await self.gate.ledger.events(self.tenant, after=None, limit=1000)


@asynccontextmanager
async def serving(settings: Settings, max_streams: int = 20) -> AsyncIterator[InProcess]:
    """The production app on a real socket, with one tenant and one key."""
    await asyncio.to_thread(migrate, settings.ledger_url)
    opened: list[LifespanState] = []

    @asynccontextmanager
    async def open_ports(given: Settings) -> AsyncIterator[LifespanState]:
        async with runtime.open_ports(given) as state:
            opened.append(state)
            yield state

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(512)
    app = create_app(settings, open_ports)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=20)
    server = uvicorn.Server(config)
    started = asyncio.Event()
    startup = server.startup

    async def tell(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = tell  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await asyncio.wait([asyncio.create_task(started.wait()), task], return_when=asyncio.FIRST_COMPLETED)
        gate = opened[0]["gate"]
        tenant = await gate.accounts.create_tenant(TenantFields("test", max_streams), by=BY)
        fields = KeyFields("test", tuple(sorted(TENANT_SCOPES)))
        _, key = await gate.accounts.keys(None).issue(tenant.id, fields, by=BY)
        yield InProcess(f"http://127.0.0.1:{listener.getsockname()[1]}", gate, tenant.id, key)
    finally:
        server.should_exit = True
        await task


class GateProcess:
    """`sluicegate serve` in a process of its own, with settings by environment, as operators run it."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self.directory = directory
        self.environment = environment_of(directory, environment)
        with (directory / "gate.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "api.cli", "serve", "--json"],
                env=self.environment,
                cwd=directory,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        banner = self.process.stdout.readline()
        assert banner, (directory / "gate.log").read_text()
        self.facts: dict[str, Any] = json.loads(banner)
        self.url: str = self.facts["url"]

    @property
    def log(self) -> str:
        """What it wrote to standard error so far."""
        return (self.directory / "gate.log").read_text()

    def cli(self, *arguments: str) -> Any:
        """Run a command beside it; returns its JSON."""
        return run_cli(self.environment, self.directory, *arguments)

    def http(self, method: str, path: str, token: str = "", **options: Any) -> httpx2.Response:
        """One request."""
        headers = options.pop("headers", {}) | ({"authorization": f"Bearer {token}"} if token else {})
        # It is plain HTTP: a TLS context would cost 20 ms for nothing.
        with httpx2.Client(base_url=self.url, trust_env=False, timeout=30, verify=False) as client:
            return client.request(method, path, headers=headers, **options)

    @functools.cached_property
    def admin(self) -> str:
        """An admin's token."""
        password = self.environment.get("ADMIN_PASSWORD") or self.facts["admin_password"]
        login = {"email": self.facts["admin_email"], "password": password}
        return str(self.http("POST", "/auth/login", json=login).json()["access_token"])

    def tenant(self, max_streams: int = 20) -> tuple[str, str]:
        """A new tenant and a key of it."""
        asked = {"name": "test", "max_streams": max_streams}
        tenant = self.http("POST", "/admin/tenants", self.admin, json=asked).json()["id"]
        key = self.http("POST", f"/admin/tenants/{tenant}/keys", self.admin).json()["key"]
        return tenant, key

    def stop(self, sig: int = signal.SIGTERM, timeout: float = 30) -> int:
        """Send a signal and wait; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(timeout)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()


def run_cli(environment: dict[str, str], directory: Path, *arguments: str) -> Any:
    """A `sluicegate` command's JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "api.cli", *arguments, "--json"],
        env=environment,
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def environment_of(directory: Path, changes: dict[str, str]) -> dict[str, str]:
    """Only what a process needs to run, plus the settings."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"PYTHONPATH": str(ROOT), "PORT": "0", "DATA_DIR": str(directory / "data")} | changes


@contextmanager
def gate_process(directory: Path, **environment: str) -> Iterator[GateProcess]:
    """A gate that is stopped at the end, whatever happens."""
    directory.mkdir(parents=True, exist_ok=True)
    gate = GateProcess(directory, **environment)
    try:
        yield gate
    finally:
        gate.stop()
