"""The roll-ups equal the events, cube by cube, whoever writes at the same time, wherever a writer stops."""

from __future__ import annotations

import asyncio
from dataclasses import astuple
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, select, update

from api.adapters import rollups_sql
from api.adapters.lease_sql import Lease, LostLease
from api.adapters.rollups_sql import NotKept, Rollups
from api.adapters.tables_sql import leases, rollup_queue, usage_rollups
from api.core.usage_query import DAY
from api.tasks import Tasks
from tests.contracts.helpers import (
    Clock,
    bounded,
    eventually,
    outcomes,
    snapshot,
    waiting_for_locks,
    writing,
)
from tests.contracts.usages import (
    DST,
    added,
    append_all,
    label,
    leading,
    random_events,
    usage_event,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.core.record import UsageEvent

FIRST, LAST = (DST - DAY).date(), (DST + DAY).date()
"""The days of `random_events`."""


def cubes_of(events: list[UsageEvent]) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """What the roll-ups of these events have to be."""
    rows: dict[tuple[Any, ...], list[UsageEvent]] = {}
    for one in events:
        at = one.booking.started_at
        midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
        quarter = at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)
        tenant, key, model, upstream = (label(one, name) for name in ("tenant", "key", "model", "upstream"))
        user = label(one, "end_user")
        for cube, starts_at, of in (("quarter", quarter, ""), ("day", midnight, ""), ("user", quarter, user)):
            rows.setdefault((tenant, cube, starts_at, key, of, model, upstream), []).append(one)
    return {key: astuple(added(ones)) for key, ones in rows.items()}


async def cubes_in(engine: AsyncEngine) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """What they are."""
    async with engine.connect() as connection:
        rows = (await connection.execute(select(usage_rollups))).all()
    return {tuple(row[:7]): tuple(row[7:]) for row in rows}


