"""`sluicegate doctor`: what is wrong around a gateway, and how to mend it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import typer
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from api.adapters.clock_system import SystemClock
from api.adapters.database_sql import open_engine, revisions
from api.adapters.redis_connect import connect
from api.adapters.tokenizer_toktok import ToktokTokenizer
from api.adapters.upstream_build import Builder, fixed_specs
from api.cli.shared import Json, settings_or_exit, show
from api.ports import UpstreamFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from api.settings import Settings

_PATIENCE_SECONDS = 10.0
_SKEW_SECONDS = 2.0
_SLOW_SECONDS = 0.05
_OLDEST_REDIS = (6, 2)


class Finding(NamedTuple):
    """`state` is ok, warn or fail; `mend` says what to do about the latter two."""

    name: str
    state: str
    text: str
    mend: str = ""


def doctor(
    url: Annotated[
        str,
        typer.Option(help="Where customers reach the gateway: does a proxy hold streams back?"),
    ] = "",
    as_json: Json = False,
) -> None:
    """Look at settings, database, Redis, clocks, upstreams and proxies; exit status 1 where one fails.

    Needs no running gateway, but for --url.
    """
    settings = settings_or_exit()
    found = asyncio.run(_look(settings, url))
    show([finding._asdict() for finding in found], as_json, "\n".join(map(_line, found)))
    if any(finding.state == "fail" for finding in found):
        raise typer.Exit(1)


def _line(finding: Finding) -> str:
    line = f"{finding.state:4}  {finding.name}: {finding.text}"
    return f"{line}\n      {finding.mend}" if finding.mend else line


async def _look(settings: Settings, url: str) -> list[Finding]:
    checks: list[tuple[str, Callable[[], Awaitable[list[Finding]]], str]] = [
        ("settings", lambda: _settings(settings), ""),
        (
            "database",
            lambda: _database(settings),
            "Is it running? Check DATABASE_URL or DATA_DIR.",
        ),
        ("redis", lambda: _redis(settings), "Is it running? Check REDIS_URL."),
        ("upstreams", lambda: _upstreams(settings), "Check the provider's key and base URL."),
    ]
    if url:
        checks.append(
            ("proxy", lambda: _proxy(url), "Is the gateway running, and is the URL the one it is reached by?")
        )
    found: list[Finding] = []
    for name, check, mend in checks:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                found += await check()
        except (SQLAlchemyError, RedisError, OSError, ValueError) as error:  # a time-out is an OSError
            found.append(Finding(name, "fail", f"no answer ({type(error).__name__})", mend))
    return found


async def _settings(settings: Settings) -> list[Finding]:
    if settings.demo:
        mend = "Set SECRET_KEY (`openssl rand -hex 32`), ADMIN_EMAIL and ADMIN_PASSWORD."
        return [Finding("settings", "warn", "this is a demo, on this machine only", mend)]
    found = [Finding("settings", "ok", "they hold together")]
    if settings.redis_url.startswith("memory://"):
        mend = "Set REDIS_URL before you start a second worker or host."
        found.append(Finding("limits", "warn", "limits are kept in memory, and gone with the process", mend))
    if settings.ledger_url.startswith("sqlite"):
        mend = "Set DATABASE_URL to a PostgreSQL before you start a second host."
        found.append(Finding("ledger", "warn", "the ledger is a SQLite file on this machine", mend))
    return found


async def _database(settings: Settings) -> list[Finding]:
    engine = open_engine(settings.ledger_url, connections=2)
    try:
        async with engine.connect() as connection:
            began = time.perf_counter()
            await connection.execute(text("SELECT 1"))
            took = time.perf_counter() - began
            found = [_speed("database", took)]
            at, newest = await connection.run_sync(revisions)
            if engine.dialect.name == "postgresql":
                theirs = (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()
                found.append(_clock("database", theirs))
    finally:
        await engine.dispose()
    if at == newest:
        found.append(Finding("migrations", "ok", f"at the newest revision, {newest}"))
    elif settings.auto_migrate:
        found.append(Finding("migrations", "ok", f"at {at or 'nothing yet'}; `serve` brings it to {newest}"))
    else:
        mend = "Run `sluicegate migrate`."
        found.append(Finding("migrations", "fail", f"at {at or 'nothing yet'}, not at {newest}", mend))
    return found


async def _redis(settings: Settings) -> list[Finding]:
    if settings.redis_url.startswith("memory://"):
        return []
    client: Any = connect(settings.redis_url, timeout_seconds=settings.redis_timeout_seconds)
    try:
        await client.ping()
        began = time.perf_counter()
        await client.ping()
        found = [_speed("redis", time.perf_counter() - began)]
        if settings.redis_url.startswith("redis+cluster"):
            return found
        seconds, microseconds = await client.time()
        found.append(_clock("redis", datetime.fromtimestamp(seconds + microseconds / 1e6, UTC)))
        about = await client.info()
        version = str(about.get("redis_version", "0"))
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_REDIS:
            found.append(Finding("redis version", "fail", version, "Redis 6.2 or newer is needed."))
        policy = about.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            mend = "Set `maxmemory-policy noeviction`: an evicted counter lets a tenant over its cap."
            found.append(Finding("redis memory", "fail", f"it may evict keys ({policy})", mend))
    finally:
        await client.aclose()
    return found


def _speed(name: str, took_seconds: float) -> Finding:
    text_ = f"answers in {took_seconds * 1000:.1f} ms"
    if took_seconds < _SLOW_SECONDS:
        return Finding(name, "ok", text_)
    return Finding(name, "warn", text_, "Every request waits for it: have it nearer, or less busy.")


def _clock(name: str, theirs: datetime) -> Finding:
    skew = abs((SystemClock().now() - theirs).total_seconds())
    if skew < _SKEW_SECONDS:
        return Finding(f"clock of {name}", "ok", f"{skew:.1f} s from this machine's")
    mend = "Run an NTP client on both: budgets and expiries go by the clock."
    return Finding(f"clock of {name}", "fail", f"{skew:.0f} s from this machine's", mend)


async def _upstreams(settings: Settings) -> list[Finding]:
    found, build = [], Builder(settings, ToktokTokenizer())
    for spec, secret in fixed_specs(settings):
        upstream = build(spec, secret)
        try:
            await upstream.models()
        except UpstreamFailed as error:
            why = f"it refused (status {error.status})" if error.status else "it cannot be reached"
            mend = f"Check the key and the base URL of {spec.name}; behind a proxy, UPSTREAM_PROXY."
            found.append(Finding(f"upstream {spec.name}", "fail", why, mend))
        else:
            found.append(Finding(f"upstream {spec.name}", "ok", "it lists its models"))
        finally:
            await upstream.close()
    return found


async def _proxy(url: str) -> list[Finding]:
    import aiohttp  # noqa: PLC0415 - slow to import

    if urlsplit(url).scheme not in {"http", "https"}:
        return [Finding("proxy", "fail", "no URL", "--url must begin with http:// or https://.")]
    async with (
        aiohttp.ClientSession(trust_env=True) as session,
        session.get(f"{url.rstrip('/')}/streamz") as answer,
    ):
        if answer.status != 200 or answer.content_type != "text/event-stream":  # noqa: PLR2004 - HTTP's
            mend = 'It must lead to the gateway: `curl URL/healthz` says {"status":"alive"}.'
            return [Finding("proxy", "fail", f"something else answers there ({answer.status})", mend)]
        moments = [time.perf_counter() async for line in answer.content if line.startswith(b"data:")]
    spread = moments[-1] - moments[0] if moments else 0.0
    if spread < 0.2:  # noqa: PLR2004 - they are sent over 0.4 s
        mend = "In nginx: `proxy_buffering off; proxy_http_version 1.1;`. No gzip for text/event-stream."
        return [Finding("proxy", "fail", "events are held back and come at once", mend)]
    return [Finding("proxy", "ok", "events arrive as they are sent")]
