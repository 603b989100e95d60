"""The export end to end: a gate as operators run it, a receiver over HTTP, commands and routes for admins."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, update

from api.adapters.database_sql import open_engine
from api.adapters.tables_sql import outbox, usage_events
from api.core import cloud_events
from tests.contracts.ledgers import ended, put
from tests.support.gates import GateProcess, gate_process
from tests.support.receivers import EventReceiver
from tests.wire.commands import fine, sluicegate, told
from tests.wire.people import call, chat, error_of, new_key, new_tenant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZmdoaWprbG1ub3BxcnN0dXY="
TOKEN = "om_token-that-nobody-must-see"
QUICK = {"TICK_SECONDS": "0.1", "LEASE_SECONDS": "1"}
"""A leader that dies is followed within half a second."""


@pytest.fixture
def receiver() -> Iterator[EventReceiver]:
    with EventReceiver() as server:
        yield server


def exporting(receiver: EventReceiver) -> dict[str, str]:
    """Settings of a gate that exports."""
    return {
        "EXPORT_URL": receiver.url,
        "EXPORT_SECRET": SECRET,
        "EXPORT_TOKEN": TOKEN,
        "EXPORT_SOURCE": "gate-7",
        "EXPORT_TIMEOUT_SECONDS": "60",
        **QUICK,
    }


def database_of(directory: Path) -> str:
    return f"sqlite+aiosqlite:///{directory / 'data' / 'sluicegate.db'}"


def in_database(directory: Path, *work: Any) -> list[Any]:
    """Run statements on a gate's own file, beside it; the rows of the last one."""

    async def run() -> list[Any]:
        engine = open_engine(database_of(directory))
        async with engine.begin() as connection:
            done = [await connection.execute(one) for one in work]
            rows = list(done[-1]) if done[-1].returns_rows else []
        await engine.dispose()
        return rows

    return asyncio.run(run())


