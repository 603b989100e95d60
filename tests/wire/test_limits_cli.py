"""Limits on the command line: set, shown, taken away, and refused where the API refuses them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.wire.commands import fine, new_key, new_tenant, sluicegate, told

if TYPE_CHECKING:
    from pathlib import Path


def test_a_tenants_limits_are_set_and_shown(office: Path) -> None:
    """All of them, for a program as the API has them, for a person on one line, shadow beside the name."""
    limits = ("--limit", "tokens_per_day=1_000_000", "--limit", "requests_per_minute=60")
    shadow = ("--shadow", "tokens_per_day", "--shadow", "max_streams")
    each = ("--end-user-limit", "max_streams=2", "--end-user-shadow", "tokens_per_minute")
    queue = ("--queue", "5", "--queue-seconds", "7", "--weight", "3")
    tenant = new_tenant("Acme", "--max-streams", "50", *limits, *shadow, *each, *queue)
    shown = told("tenant", "show", tenant)
    assert shown["limits"] == {
        "requests_per_minute": 60,
        "tokens_per_day": 1_000_000,
        "shadow": ["tokens_per_day", "max_streams"],
    }
    assert shown["end_user_limits"] == {"max_streams": 2, "shadow": ["tokens_per_minute"]}
    assert (shown["max_waiters"], shown["max_wait_seconds"], shown["weight"]) == (5, 7, 3)
    line = "max_streams=50 (shadow), requests_per_minute=60, tokens_per_day=1000000 (shadow)"
    text = fine("tenant", "show", tenant)
    assert re.search(rf"^limits +{re.escape(line)}$", text, re.MULTILINE)
    each_line = "max_streams=2, tokens_per_minute=none (shadow)"
    assert re.search(rf"^end_user_limits +{re.escape(each_line)}$", text, re.MULTILINE)
    assert fine("tenant", "list").splitlines()[1].endswith(f"active  {line}")


def test_a_tenants_limits_are_merged_and_taken_away(office: Path) -> None:
    """What is not named stays; `none` takes one away; the shadow is replaced, and `none` is no shadow."""
    first = ("--limit", "tokens_per_day=5", "--limit", "tokens_per_minute=6", "--shadow", "tokens_per_day")
    tenant = new_tenant("Acme", *first, "--end-user-limit", "tokens_per_day=4", "--weight", "9")
    patch = ("--limit", "tokens_per_day=none", "--limit", "nano_dollars_per_day=7")
    assert fine("tenant", "update", tenant, *patch) == f"Changed {tenant} (Acme): limits.\n"
    shown = told("tenant", "update", tenant, "--shadow", "tokens_per_minute")
    amounts = {"tokens_per_minute": 6, "nano_dollars_per_day": 7}
    assert shown["limits"] == {**amounts, "shadow": ["tokens_per_minute"]}
    assert (shown["end_user_limits"], shown["weight"]) == ({"tokens_per_day": 4}, 9)
    shown = told("tenant", "update", tenant, "--shadow", "none", "--end-user-limit", "tokens_per_day=none")
    assert (shown["limits"], shown["end_user_limits"]) == (amounts, {})
    details = [entry["details"] for entry in told("audit", "--action", "tenant.change")]
    assert details[::-1] == [
        {"limits": {"tokens_per_day": None, "nano_dollars_per_day": 7}},
        {"limits": {"shadow": ["tokens_per_minute"]}},
        {"limits": {"shadow": []}, "end_user_limits": {"tokens_per_day": None}},
    ]


def test_a_keys_limits_are_set_shown_and_taken_away(office: Path) -> None:
    """As the tenant's; the list has them behind its cap on streams, and nothing where there are none."""
    tenant = new_tenant()
    options = ("--max-streams", "2", "--limit", "requests_per_minute=60", "--shadow", "requests_per_minute")
    key = new_key(tenant, "--name", "web", *options)
    new_key(tenant, "--name", "free")
    assert key["limits"] == {"requests_per_minute": 60, "shadow": ["requests_per_minute"]}
    line = "max_streams=2, requests_per_minute=60 (shadow)"
    assert re.search(rf"^limits +{re.escape(line)}$", fine("key", "show", key["id"]), re.MULTILINE)
    listed = fine("key", "list", tenant).splitlines()
    assert [row.rpartition("active")[2].strip() for row in listed[1:]] == [line, ""]
    changed = told("key", "update", key["id"], "--limit", "tokens_per_day=9", "--shadow", "none")
    assert changed["limits"] == {"requests_per_minute": 60, "tokens_per_day": 9}
    changed = told("key", "update", key["id"], "--limit", "requests_per_minute=none")
    assert (changed["limits"], changed["max_streams"]) == ({"tokens_per_day": 9}, 2)


