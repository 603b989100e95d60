"""The composition root: chooses adapters, opens them, and closes them in reverse order.

Order matters at the end: streams are settled first (the app's lifespan waits for that), then the ledger
writes what it holds, and only then the pools close.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from api import demo
from api.adapters.accounts_sql import SqlAccounts
from api.adapters.catalog_sql import SqlCatalog
from api.adapters.clock_system import SystemClock
from api.adapters.credentials_sql import SqlCredentials
from api.adapters.database_sql import open_engine
from api.adapters.doorbell_redis import RedisDoorbell
from api.adapters.lease_sql import Lease
from api.adapters.ledger_spool import LedgerSpool, replay_orphans
from api.adapters.ledger_sql import SqlLedger
from api.adapters.limiter_redis import RedisLimiter
from api.adapters.limiter_share import ShareLimiter
from api.adapters.numbers_files import NumbersFiles
from api.adapters.outbox_sql import SqlOutbox
from api.adapters.partitions_sql import Partitions
from api.adapters.prices_sql import SqlPrices
from api.adapters.reaper_sql import Pulse, Reaper
from api.adapters.redis_connect import connect
from api.adapters.replays_redis import RedisReplays
from api.adapters.rollups_sql import Rollups
from api.adapters.sealer_aesgcm import Sealer
from api.adapters.spool_file import Spool, path_of
from api.adapters.tokenizer_toktok import ToktokTokenizer
from api.adapters.upstream_build import Builder, fixed_specs
from api.adapters.usage_sql import SqlUsage
from api.core.cloud_events import signing_key
from api.core.demand import Terms
from api.core.policy import Policy
from api.flow import export as export_flow
from api.flow.gate import Gate
from api.flow.keep import Job, lead, repeat
from api.flow.numbers import tell_the_others
from api.flow.providers import Providers
from api.flow.tend import tend
from api.flow.turns import Places
from api.flow.watch import Watch, note_used, note_used_for_ever
from api.ports import AccountsUnavailable, LedgerUnavailable
from api.settings import worker_name
from auth.authenticator import Authenticator
from auth.door import Door
from auth.issuers import Issuers
from auth.memory import Memory
from auth.tokens import TokenSigner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.deps import LifespanState
    from api.ports import Clock
    from api.settings import Settings
    from api.telemetry import Traces


T = TypeVar("T")

log = logging.getLogger("sluicegate.runtime")

_AGAIN_SECONDS, _ATTEMPTS = 0.25, 3
"""How often it is looked whether the database is there, and how often that may have been an error."""

_CLOSE_SECONDS = 10.0
"""How long a shutdown waits for a database that is away."""

_AWAY_SECONDS = 900.0
"""How long keys are believed that were known before the database went away, where new streams go on."""

_LEAVE_SECONDS = 2.0
"""How long a worker takes its leave."""

_REPORT_SECONDS = 30.0
"""How long a question about usage may keep the database busy."""

_ISSUERS_SECONDS = 10.0
"""How often it is looked whether an identity provider's keys have become old."""


