"""Commands, run in this process as their entry point would run them: a process for each would cost a minute.

`gate.cli` runs real ones beside a server.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

from api.cli.app import app


@dataclass
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


def sluicegate(*arguments: str, stdin: str | None = None) -> Done:
    """Run a command."""
    done = CliRunner().invoke(app, list(arguments), input=stdin, env={"COLUMNS": "200"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


def fine(*arguments: str, stdin: str | None = None) -> str:
    """A command that has to succeed, without a word on standard error; what it says to a person."""
    done = sluicegate(*arguments, stdin=stdin)
    assert (done.status, done.err) == (0, ""), arguments
    return done.out


def told(*arguments: str, stdin: str | None = None) -> Any:
    """The same, for a program: one line of JSON."""
    out = fine(*arguments, "--json", stdin=stdin)
    assert out.count("\n") == 1
    return json.loads(out)


def new_tenant(name: str = "Acme", *options: str) -> str:
    return str(told("tenant", "create", name, *options)["id"])


def new_key(tenant: str, *options: str) -> dict[str, Any]:
    return dict(told("key", "issue", tenant, *options))
