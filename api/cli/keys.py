"""`sluicegate key` and `sluicegate token`."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli import limits
from api.cli.shared import Json, checked, run, show, table
from api.schema_accounts import TOKEN_ID, KeyIn, KeyPatch, RotateIn
from auth.principal import Scope

if TYPE_CHECKING:
    from api.accounts import KeyInfo
    from api.cli.shared import Office

app = typer.Typer(help="API keys of tenants.", no_args_is_help=True)


class Clearable(StrEnum):
    """What can be taken away from a key again."""

    MODELS = "models"
    MAX_STREAMS = "max-streams"
    ADDRESSES = "addresses"
    EXPIRES_AT = "expires-at"


tokens = typer.Typer(help="Tokens: bought with a key, or an admin's.", no_args_is_help=True)

Scopes = Annotated[
    list[Scope] | None, typer.Option("--scope", help="Repeatable; chat, embeddings, usage:read by default.")
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="Repeatable; a name, or its beginning and a *. Default: all."),
]
MaxStreams = Annotated[int | None, typer.Option(min=1, help="Its own cap, beside the tenant's.")]
Addresses = Annotated[
    list[str] | None,
    typer.Option("--allow-address", help="Repeatable; an address, or a network. Default: any."),
]
ExpiresAt = Annotated[
    datetime | None,
    typer.Option(help="UTC, e.g. 2030-01-31T00:00:00.", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
]


@app.command(
    "issue",
    epilog="Example: sluicegate key issue TENANT_ID --name web --scope chat --max-streams 5 "
    "--limit requests_per_minute=60",
)
def issue(
    tenant_id: str,
    name: Annotated[str, typer.Option(help="To tell it from others.")] = "default",
    scope: Scopes = None,
    model: Models = None,
    max_streams: MaxStreams = None,
    allow_address: Addresses = None,
    expires_at: ExpiresAt = None,
    limit: limits.Limit = None,
    shadow: limits.Shadow = None,
    as_json: Json = False,
) -> None:
    """Issue a key. It is shown this once."""
    own_limits = limits.given("--limit", limit, shadow)
    given = _given(scope, model, max_streams, allow_address, expires_at, own_limits)
    asked = checked(KeyIn, name=name, **given)
    info, text = run(
        lambda office: office.accounts.keys(None).issue(tenant_id, asked.fields(), by=office.by),
        changes=True,
    )
    show(
        {**asdict(info), "key": text},
        as_json,
        f"{text}\nKeep it: it cannot be shown again. Its id is {info.id}.",
    )


@app.command("list")
def list_keys(tenant_id: str, as_json: Json = False) -> None:
    """A tenant's keys, oldest first."""
    keys = run(lambda office: office.accounts.keys(None).all_of(tenant_id))
    now = datetime.now(UTC)  # noqa: TID251 - shown to a person, decides nothing
    rows = [
        (
            k.id,
            k.name,
            " ".join(k.scopes),
            " ".join(k.models or ("all",)),
            k.last_used_at or "never",
            _state(k, now),
            limits.text(k.limits, k.max_streams),
        )
        for k in keys
    ]
    text = table(("id", "name", "scopes", "models", "last used", "state", "limits"), rows)
    show([asdict(k) for k in keys], as_json, text or f"No keys yet. Next: sluicegate key issue {tenant_id}")


@app.command("show")
def show_key(key_id: str, as_json: Json = False) -> None:
    """One key; never its secret, which is not kept."""
    key = asdict(run(lambda office: office.accounts.keys(None).get(key_id)))
    lines = key | {"limits": limits.text(key["limits"], key["max_streams"])}
    show(key, as_json, table(("field", "value"), list(lines.items())))