BAD = [
    (("--limit", "tokens_per_day"), "NAME=AMOUNT"),
    (("--limit", "shadow=1"), "NAME=AMOUNT"),
    (("--limit", "tokens_per_day="), "whole number"),
    (("--limit", "tokens_per_day=many"), "whole number"),
    (("--limit", "tokens_per_day=1.5"), "whole number"),
    (("--limit", "tokens_per_day=" + "9" * 5000), "whole number"),
    (("--limit", "tokens_per_day=0"), "limits.tokens_per_day"),
    (("--limit", "tokens_per_day=-1"), "limits.tokens_per_day"),
    (("--limit", f"tokens_per_day={2**52 + 1}"), "limits.tokens_per_day"),
    (("--limit", "requests_per_minute=1000000001"), "limits.requests_per_minute"),
    (("--limit", "max_streams=5"), "limits.max_streams"),
    (("--limit", "tokens_in_all=5"), "limits.tokens_in_all"),
    (("--shadow", "colour"), "limits.shadow"),
    (("--shadow", "none", "--shadow", "tokens_per_day"), "limits.shadow"),
]
BAD_FOR_TENANTS = [
    (("--end-user-limit", "max_streams"), "--end-user-limit takes NAME=AMOUNT"),
    (("--end-user-limit", "max_streams=1000001"), "end_user_limits.max_streams"),
    (("--end-user-limit", "colour=1"), "end_user_limits.colour"),
    (("--end-user-shadow", "tokens_in_all"), "end_user_limits.shadow"),
    (("--queue", "10001"), "max_waiters"),
    (("--queue", "-1"), "max_waiters"),
    (("--queue-seconds", "0"), "max_wait_seconds"),
    (("--queue-seconds", "301"), "max_wait_seconds"),
    (("--weight", "0"), "weight"),
    (("--weight", "1001"), "weight"),
]
COMMANDS = {
    "tenant": [("tenant", "create", "Acme"), ("tenant", "update", "tn_no")],
    "key": [("key", "issue", "tn_no"), ("key", "update", "no")],
}


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [(kind, *bad) for kind in COMMANDS for bad in BAD] + [("tenant", *bad) for bad in BAD_FOR_TENANTS],
)
def test_what_the_api_refuses_of_limits_is_wrong_usage(
    office: Path, kind: str, options: tuple[str, ...], said: str
) -> None:
    """Status 2 and the name of what is wrong, before the database is asked; for new ones and old ones."""
    for command in COMMANDS[kind]:
        done = sluicegate(*command, *options)
        assert (done.status, done.out) == (2, "")
        assert said in re.sub(r"[\s│]+", " ", done.err)
        assert "Traceback" not in done.err
    assert told("audit") == []


@pytest.mark.parametrize(
    "command", [one[:2] for commands in COMMANDS.values() for one in commands], ids=" ".join
)
def test_help_shows_how_a_limit_is_written(command: tuple[str, str]) -> None:
    """In the option's own words, and in an example that could be pasted."""
    text = fine(*command, "--help")
    assert "NAME=AMOUNT" in text
    example = text[text.index("Example: ") :]
    assert re.search(r"--limit\s+\w+_per_\w+=\w+", example)