async def queued(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        return set((await connection.execute(select(rollup_queue.c.event_id))).scalars())


async def until_done(rollups: Rollups) -> None:
    while await bounded(rollups.round()):
        pass


@pytest.fixture
def small_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few events are many rounds."""
    monkeypatch.setattr(rollups_sql, "_BATCH", 40)


async def test_each_cube_is_the_sum_of_the_events(engine, small_rounds) -> None:
    """Quarters and days to the microsecond, end users in one of the three; round by round, oldest first."""
    events = random_events(1)
    await append_all(engine, events)
    rollups = await leading(engine)
    assert await rollups.round()
    left = await queued(engine)
    in_order = sorted(one.id for one in events)
    assert left == set(in_order[40:])
    assert await cubes_in(engine) == cubes_of([one for one in events if one.id not in left])
    await until_done(rollups)
    assert await queued(engine) == set()
    assert await cubes_in(engine) == cubes_of(events)
    before = await snapshot(engine)
    assert not await rollups.round()
    assert await snapshot(engine) == before


async def test_two_writers_count_no_event_twice(engine, witness, small_rounds) -> None:
    """Also while events are settled: the fence lets one transaction in, and nobody waits for ever."""
    rollups = [await leading(one, "the same") for one in (engine, witness)]
    events = [usage_event(DST + timedelta(minutes=number), number) for number in range(400)]
    async with writing(engine) as (ledger, _):
        await outcomes([ledger.book(one.booking) for one in events])
        settled = [ledger.settle(one) for one in events]
        rounds = [round_ for _ in range(15) for round_ in (one.round() for one in rollups)]
        ended = await bounded(asyncio.gather(*rounds, return_exceptions=True))
        assert await outcomes(settled) == [None] * len(settled)
    assert {type(one) for one in ended} <= {bool}
    await until_done(rollups[0])
    assert await cubes_in(engine) == cubes_of(events)


async def test_whoever_has_lost_the_lease_writes_nothing(engine) -> None:
    """A leader that was stopped, and wakes up when another leads: LostLease, and the queue is as it was."""
    await append_all(engine, random_events(2, 30))
    clock = Clock()
    old = Lease(engine, clock, "old", seconds=60)
    assert await old.hold()
    async with engine.begin() as connection:
        await connection.execute(update(leases).values(holder="new"))
    before = await snapshot(engine)
    with pytest.raises(LostLease):
        await Rollups(engine, old).round()
    assert await snapshot(engine) == before


async def test_a_round_that_breaks_in_the_middle_never_was(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken out of the queue is in it again, and the next round adds it once."""
    events, add = random_events(3, 50), rollups_sql._add
    await append_all(engine, events)
    rollups = await leading(engine)
    before = await snapshot(engine)

    async def breaks(*arguments: Any) -> None:
        await add(*arguments)
        raise RuntimeError("killed")

    monkeypatch.setattr(rollups_sql, "_add", breaks)
    with pytest.raises(RuntimeError):
        await rollups.round()
    after = await snapshot(engine)
    assert after | {"leases": []} == before | {"leases": []}
    monkeypatch.setattr(rollups_sql, "_add", add)
    await until_done(rollups)
    assert await cubes_in(engine) == cubes_of(events)


# --- repair -----------------------------------------------------------------------------------------


async def damage(engine: AsyncEngine) -> None:
    """Rows of the middle day are wrong, missing, and there without any event."""
    async with engine.begin() as connection:
        of_day = (usage_rollups.c.starts_at >= DST) & (usage_rollups.c.starts_at < DST + DAY)
        await connection.execute(update(usage_rollups).where(of_day).values(events=7))
        await connection.execute(delete(usage_rollups).where(of_day, usage_rollups.c.model == "scripted"))
        [row] = (await connection.execute(select(usage_rollups).where(of_day).limit(1))).mappings()
        await connection.execute(usage_rollups.insert().values(dict(row) | {"model": "never was"}))


async def test_wrong_roll_ups_are_made_anew_from_the_events(engine, small_rounds) -> None:
    """By days: all that was wrong is right, what waits goes on waiting and is not counted twice."""
    events = random_events(4)
    await append_all(engine, events[:200])
    rollups = await leading(engine)
    await until_done(rollups)
    await append_all(engine, events[200:])
    await damage(engine)
    repair = Rollups(engine, Lease(engine, Clock(), "repair", seconds=60))  # which does not lead
    assert await repair.rebuild(FIRST, LAST) == [DST.date()]
    assert await cubes_in(engine) == cubes_of(events[:200])
    assert await queued(engine) == {one.id for one in events[200:]}
    assert await repair.rebuild(FIRST, LAST) == []
    await until_done(rollups)
    assert await cubes_in(engine) == cubes_of(events)


async def test_roll_ups_of_events_that_are_not_kept_stay(engine) -> None:
    """They are all that is left of a time: nothing is made anew from nothing."""
    rollups = await leading(engine)
    with pytest.raises(NotKept, match="none are kept"):
        await rollups.rebuild(FIRST, LAST)
    await append_all(engine, random_events(5, 30))
    await until_done(rollups)
    before = await cubes_in(engine)
    with pytest.raises(NotKept, match=f"none from before {FIRST} are kept"):
        await rollups.rebuild(date(2026, 1, 1), LAST)
    assert await cubes_in(engine) == before


async def test_events_that_come_during_a_repair_are_counted_once(
    engine, witness, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the very day that is repaired: they wait for the leader. In SQLite nobody writes meanwhile."""
    events, add, new = random_events(6, 60), rollups_sql._add, []
    await append_all(engine, events)
    leader = await leading(witness)
    await until_done(leader)

    async def add_and_append(connection: Any, *which: Any) -> None:
        if kind == "postgresql" and len(new) < 40:
            at = DST + timedelta(minutes=(len(new) * 37) % 1440)
            new.append(usage_event(at, 10_000 + len(new)))
            await append_all(witness, new[-1:])
        await add(connection, *which)

    monkeypatch.setattr(rollups_sql, "_add", add_and_append)
    await bounded(Rollups(engine, Lease(engine, Clock(), "repair", seconds=60)).rebuild(FIRST, LAST))
    monkeypatch.setattr(rollups_sql, "_add", add)
    assert await cubes_in(engine) == cubes_of(events)
    assert await queued(engine) == {one.id for one in new}
    await until_done(leader)
    assert await cubes_in(engine) == cubes_of([*events, *new])


async def test_the_leader_waits_for_a_repair(
    engine, witness, kind: str, small_rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or what it takes out of the queue meanwhile would be counted twice; here it tries to."""
    events, add, tries = random_events(7, 100), rollups_sql._add, Tasks()
    await append_all(engine, events)
    leader, round_ = await leading(engine), None

    async def add_while_the_leader_tries(*arguments: Any) -> None:
        nonlocal round_
        if round_ is None:
            round_ = tries.start(leader.round(), name="round")
            if kind == "postgresql":  # SQLite lets one writer in anyway
                await eventually(lambda: waits_or_is_done(round_))
        await add(*arguments)

    async def waits_or_is_done(task: Any) -> bool:
        return bool(await waiting_for_locks(engine)) or task.done()

    monkeypatch.setattr(rollups_sql, "_add", add_while_the_leader_tries)
    repair = Rollups(witness, Lease(witness, Clock(), "repair", seconds=60))
    await bounded(repair.rebuild(FIRST, LAST))
    assert round_ is not None
    await bounded(asyncio.wait([round_]))
    await until_done(leader)
    assert await cubes_in(engine) == cubes_of(events)
