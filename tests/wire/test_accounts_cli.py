"""`sluicegate tenant`, `key`, `token`, `admin`, `audit`: for people and for programs, on one database."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from api.cli.app import app
from tests.wire.commands import fine, new_key, new_tenant, sluicegate, told

if TYPE_CHECKING:
    from pathlib import Path

PASSWORD = "correct horse battery staple"
ID = re.compile(r"tn_[0-9a-f]{32}")


# --- what each says ---------------------------------------------------------------------------------


def test_tenants_are_created_shown_and_changed(office: Path) -> None:
    """Both answers of each command tell of the same tenant; the text says what comes next."""
    text = fine("tenant", "create", "Acme", "--max-streams", "50", "--time-zone", "Europe/Berlin")
    [tenant] = set(ID.findall(text))
    assert text.endswith(f"Next: sluicegate key issue {tenant}\n")
    other = told("tenant", "create", "Bolt", "--external-id", "b-1", "--metadata", "plan=gold")
    assert (other["external_id"], other["metadata"], other["max_streams"]) == ("b-1", {"plan": "gold"}, 20)
    assert [line.split()[:2] for line in fine("tenant", "list").splitlines()[1:]] == [
        [tenant, "Acme"],
        [other["id"], "Bolt"],
    ]
    assert [shown["id"] for shown in told("tenant", "list")] == [tenant, other["id"]]
    shown = told("tenant", "show", tenant)
    assert (shown["time_zone"], shown["max_streams"], shown["state"]) == ("Europe/Berlin", 50, "active")
    assert "Europe/Berlin" in fine("tenant", "show", tenant)
    assert fine("tenant", "update", tenant, "--name", "Ace").startswith(f"Changed {tenant} (Ace): name.")
    changed = told("tenant", "update", other["id"], "--external-id", "", "--default-model", "gpt-4o")
    assert changed == other | {"external_id": None, "default_model": "gpt-4o"}


def test_tenants_are_suspended_resumed_and_deleted(office: Path) -> None:
    """Deleting asks first; a deleted one is listed on request, and its usage can be read."""
    tenant = new_tenant()
    assert fine("tenant", "suspend", tenant).startswith(f"Suspended {tenant}")
    assert told("tenant", "resume", tenant)["state"] == "active"
    assert told("tenant", "suspend", tenant)["state"] == "suspended"
    assert fine("tenant", "resume", tenant).startswith(f"Resumed {tenant}")
    refused = sluicegate("tenant", "delete", tenant, stdin="n\n")
    assert (refused.status, refused.err) == (1, "Nothing was changed.\n")
    assert told("tenant", "show", tenant)["state"] == "active"
    assert told("tenant", "delete", tenant, "--yes")["state"] == "deleted"
    assert told("tenant", "list") == []
    assert "No tenants yet" in fine("tenant", "list")
    assert [gone["id"] for gone in told("tenant", "list", "--deleted")] == [tenant]
    assert fine("usage", "--tenant", tenant) == "0 requests, 0 input and 0 output tokens\n"
    assert told("usage", "--tenant", tenant, "--events") == []
    last = new_tenant()
    assert "Deleted" in fine("tenant", "delete", last, stdin="y\n")


def test_keys_are_issued_shown_and_changed(office: Path) -> None:
    """A key's text is shown when it is made, and in no other answer."""
    tenant = new_tenant()
    assert f"Next: sluicegate key issue {tenant}" in fine("key", "list", tenant)
    options = ("--scope", "chat", "--model", "gpt-4o*", "--max-streams", "5", "--allow-address", "10.0.0.0/8")
    key = new_key(tenant, "--name", "web", *options, "--expires-at", "2040-01-31")
    assert (key["scopes"], key["models"], key["max_streams"]) == (["chat"], ["gpt-4o*"], 5)
    assert (key["allowed_addresses"], key["expires_at"]) == (["10.0.0.0/8"], "2040-01-31T00:00:00+00:00")
    text = fine("key", "issue", tenant)
    assert re.match(r"sg_\w{12}_\w{49}\nKeep it", text)
    shown = told("key", "show", key["id"])
    assert shown == {name: value for name, value in key.items() if name != "key"}
    assert told("key", "list", tenant)[0] == shown
    assert re.search(r"web +chat +gpt-4o\* +never +until 2040-01-31 00:00", fine("key", "list", tenant))
    assert fine("key", "update", key["id"], "--name", "new").startswith(f"Changed {key['id']} (new): name.")
    assert told("key", "update", key["id"], "--max-streams", "6")["max_streams"] == 6
    limits = ("models", "max-streams", "addresses", "expires-at")
    free = told("key", "update", key["id"], *(word for limit in limits for word in ("--clear", limit)))
    fields = ("models", "max_streams", "allowed_addresses", "expires_at")
    assert [free[name] for name in fields] == [None, None, [], None]
    secret = key["key"].rpartition("_")[2]
    for command in (("key", "show", key["id"]), ("key", "list", tenant), ("audit",), ("tenant", "list")):
        assert secret not in fine(*command) + fine(*command, "--json")


