"""The `sluicegate` command. It reads the same settings as the server, and works on the same database.

Exit status: 0 done, 1 not found or refused, 2 wrong usage or settings.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from api.adapters.accounts_sql import SqlAccounts
from api.adapters.clock_system import SystemClock
from api.adapters.database_sql import migrate, open_engine
from api.adapters.ledger_sql import SqlLedger
from api.ports import AccountsUnavailable, NoSuchTenant
from api.routes.usage import event_out
from api.schema import KeyIn, TenantIn
from api.settings import Settings
from auth.principal import TENANT_SCOPES, Scope

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

app = typer.Typer(
    name="sluicegate",
    help="A multi-tenant streaming gateway for LLMs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
tenant_app = typer.Typer(help="Tenants: the customers.", no_args_is_help=True)
key_app = typer.Typer(help="API keys of tenants.", no_args_is_help=True)
app.add_typer(tenant_app, name="tenant")
app.add_typer(key_app, name="key")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """The entry point."""
    app()


# --- running it -------------------------------------------------------------------------------------


@app.command(epilog="Example: PORT=9000 sluicegate serve")
def serve(as_json: Json = False) -> None:
    """Serve. Settings come from the environment and from .env; see .env.example."""
    from api.serving import serve as run  # noqa: PLC0415 - the server is slow to import; other commands are not

    run(_settings(), as_json=as_json)


@app.command("migrate")
def migrate_command(as_json: Json = False) -> None:
    """Bring the database to the newest revision."""
    settings = _settings()
    migrate(settings.ledger_url)
    _show({"migrated": True}, as_json, "The database is at the newest revision.")


@app.command("check-config")
def check_config(as_json: Json = False) -> None:
    """Check the settings without serving; exit status 2 if they are refused."""
    settings = _settings()
    shown = settings.model_dump(mode="json")  # secrets are masked by their type
    for name in ("database_url", "redis_url", "openai_base_url"):
        shown[name] = _without_password(shown[name])
    _show(
        shown,
        as_json,
        f"The settings are fine: {'demo' if settings.demo else 'production'}, "
        f"upstream {'scripted' if settings.scripted else 'OpenAI-compatible'}, "
        f"{settings.web_concurrency} worker(s) on {settings.host}:{settings.port}.",
    )


@app.command("scripted-upstream", epilog="Example: sluicegate scripted-upstream --port 9000")
def scripted_upstream(
    port: Annotated[int, typer.Option(help="0 takes any free one.")] = 9000,
    as_json: Json = False,
) -> None:
    """Serve the scripted model alone, as an OpenAI-compatible server, for tests and benchmarks."""
    from api.adapters.scripted_server import run  # noqa: PLC0415 - as above

    run(port, lambda url: _show({"url": url}, as_json, f"The scripted model is at {url}/v1"))


# --- accounts ---------------------------------------------------------------------------------------


@tenant_app.command("create", epilog="Example: sluicegate tenant create Acme --max-streams 50")
def tenant_create(
    name: Annotated[str, typer.Argument(help="What people call it.")],
    max_streams: Annotated[int | None, typer.Option(min=1, help="Cap on streams at one time.")] = None,
    as_json: Json = False,
) -> None:
    """Create a tenant."""
    settings = _settings()
    _check(TenantIn, name=name, max_streams=max_streams)
    tenant = _run(
        settings,
        lambda accounts, _: accounts.create_tenant(name, max_streams or settings.default_max_streams),
    )
    _show(
        asdict(tenant),
        as_json,
        f"Created tenant {tenant.id} ({name}), {tenant.max_streams} streams at a time.\n"
        f"Next: sluicegate key issue {tenant.id}",
    )


@tenant_app.command("list")
def tenant_list(as_json: Json = False) -> None:
    """All tenants, oldest first."""
    tenants = _run(_settings(), lambda accounts, _: accounts.tenants())
    rows = [(t.id, t.name, str(t.max_streams), "active" if t.active else "suspended") for t in tenants]
    text = _table(("id", "name", "max streams", "state"), rows)
    _show(
        [asdict(t) for t in tenants], as_json, text or "No tenants yet. Next: sluicegate tenant create NAME"
    )


@key_app.command("issue", epilog="Example: sluicegate key issue TENANT_ID --name web")
def key_issue(
    tenant_id: str,
    name: Annotated[str, typer.Option(help="To tell it from others.")] = "default",
    scope: Annotated[
        list[Scope] | None, typer.Option(help="Repeatable; chat and usage:read by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Issue a key. It is shown this once."""
    _check(KeyIn, name=name)
    scopes = frozenset(scope) if scope else TENANT_SCOPES
    info, text = _run(_settings(), lambda accounts, _: accounts.issue_key(tenant_id, name, scopes))
    _show(
        {**asdict(info), "key": text},
        as_json,
        f"{text}\nKeep it: it cannot be shown again. Its id is {info.id}.",
    )


