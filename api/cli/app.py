"""The commands, put together; and those that serve, migrate and check."""

from __future__ import annotations

import json
import re
from typing import Annotated

import typer

from api.adapters.database_sql import migrate
from api.adapters.upstream_build import fixed_specs
from api.cli import admins, catalog, doctor, export, keys, ledger, prices, streams, tenants, usage, verify
from api.cli.shared import Json, settings_or_exit, show

app = typer.Typer(
    name="sluicegate",
    help="A multi-tenant streaming gateway for LLMs. Settings come from the environment and from .env.",
    epilog="Exit status: 0 done; 1 refused, failed, or not as it should be; 2 wrong usage or settings.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(tenants.app, name="tenant")
app.add_typer(keys.app, name="key")
app.add_typer(keys.tokens, name="token")
app.add_typer(admins.app, name="admin")
app.add_typer(streams.app, name="stream")
app.add_typer(export.app, name="export")
app.add_typer(prices.app, name="prices")
app.add_typer(catalog.upstreams, name="upstream")
app.add_typer(catalog.models, name="model")
app.add_typer(catalog.keys, name="provider-key")
app.command(epilog="Example: sluicegate usage --tenant TENANT_ID --interval day --group-by model")(
    usage.usage
)
_REBUILD = "Example: sluicegate usage-rebuild --from 2026-11-01 --to 2026-11-08"
app.command("usage-rebuild", epilog=_REBUILD)(usage.rebuild)
app.command(epilog="Example: sluicegate audit --action key.revoke")(admins.audit)
app.command(epilog="Example: sluicegate reconcile --wait-seconds 15")(ledger.reconcile)
app.command(epilog="Example: sluicegate doctor --url https://llm.example.com")(doctor.doctor)
app.command(epilog="Example: sluicegate verify --from 2026-03-01 --to 2026-04-01")(verify.verify)


def main() -> None:
    """The entry point."""
    app()


@app.command(epilog="Example: PORT=9000 sluicegate serve")
def serve(as_json: Json = False) -> None:
    """Serve. Settings come from the environment and from .env; see .env.example."""
    from api.serving import serve as run  # noqa: PLC0415 - the server is slow to import; other commands are not

    run(settings_or_exit(), as_json=as_json)


@app.command("migrate")
def migrate_command(as_json: Json = False) -> None:
    """Bring the database to the newest revision."""
    settings = settings_or_exit()
    migrate(settings.ledger_url)
    show({"migrated": True}, as_json, "The database is at the newest revision.")


@app.command("check-config")
def check_config(as_json: Json = False) -> None:
    """Check the settings without serving; exit status 2 if they are refused."""
    settings = settings_or_exit()
    shown = settings.model_dump(mode="json")  # secrets are masked by their type
    for name in (
        "database_url",
        "redis_url",
        "openai_base_url",
        "anthropic_base_url",
        "upstream_proxy",
        "export_url",
    ):
        shown[name] = _without_password(shown[name])
    shown["issuers"] = [issuer.issuer for issuer in settings.issuers()]
    show(
        shown,
        as_json,
        f"The settings are fine: {'demo' if settings.demo else 'production'}, "
        f"upstream {', '.join(spec.name for spec, _ in fixed_specs(settings))}, "
        f"{settings.web_concurrency} worker(s) on {settings.host}:{settings.port}.",
    )


@app.command("openapi", epilog="Example: sluicegate openapi > openapi.json")
def openapi_command(as_json: Json = False) -> None:  # noqa: ARG001 - it is JSON in any case
    """Print the description of the HTTP interface (OpenAPI 3.1)."""
    from api.app import create_app  # noqa: PLC0415 - as above

    document = create_app(settings_or_exit()).openapi()
    typer.echo(json.dumps(document, indent=1, sort_keys=True))


@app.command("scripted-upstream", epilog="Example: sluicegate scripted-upstream --port 9000")
def scripted_upstream(
    port: Annotated[int, typer.Option(help="0 takes any free one.")] = 9000,
    as_json: Json = False,
) -> None:
    """Serve the scripted model alone, as OpenAI and Anthropic would be, for tests and benchmarks."""
    from api.adapters.scripted_server import run  # noqa: PLC0415 - as above

    run(
        port,
        lambda url: show(
            {"url": url}, as_json, f"The scripted model is at {url}/v1; for Anthropic's SDK at {url}"
        ),
    )


def _without_password(url: str) -> str:
    """A URL that may be shown."""
    shown = re.sub(r"//.*@", "//***@", url)  # to the last @: a password may have a / that nobody encoded
    return re.sub(r"(password=)[^&]*", r"\1***", shown)