@app.command(
    "update",
    epilog="Example: sluicegate key update KEY_ID --model 'gpt-4o*' --limit requests_per_minute=none",
)
def update(
    key_id: str,
    name: Annotated[str | None, typer.Option(help="To tell it from others.")] = None,
    scope: Scopes = None,
    model: Models = None,
    max_streams: MaxStreams = None,
    allow_address: Addresses = None,
    expires_at: ExpiresAt = None,
    limit: limits.Limit = None,
    shadow: limits.Shadow = None,
    clear: Annotated[list[Clearable] | None, typer.Option(help="Take a limit away; repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Change what is given, leave the rest. Lists are replaced as a whole."""
    own_limits = limits.given("--limit", limit, shadow)
    given = _cleared(clear) | _given(scope, model, max_streams, allow_address, expires_at, own_limits)
    if name is not None:
        given["name"] = name
    changes = checked(KeyPatch, **given).model_dump(exclude_unset=True)
    if not changes:
        raise typer.BadParameter("say what to change; see --help")
    key = run(lambda office: office.accounts.keys(None).change(key_id, changes, by=office.by), changes=True)
    show(asdict(key), as_json, f"Changed {key.id} ({key.name}): {', '.join(sorted(changes))}.")


@app.command("rotate", epilog="Example: sluicegate key rotate KEY_ID --grace-seconds 3600")
def rotate(
    key_id: str,
    grace_seconds: Annotated[int, typer.Option(help="So long the secret from before still holds.")] = 86400,
    as_json: Json = False,
) -> None:
    """Give a key a new secret. It is shown this once."""
    asked = checked(RotateIn, grace_seconds=grace_seconds)
    info, text = run(
        lambda office: office.accounts.keys(None).rotate(
            key_id, grace_seconds=asked.grace_seconds, by=office.by
        ),
        changes=True,
    )
    show(
        {**asdict(info), "key": text},
        as_json,
        f"{text}\nKeep it: it cannot be shown again. The one before holds until "
        f"{info.previous_until:%Y-%m-%d %H:%M:%S} UTC.",
    )


@app.command("revoke")
def revoke(key_id: str, as_json: Json = False) -> None:
    """Revoke a key: within a second every worker refuses it and has cut its streams."""
    key = run(lambda office: office.accounts.keys(None).revoke(key_id, by=office.by), changes=True)
    show(asdict(key), as_json, f"Revoked {key.id} ({key.name}).")


@tokens.command("revoke", epilog="Example: sluicegate token revoke TOKEN_ID --tenant TENANT_ID")
def revoke_token(
    token_id: Annotated[str, typer.Argument(help="Its `jti`.")],
    tenant: Annotated[str | None, typer.Option(help="The tenant's id; none for an admin's token.")] = None,
    as_json: Json = False,
) -> None:
    """Revoke a token by its id: within a second it is refused everywhere, and its streams are cut."""
    if re.fullmatch(TOKEN_ID, token_id) is None:
        raise typer.BadParameter("the id of a token has 1 to 128 visible characters")

    async def work(office: Office) -> None:
        if tenant is not None:
            await office.accounts.tenant(tenant)
        await office.accounts.revoke_token(tenant, token_id, by=office.by)

    run(work, changes=True)
    show({"revoked": token_id}, as_json, f"Revoked token {token_id}.")


def _given(
    scope: list[Scope] | None,
    model: list[str] | None,
    max_streams: int | None,
    allow_address: list[str] | None,
    expires_at: datetime | None,
    own_limits: dict[str, Any],
) -> dict[str, Any]:
    given = {
        "scopes": scope or None,
        "models": model or None,
        "max_streams": max_streams,
        "allowed_addresses": allow_address or None,
        "expires_at": expires_at.replace(tzinfo=UTC) if expires_at else None,
        "limits": own_limits or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _cleared(fields: list[Clearable] | None) -> dict[str, Any]:
    empty: dict[Clearable, tuple[str, Any]] = {
        Clearable.MODELS: ("models", None),
        Clearable.MAX_STREAMS: ("max_streams", None),
        Clearable.ADDRESSES: ("allowed_addresses", []),
        Clearable.EXPIRES_AT: ("expires_at", None),
    }
    return dict(empty[field] for field in fields or ())


def _state(key: KeyInfo, now: datetime) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at:%Y-%m-%d %H:%M}"
    if key.expires_at is not None:
        return f"{'expired' if key.expires_at <= now else 'until'} {key.expires_at:%Y-%m-%d %H:%M}"
    return "active"