@asynccontextmanager
async def open_ports(settings: Settings) -> AsyncIterator[LifespanState]:
    """Everything one worker needs, opened; closed again on the way out."""
    async with AsyncExitStack() as stack:
        clock = SystemClock()
        # A pool each: the ledger, authentication, and changes of accounts do not wait for one another (P10).
        engine = open_engine(settings.ledger_url)
        reading = open_engine(settings.ledger_url, connections=6)
        changing = open_engine(settings.ledger_url, connections=4)
        keeping = open_engine(settings.ledger_url, connections=4)
        reports = open_engine(settings.ledger_url, connections=4, seconds=_REPORT_SECONDS)
        for opened in (engine, reading, changing, keeping, reports):
            stack.push_async_callback(opened.dispose)
        redis = connect(settings.redis_url, timeout_seconds=settings.redis_timeout_seconds)
        stack.push_async_callback(redis.aclose)
        tokenizer = ToktokTokenizer()
        providers = Providers(fixed_specs(settings), Builder(settings, tokenizer))
        stack.push_async_callback(providers.close)
        issuers = _issuers(settings, stack, clock) if settings.issuers_file else Issuers((), _nothing, clock)
        signer = TokenSigner(demo.secrets_of(settings).secret_key, settings.retired_secrets)
        credentials = SqlCredentials(reading, clock)
        away_seconds = _AWAY_SECONDS if settings.database_away == "spool" else 0.0
        memory = Memory(credentials, clock, away_seconds=away_seconds)
        worker = worker_name()
        spool = LedgerSpool(
            Spool(path_of(settings.spool_dir, worker), max_bytes=settings.spool_max_bytes).make()
        )
        stack.push_async_callback(spool.close)
        ledger = SqlLedger(
            engine,
            spool=spool,
            spools_bookings=settings.database_away == "spool",
            exports=bool(settings.export_url),
        )
        price_book = SqlPrices(changing, clock)
        gate = Gate(
            clock=clock,
            limiter=_limiter(settings, redis, clock, worker),
            replays=RedisReplays(redis, timeout_seconds=settings.redis_timeout_seconds),
            ledger=ledger,
            usage=SqlUsage(reports),
            providers=providers,
            catalog_book=SqlCatalog(
                changing, clock, Sealer(demo.secrets_of(settings).secret_key, settings.retired_secrets)
            ),
            accounts=SqlAccounts(changing, clock),
            credentials=credentials,
            authenticator=Authenticator(memory, signer, issuers, Door(clock), clock),
            doorbell=RedisDoorbell(redis, timeout_seconds=settings.redis_timeout_seconds),
            tokenizer=tokenizer,
            price_book=price_book,
            prices=await _with_database(ledger, price_book.load),
            policy=policy_of(settings, worker),
            places=Places(settings.max_worker_streams),
            shelf=_shelf(settings, worker),
            traces=_traces(settings, stack, worker),
        )
        await _with_database(ledger, gate.read_catalog)
        pulse = Pulse(keeping, clock, worker)
        await _with_database(ledger, pulse.beat)
        for encoding in ("o200k_base", "cl100k_base"):
            gate.chores.start(tokenizer.count([""], encoding), name=f"load {encoding}")
        writing = gate.chores.start(ledger.run(), name="ledger")
        tending = gate.chores.start(tend(gate), name="tend")
        gate.chores.start(Watch(gate).run(), name="watch")
        gate.chores.start(note_used_for_ever(gate), name="last used")
        if not settings.redis_url.startswith("memory://"):
            gate.chores.start(gate.doorbell.listen(gate.changed.set), name="doorbell")
        if issuers.has_key_sets:
            gate.chores.start(_refresh(issuers), name="issuers")
        leave = _keep(gate, settings, ledger, stack, pulse=pulse, engine=keeping)
        try:
            outbox = SqlOutbox(changing, clock)
            yield {"gate": gate, "authenticator": gate.authenticator, "signer": signer, "outbox": outbox}
        finally:
            tending.cancel()
            await ledger.close()
            await asyncio.wait([writing], timeout=_CLOSE_SECONDS)
            await note_used(gate)
            await gate.chores.cancel()
            await leave()


def _shelf(settings: Settings, worker: str) -> NumbersFiles | None:
    """By the process that started the workers; one alone has nobody to tell."""
    if settings.web_concurrency == 1:
        return None
    return NumbersFiles(settings.data_dir / "metrics", os.getppid(), worker)


def _traces(settings: Settings, stack: AsyncExitStack, worker: str) -> Traces | None:
    if settings.otel_sdk_disabled or not settings.otel_exporter_otlp_endpoint:
        return None
    from api.adapters.traces_otel import Traces  # noqa: PLC0415 - slow to import, and mostly off

    traces = Traces(settings.otel_exporter_otlp_endpoint, settings.otel_service_name, worker)
    stack.push_async_callback(asyncio.to_thread, traces.close)
    return traces


async def _with_database(ledger: SqlLedger, work: Callable[[], Awaitable[T]]) -> T:
    """What the work says, as soon as the database is there. Raises what the work raises though it is.

    A worker that is started while the database is away waits: were it to fail, all others would be stopped.
    """
    for attempt in range(_ATTEMPTS):
        await _there(ledger)
        try:
            return await work()
        except (AccountsUnavailable, SQLAlchemyError, OSError):
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError


async def _there(ledger: SqlLedger) -> None:
    told = False
    while True:
        try:
            await ledger.ping()
        except LedgerUnavailable as error:
            if _asked_to_stop():
                raise
            if not told:
                log.warning("this worker waits for the database: %s", error)
            told = True
            await asyncio.sleep(_AGAIN_SECONDS)
        else:
            return


