"""`verify` on both databases: a ledger that streams left is green, and each broken row is found and named."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from api.adapters import ledger_writes_sql as writes
from api.adapters.outbox_sql import KEPT
from api.adapters.rows_sql import booking_row
from api.adapters.tables_sql import (
    in_flight,
    markups,
    outbox,
    prices,
    retired_usage,
    rollup_queue,
    usage_events,
    usage_rollups,
    workers,
)
from api.adapters.verify_sql import Scope
from tests.contracts.ledgers import came, lawless
from tests.contracts.random_ledgers import (
    DAY,
    NOW,
    SCOPE,
    Ledger,
    broken,
    checked,
    checked_while,
    faults,
    rolled,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

NAMES = {"one_event", "corrections", "costs", "rollups", "outbox", "dead_bookings"}


# --- a healthy ledger -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_ledger_that_streams_left_is_green(engine, witness, monkeypatch, seed) -> None:
    """With late workers, repricing, tenants' markups, roll-ups half done; for all tenants and for one.

    And in small pages as in large ones.
    """
    await Ledger(engine, seed).fill()
    assert faults(await checked(witness)) == {}
    for rounds in (3, 100):
        await rolled(engine, monkeypatch, batch=9, rounds=rounds)
        found = await checked(witness)
        assert set(found) == NAMES
        assert faults(found) == {}
    assert faults(await checked(witness, SCOPE._replace(tenant_id="tn_b"))) == {}
    half = Scope(DAY + timedelta(hours=7), DAY + timedelta(days=2, hours=3))
    assert faults(await checked(witness, half)) == {}
    monkeypatch.setattr("api.adapters.verify_sql._PAGE", 4)
    found = await checked(witness)
    assert faults(found) == {}
    async with witness.connect() as connection:
        rows = (await connection.execute(select(usage_events))).all()
        causes = {row.cause for row in rows}
        assert causes >= {"worker_lost", "late_worker", "repriced", "terminal"}
        unpriced = sum(row.price_version is None for row in rows)
        assert found["costs"].note == f"{unpriced} of {len(rows)} events name no price."


async def test_nothing_is_green_too(engine) -> None:
    """A new gateway's ledger."""
    found = await checked(engine)
    assert faults(found) == {}
    assert "No event was exported so far" in found["outbox"].note


# --- what breaks it -------------------------------------------------------------------------------------


