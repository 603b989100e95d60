"""`sluicegate upstream`, `sluicegate model` and `sluicegate provider-key`: who answers for which model."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.adapters.upstream_build import fixed_specs
from api.cataloging import shown
from api.cli.shared import Json, checked, fail, run, show, table
from api.core.base_url import check_base_url
from api.schema_catalog import CatalogIn, ModelIn, Secret, UpstreamIn, prices_of

if TYPE_CHECKING:
    from api.cataloging import CatalogChange, KeptModel, KeptUpstream
    from api.cli.shared import Office

upstreams = typer.Typer(help="Upstreams: the providers that answer.", no_args_is_help=True)
models = typer.Typer(help="Models: public names, and who answers for them.", no_args_is_help=True)
keys = typer.Typer(help="Tenants' own keys at upstreams.", no_args_is_help=True)

KeyStdin = Annotated[bool, typer.Option("--key-stdin", help="Read its key from standard input, one line.")]
Tenant = Annotated[str | None, typer.Option(help="A tenant's own, by its id.")]


# --- upstreams --------------------------------------------------------------------------------------


@upstreams.command("list")
def list_upstreams(as_json: Json = False) -> None:
    """All upstreams by name, those of the environment among them."""

    async def work(office: Office) -> list[dict[str, Any]]:
        kept = [_upstream_row(one) for one in await office.catalog.upstreams()]
        names = {row["name"] for row in kept}
        fixed = [spec for spec, _ in fixed_specs(office.settings) if spec.name not in names]
        kept += [{**shown(spec), "key_hint": None, "updated_by": "environment"} for spec in fixed]
        return sorted(kept, key=lambda row: str(row["name"]))

    rows = run(work)
    columns = ("name", "kind", "base_url", "key_hint", "updated_by")
    lines = [[row.get(column) for column in columns] for row in rows]
    show(rows, as_json, table(("name", "kind", "base url", "key ends in", "by"), lines))


@upstreams.command(
    "set", epilog="Example: sluicegate upstream set backup --kind anthropic --key-stdin < anthropic.key"
)
def set_upstream(
    name: str,
    kind: Annotated[str, typer.Option(help="openai, azure, anthropic or scripted.")],
    base_url: Annotated[str, typer.Option(help="Empty: the provider's own.")] = "",
    api_version: Annotated[str, typer.Option(help="Azure's older form only, e.g. 2024-10-21.")] = "",
    dialect: Annotated[list[str] | None, typer.Option(help="What it speaks; repeatable.")] = None,
    connect_seconds: Annotated[float, typer.Option(help="To a connection.")] = 5.0,
    silence_seconds: Annotated[float | None, typer.Option(help="Between two reads.")] = None,
    max_connections: Annotated[int, typer.Option(help="From each worker.")] = 10_000,
    key_stdin: KeyStdin = False,
    as_json: Json = False,
) -> None:
    """Add an upstream, or change it. Without a key it keeps the one that it has."""
    given: dict[str, Any] = {"kind": kind, "base_url": base_url, "api_version": api_version}
    given |= {"dialects": dialect or [], "connect_seconds": connect_seconds}
    given |= {"silence_seconds": silence_seconds, "max_connections": max_connections}
    asked = checked(UpstreamIn, **given, api_key=_key() if key_stdin else None)

    async def work(office: Office) -> KeptUpstream:
        _check_address(office, asked)
        return await office.catalog.put_upstream(asked.spec(name), asked.secret, by=office.by)

    kept = run(work, changes=True)
    text = f"The upstream {name} is there.\nNext: sluicegate model set MODEL --target {name}"
    show(_upstream_row(kept), as_json, text)


@upstreams.command("remove", epilog="Example: sluicegate upstream remove backup")
def remove_upstream(name: str, as_json: Json = False) -> None:
    """Remove an upstream that no model names any more."""
    run(lambda office: office.catalog.remove_upstream(name, by=office.by), changes=True)
    show({"removed": name}, as_json, f"The upstream {name} is gone.")


# --- models -----------------------------------------------------------------------------------------


@models.command("list")
def list_models(tenant: Tenant = None, as_json: Json = False) -> None:
    """All models by name, or a tenant's own alone."""
    kept = run(lambda office: office.catalog.models(tenant))
    rows = [_model_row(one) for one in kept]
    lines = [(one.spec.name, one.spec.tenant_id, _targets(one), one.updated_by) for one in kept]
    text = table(("model", "tenant", "answered by", "by"), lines)
    empty = "No models yet: every name goes on to the upstreams of the environment.\n"
    show(rows, as_json, text or f"{empty}Next: sluicegate model set NAME --target UPSTREAM")


