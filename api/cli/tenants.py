"""`sluicegate tenant`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from api.cli import limits
from api.cli.shared import Json, checked, fail, run, show, table
from api.schema_accounts import TenantIn, TenantPatch

app = typer.Typer(help="Tenants: the customers.", no_args_is_help=True)

MaxStreams = Annotated[int | None, typer.Option(min=1, help="Cap on streams at one time.")]
ExternalId = Annotated[
    str | None, typer.Option(help="Its name in your systems, and in your provider's JWTs.")
]
DefaultModel = Annotated[str | None, typer.Option(help="For /chat/stream without a model.")]
TimeZone = Annotated[str | None, typer.Option(help="Where its budget days begin, e.g. Europe/Berlin.")]
ResumeMinutes = Annotated[
    int | None, typer.Option(min=0, help="Keep streams that have an Idempotency-Key; docs/resume.md.")
]
Metadata = Annotated[list[str] | None, typer.Option(help="NAME=VALUE; repeatable.")]


@app.command(
    "create",
    epilog="Example: sluicegate tenant create Acme --max-streams 50 --limit tokens_per_minute=100000",
)
def create(
    name: Annotated[str, typer.Argument(help="What people call it.")],
    max_streams: MaxStreams = None,
    external_id: ExternalId = None,
    default_model: DefaultModel = None,
    time_zone: TimeZone = None,
    metadata: Metadata = None,
    limit: limits.Limit = None,
    end_user_limit: limits.EndUserLimit = None,
    shadow: limits.Shadow = None,
    end_user_shadow: limits.EndUserShadow = None,
    queue: limits.Queue = None,
    queue_seconds: limits.QueueSeconds = None,
    weight: limits.Weight = None,
    resume_minutes: ResumeMinutes = None,
    as_json: Json = False,
) -> None:
    """Create a tenant."""
    given = _given(max_streams, external_id, default_model, time_zone, metadata)
    given |= _limits(limit, end_user_limit, shadow, end_user_shadow)
    given |= _queue(queue, queue_seconds, weight)
    given |= {} if resume_minutes is None else {"resume_minutes": resume_minutes}
    asked = checked(TenantIn, name=name, **given)

    tenant = run(
        lambda office: office.accounts.create_tenant(
            asked.fields(office.settings.default_max_streams), by=office.by
        ),
        changes=True,
    )
    show(
        asdict(tenant),
        as_json,
        f"Created tenant {tenant.id} ({name}), {tenant.max_streams} streams at a time.\n"
        f"Next: sluicegate key issue {tenant.id}",
    )


@app.command("list")
def list_tenants(
    deleted: Annotated[bool, typer.Option("--deleted", help="Also deleted ones.")] = False,
    as_json: Json = False,
) -> None:
    """All tenants, oldest first."""
    tenants = run(lambda office: office.accounts.tenants(deleted=deleted))
    rows = [(t.id, t.name, t.external_id, t.state, limits.text(t.limits, t.max_streams)) for t in tenants]
    text = table(("id", "name", "external id", "state", "limits"), rows)
    show([asdict(t) for t in tenants], as_json, text or "No tenants yet. Next: sluicegate tenant create NAME")


@app.command("show")
def show_tenant(tenant_id: str, as_json: Json = False) -> None:
    """One tenant, also a deleted one."""
    tenant = asdict(run(lambda office: office.accounts.tenant(tenant_id)))
    lines = tenant | {
        "limits": limits.text(tenant["limits"], tenant["max_streams"]),
        "end_user_limits": limits.text(tenant["end_user_limits"]),
    }
    show(tenant, as_json, table(("field", "value"), list(lines.items())))


@app.command(
    "update",
    epilog="Example: sluicegate tenant update TENANT_ID --limit tokens_per_day=5000000 "
    "--limit tokens_per_minute=none --shadow tokens_per_day",
)
def update(
    tenant_id: str,
    name: Annotated[str | None, typer.Option(help="What people call it.")] = None,
    max_streams: MaxStreams = None,
    external_id: ExternalId = None,
    default_model: DefaultModel = None,
    time_zone: TimeZone = None,
    metadata: Metadata = None,
    limit: limits.Limit = None,
    end_user_limit: limits.EndUserLimit = None,
    shadow: limits.Shadow = None,
    end_user_shadow: limits.EndUserShadow = None,
    queue: limits.Queue = None,
    queue_seconds: limits.QueueSeconds = None,
    weight: limits.Weight = None,
    resume_minutes: ResumeMinutes = None,
    as_json: Json = False,
) -> None:
    """Change what is given, leave the rest. Metadata and --shadow are replaced as a whole."""
    given = _given(max_streams, external_id, default_model, time_zone, metadata)
    given |= _limits(limit, end_user_limit, shadow, end_user_shadow)
    given |= _queue(queue, queue_seconds, weight)
    given |= {} if resume_minutes is None else {"resume_minutes": resume_minutes}
    if name is not None:
        given["name"] = name
    changes = checked(TenantPatch, **given).model_dump(exclude_unset=True)
    if not changes:
        raise typer.BadParameter("say what to change; see --help")
    tenant = run(lambda office: office.accounts.change_tenant(tenant_id, changes, by=office.by), changes=True)
    show(asdict(tenant), as_json, f"Changed {tenant.id} ({tenant.name}): {', '.join(sorted(changes))}.")


@app.command("suspend")
def suspend(tenant_id: str, as_json: Json = False) -> None:
    """Refuse all its credentials and cut its streams, until it is resumed."""
    tenant = run(lambda office: office.accounts.suspend(tenant_id, by=office.by), changes=True)
    show(asdict(tenant), as_json, f"Suspended {tenant.id} ({tenant.name}).")


@app.command("resume")
def resume(tenant_id: str, as_json: Json = False) -> None:
    """Let a suspended tenant in again."""
    tenant = run(lambda office: office.accounts.resume(tenant_id, by=office.by), changes=True)
    show(asdict(tenant), as_json, f"Resumed {tenant.id} ({tenant.name}).")


@app.command("delete")
def delete(
    tenant_id: str,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Revoke all its keys and cut its streams, for ever. Its usage stays."""
    if not yes and not typer.confirm(f"Delete tenant {tenant_id}? Its keys cannot be brought back."):
        fail("Nothing was changed.")
    tenant = run(lambda office: office.accounts.delete(tenant_id, by=office.by), changes=True)
    show(asdict(tenant), as_json, f"Deleted {tenant.id} ({tenant.name}); its usage stays.")


