"""The outbox, on both databases: what waits, what is dead and why, and what may be forgotten."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete, update

from api.adapters.accounts_sql import SqlAccounts
from api.adapters.outbox_sql import KEPT
from api.adapters.tables_sql import outbox, usage_events
from api.core.delivery import MAX_ATTEMPTS
from tests.contracts.exporting import LATER, refusing, rows, set_up
from tests.contracts.helpers import BY, START
from tests.contracts.ledgers import ended, lawless, put

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.contracts.exporting import Stage


@pytest.fixture
async def stage(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    async with set_up(engine) as opened:
        yield opened


# --- events that nobody takes ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_one_bad_event_holds_up_no_other(stage: Stage, witness, status) -> None:
    """It is found by halving, tried by itself a few times, then dead; the others arrive once, at once."""
    events = await stage.waiting(10)
    poison = events[6].id
    stage.receiver.says = refusing(poison, status=status)
    assert await stage.export.round() is True
    others = [event.id for event in events if event.id != poison]
    assert stage.receiver.taken == others
    for attempts in range(1, MAX_ATTEMPTS):
        row = (await rows(witness))[poison]
        assert (row.attempts, row.dead_at) == (attempts, None)
        others += [event.id for event in await stage.waiting(1)]
        stage.clock.pass_seconds(3600)
        await stage.export.round()
        assert stage.receiver.taken == others
    assert sum(one.ids == [poison] for one in stage.receiver.deliveries) == MAX_ATTEMPTS
    row = (await rows(witness))[poison]
    assert (row.attempts, row.delivered_at, row.dead_at) == (MAX_ATTEMPTS, None, stage.clock.now())
    assert row.error == f'{status} {{"detail": "no\\u202e"}}'
    stage.clock.pass_seconds(1e6)
    assert await stage.export.round() is False


async def test_an_event_that_was_refused_waits_longer_each_time(stage: Stage) -> None:
    """It may be that the receiver is at fault, and is mended meanwhile."""
    [event] = await stage.waiting(1)
    stage.receiver.says = refusing(event.id)
    await stage.export.round()
    for tried, seconds in enumerate((10, 40, 160), start=1):
        stage.clock.pass_seconds(seconds - 0.1)
        await stage.export.round()
        assert len(stage.receiver.deliveries) == tried
        stage.clock.pass_seconds(0.1)
        await stage.export.round()
        assert len(stage.receiver.deliveries) == tried + 1
    stage.receiver.says = lambda _: 200
    stage.clock.pass_seconds(640)
    await stage.export.round()
    assert stage.receiver.taken == [event.id]
    assert (await stage.box.status()).last_error is None


async def test_a_receiver_that_takes_nothing_kills_nothing(stage: Stage, witness, caplog) -> None:
    """A wrong format or a wrong address may be answered with a 400: that is no event's fault.

    Once it takes one, those that it still refuses are dead.
    """
    events = await stage.waiting(3)
    ids = [event.id for event in events]
    stage.receiver.says = refusing(*ids)
    for _ in range(2 * MAX_ATTEMPTS):
        await stage.export.round()
        stage.clock.pass_seconds(3600)
    found = await rows(witness)
    assert {(row.attempts, row.dead_at) for row in found.values()} == {(2 * MAX_ATTEMPTS, None)}
    assert "dead letter" not in caplog.text
    stage.receiver.says = refusing(*ids[1:])
    await stage.export.round()
    assert stage.receiver.taken == ids[:1]
    assert [letter.event_id for letter in await stage.box.dead(after=None, limit=9)] == ids[1:]
    assert caplog.text.count("an event is a dead letter") == 2


async def test_dead_letters_are_seen_and_sent_again(stage: Stage, clock) -> None:
    """Listed in pages with what the receiver said; one of them, or all; and it stands in the audit log."""
    events = await stage.waiting(5)
    ids = [event.id for event in events]
    await stage.bury(events, 422)
    status = await stage.box.status()
    assert (status.pending, status.dead, status.oldest_pending_at) == (0, 5, None)
    assert str(status.last_error).startswith("422")
    listed = await stage.box.dead(after=None, limit=3)
    listed += await stage.box.dead(after=listed[-1].event_id, limit=3)
    assert [letter.event_id for letter in listed] == ids
    assert {(letter.tenant_id, letter.attempts) for letter in listed} == {("tn_a", MAX_ATTEMPTS)}
    stage.receiver.deliveries.clear()
    stage.receiver.says = lambda _: 204
    assert await stage.box.retry([ids[0], "bk_none"], by=BY) == [ids[0]]
    await stage.export.round()
    assert stage.receiver.taken == [ids[0]]
    assert await stage.box.retry([ids[0]], by=BY) == []
    assert await stage.box.retry(None, by=BY) == ids[1:]
    await stage.export.round()
    assert [one.ids for one in stage.receiver.deliveries] == [ids[:1], ids[1:]]
    assert await stage.box.dead(after=None, limit=3) == []
    noted = await SqlAccounts(stage.engine, clock).audit(action="export.retry")
    assert {(entry.target, entry.details["events"]) for entry in noted} == {("all", 4), (ids[0], 1)}
    assert {entry.actor for entry in noted} == {BY.name}


async def test_an_event_that_the_ledger_keeps_no_more_is_a_dead_letter(stage: Stage) -> None:
    """It is not silently gone, and holds up nobody."""
    gone, kept = await stage.waiting(2)
    async with lawless(stage.engine) as connection:
        await connection.execute(delete(usage_events).where(usage_events.c.id == gone.id))
    await stage.export.round()
    assert stage.receiver.taken == [kept.id]
    [letter] = await stage.box.dead(after=None, limit=9)
    assert (letter.event_id, letter.tenant_id) == (gone.id, None)
    assert "keeps the event no more" in str(letter.error)


# --- the rows -------------------------------------------------------------------------------------------


async def test_the_status_tells_what_waits_and_what_went(stage: Stage, witness) -> None:
    """How many wait and since when, what was delivered of a day, and the last thing that went wrong."""
    assert (await stage.box.status()).pending == 0
    await stage.waiting(3)
    stage.receiver.says = lambda _: 503
    await stage.export.round()
    status = await stage.box.status()
    assert (status.pending, status.oldest_pending_at) == (3, START + timedelta(seconds=1))
    assert (status.delivered_last_day, status.last_delivered_at) == (0, None)
    assert str(status.last_error).startswith("503")
    stage.receiver.says = lambda _: 204
    stage.clock.pass_seconds(10)
    await stage.export.round()
    status = await stage.box.status()
    assert (status.pending, status.delivered_last_day, status.last_error) == (0, 3, None)
    assert status.last_delivered_at == stage.clock.now()
    assert {row.error for row in (await rows(witness)).values()} == {None}


async def test_rows_are_forgotten_a_month_after_they_were_delivered(stage: Stage, witness) -> None:
    """What waits and what is dead is kept as long as it takes."""
    old, dead, new = await stage.waiting(3)
    async with stage.engine.begin() as connection:
        letter = update(outbox).where(outbox.c.event_id == dead.id)
        await connection.execute(letter.values(dead_at=START, attempts=5))
    await stage.export.round()
    async with stage.engine.begin() as connection:
        late = update(outbox).where(outbox.c.event_id == new.id)
        await connection.execute(late.values(delivered_at=LATER + timedelta(days=1)))
    stage.clock.pass_seconds(KEPT.total_seconds() - 1)
    assert await stage.box.prune(10) == 0
    stage.clock.pass_seconds(2)
    assert await stage.box.prune(10) == 1
    assert set(await rows(witness)) == {dead.id, new.id}
    assert old.id not in await rows(witness)


async def test_the_export_forgets_old_rows_by_itself(stage: Stage, witness) -> None:
    """Now and then, when nothing else is to be done either."""
    await stage.waiting(4)
    await stage.export.round()
    stage.clock.pass_seconds(KEPT.total_seconds() + 700)
    await stage.export.round()
    assert await rows(witness) == {}


async def test_backfill_gives_rows_to_events_that_have_none(stage: Stage, witness, clock) -> None:
    """Of a period and a tenant; again is the same; and it stands in the audit log."""
    mine = [ended(START + timedelta(seconds=number)) for number in range(3)]
    others, exported = ended(START, of={"tenant_id": "tn_b"}), ended(START)
    outside = [ended(START - timedelta(microseconds=1)), ended(START + timedelta(seconds=3))]
    await put(stage.engine, *mine, others, *outside)
    await put(stage.engine, exported, exports=True)
    period = (START, START + timedelta(seconds=3))
    assert await stage.box.backfill(*period, tenant_id="tn_a", by=BY) == 3
    assert set(await rows(witness)) == {exported.id, *(event.id for event in mine)}
    assert await stage.box.backfill(*period, tenant_id=None, by=BY) == 1
    assert await stage.box.backfill(*period, tenant_id=None, by=BY) == 0
    await stage.export.round()
    assert set(stage.receiver.taken) == {exported.id, others.id, *(event.id for event in mine)}
    noted = await SqlAccounts(stage.engine, clock).audit(action="export.backfill")
    assert {(entry.tenant_id, entry.details["events"]) for entry in noted} == {(None, 1), ("tn_a", 3)}


async def test_a_long_backfill_goes_in_pages(stage: Stage, witness, monkeypatch) -> None:
    """None is left out where a page ends."""
    monkeypatch.setattr("api.adapters.outbox_sql._BACKFILLED_AT_ONCE", 3)
    events = [ended(START) for _ in range(9)]
    await put(stage.engine, *events)
    assert await stage.box.backfill(START, LATER, tenant_id=None, by=BY) == 9
    assert set(await rows(witness)) == {event.id for event in events}