def test_keys_are_rotated_and_revoked(office: Path) -> None:
    """A rotation shows the new secret and how long the old one holds; a revocation stands."""
    tenant = new_tenant()
    key = new_key(tenant)
    rotated = told("key", "rotate", key["id"], "--grace-seconds", "3600")
    assert rotated["id"] == key["id"]
    assert rotated["key"] != key["key"]
    assert rotated["previous_until"] is not None
    text = fine("key", "rotate", key["id"])
    assert re.match(rf"sg_{key['id']}_\w{{49}}\nKeep it.*The one before holds until [-0-9: ]+ UTC\.\n$", text)
    revoked = told("key", "revoke", key["id"])
    assert revoked["revoked_at"] is not None
    assert told("key", "revoke", key["id"])["revoked_at"] == revoked["revoked_at"]
    assert fine("key", "revoke", key["id"]) == f"Revoked {key['id']} (default).\n"
    assert "revoked 20" in fine("key", "list", tenant)
    assert sluicegate("key", "rotate", key["id"]).status == 1


def test_tokens_are_revoked(office: Path) -> None:
    """A tenant's, or an admin's; whether or not there is one."""
    tenant = new_tenant()
    assert told("token", "revoke", "abc", "--tenant", tenant) == {"revoked": "abc"}
    assert fine("token", "revoke", "abc") == "Revoked token abc.\n"
    targets = [entry["target"] for entry in told("audit", "--action", "token.revoke")]
    assert targets == ["/abc", f"{tenant}/abc"]


def test_admins_come_and_go(office: Path) -> None:
    """The password comes from standard input or from a prompt, and is shown nowhere."""
    assert "No admins yet" in fine("admin", "list")
    put = told("admin", "put", "Boss@Example.com", "--stdin", stdin=f"{PASSWORD}\n")
    assert put == {"email": "boss@example.com"}
    asked = sluicegate("admin", "put", "second@example.com", stdin=f"{PASSWORD}\n{PASSWORD}\n")
    assert asked.status == 0
    assert PASSWORD not in asked.out + asked.err
    assert fine("admin", "list") == "boss@example.com\nsecond@example.com\n"
    assert told("admin", "list") == ["boss@example.com", "second@example.com"]
    assert told("admin", "remove", "boss@example.com") == {"removed": "boss@example.com"}
    assert fine("admin", "remove", "SECOND@example.com") == "Removed second@example.com.\n"
    assert told("admin", "list") == []
    assert PASSWORD not in fine("audit") + fine("audit", "--json")


