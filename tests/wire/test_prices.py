"""Prices and markups as operators set them: two workers go by them within a second, and events name them."""

from __future__ import annotations

import asyncio
import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.wire import people
from tests.wire.commands import sluicegate, told
from tests.wire.people import call, new_key, new_tenant

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    import httpx2

    from tests.support.gates import GateProcess

PROMPT_TOKENS = 8
LONG_AGO = "2020-01-01T00:00:00Z"
BOUND = timedelta(seconds=3 * people.BOUND_SECONDS)
"""Threefold: what is a second for a worker shares two cores with our reading and with others."""


def model(tokens: int) -> str:
    """The scripted model, by a name that no other test has a price for."""
    return f"scripted?pace_ms=0&tokens={tokens}"


def price(dollars: str, **fields: str) -> dict[str, str]:
    """A price per million tokens: a dollar is a thousand nano-dollars a token."""
    return {"input": dollars, "output": dollars, **fields}


def imported(gate: GateProcess, prices: dict[str, Any], status: int = 200, **fields: Any) -> Any:
    """What an import over HTTP is answered."""
    body = {"prices": prices, **fields}
    return call(gate, "POST", "/admin/prices", gate.admin, status, json=body)


@pytest.fixture
def beside(gate: GateProcess, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Awaitable[Any]]:
    """Runs a command beside the gate, on its database and its Redis; in this process, which is quicker."""
    for name in ("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "DATA_DIR"):
        monkeypatch.setenv(name, gate.environment[name])

    async def run(*arguments: str, stdin: str | None = None) -> Any:
        return await asyncio.to_thread(told, *arguments, stdin=stdin)

    return run


async def charged(gate: GateProcess, tenant: str, count: int) -> list[tuple[str, int]]:
    """Versions and costs of a tenant's requests, as soon as there are so many."""
    events = await people.settled(gate, tenant, count)
    return [(event["price_version"], event["cost_nano_dollars"]) for event in events]


async def ask_until_both_know(
    gate: GateProcess, tenant: str, key: str, tokens: int, version: str, since: datetime
) -> None:
    """Requests, one after another, until both workers have charged one by that version.

    None that came in later than the bound may have been charged by another.
    """
    asked = len(await people.ledger_events(gate, tenant))
    while True:
        asked += 1
        assert people.chat(gate, key, model(tokens)).status_code == 200
        events = await people.settled(gate, tenant, asked)
        late = [event for event in events if event["started_at"] > since + BOUND]
        assert {event["price_version"] for event in late} <= {version}
        if len({event["worker"] for event in events if event["price_version"] == version}) == 2:
            return


async def test_all_workers_go_by_an_import_within_a_second(
    gate: GateProcess, beside: Callable[..., Awaitable[Any]], tmp_path: Path
) -> None:
    """By the command, beside a gate that serves; its version and its amounts are what events say."""
    tenant, key = gate.tenant()
    assert people.chat(gate, key, model(11)).status_code == 200
    [(_, before)] = await charged(gate, tenant, 1)
    assert before == PROMPT_TOKENS * 1000 + 11 * 2000  # as the migration left it
    file = tmp_path / "prices.json"
    file.write_text(json.dumps({model(11): price("3")}))
    [change] = (await beside("prices", "import", str(file)))["changes"]
    [*_, kept] = call(gate, "GET", "/admin/prices", gate.admin, params={"model": model(11)})["data"]
    assert kept["version"] == change["version"]
    since, version = datetime.fromisoformat(kept["created_at"]), f"{change['version']}"
    await ask_until_both_know(gate, tenant, key, 11, version, since)
    events = await people.ledger_events(gate, tenant)
    costs = {event["cost_nano_dollars"] for event in events if event["price_version"] == version}
    assert costs == {(PROMPT_TOKENS + 11) * 3000}


async def test_all_workers_go_by_an_import_over_http(gate: GateProcess) -> None:
    """As by the command; and again is no change."""
    tenant, key = gate.tenant()
    [change] = imported(gate, {model(12): price("4")})["changes"]
    since = datetime.now(UTC)
    await ask_until_both_know(gate, tenant, key, 12, f"{change['version']}", since)
    again = imported(gate, {model(12): price("4.000")})
    assert (again["changes"], again["unchanged"]) == ([], 1)


async def test_a_markup_is_paid_by_its_tenant_alone(
    gate: GateProcess, beside: Callable[..., Awaitable[Any]]
) -> None:
    """By the command in per cent, over HTTP in basis points; the event names both versions."""
    [change] = imported(gate, {model(13): price("1")}, valid_from=LONG_AGO)["changes"]
    tenant, key = gate.tenant()
    first = await beside("prices", "markup", tenant, "--percent", "20")
    assert (first["tenant_id"], first["basis_points"]) == (tenant, 2000)
    marked = f"{change['version']}+{first['version']}"
    await ask_until_both_know(gate, tenant, key, 13, marked, datetime.now(UTC))
    asked = {"tenant_id": tenant, "basis_points": -10_000}
    second = call(gate, "POST", "/admin/markups", gate.admin, json=asked)
    free = f"{change['version']}+{second['version']}"
    await ask_until_both_know(gate, tenant, key, 13, free, datetime.now(UTC))
    costs = dict(await charged(gate, tenant, len(await people.ledger_events(gate, tenant))))
    assert (costs[marked], costs[free]) == ((PROMPT_TOKENS + 13) * 1200, 0)
    other, other_key = gate.tenant()
    assert people.chat(gate, other_key, model(13)).status_code == 200
    assert await charged(gate, other, 1) == [(f"{change['version']}", (PROMPT_TOKENS + 13) * 1000)]
    shown = call(gate, "GET", "/admin/markups", gate.admin, params={"tenant": tenant})
    assert [row["basis_points"] for row in shown["data"]] == [-10_000, 2000]
    assert shown["next"] is None
    listed = await beside("prices", "markups", "--tenant", tenant)
    assert [row["version"] for row in listed] == [row["version"] for row in shown["data"]]


async def test_a_period_is_repriced_beside_a_gate_that_serves(
    gate: GateProcess, beside: Callable[..., Awaitable[Any]]
) -> None:
    """A mistake is mended: the price again for the past, then corrections; twice is once, and all adds up."""
    imported(gate, {model(14): price("100")}, valid_from=LONG_AGO)
    tenant, key = gate.tenant()
    assert people.chat(gate, key, model(14)).status_code == 200
    [(_, cost)] = await charged(gate, tenant, 1)
    right, since = json.dumps({model(14): price("1")}), ("--valid-from", "2020-01-01")
    [change] = (await beside("prices", "import", "-", *since, stdin=right))["changes"]
    days = (f"{datetime.now(UTC) + timedelta(days=n):%Y-%m-%d}" for n in (-1, 2))
    ledger = tuple(itertools.chain(*zip(("--from", "--to"), days, strict=True), ("--tenant", tenant)))
    period = (*ledger, "--model", "scripted*")
    difference = (PROMPT_TOKENS + 14) * 1000 - cost
    said = {"bookings": 1, "corrected": 1, "unpriced": 0, "nano_dollars": difference}
    assert await beside("prices", "reprice", *period, "--dry-run") == said | {"dry_run": True}
    assert len(await people.ledger_events(gate, tenant)) == 1
    assert await beside("prices", "reprice", *period) == said | {"dry_run": False}
    none = said | {"corrected": 0, "nano_dollars": 0, "dry_run": False}
    assert await beside("prices", "reprice", *period) == none
    first, correction = await people.ledger_events(gate, tenant)
    checked = await asyncio.to_thread(sluicegate, "verify", *ledger)
    assert checked.status == 0, checked
    assert (correction["corrects"], correction["cause"]) == (first["id"], "repriced")
    assert (correction["price_version"], correction["cost_nano_dollars"]) == (
        f"{change['version']}",
        difference,
    )


async def test_a_model_without_a_price_gets_one(gate: GateProcess) -> None:
    """Whoever has a budget in money is refused until somebody imports what the model costs."""
    tenant = new_tenant(gate, limits={"nano_dollars_per_day": 10**12})
    key = new_key(gate, tenant)["key"]
    assert people.error_of(people.chat(gate, key, "gpt-nobody-knows")) == (403, "model_not_priced")
    imported(gate, {"gpt-nobody-*": price("1")})
    await people.until(lambda: people.chat(gate, key, "gpt-nobody-knows").status_code != 403)


# --- the lists --------------------------------------------------------------------------------------


def test_the_list_says_what_holds_and_what_held(gate: GateProcess) -> None:
    """In dollars per million tokens as they were given; at any moment; all versions, newest first."""
    imported(gate, {"list-a": price("0.15", cached_input="0.075")}, valid_from="2026-01-01T00:00:00Z")
    given = {"list-a": price("1e-9", reasoning="7"), "list-*": price("2")}
    done = imported(gate, given, valid_from="2026-02-01T01:00:00+01:00")
    assert (done["valid_from"], done["dry_run"], done["unchanged"]) == ("2026-02-01T00:00:00Z", False, 0)
    wild, change = done["changes"]
    assert (wild["model"], wild["before"], change["model"]) == ("list-*", None, "list-a")
    before = {"input": "0.15", "cached_input": "0.075", "output": "0.15", "reasoning": "0.15"}
    after = {"input": "0.000000001", "cached_input": "0.000000001", "output": "0.000000001", "reasoning": "7"}
    assert (change["before"], change["after"]) == (before, after)
    path = "/admin/prices?model=list-a"
    now = call(gate, "GET", path, gate.admin)["data"]
    assert [row["model"] for row in now] == ["list-*", "list-a"]
    assert {name: now[1][name] for name in after} == after
    assert now[1]["created_by"].startswith("user:boss@")
    [then] = call(gate, "GET", f"{path}&at=2026-01-31T23:59:59.999999Z", gate.admin)["data"]
    assert {name: then[name] for name in before} == before
    assert call(gate, "GET", f"{path}&at=2025-12-31T00:00:00Z", gate.admin)["data"] == []
    history = call(gate, "GET", "/admin/prices/history?model=list-a", gate.admin)
    versions = [row["version"] for row in history["data"]]
    assert versions == [change["version"], wild["version"], then["version"]]


def test_lists_come_in_pages(gate: GateProcess) -> None:
    """Each row once, to the end."""
    imported(gate, {f"page-{n}": price("1") for n in range(7)})
    found: list[str] = []
    after = ""
    while after is not None:
        asked = {"limit": "3"} | ({"after": after} if after else {})
        page = call(gate, "GET", "/admin/prices", gate.admin, params=asked)
        found += [row["model"] for row in page["data"]]
        after = page["next"]
    assert [name for name in found if name.startswith("page-")] == [f"page-{n}" for n in range(7)]
    assert len(found) == len(set(found))
    versions: list[int] = []
    before: int | None = 0
    while before is not None:
        path = "/admin/prices/history?limit=3" + (f"&before={before}" if before else "")
        page = call(gate, "GET", path, gate.admin)
        versions += [row["version"] for row in page["data"]]
        before = page["next"]
    assert versions == sorted(set(versions), reverse=True)
    assert versions[-1] == 1


def test_litellms_list_is_taken_over_http(gate: GateProcess) -> None:
    """As it is; what was left out is counted. A dry run changes nothing."""
    token = {"input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07, "litellm_provider": "openai"}
    document = {
        "sample_spec": token,
        "lite-1": token | {"cache_read_input_token_cost": 7.5e-08},
        "lite-2": token | {"input_cost_per_token_above_200k_tokens": 3e-07},
        "lite-image": {"output_cost_per_image": 0.04, "litellm_provider": "openai"},
    }
    for dry_run in (True, True, False):
        done = imported(gate, document, dry_run=dry_run)
        assert (len(done["changes"]), done["left_out"], done["tiered"]) == (2, 1, 1)
        assert done["changes"][0]["after"] == {
            "input": "0.15",
            "cached_input": "0.075",
            "output": "0.6",
            "reasoning": "0.6",
        }
    assert imported(gate, document)["unchanged"] == 2


# --- what is refused --------------------------------------------------------------------------------

BAD_PRICES: dict[str, Any] = {
    "nothing": {},
    "no prices": {"prices": {}},
    "a list": {"prices": []},
    "a row of another type": {"prices": {"m": 7}},
    "an absurd amount": {"prices": {"m": {"input": "1", "output": "1000001"}}},
    "less than nothing": {"prices": {"m": {"input": "-1", "output": "1"}}},
    "no number": {"prices": {"m": {"input": "NaN", "output": "1"}}},
    "a star inside": {"prices": {"a*b": {"input": "1", "output": "1"}}},
    "a NUL": {"prices": {"a\0b": {"input": "1", "output": "1"}}},
    "an unknown field": {"prices": {"m": {"input": "1", "output": "1"}}, "from": LONG_AGO},
    "a moment without a zone": {
        "prices": {"m": {"input": "1", "output": "1"}},
        "valid_from": "2026-01-01T00:00:00",
    },
    "a moment that is none": {
        "prices": {"m": {"input": "1", "output": "1"}},
        "valid_from": "0001-01-01T00:00:00+23:59",
    },
    "too many": {"prices": {f"m{n}": {"input": "1", "output": "1"} for n in range(10_001)}},
}
BAD_MARKUPS: dict[str, Any] = {
    "nothing": {},
    "no tenant": {"basis_points": 1},
    "too little": {"tenant_id": "tn_no", "basis_points": -10_001},
    "too much": {"tenant_id": "tn_no", "basis_points": 100_001},
    "a part of one": {"tenant_id": "tn_no", "basis_points": 0.5},
    "a string": {"tenant_id": "tn_no", "basis_points": "5"},
    "a NUL": {"tenant_id": "tn\0", "basis_points": 5},
}
BAD_PATHS = [
    *(
        f"prices?{query}"
        for query in ("at=yesterday", "at=2026-01-01T00:00:00", "limit=0", "limit=1001", "model=")
    ),
    *(f"prices?{query}" for query in ("model=%00", "after=%00", "model=" + "m" * 257)),
    *(f"prices/history?before={number}" for number in (0, -1, 2**63, "x")),
    *("markups?tenant=%00", "markups?before=9223372036854775808"),
]


def refused(gate: GateProcess, answer: httpx2.Response, status: int = 400) -> str:
    """The text of a refusal, after which nothing has changed."""
    assert people.error_of(answer)[0] == status, answer.text
    return str(answer.json()["error"]["message"])


def newest(gate: GateProcess) -> tuple[Any, Any]:
    """The newest versions of all."""
    paths = ("/admin/prices/history?limit=1", "/admin/markups?limit=1")
    first, second = (call(gate, "GET", path, gate.admin)["data"] for path in paths)
    return first, second


@pytest.mark.parametrize("name", BAD_PRICES)
def test_prices_that_are_none_are_a_400(gate: GateProcess, name: str) -> None:
    """In words, with the model's and the field's name where it is about one; and nothing is added."""
    before = newest(gate)
    text = refused(gate, gate.http("POST", "/admin/prices", gate.admin, json=BAD_PRICES[name]))
    if name in {"an absurd amount", "less than nothing", "no number"}:
        field = "output" if name == "an absurd amount" else "input"
        assert f"m: `{field}` must be dollars per million tokens" in text
    assert newest(gate) == before


@pytest.mark.parametrize("name", BAD_MARKUPS)
def test_markups_that_are_none_are_a_400(gate: GateProcess, name: str) -> None:
    """And one of a tenant that there is not a 404."""
    before = newest(gate)
    refused(gate, gate.http("POST", "/admin/markups", gate.admin, json=BAD_MARKUPS[name]))
    nobody = {"tenant_id": "tn_no", "basis_points": 5}
    refused(gate, gate.http("POST", "/admin/markups", gate.admin, json=nobody), 404)
    assert newest(gate) == before


@pytest.mark.parametrize("path", BAD_PATHS, ids=range(len(BAD_PATHS)))
def test_questions_that_make_no_sense_are_a_400(gate: GateProcess, path: str) -> None:
    """Also those that the database would fail at."""
    refused(gate, gate.http("GET", f"/admin/{path}", gate.admin))