def _asked_to_stop() -> bool:
    """Whether the server has had its signal, which it looks at only once the app has started."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return bool(getattr(server, "should_exit", False))


def _keep(
    gate: Gate,
    settings: Settings,
    ledger: SqlLedger,
    stack: AsyncExitStack,
    *,
    pulse: Pulse,
    engine: AsyncEngine,
) -> Callable[[], Awaitable[None]]:
    """Start what goes on beside the streams; returns how this worker takes its leave."""
    worker, seconds = gate.policy.worker, min(2 * settings.tick_seconds, settings.lease_seconds / 8)
    lease = Lease(engine, gate.clock, worker, seconds=settings.lease_seconds * 0.4)
    reaper = Reaper(
        engine,
        lease,
        gate.clock,
        lambda: gate.prices,
        dead_seconds=settings.lease_seconds * 0.8,
        orphan_seconds=settings.stream_seconds + 60,
        exports=bool(settings.export_url),
    )
    partitions = Partitions(engine, lease, gate.clock, settings.retention_months)
    books: list[Job] = [Rollups(engine, lease), partitions]

    async def look_after() -> None:
        before = reaper.closed
        await reaper.look()
        await lead(lease.hold, [reaper])
        if reaper.closed > before:
            gate.numbers.add("reaper_closed", by=reaper.closed - before)

    async def take_over() -> None:
        if not ledger.away:
            most = settings.spool_max_bytes
            await replay_orphans(settings.spool_dir, ledger.commit_again, max_bytes=most)

    async def leave() -> None:
        with suppress(OSError):
            await tell_the_others(gate)
        with suppress(Exception):
            async with asyncio.timeout(_LEAVE_SECONDS):
                await lease.give_up()
                if not ledger.spooled_bytes:  # else something of it is open
                    await pulse.stop()

    for name, what, work in (
        ("pulse", "this worker cannot show that it lives", pulse.beat),
        ("spools", "a dead worker's spool waits", take_over),
        # Apart: a backlog of the books must not keep the dead waiting.
        ("reaper", "what the dead have left waits", look_after),
        ("books", "the books wait", lambda: lead(lease.hold, books)),
        ("numbers", "metrics cannot be written", lambda: tell_the_others(gate)),
    ):
        gate.chores.start(repeat(work, what, seconds=seconds), name=name)
    if settings.export_url:
        export = _export(settings, SqlOutbox(engine, gate.clock), gate.clock, lease, stack)
        gate.chores.start(repeat(export.rounds, "the export waits", seconds=seconds), name="export")
    return leave


def _export(
    settings: Settings, outbox: SqlOutbox, clock: Clock, lease: Lease, stack: AsyncExitStack
) -> export_flow.Export:
    from api.adapters.export_http import HttpReceiver  # noqa: PLC0415 - slow to import

    receiver = HttpReceiver(
        settings.export_url,
        token=settings.export_token.get_secret_value(),
        timeout_seconds=settings.export_timeout_seconds,
    )
    stack.push_async_callback(receiver.close)
    secret = settings.export_secret.get_secret_value()
    terms = export_flow.Terms(
        settings.export_source, settings.export_batch, signing_key(secret) if secret else None
    )
    return export_flow.Export(outbox, receiver, clock, lease.hold, terms)


def _limiter(settings: Settings, redis: Redis, clock: SystemClock, worker: str) -> ShareLimiter:
    lease, tick = (int(seconds * 1_000_000) for seconds in (settings.lease_seconds, settings.tick_seconds))
    terms = Terms(lease, 3 * tick, 2 * tick)
    in_redis = RedisLimiter(redis, terms, timeout_seconds=settings.redis_timeout_seconds)
    return ShareLimiter(
        in_redis,
        clock,
        terms,
        worker=worker,
        mode=settings.redis_away,
        workers=settings.web_concurrency,
        tick_seconds=settings.tick_seconds,
    )


async def _nothing(_url: str) -> bytes:
    raise OSError("no identity provider is configured")


def _issuers(settings: Settings, stack: AsyncExitStack, clock: SystemClock) -> Issuers:
    from api.adapters.jwks_http import KeyFetcher  # noqa: PLC0415 - slow to import

    fetcher = KeyFetcher()
    stack.push_async_callback(fetcher.close)
    return Issuers(settings.issuers(), fetcher.fetch, clock)


async def _refresh(issuers: Issuers) -> None:
    """Keep the identity providers' keys fresh, so that no request has to wait for them."""
    while True:
        try:
            await issuers.refresh()
        except Exception:
            log.exception("the identity providers' keys could not be refreshed")
        await asyncio.sleep(_ISSUERS_SECONDS)


def policy_of(settings: Settings, worker: str = "worker") -> Policy:
    """What the flow needs to know of the settings."""
    return Policy(
        lease_seconds=settings.lease_seconds,
        tick_seconds=settings.tick_seconds,
        heartbeat_seconds=settings.heartbeat_seconds,
        stream_seconds=settings.stream_seconds,
        send_seconds=settings.send_seconds,
        silence_seconds=settings.upstream_silence_seconds,
        settle_seconds=settings.settle_seconds,
        drain_seconds=settings.drain_seconds,
        default_model=settings.model_or_default,
        default_max_streams=settings.default_max_streams,
        wall_is_error=settings.budget_end == "error",
        continuous_usage=settings.continuous_usage,
        replay_max_bytes=settings.replay_max_bytes,
        metadata_hosts=settings.upstream_metadata_hosts,
        reads_on=settings.on_disconnect == "drain",
        read_on_seconds=settings.read_on_seconds,
        read_on_tokens=settings.read_on_tokens,
        read_on_streams=settings.read_on_streams,
        worker=worker,
    )