def test_the_audit_log_says_who_was_at_the_machine(office: Path) -> None:
    """Every change, newest first, by `cli:user@host`; filters and pages work."""
    tenant = new_tenant()
    key = new_key(tenant)
    fine("key", "update", key["id"], "--name", "web")
    fine("admin", "put", "boss@example.com", "--stdin", stdin=PASSWORD)
    fine("tenant", "suspend", tenant)
    entries = told("audit")
    actions = ["tenant.suspend", "user.put", "key.change", "key.issue", "tenant.create"]
    assert [entry["action"] for entry in entries] == actions
    assert all(re.fullmatch(r"cli:[^@]+@.+", entry["actor"]) for entry in entries)
    assert entries[2]["details"] == {"name": "web"}
    assert [e["id"] for e in told("audit", "--before", str(entries[1]["id"]), "--limit", "2")] == [
        entry["id"] for entry in entries[2:4]
    ]
    assert {e["action"] for e in told("audit", "--tenant", tenant)} == set(actions) - {"user.put"}
    assert told("audit", "--actor", "cli:nobody@nowhere") == []
    assert "Nothing has been changed yet" in fine("audit", "--action", "key.revoke")
    line = next(line for line in fine("audit").splitlines() if "key.change" in line)
    assert f"{key['id']}  " in line
    assert line.endswith('{"name": "web"}')


# --- what is refused --------------------------------------------------------------------------------

MISSING = [
    ("tenant", "show", "tn_no"),
    ("tenant", "update", "tn_no", "--name", "x"),
    ("tenant", "suspend", "tn_no"),
    ("tenant", "resume", "tn_no"),
    ("tenant", "delete", "tn_no", "--yes"),
    ("key", "issue", "tn_no"),
    ("key", "list", "tn_no"),
    ("key", "show", "no"),
    ("key", "update", "no", "--name", "x"),
    ("key", "rotate", "no"),
    ("key", "revoke", "no"),
    ("token", "revoke", "abc", "--tenant", "tn_no"),
    ("admin", "remove", "no@example.com"),
    ("usage", "--tenant", "tn_no"),
]

WRONG = [
    ("tenant", "create", " "),
    ("tenant", "create", "Acme", "--time-zone", "Mars/Olympus"),
    ("tenant", "create", "Acme", "--max-streams", "0"),
    ("tenant", "create", "Acme", "--max-streams", "1000001"),
    ("tenant", "create", "Acme", "--metadata", "plan"),
    ("tenant", "create", "a\x1b[2J"),
    ("tenant", "create"),
    ("tenant", "update", "tn_no"),
    ("tenant", "update", "tn_no", "--name", ""),
    ("key", "issue", "tn_no", "--scope", "root"),
    ("key", "issue", "tn_no", "--allow-address", "10.0.0.0/33"),
    ("key", "issue", "tn_no", "--model", "*a"),
    ("key", "issue", "tn_no", "--expires-at", "tomorrow"),
    ("key", "issue", "tn_no", "--name", " "),
    ("key", "update", "no"),
    ("key", "update", "no", "--clear", "name"),
    ("token", "revoke", "x" * 129),
    ("token", "revoke", "a b"),
    ("key", "rotate", "no", "--grace-seconds", "604801"),
    ("admin", "put", "boss@example.com", "--stdin"),
    ("audit", "--limit", "0"),
    ("usage", "--interval", "week"),
    ("usage", "--group-by", "colour"),
    ("usage", "--tenant", "tn_no", "--from", "yesterday"),
    ("usage", "--tenant", "tn_no", "--from", "2026-11-01T00:07"),
    ("usage", "--tenant", "tn_no", "--time-zone", "Mars/Olympus"),
    ("usage", "--tenant", "tn_no", "--events", "--from", "yesterday"),
    ("usage", "--tenant", "tn_no", "--events", "--group-by", "model"),
    ("usage", "--events"),
    ("usage-rebuild", "--from", "2026-11-01", "--to", "2026-11-01"),
    ("usage-rebuild", "--from", "yesterday", "--to", "2026-11-01"),
    ("audit", "--limit", "many"),
    ("tenant", "explode"),
]


@pytest.mark.parametrize("arguments", MISSING, ids=" ".join)
def test_what_is_not_there_is_one_line(office: Path, arguments: tuple[str, ...]) -> None:
    """Status 1, one line on standard error, nothing else, with `--json` too; and nothing in the audit log."""
    for options in ((), ("--json",)):
        done = sluicegate(*arguments, *options)
        assert (done.status, done.out, done.err.count("\n")) == (1, "", 1)
        assert not done.err.startswith("Traceback")
    assert told("audit") == []


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_what_the_api_refuses_is_wrong_usage(office: Path, arguments: tuple[str, ...]) -> None:
    """Status 2, before the database is asked; the message is on standard error and is no traceback."""
    done = sluicegate(*arguments, stdin="too short\n")
    assert (done.status, done.out) == (2, "")
    assert "Error" in done.err or "Usage" in done.err
    assert "Traceback" not in done.err
    assert told("audit") == []