@pytest.fixture
async def filled(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A healthy ledger, its roll-ups half done; its rows by id."""
    await Ledger(engine, 7).fill(24)
    await rolled(engine, monkeypatch, batch=20, rounds=1)
    async with engine.connect() as connection:
        return list(await connection.execute(select(usage_events).order_by(usage_events.c.id)))


def own(rows: list[Any], *, corrected: bool = False, priced: bool = True) -> Any:
    """An event of number 0: with corrections or without, with a price."""
    has = {row.corrects for row in rows}
    return next(
        row
        for row in rows
        if row.corrects is None and (row.id in has) == corrected and (row.price_version is not None) == priced
    )


async def test_a_booking_that_is_open_and_ended(engine, filled) -> None:
    """Whoever deletes the booking writes the event: both at once cannot be."""
    row = own(filled)
    booked = booking_row(came(row.started_at, id=row.id, worker="w")) | {"tenant_id": row.tenant_id}
    live = {"id": "w", "beat": 1, "started_at": DAY}
    found = await broken(engine, insert(in_flight).values(booked), insert(workers).values(live))
    assert found.pop("dead_bookings")
    assert found == {"one_event": [{"id": row.id, "fault": "open, and ended"}]}


async def test_a_correction_without_its_event(engine, filled) -> None:
    """The sums are wrong then too."""
    row = own(filled, corrected=True)
    found = await broken(engine, delete(usage_events).where(usage_events.c.id == row.id))
    orphans = [one.id for one in filled if one.corrects == row.id]
    assert [one["id"] for one in found["corrections"]] == orphans
    assert {one["fault"] for one in found["corrections"]} == {"corrects a booking that has no event"}


async def test_corrections_with_a_gap_between_them(engine, filled) -> None:
    """A correction that was lost is missed by its number."""
    corrects = [row.corrects for row in filled]
    row = next(row for row in filled if corrects.count(row.id) == 1)
    row = next(one for one in filled if one.corrects == row.id)
    lost = f"{row.corrects}-3"
    found = await broken(engine, update(usage_events).where(usage_events.c.id == row.id).values(id=lost))
    assert {"id": lost, "fault": "number 3 where 1 comes next"} in found["corrections"]


@pytest.mark.parametrize("values", [{"tenant_id": "tn_x"}, {"end_user": "eve"}, {"model": "m9"}], ids=str)
async def test_a_correction_of_somebody_else(engine, filled, values) -> None:
    """It would move usage from one to the other."""
    row = next(row for row in filled if row.corrects is not None)
    found = await broken(engine, update(usage_events).where(usage_events.c.id == row.id).values(values))
    [name] = values
    assert {"id": row.id, "fault": f"other labels than its event: {name}"} in found["corrections"]


@pytest.mark.parametrize("corrected", [False, True])
async def test_a_cost_that_is_not_what_the_price_makes_it(engine, filled, corrected) -> None:
    """By one nano-dollar; of an event with corrections all that come after it are wrong too."""
    row = own(filled, corrected=corrected)
    wrong = update(usage_events).where(usage_events.c.id == row.id)
    found = await broken(engine, wrong.values(cost_nano_dollars=row.cost_nano_dollars + 1))
    assert set(found) == {"costs", "rollups"}
    first = found["costs"][0]
    assert first["id"] == row.id
    assert f"costs {row.cost_nano_dollars + 1} nano-dollars; by price {row.price_version}" in first["fault"]
    assert (len(found["costs"]) > 1) == corrected


@pytest.mark.parametrize(
    ("version", "fault"),
    [
        ("99999", "there is no price 99999"),
        ("{m1}+99999", "there is no markup 99999"),
        ("{m1}+{of_b}", "markup {of_b} is tenant tn_b's"),
        ("nonsense", "there is no price nonsense"),
        ("{m2}", "price {m2} is one of m2"),
        ("{wild}", "costs {cost} nano-dollars; by price {wild} it is"),
    ],
)
async def test_a_price_that_is_not_there_or_not_theirs(engine, filled, version, fault) -> None:
    """The name of a price is all that an invoice can be explained by."""
    async with engine.connect() as connection:
        listed = (
            await connection.execute(select(prices.c.model, func.min(prices.c.version)).group_by("model"))
        ).all()
        known = {("wild" if name == "m*" else name): number for name, number in listed}
        known["of_b"] = await connection.scalar(select(markups.c.version))
    row = next(
        row for row in filled if row.model == "m1" and row.tenant_id == "tn_a" and row.corrects is None
    )
    wrong = update(usage_events).where(usage_events.c.id == row.id)
    found = await broken(engine, wrong.values(price_version=version.format(**known)))
    assert found["costs"][0]["id"] == row.id
    assert found["costs"][0]["fault"].startswith(fault.format(**known, cost=row.cost_nano_dollars))


@pytest.mark.parametrize(
    ("cube", "change"),
    [("quarter", "more"), ("day", "less"), ("user", "more"), ("day", "gone"), ("user", "moved")],
)
async def test_a_roll_up_that_is_not_the_sum_of_its_events(engine, filled, cube, change) -> None:
    """Of each cube: too much, too little, missing, or of another time."""
    of_cube = select(usage_rollups).where(usage_rollups.c.cube == cube)
    async with engine.connect() as connection:
        row = (await connection.execute(of_cube.limit(1))).one()
    key = [usage_rollups.c[column.name] == getattr(row, column.name) for column in usage_rollups.primary_key]
    statement: Any = update(usage_rollups).where(*key)
    if change == "gone":
        statement = delete(usage_rollups).where(*key)
    elif change == "moved":
        statement = statement.values(starts_at=row.starts_at + timedelta(seconds=1))
    else:
        statement = statement.values(output_tokens=row.output_tokens + (1 if change == "more" else -1))
    found = await broken(engine, statement)
    assert set(found) == {"rollups"}
    names = ("tenant_id", "key_id", "end_user", "model", "upstream", "starts_at")
    wanted = {name: getattr(row, name) for name in names} | {"cube": cube, "fault": "differs from its events"}
    first = found["rollups"][0]
    assert wanted.items() <= first.items()
    assert len(found["rollups"]) == (2 if change == "moved" else 1)
    if change in {"more", "less"}:
        assert first["more"] == {"output_tokens": 1 if change == "more" else -1}


@pytest.mark.parametrize("change", ["forgotten", "twice", "nobody's"])
async def test_an_event_that_is_added_up_never_or_twice(engine, filled, change) -> None:
    """It is in the queue or in the roll-ups; in one of the two."""
    async with engine.connect() as connection:
        queued = {row.event_id for row in await connection.execute(select(rollup_queue))}
    assert queued
    assert len(queued) < len(filled)
    if change == "forgotten":
        row = next(row for row in filled if row.id in queued and row.corrects is None)
        found = await broken(engine, delete(rollup_queue).where(rollup_queue.c.event_id == row.id))
    else:
        row = next(row for row in filled if row.id not in queued and row.corrects is None)
        event_id = row.id if change == "twice" else "bk_nobody"
        values = {"event_id": event_id, "tenant_id": row.tenant_id, "started_at": row.started_at}
        found = await broken(engine, insert(rollup_queue).values(values))
    assert set(found) == {"rollups"}
    if change == "nobody's":
        assert found["rollups"] == [
            {"id": "bk_nobody", "fault": "waits to be added up, and is not on the ledger"}
        ]
        return
    assert {one["cube"] for one in found["rollups"]} == {"quarter", "day", "user"}
    assert {one["more"]["events"] for one in found["rollups"]} == {1 if change == "twice" else -1}
    assert {one["tenant_id"] for one in found["rollups"]} == {row.tenant_id}


async def test_an_event_that_was_never_to_be_exported(engine, filled) -> None:
    """From the first exported event on; what ended before, or a month ago, is not asked for."""
    first, second, *_, last = sorted(filled, key=lambda row: row.ended_at)
    found = await broken(engine, delete(outbox).where(outbox.c.event_id == last.id))
    assert found == {"outbox": [{"id": last.id, "fault": "has no row in the outbox"}]}
    check = (await checked(engine))["outbox"]
    assert "sluicegate export backfill" in check.note
    found = await broken(
        engine,
        insert(outbox).values(event_id=last.id, started_at=DAY, created_at=last.ended_at, next_at=DAY),
        delete(outbox).where(outbox.c.event_id == first.id),
    )
    assert found == {}
    async with lawless(engine) as connection:
        await connection.execute(delete(outbox).where(outbox.c.event_id != second.id))
    assert not (await checked(engine))["outbox"].held
    late = await checked(engine, now=last.ended_at + KEPT + timedelta(seconds=1))
    assert late["outbox"].held


async def test_dead_letters_are_told_and_break_nothing(engine, filled) -> None:
    """They are visible, and wait for somebody."""
    dead = update(outbox).where(outbox.c.event_id == filled[0].id).values(dead_at=NOW, attempts=5)
    assert await broken(engine, dead) == {}
    assert "1 dead letters" in (await checked(engine))["outbox"].note


async def test_an_open_booking_of_a_dead_worker(engine) -> None:
    """On no list, or without a sign of life while we look; not one that lives, or that began just now."""
    lives, silent, unknown = (
        came(NOW - timedelta(seconds=60), worker=name) for name in ("lives", "silent", "unknown")
    )
    young = came(NOW - timedelta(seconds=10), worker="unknown")
    async with engine.begin() as connection:
        await writes.book(connection, [lives, silent, unknown, young])
        for name in ("lives", "silent"):
            await connection.execute(insert(workers).values(id=name, beat=5, started_at=DAY))
    waited = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            async with engine.begin() as connection:
                await connection.execute(update(workers).where(workers.c.id == "lives").values(beat=6))

    scope = Scope(DAY, NOW)
    check = (await checked_while(engine, pause, scope))["dead_bookings"]
    assert check.rows == [
        {"id": silent.id, "worker": "silent", "fault": "open, and its worker shows no life"},
        {"id": unknown.id, "worker": "unknown", "fault": "open, and its worker shows no life"},
    ]
    assert sum(waited) == 6
    assert "sluicegate reconcile" in check.note
    assert (await checked(engine, Scope(DAY, NOW, "tn_b")))["dead_bookings"].held


async def test_many_broken_rows_are_counted_and_some_of_them_shown(engine, filled) -> None:
    """An answer has an end, whatever went wrong."""
    found = await broken(
        engine,
        delete(rollup_queue),
        delete(usage_rollups),
        update(usage_events).values(cost_nano_dollars=1, price_version=None),
    )
    assert set(found) == {"rollups"}
    check = (await checked(engine))["rollups"]
    assert len(check.rows) == 20 < check.broken
    async with engine.connect() as connection:
        events = (await connection.execute(select(usage_events))).all()
    groups = set()
    for row in events:
        minutes = row.started_at.replace(second=0, microsecond=0)
        quarter = minutes.replace(minute=minutes.minute // 15 * 15)
        for cube, at, user in (
            ("quarter", quarter, None),
            ("day", quarter.date(), None),
            ("user", quarter, row.end_user),
        ):
            groups.add((cube, at, user, row.tenant_id, row.key_id, row.model, row.upstream))
    assert check.broken == len(groups)


async def test_events_that_retention_took_are_not_missed(engine, filled) -> None:
    """Their roll-ups stay: they are compared from the first day on of which all events are kept."""
    before = DAY + timedelta(days=1)
    taken = (
        delete(usage_events).where(usage_events.c.started_at < before, usage_events.c.corrects.is_(None)),
        delete(rollup_queue).where(rollup_queue.c.started_at < before),
    )
    assert set(await broken(engine, *taken)) == {"corrections", "rollups"}
    assert await broken(engine, insert(retired_usage).values(before=before, retired_at=NOW)) == {}
    found = await checked(engine)
    for name in ("one_event", "corrections", "costs", "rollups"):
        assert "Looked at from 2026-03-31 on: retention has taken what was before." in found[name].note


async def test_an_id_that_stands_in_two_partitions(engine, filled) -> None:
    """A partition cannot know what another one has; without partitions the table refuses it."""
    row = own(filled)
    again = row._asdict() | {"started_at": row.started_at + timedelta(microseconds=1)}
    if engine.dialect.name == "sqlite":
        with pytest.raises(IntegrityError):
            await broken(engine, insert(usage_events).values(again))
        return
    found = await broken(engine, insert(usage_events).values(again))
    assert {"id": row.id, "fault": "2 events of one booking"} in found["one_event"]
