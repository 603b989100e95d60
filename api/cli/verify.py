"""`sluicegate verify`: does the ledger keep what it promises?"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.adapters.clock_system import SystemClock
from api.adapters.database_sql import open_engine
from api.adapters.verify_sql import Scope, Verify
from api.cli.periods import From, Until, period
from api.cli.shared import Json, cell, run, show
from api.cli.streams import leases
from api.core.invariants import SHOWN, Check
from api.flow.reserved import check_streams

if TYPE_CHECKING:
    from api.cli.shared import Office

_STATEMENT_SECONDS = 600.0


def verify(
    start: From,
    end: Until,
    tenant: Annotated[str | None, typer.Option(help="Of this tenant alone.")] = None,
    as_json: Json = False,
) -> None:
    """Check every invariant of the ledger over a period; exit status 1 where one is broken.

    The period is that of the requests' coming in, from --from on and before --to. Reservations and dead
    workers are looked at as they are now. Says on standard error what it is doing.
    """
    begins, ends = period(start, end)
    scope = Scope(begins, ends, tenant)
    checks = run(lambda office: _verify(office, scope))
    held = all(check.held for check in checks)
    told = {"from": begins, "to": ends, "held": held, "checks": [check.told() for check in checks]}
    show(told, as_json, "\n".join(_lines(checks)))
    if not held:
        raise typer.Exit(1)


async def _verify(office: Office, scope: Scope) -> list[Check]:
    settings = office.settings
    if scope.tenant_id is not None:
        await office.accounts.tenant(scope.tenant_id)
    engine = open_engine(settings.ledger_url, connections=2, seconds=_STATEMENT_SECONDS)
    looking = Verify(engine, SystemClock(), scope, says=_say, pause=asyncio.sleep)
    try:
        return [
            *await looking.events(),
            await looking.rollups(),
            await looking.outbox(exports=bool(settings.export_url)),
            await looking.dead_bookings(
                lease_seconds=settings.lease_seconds, tick_seconds=settings.tick_seconds
            ),
            await _streams(office, scope),
        ]
    finally:
        await engine.dispose()


async def _streams(office: Office, scope: Scope) -> Check:
    if office.settings.redis_url.startswith("memory://"):
        check = Check("streams", "reservations are those of the streams that run")
        check.add("Not looked at: with REDIS_URL=memory:// only the serving process knows them.")
        return check
    _say("reservations")
    tenants = [scope.tenant_id] if scope.tenant_id is not None else await _tenants(office)
    async with leases(office.settings) as held:
        return await check_streams(held, office.ledger, tenants, pause=asyncio.sleep)


async def _tenants(office: Office) -> list[str]:
    """All that there are, and whoever has a booking."""
    known = {tenant.id for tenant in await office.accounts.tenants(deleted=True)}
    return sorted(known | {one.booking.tenant_id for one in await office.ledger.in_flight()})


def _say(what: str) -> None:
    typer.echo(f"verify: {what}", err=True)


def _lines(checks: list[Check]) -> list[str]:
    lines = []
    for check in checks:
        state = "held" if check.held else f"BROKEN, {check.broken} rows" if check.broken else "UNKNOWN"
        lines.append(f"{check.name}: {state}  ({check.says})")
        lines += [f"    {_row(row)}" for row in check.rows]
        if check.broken > len(check.rows) == SHOWN:
            lines.append(f"    ... and {check.broken - SHOWN} more")
        if check.note:
            lines.append(f"    {check.note}")
    return lines


def _row(row: dict[str, Any]) -> str:
    shown = " ".join(
        f"{name}={cell(value)}" for name, value in row.items() if name != "fault" and value != ""
    )
    return f"{shown}: {cell(row['fault'])}"