@pytest.mark.parametrize("email", ["", "a\nb", "\x1b[2J", "x" * 321])
def test_an_admin_has_an_address_to_sign_in_with(office: Path, email: str) -> None:
    """What POST /auth/login could never take is refused when the admin is made."""
    done = sluicegate("admin", "put", email, "--stdin", stdin=f"{PASSWORD}\n")
    assert (done.status, done.out) == (2, "")
    assert told("admin", "list") == []


def test_an_external_id_that_is_taken_is_one_line(office: Path) -> None:
    """As the API's 409: status 1, and whose id it is."""
    new_tenant("Acme", "--external-id", "a-1")
    done = sluicegate("tenant", "create", "Bolt", "--external-id", "a-1")
    assert (done.status, done.err) == (1, "Another tenant has the external id `a-1`.\n")


def test_a_database_that_cannot_be_used_is_told(office: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 1, what is wrong, and which setting to look at; no traceback, no password."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://boss:hunter22@127.0.0.1:1/gate")
    done = sluicegate("tenant", "list")
    assert (done.status, done.out) == (1, "")
    assert "DATABASE_URL" in done.err
    assert "hunter22" not in done.err
    assert "Traceback" not in done.err


COMMANDS = [
    *(("tenant", verb) for verb in ("create", "list", "show", "update", "suspend", "resume", "delete")),
    *(("key", verb) for verb in ("issue", "list", "show", "update", "rotate", "revoke")),
    ("token", "revoke"),
    ("stream", "list"),
    ("stream", "end"),
    *(("prices", verb) for verb in ("import", "list", "markup", "markups", "reprice")),
    *(("upstream", verb) for verb in ("list", "set", "remove")),
    *(("model", verb) for verb in ("list", "set", "remove", "import")),
    *(("provider-key", verb) for verb in ("list", "set", "remove", "reseal")),
    *(("admin", verb) for verb in ("put", "list", "remove")),
    ("audit",),
    ("usage",),
    ("usage-rebuild",),
    ("reconcile",),
    ("verify",),
    ("doctor",),
    ("openapi",),
    *(("export", verb) for verb in ("status", "dead", "retry", "backfill")),
]
TOLD_BY_EXAMPLE = {
    ("doctor",),
    ("openapi",),
    ("tenant", "create"),
    ("tenant", "update"),
    ("key", "issue"),
    ("key", "update"),
    ("key", "rotate"),
    ("token", "revoke"),
    ("stream", "list"),
    ("stream", "end"),
    *(("prices", verb) for verb in ("import", "list", "markup", "markups", "reprice")),
    *(("upstream", verb) for verb in ("set", "remove")),
    *(("model", verb) for verb in ("set", "remove", "import")),
    *(("provider-key", verb) for verb in ("set", "remove", "reseal")),
    ("admin", "put"),
    ("audit",),
    ("usage",),
    ("usage-rebuild",),
    ("reconcile",),
    ("verify",),
    ("export", "dead"),
    ("export", "retry"),
    ("export", "backfill"),
}
"""Commands with options that one would have to guess."""


def test_every_command_is_known_here() -> None:
    """Whoever adds one tries it here."""
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    found = {
        (name, command.name)
        for name, group in groups.items()
        if group is not None
        for command in group.registered_commands
    }
    assert found == {command for command in COMMANDS if len(command) == 2}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_explains(command: tuple[str, ...]) -> None:
    """What it does, that it can speak JSON, and an example where there is something to guess."""
    text = fine(*command, "--help")
    assert "--json" in text
    assert ("Example: " in text) == (command in TOLD_BY_EXAMPLE)
    if command in TOLD_BY_EXAMPLE:
        assert f"sluicegate {' '.join(command)}" in text