@models.command(
    "set",
    epilog="Example: sluicegate model set fast --target openai/gpt-4o-mini --target backup/small,order=1",
)
def set_model(
    name: str,
    target: Annotated[
        list[str],
        typer.Option(help="UPSTREAM, or UPSTREAM/ITS-NAME-THERE; then ,weight=N and ,order=N. Repeatable."),
    ],
    tenant: Tenant = None,
    connect_seconds: Annotated[float | None, typer.Option(help="To a connection.")] = None,
    first_token_seconds: Annotated[
        float | None, typer.Option(help="To the first event; then the next upstream is asked.")
    ] = None,
    silence_seconds: Annotated[float | None, typer.Option(help="Between two reads.")] = None,
    stream_seconds: Annotated[float | None, typer.Option(help="For a whole answer.")] = None,
    on_disconnect: Annotated[str | None, typer.Option(help="cancel or drain.")] = None,
    retries: Annotated[int, typer.Option(help="More rounds, when all upstreams have failed.")] = 0,
    as_json: Json = False,
) -> None:
    """Add a model, or change it. A name that ends in * stands for all that begin so."""
    given: dict[str, Any] = {"connect_seconds": connect_seconds, "first_token_seconds": first_token_seconds}
    given |= {"silence_seconds": silence_seconds, "stream_seconds": stream_seconds}
    given |= {"on_disconnect": on_disconnect, "retries": retries, "tenant_id": tenant}
    asked = checked(ModelIn, name=name, targets=[_target(text) for text in target], **given)

    async def work(office: Office) -> KeptModel:
        known = _known(office)
        return await office.catalog.put_model(asked.spec(name, tenant or ""), by=office.by, known=known)

    kept = run(work, changes=True)
    show(_model_row(kept), as_json, f"The model {name} is answered by {_targets(kept)}.")


@models.command("remove", epilog="Example: sluicegate model remove fast")
def remove_model(name: str, tenant: Tenant = None, as_json: Json = False) -> None:
    """Remove a model; its price and its usage stay."""
    run(lambda office: office.catalog.remove_model(name, tenant or "", by=office.by), changes=True)
    show({"removed": name}, as_json, f"The model {name} is gone.")


