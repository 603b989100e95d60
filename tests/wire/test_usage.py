"""Usage over HTTP: sums and events, as JSON in pages and as CSV, for whoever they belong to."""

from __future__ import annotations

import asyncio
import csv
import io
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from api.accounts import KeyFields
from api.adapters.database_sql import open_engine
from api.adapters.ledger_sql import SqlLedger
from api.ports import LedgerUnavailable
from api.routes import csv_pages
from auth.principal import Scope
from tests.contracts.usages import DST, added, append_all, random_events, usage_event
from tests.support.gates import BY, InProcess, serving, settings_of
from tests.wire.commands import fine, new_tenant, sluicegate, told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from api.core.record import UsageEvent

BERLIN = {"from": "2026-10-24", "to": "2026-10-27", "interval": "day"}


class Reader:
    """A gate, some usage in it, and somebody who asks."""

    def __init__(
        self, gate: InProcess, client: httpx2.AsyncClient, admin: str, events: list[UsageEvent]
    ) -> None:
        self.gate, self.client, self.admin, self.events = gate, client, admin, events

    async def get(self, path: str, key: str = "", /, **params: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {key or self.gate.key}"} | params.pop("headers", {})
        return await self.client.get(path, params=params, headers=headers)

    async def json(self, path: str, key: str = "", /, status: int = 200, **params: Any) -> Any:
        answer = await self.get(path, key, **params)
        assert answer.status_code == status, answer.text
        return answer.json()

    def mine(self) -> list[UsageEvent]:
        return [one for one in self.events if one.booking.tenant_id == self.gate.tenant]


@asynccontextmanager
async def asked(tmp_path: Path, zone: str = "Europe/Berlin") -> AsyncIterator[Reader]:
    settings = settings_of(tmp_path)
    async with serving(settings) as gate:
        await gate.gate.accounts.change_tenant(gate.tenant, {"time_zone": zone}, by=BY)
        await gate.gate.accounts_changed()
        admin = KeyFields("boss", (Scope.ADMIN, Scope.CHAT))
        _, key = await gate.gate.accounts.keys(None).issue(gate.tenant, admin, by=BY)
        events = random_events(11, 300, tenants=(gate.tenant, "tn_b"))
        engine = open_engine(settings.ledger_url)
        await append_all(engine, events)
        await engine.dispose()
        async with httpx2.AsyncClient(base_url=gate.url, trust_env=False, timeout=30) as client:
            yield Reader(gate, client, key, events)


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def as_texts(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """JSON rows as a CSV reader has them."""
    return [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]


async def test_sums_rows_and_pages_are_those_of_the_events(tmp_path) -> None:
    """Without parameters the sums of all; with them rows of the tenant's days; pages are all rows, once."""
    async with asked(tmp_path) as reader:
        everything = await reader.json("/v1/usage")
        sums = added(reader.mine())
        assert {name: everything[name] for name in sums.__dataclass_fields__} == {
            name: getattr(sums, name) for name in sums.__dataclass_fields__
        }
        assert (everything["from"], everything["to"], everything["next"]) == (None, None, None)
        assert everything["time_zone"] == "Europe/Berlin"
        days = await reader.json("/v1/usage", **BERLIN)
        assert days["from"] == "2026-10-24T00:00:00+02:00"
        assert [(row["starts_at"], row["ends_at"]) for row in days["data"]] == [
            ("2026-10-24T00:00:00+02:00", "2026-10-25T00:00:00+02:00"),
            ("2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00"),  # 25 hours
            ("2026-10-26T00:00:00+01:00", "2026-10-27T00:00:00+01:00"),
        ]
        assert set(days["data"][0]) == {"starts_at", "ends_at", *sums.__dataclass_fields__}
        assert sum(row["cost_nano_dollars"] for row in days["data"]) == days["cost_nano_dollars"]
        whole = await reader.json("/v1/usage", **BERLIN, group_by="model,key")
        assert {row["key"] for row in whole["data"]} == {None, "k1", "K1", "k2"}
        assert list(whole["data"][0])[:4] == ["starts_at", "ends_at", "key", "model"]
        paged, after = [], None
        while True:
            page = await reader.json(
                "/v1/usage", **BERLIN, group_by="model,key", limit=7, **({"after": after} if after else {})
            )
            assert page["events"] == whole["events"]
            paged += page["data"]
            if (after := page["next"]) is None:
                break
        assert paged == whole["data"]
        one = await reader.json("/v1/usage", key="k1", model="scripted")
        by_hand = [e for e in reader.mine() if (e.booking.key_id, e.booking.model) == ("k1", "scripted")]
        assert one["output_tokens"] == added(by_hand).output_tokens
        none = await reader.json("/v1/usage", key="")
        assert none["events"] == added([e for e in reader.mine() if e.booking.key_id is None]).events


async def test_csv_is_all_rows_of_the_same_question(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In as many pages as it takes; by `format` or by Accept; what looks like a formula is text."""
    monkeypatch.setattr(csv_pages, "PAGE_ROWS", 5)
    monkeypatch.setattr("api.routes.usage.PAGE_ROWS", 5)
    async with asked(tmp_path) as reader:
        question = BERLIN | {"group_by": "end_user"}
        rows = as_texts((await reader.json("/v1/usage", **question))["data"])
        assert len(rows) > 5
        answer = await reader.get("/v1/usage", **question, format="csv")
        assert answer.headers["content-type"].startswith("text/csv")
        assert answer.headers["content-disposition"] == 'attachment; filename="usage.csv"'
        found = table(answer.text)
        assert {row["end_user"] for row in found} >= {"'=1+1", "", "a,nn"}
        assert [row | {"end_user": row["end_user"].removeprefix("'")} for row in found] == rows
        other = await reader.get("/v1/usage", **question, headers={"accept": "text/csv"})
        assert other.text == answer.text
        either = await reader.get("/v1/usage", headers={"accept": "application/json, text/csv;q=0.5"})
        assert either.headers["content-type"] == "application/json"
        page = await reader.json("/v1/usage", **question, limit=4)
        rest = await reader.get("/v1/usage", **question, format="csv", after=page["next"])
        assert table(rest.text) == found[4:]
        events = table((await reader.get("/v1/usage/events", format="csv")).text)
        assert [row["id"] for row in events] == sorted(one.id for one in reader.mine())
        assert any(row["corrects"] and int(row["input_tokens"]) < 0 for row in events)
        assert len(table((await reader.get("/v1/usage", format="csv")).text)) == 1


async def test_events_of_a_time_in_pages(tmp_path) -> None:
    """Also behind a correction; with all labels; `from` and `to` are the tenant's clocks'."""
    async with asked(tmp_path) as reader:
        expected = sorted(
            one.id
            for one in reader.mine()
            if DST - timedelta(hours=2) <= one.booking.started_at < DST + timedelta(hours=23)
        )
        times = {"from": "2026-10-25", "to": "2026-10-26"}
        found, after = [], {}
        while True:
            page = await reader.json("/v1/usage/events", **times, limit=3, **after)
            found += page["data"]
            if page["next"] is None:
                break
            after = {"after": page["next"]}
        assert [row["id"] for row in found] == expected
        corrections = [row for row in found if row["corrects"]]
        assert corrections
        assert {row["id"].rpartition("-")[0] for row in corrections} == {
            row["corrects"] for row in corrections
        }
        labels = {"cost_nano_dollars", "price_version", "corrects", "upstream", "first_token_ms"}
        assert labels <= set(found[0])
        assert "worker" not in found[0]


async def test_admins_ask_of_one_tenant_or_of_all(tmp_path) -> None:
    """Days are the tenant's, or of the zone that is asked for; a tenant that never was is a 404."""
    async with asked(tmp_path) as reader:
        ours, boss = reader.gate.tenant, reader.admin
        all_of_them = await reader.json("/admin/usage", boss, group_by="tenant")
        assert all_of_them["time_zone"] == "UTC"
        by_tenant = {row["tenant"]: row["events"] for row in all_of_them["data"]}
        assert by_tenant == {
            tenant: added(e for e in reader.events if e.booking.tenant_id == tenant).events
            for tenant in (ours, "tn_b")
        }
        one = await reader.json("/admin/usage", boss, tenant=ours, **BERLIN)
        assert one == await reader.json("/v1/usage", **BERLIN)
        elsewhere = await reader.json("/admin/usage", boss, tenant=ours, time_zone="Asia/Kathmandu", **BERLIN)
        assert elsewhere["data"][0]["starts_at"] == "2026-10-24T00:00:00+05:45"
        events = await reader.json("/admin/usage/events", boss, tenant=ours, limit=1000)
        assert events == await reader.json("/v1/usage/events", limit=1000)
        for path in ("/admin/usage", "/admin/usage/events"):
            refused = await reader.json(path, boss, 404, tenant="tn_never")
            assert refused["error"]["code"] == "not_found"


BAD = [
    {"from": "yesterday"},
    {"from": "2026-11-01T00:07"},
    {"from": "2026-11-02", "to": "2026-11-01"},
    {"from": "2026-11-01T00:00:00 02:00"},
    {"to": "x" * 41},
    {"interval": "week"},
    {"interval": "hour", "from": "2020-01-01"},
    {"group_by": "colour"},
    {"group_by": "x" * 101},
    {"groupby": "model"},
    {"tenant": "tn_b"},
    {"time_zone": "UTC"},
    {"key": "a\0b"},
    {"model": "m" * 257},
    {"end_user": "\u202e"},
    {"format": "xml"},
    {"limit": "0"},
    {"limit": "1001"},
    {"limit": "many"},
    {"after": "x"},
    {"after": "WzAsW11d", "group_by": "model"},
    {"after": "x" * 8001},
    {"from": "2026-11-01", "from ": "2026-11-01"},
]
BAD_EVENTS = [
    {"from": "yesterday"},
    {"to": "1999-01-01"},
    {"interval": "day"},
    {"limit": "0"},
    {"after": "\0"},
    {"after": "x" * 41},
    {"format": "xml"},
]


async def test_what_cannot_be_asked_is_a_400_that_names_it(tmp_path) -> None:
    """As JSON and as CSV, for tenants and for admins; no error of ours, and nothing else than an error."""
    async with asked(tmp_path) as reader:
        cases = [("/v1/usage", "", params) for params in BAD]
        cases += [("/v1/usage/events", "", params) for params in BAD_EVENTS]
        for params in BAD:
            if not {"tenant", "time_zone"} & set(params):
                cases.append(("/admin/usage", reader.admin, params))
        cases += [
            ("/admin/usage", reader.admin, {"time_zone": zone}) for zone in ("Mars/Olympus", "", "../x")
        ]
        cases += [("/admin/usage", reader.admin, {"tenant": ""}), ("/admin/usage/events", reader.admin, {})]
        for path, key, params in cases:
            csv_too = {"format": "csv"} if len(params) == 1 else {}
            answer = await reader.get(path, key, **csv_too | params)
            assert answer.status_code == 400, (path, params, answer.text)
            error = answer.json()["error"]
            assert error["code"] == "invalid_request"
            assert error["param"].removeprefix("query.") in {*params, "tenant"}, (params, error)


async def test_anothers_names_and_cursors_give_nothing_of_anothers(tmp_path) -> None:
    """P10: they are names that the tenant does not have."""
    async with asked(tmp_path) as reader:
        theirs = usage_event(DST, 77, tenant_id="tn_b", key_id="theirs", end_user="their user", model="m")
        engine = open_engine(settings_of(tmp_path).ledger_url)
        await append_all(engine, [theirs])
        await engine.dispose()
        for params in ({"key": "theirs"}, {"end_user": "their user"}, {"model": "m"}):
            found = await reader.json("/v1/usage", **params, group_by="key,end_user")
            assert (found["events"], found["data"], found["next"]) == (0, [], None)
        mine = await reader.json("/v1/usage", group_by="end_user,tenant")
        assert {row["tenant"] for row in mine["data"]} == {reader.gate.tenant}
        assert "their user" not in {row["end_user"] for row in mine["data"]}
        behind = await reader.json("/v1/usage/events", after=theirs.id)
        assert all(row["tenant_id"] == reader.gate.tenant for row in behind["data"])


async def test_csv_that_cannot_be_read_on_does_not_end_as_if_it_were_whole(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error before the first page; after it a connection that breaks, if the database or key is gone."""
    monkeypatch.setattr("api.routes.usage.PAGE_ROWS", 5)
    async with asked(tmp_path) as reader:
        usage, accounts = reader.gate.gate.usage, reader.gate.gate.accounts
        page = usage.page

        async def away(*args: Any, **options: Any) -> Any:
            if options.get("after") is not None or not allowed:
                raise LedgerUnavailable("away")
            return await page(*args, **options)

        question = BERLIN | {"group_by": "end_user", "format": "csv"}
        monkeypatch.setattr(usage, "page", away)
        allowed = False
        refused = await reader.json("/v1/usage", status=503, **question)
        assert refused["error"]["code"] == "ledger_unavailable"
        allowed = True
        with pytest.raises(httpx2.TransportError):
            await reader.get("/v1/usage", **question)
        info, key = await accounts.keys(None).issue(
            reader.gate.tenant, KeyFields("short", (Scope.USAGE_READ,)), by=BY
        )

        async def revoked_meanwhile(*args: Any, **options: Any) -> Any:
            found = await page(*args, **options)
            await accounts.keys(None).revoke(info.id, by=BY)
            await reader.gate.gate.accounts_changed()
            return found

        monkeypatch.setattr(usage, "page", revoked_meanwhile)
        with pytest.raises(httpx2.TransportError):
            await reader.get("/v1/usage", key, **question)
        assert (await reader.get("/v1/usage", key)).status_code == 401


async def test_a_request_is_in_the_sums_when_it_is_over(tmp_path) -> None:
    """Of its key, model and upstream, at its price; the roll-ups' writer may come before or after."""
    async with (
        serving(settings_of(tmp_path)) as gate,
        httpx2.AsyncClient(
            base_url=gate.url, trust_env=False, timeout=30, headers={"authorization": f"Bearer {gate.key}"}
        ) as client,
    ):
        body = {"prompt": "hi", "model": "scripted?tokens=3&pace_ms=0"}
        for count in (1, 2, 3):
            await client.post("/chat/stream", json=body)
            await gate.settled()
            for _ in range(3):
                params = {"group_by": "model,key,upstream", "interval": "hour"}
                found = (await client.get("/v1/usage", params=params)).json()
                assert (found["events"], found["output_tokens"]) == (count, 3 * count)
                assert found["cost_nano_dollars"] == sum(
                    one.cost_nano_dollars or 0 for one in await gate.events()
                )
                assert sum(row["events"] for row in found["data"]) == count
        assert {row["model"] for row in found["data"]} == {body["model"]}


# --- the command ------------------------------------------------------------------------------------


def test_the_command_answers_as_the_api_does(office: Path) -> None:
    """Sums, rows, events and CSV; all tenants by tenant where none is named."""
    tenant = new_tenant("Acme", "--time-zone", "Europe/Berlin")
    events = random_events(12, 200, tenants=(tenant, "tn_b"))
    mine = [one for one in events if one.booking.tenant_id == tenant]

    async def write() -> None:
        engine = open_engine(f"sqlite:///{office}/sluicegate.db")
        await append_all(engine, events)
        assert (await SqlLedger(engine).totals(tenant)).events == added(mine).events
        await engine.dispose()

    asyncio.run(write())
    everything = told("usage", "--tenant", tenant)
    assert (everything["events"], everything["next"]) == (added(mine).events, None)
    assert fine("usage", "--tenant", tenant).startswith(f"{added(mine).events} requests, ")
    days = ("--from", "2026-10-24", "--to", "2026-10-27", "--interval", "day", "--group-by", "end_user")
    rows = told("usage", "--tenant", tenant, *days)
    assert rows["time_zone"] == "Europe/Berlin"
    found = table(fine("usage", "--tenant", tenant, *days, "--csv"))
    assert [row["cost_nano_dollars"] for row in found] == [
        str(row["cost_nano_dollars"]) for row in rows["data"]
    ]
    assert "'=1+1" in {row["end_user"] for row in found}
    assert {row["tenant"] for row in told("usage")["data"]} == {tenant, "tn_b"}
    assert tenant in fine("usage")
    assert [row["id"] for row in told("usage", "--tenant", tenant, "--events")] == sorted(o.id for o in mine)
    assert len(table(fine("usage", "--tenant", tenant, "--events", "--csv"))) == len(mine)
    assert told("usage", "--tenant", tenant, "--model", "scripted", "--key", "k1")["events"] > 0
    assert (
        told("usage", "--time-zone", "Asia/Kathmandu", "--interval", "month")["time_zone"] == "Asia/Kathmandu"
    )
    rebuild = ("usage-rebuild", "--from", "2026-10-24", "--to", "2026-10-27")
    assert fine(*rebuild) == "All sums were right.\n"
    assert told(*rebuild)["changed"] == []
    gone = sluicegate("usage-rebuild", "--from", "2026-01-01", "--to", "2026-10-27")
    assert (gone.status, gone.out) == (1, "")
    assert "none from before 2026-10-24 are kept" in gone.err
