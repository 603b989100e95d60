"""`sluicegate serve`: prepare, bind, say where, run.

The socket listens before the banner is printed, so that a pasted curl line works at once: it waits in the
backlog until the workers are up.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.supervisors import Multiprocess, multiprocess

from api import demo, logs
from api.accounts import Actor, KeyFields, NoSuchTenant, TenantFields
from api.adapters.accounts_sql import SqlAccounts
from api.adapters.clock_system import SystemClock
from api.adapters.credentials_sql import SqlCredentials
from api.adapters.database_sql import migrate, open_engine
from auth.passwords import hash_password, verify_password
from auth.principal import TENANT_SCOPES, Scope

if TYPE_CHECKING:
    from collections.abc import Callable

    from api.demo import Secrets
    from api.settings import Settings

_BACKLOG = 2048
_START = Actor("start")  # who it is that makes the first admin, and the demo's tenant


def serve(settings: Settings, *, as_json: bool) -> None:
    """Run until a signal says stop."""
    logs.set_up(settings)
    if settings.auto_migrate:
        migrate(settings.ledger_url)
    secrets = asyncio.run(prepare(settings))
    config = _config(settings)
    listener = _listen(settings)
    run = _runner(config, listener, workers=settings.web_concurrency)
    url = f"http://{_host(settings.host)}:{listener.getsockname()[1]}"
    print(_banner_json(settings, secrets, url) if as_json else _banner(settings, secrets, url), flush=True)  # noqa: T201
    run()


async def prepare(settings: Settings) -> Secrets:
    """The admin, and in the demo a tenant with a key, are there when this returns."""
    secrets = demo.secrets_of(settings)
    engine = open_engine(settings.ledger_url)
    try:
        clock = SystemClock()
        accounts = SqlAccounts(engine, clock)
        if secrets.admin_password:
            known = await SqlCredentials(engine, clock).find_user(settings.admin_email)
            if not verify_password(secrets.admin_password, known.password_hash if known else None):
                hashed = hash_password(secrets.admin_password)
                await accounts.put_admin(settings.admin_email, hashed, by=_START)
        if settings.demo and not await _has_demo_tenant(accounts, secrets.tenant_id):
            fields = TenantFields("demo", settings.default_max_streams)
            tenant = await accounts.create_tenant(fields, by=_START)
            every = KeyFields("demo", (*sorted(TENANT_SCOPES), Scope.TENANT_ADMIN))
            _, key = await accounts.keys(None).issue(tenant.id, every, by=_START)
            secrets.tenant_id, secrets.tenant_key = tenant.id, key
            demo.keep(settings, secrets)
        return secrets
    finally:
        await engine.dispose()


async def _has_demo_tenant(accounts: SqlAccounts, tenant_id: str) -> bool:
    try:
        return (await accounts.tenant(tenant_id)).state != "deleted"
    except NoSuchTenant:
        return False


def _config(settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        "api.main:app",
        workers=settings.web_concurrency,
        log_config=None,  # api.logs has seen to it
        access_log=False,
        server_header=False,
        proxy_headers=False,  # api.app takes the word of TRUSTED_PROXIES, and of nobody else
        timeout_worker_healthcheck=30,
        backlog=_BACKLOG,
        # The gate ends its own streams within the grace; this is for whatever else hangs on.
        timeout_graceful_shutdown=int(settings.drain_seconds + settings.settle_seconds + 15),
    )


class _Worker(multiprocess.Process):
    """A worker whose death is seen at once, also while the supervisor waits for its answer to a ping."""

    def start(self) -> None:
        """Start it. Its end of the pipe is its own: then the pipe ends with it."""
        super().start()
        self.child_conn.close()


def _runner(config: uvicorn.Config, listener: socket.socket, *, workers: int) -> Callable[[], None]:
    """What serves. From here on signals are heard: one that comes while modules load is not lost."""
    if workers > 1:
        # The supervisor has no other place to be told which class to start.
        multiprocess.Process = _Worker  # type: ignore[misc]
        return Multiprocess(config, sockets=[listener]).run
    server = uvicorn.Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, server.handle_exit)
    return lambda: server.run(sockets=[listener])


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host.strip("[]"), settings.port))
    except OSError as error:
        raise SystemExit(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. "
            "Is another server running? Choose another port with PORT=8001."
        ) from None
    listener.listen(_BACKLOG)
    listener.set_inheritable(True)
    return listener


def _host(host: str) -> str:
    host = host.strip("[]")
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - where to reach it, not where to bind
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _facts(settings: Settings, secrets: Secrets, url: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "url": url,
        "admin_email": settings.admin_email if secrets.admin_password else None,
        "model": settings.model_or_default,
        "upstream": "scripted" if settings.scripted else (settings.openai_base_url or "OpenAI"),
        "demo": settings.demo,
    }
    if settings.demo:
        facts |= {
            "admin_password": secrets.admin_password,
            "tenant_id": secrets.tenant_id,
            "key": secrets.tenant_key,
        }
    return facts


def _banner_json(settings: Settings, secrets: Secrets, url: str) -> str:
    return json.dumps(_facts(settings, secrets, url))


def _banner(settings: Settings, secrets: Secrets, url: str) -> str:
    facts = _facts(settings, secrets, url)
    lines = [
        "",
        f"  Sluicegate is at  {url}        (API: {url}/docs)",
        f"  Console           {url}/admin/ui",
        f"  Upstream          {facts['upstream']}, default model {facts['model']}",
    ]
    if not settings.demo:
        lines += [f"  Admin sign-in     {facts['admin_email'] or 'none: set ADMIN_PASSWORD'}", ""]
        return "\n".join(lines)
    lines += [
        f"  Admin sign-in     {settings.admin_email}   password {secrets.admin_password}",
        f"  Demo tenant       {secrets.tenant_id}",
        f"  Demo key          {secrets.tenant_key}",
        "",
        "  Stream some tokens:",
        "",
        f"curl -N {url}/chat/stream -H 'Authorization: Bearer {secrets.tenant_key}' \\",
        "  -H 'Content-Type: application/json' -d '{\"prompt\": \"Why is the sky blue?\"}'",
        "",
        f"  This is a demo on this machine only; its secrets are in {settings.data_dir}/demo.json.",
        "  For more, set SECRET_KEY and see .env.example. Stop with Ctrl+C.",
        "",
    ]
    return "\n".join(lines)