@models.command("import", epilog="Example: sluicegate model import models.json --dry-run")
def import_models(
    file: Annotated[typer.FileText, typer.Argument(encoding="utf-8", help="JSON; - for standard input.")],
    prune: Annotated[bool, typer.Option("--prune", help="Remove what the file does not name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: Json = False,
) -> None:
    """Make a file of upstreams and models hold: docs/models.md says what stands in it."""
    try:
        document = json.load(file)
    except ValueError as error:
        fail(f"The file is not JSON: {error}")
    if not isinstance(document, dict):
        fail('The file must be an object such as {"upstreams": {...}, "models": [...]}')
    asked = checked(CatalogIn, **{**document, "prune": prune, "dry_run": dry_run})
    try:
        prices = prices_of(asked.models)
    except ValueError as error:
        fail(f"price: {error}")

    async def work(office: Office) -> list[CatalogChange]:
        for one in asked.upstreams.values():
            _check_address(office, one)
        known = _known(office)
        done = await office.catalog.import_file(
            asked.file, by=office.by, known=known, prune=prune, dry_run=dry_run
        )
        if prices and not dry_run:
            await office.prices.import_prices(prices, None, by=office.by)
        return done

    done = run(work, changes=not dry_run)
    lines = table(("what", "kind", "name"), done)
    show([one._asdict() for one in done], as_json, lines or "All of it holds already.")


# --- tenants' own keys ------------------------------------------------------------------------------


@keys.command("list")
def list_keys(tenant_id: str, as_json: Json = False) -> None:
    """A tenant's own keys, by upstream."""
    kept = run(lambda office: office.catalog.provider_keys(tenant_id))
    rows = [
        {"upstream": one.upstream, "key_hint": one.key_hint, "updated_at": one.updated_at} for one in kept
    ]
    text = table(("upstream", "key ends in", "since"), [list(row.values()) for row in rows])
    show(rows, as_json, text or f"None. Next: sluicegate provider-key set {tenant_id} UPSTREAM < its.key")


@keys.command("set", epilog="Example: sluicegate provider-key set TENANT_ID openai < acme.key")
def set_key(tenant_id: str, upstream: str, as_json: Json = False) -> None:
    """Let a tenant's requests go to an upstream with its own key, read from standard input."""
    secret = checked(Secret, api_key=_key()).api_key.get_secret_value()

    async def work(office: Office) -> None:
        if upstream not in _known(office) | {one.spec.name for one in await office.catalog.upstreams()}:
            fail(f"There is no upstream `{upstream}`. See: sluicegate upstream list")
        await office.catalog.put_key(tenant_id, upstream, secret, by=office.by)

    run(work, changes=True)
    show({"tenant_id": tenant_id, "upstream": upstream}, as_json, f"{tenant_id} pays {upstream} itself.")


@keys.command("remove", epilog="Example: sluicegate provider-key remove TENANT_ID openai")
def remove_key(tenant_id: str, upstream: str, as_json: Json = False) -> None:
    """Its requests go with the upstream's own key again."""
    run(lambda office: office.catalog.remove_key(tenant_id, upstream, by=office.by), changes=True)
    show({"removed": upstream}, as_json, f"{tenant_id} has no key of its own at {upstream} any more.")


@keys.command("reseal", epilog="Example: sluicegate provider-key reseal")
def reseal(as_json: Json = False) -> None:
    """After a change of SECRET_KEY: seal all keys anew, so that the one before can be forgotten."""
    count = run(lambda office: office.catalog.reseal(by=office.by), changes=True)
    show({"resealed": count}, as_json, f"{count} keys were under an older SECRET_KEY; now none is.")


# --- what they share --------------------------------------------------------------------------------


def _known(office: Office) -> frozenset[str]:
    """The upstreams of the environment."""
    return frozenset(spec.name for spec, _ in fixed_specs(office.settings))


def _key() -> str:
    if sys.stdin.isatty():
        return str(typer.prompt("Key", hide_input=True))
    return sys.stdin.readline().strip()


def _target(text: str) -> dict[str, Any]:
    """`UPSTREAM/MODEL,weight=N,order=N`."""
    place, *options = text.split(",")
    upstream, _, model = place.partition("/")
    given: dict[str, Any] = {"upstream": upstream, "model": model}
    for option in options:
        name, _, number = option.partition("=")
        if name not in {"weight", "order"} or not number.isdigit():
            raise typer.BadParameter(f"--target {text}: `{option}` is neither weight=N nor order=N")
        given[name] = int(number)
    return given


def _targets(kept: KeptModel) -> str:
    return ", ".join(
        f"{one.upstream}/{one.model}" if one.model else one.upstream for one in kept.spec.targets
    )


def _check_address(office: Office, asked: UpstreamIn) -> None:
    if asked.base_url:
        try:
            check_base_url(asked.base_url, metadata_hosts=office.settings.upstream_metadata_hosts)
        except ValueError as error:
            fail(f"--base-url {error}")


def _upstream_row(kept: KeptUpstream) -> dict[str, Any]:
    stamps = {"key_hint": kept.key_hint, "updated_at": kept.updated_at, "updated_by": kept.updated_by}
    return {**shown(kept.spec), **stamps}


def _model_row(kept: KeptModel) -> dict[str, Any]:
    return {**shown(kept.spec), "updated_at": kept.updated_at, "updated_by": kept.updated_by}
