"""What the commands share: settings, the database, results, faults."""

from __future__ import annotations

import asyncio
import getpass
import json
import socket
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from api import demo
from api.accounts import Actor, ExternalIdTaken, NoSuchKey, NoSuchTenant
from api.adapters.accounts_sql import SqlAccounts
from api.adapters.catalog_sql import SqlCatalog
from api.adapters.clock_system import SystemClock
from api.adapters.database_sql import migrate, open_engine
from api.adapters.doorbell_redis import RedisDoorbell
from api.adapters.ledger_sql import SqlLedger
from api.adapters.prices_sql import SqlPrices
from api.adapters.redis_connect import connect
from api.adapters.sealer_aesgcm import CannotOpen, Sealer
from api.cataloging import NoSuchEntry, NoSuchUpstream, UpstreamInUse
from api.ports import AccountsUnavailable, LedgerUnavailable
from api.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

_REFUSALS = (
    *(NoSuchTenant, NoSuchKey, ExternalIdTaken, NoSuchUpstream, NoSuchEntry, UpstreamInUse),
    CannotOpen,
)

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True)
class Office:
    """What a command works with. `by` is the person at this machine, for the audit log."""

    settings: Settings
    accounts: SqlAccounts
    ledger: SqlLedger
    prices: SqlPrices
    catalog: SqlCatalog
    engine: AsyncEngine
    by: Actor


def settings_or_exit() -> Settings:
    """The settings; where they are refused, says why and ends with status 2."""
    try:
        return Settings()
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_input=False):
            name = "_".join(str(part) for part in fault["loc"]).upper()
            message = str(fault["msg"]).removeprefix("Value error, ")
            typer.echo(f"{name}: {message}" if name else message, err=True)
        raise typer.Exit(2) from None


def run(work: Callable[[Office], Awaitable[T]], *, changes: bool = False) -> T:
    """Do `work` on the database. What `changes` accounts is told to the workers."""
    settings = settings_or_exit()
    try:
        if settings.auto_migrate:
            migrate(settings.ledger_url)
        return asyncio.run(_with_office(settings, work, changes=changes))
    except _REFUSALS as error:
        fail(str(error))
    except (SQLAlchemyError, AccountsUnavailable, LedgerUnavailable, OSError) as error:
        cause = getattr(error.__cause__ or error, "orig", None) or error
        fail(f"The database cannot be used: {cause}\nCheck DATABASE_URL, or DATA_DIR for SQLite.")
    raise AssertionError("unreachable")


async def _with_office(settings: Settings, work: Callable[[Office], Awaitable[T]], *, changes: bool) -> T:
    engine, clock = open_engine(settings.ledger_url), SystemClock()
    by = Actor(f"cli:{_person()}@{socket.gethostname()}")
    try:
        accounts, prices = SqlAccounts(engine, clock), SqlPrices(engine, clock)
        catalog = SqlCatalog(
            engine, clock, Sealer(demo.secrets_of(settings).secret_key, settings.retired_secrets)
        )
        result = await work(Office(settings, accounts, SqlLedger(engine), prices, catalog, engine, by))
    finally:
        await engine.dispose()
    if changes and not settings.redis_url.startswith("memory://"):
        redis = connect(settings.redis_url, timeout_seconds=settings.redis_timeout_seconds)
        await RedisDoorbell(redis, timeout_seconds=settings.redis_timeout_seconds).ring()
        await redis.aclose()
    return result


def _person() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name, as in many containers
        return "unknown"


def checked(model: type[M], /, **values: Any) -> M:
    """What the API refuses, the command line refuses too."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in fault["loc"]) or "value"
        raise typer.BadParameter(f"{name}: {str(fault['msg']).removeprefix('Value error, ')}") from None


def fail(message: str) -> Any:
    """Say what is wrong, and end with status 1."""
    typer.echo(message, err=True)
    raise typer.Exit(1)


def show(value: Any, as_json: bool, text: str) -> None:
    """Print a result, for a program or for a person."""
    typer.echo(json.dumps(value, default=_plain) if as_json else text)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def cell(value: Any) -> str:
    """A value in a table; nothing for None."""
    if value is None:
        return ""
    text = f"{value:%Y-%m-%d %H:%M:%S}" if isinstance(value, datetime) else str(value)
    # What somebody else wrote must not move the cursor, nor look like another line.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns aligned by spaces; empty for no rows."""
    if not rows:
        return ""
    lines = [tuple(head), *(tuple(cell(value) for value in row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