def _given(
    max_streams: int | None,
    external_id: str | None,
    default_model: str | None,
    time_zone: str | None,
    metadata: list[str] | None,
) -> dict[str, Any]:
    """What was said on the command line; an empty text takes a value away."""
    texts = {"external_id": external_id, "default_model": default_model}
    given: dict[str, Any] = {name: text or None for name, text in texts.items() if text is not None}
    given |= {"max_streams": max_streams} if max_streams is not None else {}
    given |= {"time_zone": time_zone} if time_zone is not None else {}
    if metadata is not None:
        pairs = [entry.partition("=") for entry in metadata]
        if any(not equals for _, equals, _ in pairs):
            raise typer.BadParameter("--metadata takes NAME=VALUE")
        given["metadata"] = {name: value for name, _, value in pairs}
    return given


def _limits(
    limit: list[str] | None,
    end_user_limit: list[str] | None,
    shadow: list[str] | None,
    end_user_shadow: list[str] | None,
) -> dict[str, Any]:
    given = {
        "limits": limits.given("--limit", limit, shadow),
        "end_user_limits": limits.given("--end-user-limit", end_user_limit, end_user_shadow),
    }
    return {name: value for name, value in given.items() if value}


def _queue(queue: int | None, queue_seconds: int | None, weight: int | None) -> dict[str, Any]:
    given = {"max_waiters": queue, "max_wait_seconds": queue_seconds, "weight": weight}
    return {name: value for name, value in given.items() if value is not None}