@key_app.command("list")
def key_list(tenant_id: str, as_json: Json = False) -> None:
    """A tenant's keys, oldest first."""

    async def work(accounts: SqlAccounts, _: SqlLedger) -> list[Any]:
        if await accounts.tenant(tenant_id) is None:
            raise NoSuchTenant(f"No tenant has the id `{tenant_id}`.")
        return list(await accounts.keys(tenant_id))

    keys = _run(_settings(), work)
    rows = [
        (
            k.id,
            k.name,
            " ".join(k.scopes),
            f"revoked {k.revoked_at:%Y-%m-%d %H:%M}" if k.revoked_at else "active",
        )
        for k in keys
    ]
    text = _table(("id", "name", "scopes", "state"), rows)
    _show([asdict(k) for k in keys], as_json, text or f"No keys yet. Next: sluicegate key issue {tenant_id}")


@key_app.command("revoke")
def key_revoke(key_id: str, as_json: Json = False) -> None:
    """Revoke a key: within a second every worker refuses it."""
    key = _run(_settings(), lambda accounts, _: accounts.revoke_key(key_id))
    if key is None:
        _fail(f"No key has the id `{key_id}`.")
    _show(asdict(key), as_json, f"Revoked {key.id} ({key.name}).")


# --- usage ------------------------------------------------------------------------------------------


@app.command(epilog="Example: sluicegate usage --tenant TENANT_ID --events")
def usage(
    tenant: Annotated[str, typer.Option(help="The tenant's id.")],
    events: Annotated[bool, typer.Option("--events", help="The single events instead of the sums.")] = False,
    as_json: Json = False,
) -> None:
    """What a tenant used."""

    async def work(accounts: SqlAccounts, ledger: SqlLedger) -> Any:
        if await accounts.tenant(tenant) is None:
            raise NoSuchTenant(f"No tenant has the id `{tenant}`.")
        if not events:
            return asdict(await ledger.totals(tenant))
        found: list[dict[str, Any]] = []
        while page := await ledger.events(tenant, after=found[-1]["id"] if found else None, limit=1000):
            found += [event_out(event) for event in page]
        return found

    result = _run(_settings(), work)
    if events:
        columns = (
            "started_at",
            "request_id",
            "model",
            "input_tokens",
            "output_tokens",
            "ended",
            "source",
            "certainty",
        )
        rows = [tuple(_cell(event[column]) for column in columns) for event in result]
        _show(result, as_json, _table(columns, rows) or "No usage yet.")
    else:
        text = "{events} requests, {input_tokens} input and {output_tokens} output tokens".format(**result)
        _show(result, as_json, text)


# --- helpers ----------------------------------------------------------------------------------------


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_input=False):
            name = "_".join(str(part) for part in fault["loc"]).upper()
            message = str(fault["msg"]).removeprefix("Value error, ")
            typer.echo(f"{name}: {message}" if name else message, err=True)
        raise typer.Exit(2) from None


def _run(settings: Settings, work: Any) -> Any:
    try:
        if settings.auto_migrate:
            migrate(settings.ledger_url)
        return asyncio.run(_with_database(settings, work))
    except NoSuchTenant as error:
        _fail(str(error))
    except (SQLAlchemyError, AccountsUnavailable, OSError) as error:
        cause = getattr(error, "orig", None) or error
        _fail(f"The database cannot be used: {cause}\nCheck DATABASE_URL, or DATA_DIR for SQLite.")


async def _with_database(settings: Settings, work: Any) -> Any:
    engine = open_engine(settings.ledger_url)
    try:
        return await work(SqlAccounts(engine, SystemClock()), SqlLedger(engine))
    finally:
        await engine.dispose()


def _check(model: type[BaseModel], **values: Any) -> None:
    """What the API refuses, the command line refuses too."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise typer.BadParameter(f"{fault['loc'][0]}: {fault['msg']}") from None


def _without_password(url: str) -> str:
    """A URL that may be shown."""
    return re.sub(r"//[^@/]*@", "//***@", url)


def _fail(message: str) -> Any:
    typer.echo(message, err=True)
    raise typer.Exit(1)


def _show(value: Any, as_json: bool, text: str) -> None:
    typer.echo(json.dumps(value, default=_plain) if as_json else text)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _cell(value: Any) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S}" if isinstance(value, datetime) else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned by spaces; empty for no rows."""
    if not rows:
        return ""
    lines = [tuple(head), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


if __name__ == "__main__":
    main()
