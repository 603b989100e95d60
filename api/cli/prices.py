"""`sluicegate prices`: what models cost, what tenants pay on top, and what was charged by other prices."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from api.adapters.clock_system import SystemClock
from api.adapters.reprice_sql import SqlReprice
from api.cli.periods import From, Until, moment, period
from api.cli.shared import Json, run, show, table
from api.core.money import dollars
from api.core.price_file import PriceFile, parse_prices
from api.core.repricing import Period
from api.schema_prices import (
    AMOUNTS,
    LEAST_BASIS_POINTS,
    MOST_BASIS_POINTS,
    amounts_out,
    imported_out,
    price_out,
)

if TYPE_CHECKING:
    from datetime import datetime

    from api.cli.shared import Office
    from api.core.repricing import Repriced
    from api.pricing import KeptMarkup, KeptPrice, PriceChange

app = typer.Typer(help="What models cost, and what tenants pay on top.", no_args_is_help=True)

_PAGE = 1000
_SHOWN = 20
_PROGRESS_SECONDS = 2.0

ValidFrom = Annotated[
    str | None, typer.Option(metavar="WHEN", help="2026-04-01, or 2026-04-01T12:00; now by default.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
OfModel = Annotated[str | None, typer.Option(help="Only what this model, or name with a *, falls under.")]


@app.command(
    "import", epilog="Example: sluicegate prices import prices.json --valid-from 2026-04-01 --dry-run"
)
def import_prices(
    file: Annotated[
        typer.FileText,
        typer.Argument(
            encoding="utf-8", help="Our JSON, or LiteLLM's; - for standard input. See docs/prices.md."
        ),
    ],
    valid_from: ValidFrom = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Add a version of each price that differs. Workers go by it within a second."""
    read, since = _read(file), _moment("--valid-from", valid_from)
    done = run(
        lambda office: office.prices.import_prices(read.prices, since, by=office.by, dry_run=dry_run),
        changes=not dry_run,
    )
    when, did = f"{done.valid_from:%Y-%m-%d %H:%M:%S} UTC", "Would add" if dry_run else "Added"
    lines = [f"{did} {len(done.changes)} prices, valid from {when}; {done.unchanged} hold already."]
    if done.changes:
        lines.append(table(("model", *_WORDS), [_changed(one) for one in done.changes[:_SHOWN]]))
    if len(done.changes) > _SHOWN:
        lines.append(f"... and {len(done.changes) - _SHOWN} more")
    if read.left_out:
        lines.append(f"{read.left_out} entries without a price for tokens were left out.")
    if read.tiered:
        lines.append(f"{read.tiered} of the file cost more for long prompts: what short ones cost was taken.")
    if since is not None and done.changes and since < SystemClock().now():
        lines.append("Requests that were charged already keep their price. Next: sluicegate prices reprice")
    shown = imported_out(done, left_out=read.left_out, tiered=read.tiered, dry_run=dry_run)
    show(shown, as_json, "\n".join(lines))


@app.command("list", epilog="Example: sluicegate prices list --model gpt-4o-mini --at 2026-03-31T23:59:59")
def list_prices(
    model: OfModel = None,
    at: Annotated[str | None, typer.Option(metavar="WHEN", help="Now by default.")] = None,
    history: Annotated[bool, typer.Option("--history", help="All versions, newest first.")] = False,
    as_json: Json = False,
) -> None:
    """What holds, by model. Of a model all that it falls under; the last of them is what it costs."""
    if history and at is not None:
        raise typer.BadParameter("--history has all moments; leave out --at")
    then = _moment("--at", at)

    async def work(office: Office) -> list[KeptPrice]:
        if model is not None and not history:
            return await office.prices.listed(model=model, at=then)
        found: list[KeptPrice] = []
        while page := await _page(office, found, model, then, history=history):
            found += page
        return found

    rows = [price_out(row) for row in run(work)]
    columns = ("version", "model", "valid_from", *AMOUNTS)
    head = ("version", "model", "valid from", *_WORDS)
    text = table(head, [[row[name] for name in columns] for row in rows])
    show(rows, as_json, text or "No price holds. Next: sluicegate prices import FILE")


async def _page(
    office: Office, found: list[KeptPrice], model: str | None, at: datetime | None, *, history: bool
) -> list[KeptPrice]:
    """The rows behind those that were found."""
    if history:
        before = found[-1].version if found else None
        return await office.prices.history(model=model, before=before, limit=_PAGE)
    return await office.prices.listed(at=at, after=found[-1].model if found else "", limit=_PAGE)


