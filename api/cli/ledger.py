"""`sluicegate reconcile`: close what dead workers have left open, now."""

from __future__ import annotations

import asyncio
import secrets
import socket
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from api.adapters.clock_system import SystemClock
from api.adapters.database_sql import open_engine
from api.adapters.lease_sql import Lease
from api.adapters.ledger_spool import replay_orphans
from api.adapters.ledger_sql import SqlLedger
from api.adapters.prices_sql import SqlPrices
from api.adapters.reaper_sql import Reaper
from api.cli.shared import Json, run, show

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.cli.shared import Office
    from api.settings import Settings

_LOOK_SECONDS = 1.0


@dataclass
class Reconciled:
    """What was done. `leads` is False where a running worker does it already."""

    spools: int
    leads: bool
    closed: int
    open: int


def reconcile(
    wait_seconds: Annotated[
        float, typer.Option(min=1, help="A worker that shows no life for so long is dead.")
    ] = 12.0,
    as_json: Json = False,
) -> None:
    """Replay this host's spools, and close the bookings of dead workers from their last checkpoints.

    Running workers do the same by themselves, within 30 seconds; then this says so.
    """

    async def work(office: Office) -> Reconciled:
        engine = open_engine(office.settings.ledger_url)
        try:
            return await _reconcile(office.settings, engine, wait_seconds)
        finally:
            await engine.dispose()

    done = run(work)
    if done.leads:
        text = f"{done.closed} bookings of dead workers closed, {done.open} still open."
    else:
        text = f"A running worker closes what dead ones leave. {done.open} bookings are open."
    show(asdict(done), as_json, f"{done.spools} spools of dead workers replayed. {text}")


async def _held(lease: Lease, seconds: float) -> bool:
    """Whether nobody leads; the lease of a dead leader runs out in this time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not (held := await lease.hold()) and loop.time() < end:
        typer.echo("Looking whether a running worker keeps the books ...", err=True)
        await asyncio.sleep(_LOOK_SECONDS)
    return held


async def _reconcile(settings: Settings, engine: AsyncEngine, wait_seconds: float) -> Reconciled:
    clock, ledger = SystemClock(), SqlLedger(engine, exports=bool(settings.export_url))
    spools = await replay_orphans(settings.spool_dir, ledger.commit_again, max_bytes=settings.spool_max_bytes)
    holder = f"reconcile:{socket.gethostname()[-60:]}:{secrets.token_hex(4)}"
    lease = Lease(engine, clock, holder, seconds=settings.lease_seconds)
    if not await _held(lease, settings.lease_seconds):
        return Reconciled(spools, leads=False, closed=0, open=await ledger.in_flight_count())
    prices = await SqlPrices(engine, clock).load()
    reaper = Reaper(
        engine,
        lease,
        clock,
        lambda: prices,
        dead_seconds=wait_seconds,
        orphan_seconds=settings.stream_seconds + 60,
        exports=bool(settings.export_url),
    )
    typer.echo(f"Looking for {wait_seconds:.0f} s which workers live ...", err=True)
    end = clock.monotonic() + wait_seconds
    while True:
        over = clock.monotonic() > end
        await reaper.round()
        if over or not await lease.hold():
            break
        await asyncio.sleep(min(_LOOK_SECONDS, wait_seconds / 3))
    await lease.give_up()
    return Reconciled(spools, leads=True, closed=reaper.closed, open=await ledger.in_flight_count())
