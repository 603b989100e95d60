"""`sluicegate admin` and `sluicegate audit`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from api.cli.shared import Json, checked, fail, run, show, table
from api.schema_accounts import LoginIn
from auth.passwords import hash_password

app = typer.Typer(help="Admins: who may sign in.", no_args_is_help=True)

_MIN_PASSWORD_CHARACTERS = 12


@app.command("put", epilog="Example: pass show sluicegate | sluicegate admin put boss@example.com --stdin")
def put(
    email: str,
    stdin: Annotated[bool, typer.Option("--stdin", help="Read the password from standard input.")] = False,
    as_json: Json = False,
) -> None:
    """Create an admin, or change the password, which signs them out everywhere."""
    if stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    if len(password) < _MIN_PASSWORD_CHARACTERS:
        raise typer.BadParameter(f"the password must have at least {_MIN_PASSWORD_CHARACTERS} characters")
    checked(LoginIn, email=email, password=password)
    hashed = hash_password(password)
    run(lambda office: office.accounts.put_admin(email, hashed, by=office.by), changes=True)
    show({"email": email.casefold()}, as_json, f"{email.casefold()} may sign in with that password.")


@app.command("list")
def list_admins(as_json: Json = False) -> None:
    """Who may sign in."""
    emails = run(lambda office: office.accounts.admins())
    show(emails, as_json, "\n".join(emails) or "No admins yet. Next: sluicegate admin put EMAIL")


@app.command("remove")
def remove(email: str, as_json: Json = False) -> None:
    """Remove an admin: within a second their tokens are refused everywhere."""
    if not run(lambda office: office.accounts.remove_admin(email, by=office.by), changes=True):
        fail(f"There is no admin `{email}`.")
    show({"removed": email.casefold()}, as_json, f"Removed {email.casefold()}.")


def audit(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    actor: Annotated[str | None, typer.Option(help="Only by user:EMAIL, key:ID or cli:USER@HOST.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this, such as key.revoke.")] = None,
    before: Annotated[int | None, typer.Option(help="Only entries before this number.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 50,
    as_json: Json = False,
) -> None:
    """Who changed what, when, from where; newest first."""
    entries = run(
        lambda office: office.accounts.audit(
            tenant_id=tenant, actor=actor, action=action, before=before, limit=limit
        )
    )
    rows = [
        (e.id, e.at, e.actor, e.address, e.action, e.target, json.dumps(e.details) if e.details else "")
        for e in entries
    ]
    text = table(("no", "at (UTC)", "who", "from", "did", "to", "details"), rows)
    show([asdict(e) for e in entries], as_json, text or "Nothing has been changed yet.")