@app.command(
    "markup", epilog="Example: sluicegate prices markup TENANT_ID --percent 20 --valid-from 2026-04-01"
)
def set_markup(
    tenant_id: str,
    percent: Annotated[
        str, typer.Option(help="On top of each price, with two decimals; less than 0 is a discount.")
    ],
    valid_from: ValidFrom = None,
    as_json: Json = False,
) -> None:
    """Set what a tenant pays on top from a moment on."""
    basis_points, since = _basis_points(percent), _moment("--valid-from", valid_from)
    kept = run(
        lambda office: office.prices.set_markup(tenant_id, basis_points, since, by=office.by), changes=True
    )
    text = f"{tenant_id} pays {_percent(kept)} on top from {kept.valid_from:%Y-%m-%d %H:%M:%S} UTC on."
    show(asdict(kept), as_json, text)


@app.command("markups", epilog="Example: sluicegate prices markups --tenant TENANT_ID")
def list_markups(
    tenant: Annotated[str | None, typer.Option(help="Of this tenant alone.")] = None, as_json: Json = False
) -> None:
    """What tenants pay on top: all versions, newest first."""

    async def work(office: Office) -> list[KeptMarkup]:
        if tenant is not None:
            await office.accounts.tenant(tenant)
        found: list[KeptMarkup] = []
        while page := await office.prices.markups(
            tenant, before=found[-1].version if found else None, limit=_PAGE
        ):
            found += page
        return found

    kept = run(work)
    rows = [(row.version, row.tenant_id, row.valid_from, _percent(row), row.created_by) for row in kept]
    text = table(("version", "tenant", "valid from", "percent", "by"), rows)
    show([asdict(row) for row in kept], as_json, text or "No markups yet.")


@app.command(
    "reprice", epilog="Example: sluicegate prices reprice --from 2026-03-01 --to 2026-04-01 --dry-run"
)
def reprice(
    since: From,
    until: Until,
    tenant: Annotated[str | None, typer.Option(help="Of this tenant alone.")] = None,
    model: Annotated[str | None, typer.Option(help="Of this model, or name with a *.")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Charge a period by the price list as it is now: corrections are added, nothing is changed.

    Safe to run again, and while the gateway serves: what is right already is left alone.
    """
    asked = Period(*period(since, until), tenant, model)

    async def work(office: Office) -> Repriced:
        if tenant is not None:
            await office.accounts.tenant(tenant)
        exports = bool(office.settings.export_url)
        job = SqlReprice(office.engine, SystemClock(), office.prices, exports=exports, by=office.by)
        return await job.run(asked, dry_run=dry_run, progress=_Progress())

    done = run(work)
    text = f"{done.bookings} requests, {'to correct' if dry_run else 'corrected'}: {_said(done)}"
    show({**done._asdict(), "dry_run": dry_run}, as_json, text)


class _Progress:
    """Tells a person who waits, every two seconds."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self._told = self._clock.monotonic()

    def __call__(self, done: Repriced) -> None:
        now = self._clock.monotonic()
        if now - self._told >= _PROGRESS_SECONDS:
            self._told = now
            typer.echo(f"{done.bookings} requests looked at: {_said(done)}", err=True)


_WORDS = tuple(name.replace("_", " ") for name in AMOUNTS)


def _said(done: Repriced) -> str:
    sign = "-" if done.nano_dollars < 0 else "+"
    return (
        f"{done.corrected}, {sign}{dollars(abs(done.nano_dollars))} dollars; {done.unpriced} without a price."
    )


def _changed(change: PriceChange) -> tuple[str, ...]:
    """A row: what it costs, and where it differs what it cost."""
    after = amounts_out(change.after)
    before = after if change.before is None else amounts_out(change.before)
    steps = (
        after[name] if before[name] == after[name] else f"{before[name]} -> {after[name]}" for name in AMOUNTS
    )
    return (change.model, *steps)


def _read(file: typer.FileText) -> PriceFile:
    try:
        return parse_prices(file.read())
    except UnicodeDecodeError:
        raise typer.BadParameter("is not UTF-8", param_hint="FILE") from None
    except OSError as error:
        raise typer.BadParameter(f"cannot be read: {type(error).__name__}", param_hint="FILE") from None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="FILE") from None


def _moment(option: str, said: str | None) -> datetime | None:
    return None if said is None else moment(said, option)


def _basis_points(percent: str) -> int:
    try:
        points = 100 * Decimal(percent)
    except ArithmeticError:
        points = Decimal("NaN")
    known = points.is_finite() and LEAST_BASIS_POINTS <= points <= MOST_BASIS_POINTS
    if not (known and points == int(points)):
        least, most = LEAST_BASIS_POINTS // 100, MOST_BASIS_POINTS // 100
        raise typer.BadParameter(f"--percent is from {least} to {most}, with two decimals at most")
    return int(points)


def _percent(markup: KeptMarkup) -> str:
    return f"{Decimal(markup.basis_points) / 100:.2f}%"
