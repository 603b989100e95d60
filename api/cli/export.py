"""`sluicegate export`: how the export of usage events stands, and what nobody takes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from api.adapters.clock_system import SystemClock
from api.adapters.outbox_sql import SqlOutbox
from api.cli.periods import From, Until, period
from api.cli.shared import Json, cell, fail, run, show, table

if TYPE_CHECKING:
    from api.cli.shared import Office
    from api.exports import DeadLetter

app = typer.Typer(help="Usage events on their way to whoever bills.", no_args_is_help=True)


def _outbox(office: Office) -> SqlOutbox:
    return SqlOutbox(office.engine, SystemClock())


@app.command("status")
def status(as_json: Json = False) -> None:
    """What waits, what was delivered, what is dead, and what went wrong last."""

    async def work(office: Office) -> tuple[bool, dict[str, object]]:
        return bool(office.settings.export_url), asdict(await _outbox(office).status())

    on, found = run(work)
    shown = found | {"enabled": on}
    text = table(("", ""), [(name.replace("_", " "), value) for name, value in found.items()]).strip("\n ")
    show(shown, as_json, text if on else f"{text}\nEXPORT_URL is not set here: no event is exported.")


@app.command("dead", epilog="Example: sluicegate export dead --limit 1000")
def dead(
    after: Annotated[str | None, typer.Option(help="Only those after this event's id.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 100,
    as_json: Json = False,
) -> None:
    """Events that the receiver refused too often, and what it said."""

    async def work(office: Office) -> list[DeadLetter]:
        return await _outbox(office).dead(after=after, limit=limit)

    found = run(work)
    rows = [
        (one.event_id, one.tenant_id, one.started_at, one.attempts, one.dead_at, one.error) for one in found
    ]
    text = table(("event", "tenant", "came (UTC)", "attempts", "dead since", "error"), rows)
    show([asdict(one) for one in found], as_json, text or "There are no dead letters.")


@app.command("retry", epilog="Example: sluicegate export retry --all")
def retry(
    event_ids: Annotated[list[str] | None, typer.Argument(metavar="[EVENT_ID]...")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False,
    as_json: Json = False,
) -> None:
    """Send dead letters again."""
    if everything == bool(event_ids):
        raise typer.BadParameter("name some events, or say --all")

    async def work(office: Office) -> list[str]:
        return await _outbox(office).retry(None if everything else event_ids, by=office.by)

    found = run(work)
    missing = sorted(set(event_ids or ()) - set(found))
    if missing:
        fail(f"No dead letter: {', '.join(map(cell, missing))}. See: sluicegate export dead")
    show({"retried": len(found)}, as_json, f"{len(found)} events are sent again.")


@app.command("backfill", epilog="Example: sluicegate export backfill --from 2026-03-01 --to 2026-04-01")
def backfill(
    start: From,
    end: Until,
    tenant: Annotated[str | None, typer.Option(help="Of this tenant alone.")] = None,
    as_json: Json = False,
) -> None:
    """Export events from before the export was switched on, or while it was off.

    Whatever has a row in the outbox is left alone; rows are kept for thirty days after their delivery.
    """
    begins, ends = period(start, end)

    async def work(office: Office) -> int:
        return await _outbox(office).backfill(begins, ends, tenant_id=tenant, by=office.by)

    count = run(work)
    show({"added": count}, as_json, f"{count} events will be exported.")