def test_what_streams_use_arrives_also_when_the_worker_is_killed(tmp_path: Path, receiver) -> None:
    """SIGKILL after the receiver got a batch and before the gate heard of it: the same ids once more, no gap.

    Events say whose they are, and their signature holds; neither token nor secret is in the log.
    """
    held = threading.Event()
    receiver.says = lambda _: held if not held.is_set() else 204
    with gate_process(tmp_path, **exporting(receiver)) as gate:
        tenant = new_tenant(gate, external_id="acme-7")
        key = new_key(gate, tenant)
        chat(gate, key["key"])
        receiver.wait(lambda: receiver.deliveries)
        for _ in range(2):
            chat(gate, key["key"])
        gate.stop(signal.SIGKILL)
        log = gate.log
    held.set()
    ledger = [row.id for row in in_database(tmp_path, select(usage_events.c.id))]
    assert len(ledger) == 3
    again = GateProcess(tmp_path, **exporting(receiver))
    try:
        receiver.wait(lambda: set(ledger) <= set(receiver.taken[-3:]))
        log += again.log
    finally:
        again.stop()
    assert set(receiver.taken) == set(ledger)
    [first, *_] = receiver.deliveries
    assert first.ids[0] in receiver.taken[-3:], "it was not sent again"
    for one in receiver.deliveries:
        assert {(event["subject"], event["source"]) for event in one.events} == {("acme-7", "gate-7")}
        assert {event["data"]["key_id"] for event in one.events} == {key["id"]}
        assert {event["data"]["output_tokens"] for event in one.events} == {3}
        headers = cloud_events.signed(
            one.body,
            message_id=cloud_events.batch_id(one.ids),
            unix_seconds=int(one.headers["webhook-timestamp"]),
            key=cloud_events.signing_key(SECRET),
        )
        assert headers.items() <= one.headers.items()
        assert one.headers["authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in log
    assert SECRET not in log


def test_admins_see_dead_letters_and_send_them_again(tmp_path: Path, receiver) -> None:
    """By the API and by the command line; a tenant sees none of it, and nonsense is a 400."""
    with gate_process(tmp_path, **exporting(receiver)) as gate:
        tenant, key = gate.tenant()
        for _ in range(2):
            chat(gate, key)
        receiver.wait(lambda: len(receiver.taken) == 2)
        ids = sorted(receiver.taken)
        receiver.deliveries.clear()
        dead = {"delivered_at": None, "dead_at": datetime.now(UTC), "attempts": 5, "error": "422 no \x1b[31m"}
        until_marked(gate)
        in_database(tmp_path, update(outbox).values(**dead))

        status = call(gate, "GET", "/admin/export", gate.admin)
        assert (status["pending"], status["dead"], status["last_error"]) == (0, 2, dead["error"])
        page = call(gate, "GET", "/admin/export/dead?limit=1", gate.admin)
        assert (page["data"][0]["event_id"], page["next"]) == (ids[0], ids[0])
        rest = call(gate, "GET", f"/admin/export/dead?after={page['next']}", gate.admin)
        assert ([one["event_id"] for one in rest["data"]], rest["next"]) == ([ids[1]], None)
        assert {one["tenant_id"] for one in rest["data"]} == {tenant}
        assert gate.cli("export", "status")["dead"] == 2
        assert [one["event_id"] for one in gate.cli("export", "dead")] == ids

        retry = "/admin/export/retry"
        for body in ({}, {"all": False}, {"event_ids": []}, {"all": True, "event_ids": ids}, {"all": 1}):
            assert gate.http("POST", retry, gate.admin, json=body).status_code == 400, body
        for bad in ({"event_ids": ["a\x00"]}, {"event_ids": ["x" * 41]}, {"event_ids": ids, "more": 1}):
            assert gate.http("POST", retry, gate.admin, json=bad).status_code == 400, bad
        assert gate.http("GET", "/admin/export/dead?limit=0", gate.admin).status_code == 400
        for method, path in (("GET", ""), ("GET", "/dead"), ("POST", "/retry")):
            refused = gate.http(method, f"/admin/export{path}", key, json={"all": True})
            assert error_of(refused) == (403, "insufficient_scope")
        assert receiver.deliveries == []

        asked = {"event_ids": [ids[0], "bk_none"]}
        assert call(gate, "POST", retry, gate.admin, json=asked) == {"retried": 1}
        receiver.wait(lambda: receiver.taken == ids[:1])
        assert gate.cli("export", "retry", "--all") == {"retried": 1}
        receiver.wait(lambda: receiver.taken == ids)
        until_marked(gate)
        actions = gate.cli("audit", "--action", "export.retry")
        assert {entry["target"] for entry in actions} == {ids[0], "all"}


def until_marked(gate: GateProcess) -> None:
    """Wait until all that was delivered is marked."""
    status: dict[str, Any] = {}
    for _ in range(500):
        status = call(gate, "GET", "/admin/export", gate.admin)
        if status["pending"] == 0:
            return
    raise AssertionError(status)


# --- commands, without a gate ---------------------------------------------------------------------------


@pytest.fixture
def ledger(office: Path) -> str:
    """A database with three events of two tenants, none of them exported."""
    told("migrate")
    came = datetime(2026, 3, 4, 5, tzinfo=UTC)

    async def write() -> None:
        engine = open_engine(f"sqlite+aiosqlite:///{office / 'sluicegate.db'}")
        await put(engine, ended(came), ended(came), ended(came, of={"tenant_id": "tn_b"}))
        await engine.dispose()

    asyncio.run(write())
    return str(came)


def test_a_backfill_is_of_a_period_and_a_tenant(ledger: str) -> None:
    """What it adds is pending, and says so to a person and to a program."""
    assert "EXPORT_URL is not set here" in fine("export", "status")
    march = ("--from", "2026-03-01", "--to", "2026-04-01")
    assert told("export", "backfill", *march, "--tenant", "tn_b") == {"added": 1}
    assert fine("export", "backfill", *march) == "2 events will be exported.\n"
    assert fine("export", "backfill", *march) == "0 events will be exported.\n"
    status = told("export", "status")
    assert (status["pending"], status["enabled"]) == (3, False)
    assert "pending" in fine("export", "status")
    assert "There are no dead letters" in fine("export", "dead")
    exact = ("--from", "2026-03-04T05:00:00.000001+00:00", "--to", "2026-03-04T06:00")
    assert told("export", "backfill", *exact) == {"added": 0}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("backfill", "--from", "2026-04-01", "--to", "2026-03-01"), "--to must be after --from"),
        (("backfill", "--from", "March", "--to", "2026-03-01"), "--from takes a date"),
        (("backfill", "--from", "2026-03-01", "--to", "2026-02-30"), "--to takes a date"),
        (("backfill", "--from", "0001-01-01T00:00+23:00", "--to", "2026-03-01"), "--from takes a date"),
        (("retry",), "name some events, or say --all"),
        (("retry", "--all", "bk_1"), "name some events, or say --all"),
        (("retry", "bk_1"), "No dead letter: bk_1"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(ledger: str, arguments: tuple[str, ...], says: str) -> None:
    """With a status that is not 0, a sentence on standard error, and nothing changed."""
    done = sluicegate("export", *arguments)
    assert done.status != 0
    assert says in " ".join(done.err.replace("│", " ").split())
    assert told("export", "status")["pending"] == 0


def test_the_settings_are_shown_without_their_secrets(office: Path, monkeypatch) -> None:
    """`check-config` may be pasted into a ticket."""
    monkeypatch.setenv("EXPORT_URL", "https://bills.example/events")
    monkeypatch.setenv("EXPORT_SECRET", SECRET)
    monkeypatch.setenv("EXPORT_TOKEN", TOKEN)
    shown = told("check-config")
    assert shown["export_url"] == "https://bills.example/events"
    assert SECRET not in json.dumps(shown)
    assert TOKEN not in json.dumps(shown)
