"""The outbox and the export, on both databases and a real HTTP receiver: at least once, and none passed over."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, select, text, update

from api.accounts import TenantFields
from api.adapters.accounts_sql import SqlAccounts
from api.adapters.export_http import HttpReceiver
from api.adapters.outbox_sql import KEPT, SqlOutbox
from api.adapters.tables_sql import outbox, usage_events
from api.core import cloud_events
from api.core.booking import Correction
from api.core.delivery import MAX_ATTEMPTS
from api.flow.export import Export, Terms
from tests.contracts.helpers import BY, START, bounded, eventually
from tests.contracts.ledgers import StillClock, ended, put
from tests.support.receivers import RESET, Delivery, EventReceiver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.core.record import UsageEvent
    from tests.support.receivers import Said

SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZmdoaWprbG1ub3BxcnN0dXY="
TOKEN = "om_token-that-nobody-must-see"
LATER = START + timedelta(minutes=1)


class Lead:
    """Whether this worker leads; `until` so many questions from now on."""

    def __init__(self) -> None:
        self.until = 1 << 30

    async def __call__(self) -> bool:
        self.until -= 1
        return self.until >= 0


@pytest.fixture
def receiver() -> Iterator[EventReceiver]:
    with EventReceiver() as server:
        yield server


@pytest.fixture
def still() -> StillClock:
    return StillClock(LATER)


@pytest.fixture
def lead() -> Lead:
    return Lead()


@pytest.fixture
def box(engine: AsyncEngine, still: StillClock) -> SqlOutbox:
    return SqlOutbox(engine, still)


@pytest.fixture
async def http(receiver: EventReceiver, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HttpReceiver]:
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    opened = HttpReceiver(receiver.url, token=TOKEN, timeout_seconds=5)
    yield opened
    await opened.close()


def exporting(
    box: SqlOutbox, http: HttpReceiver, still: StillClock, lead: Lead, *, batch: int = 10
) -> Export:
    terms = Terms("sluicegate", batch, cloud_events.signing_key(SECRET))
    return Export(box, http, still, lead, terms, jitter=lambda: 1.0)


@pytest.fixture
def export(box: SqlOutbox, http: HttpReceiver, still: StillClock, lead: Lead) -> Export:
    return exporting(box, http, still, lead)


async def waiting(engine: AsyncEngine, count: int, **changes: Any) -> list[UsageEvent]:
    """So many events that are to be exported, in the order of their times."""
    events = [ended(START + timedelta(seconds=number), **changes) for number in range(count)]
    await put(engine, *random.sample(events, count), exports=True)
    return events


async def rows(engine: AsyncEngine) -> dict[str, Any]:
    async with engine.connect() as connection:
        found = await connection.execute(select(outbox))
        return {row.event_id: row for row in found}


def in_turn(*said: Said) -> Any:
    """Answers, one after the other; then all is taken."""
    left = list(said)
    return lambda _: left.pop(0) if left else 204


def refusing(*poison: str, status: int = 400) -> Any:
    """A receiver that takes no batch with one of these in it."""
    return lambda asked: status if set(poison) & set(asked.ids) else 204


# --- what is sent ---------------------------------------------------------------------------------------


async def test_events_arrive_in_batches_in_the_order_of_their_times(engine, witness, export, receiver, still):
    """As CloudEvents, signed, with the token; and are marked once they were taken."""
    events = await waiting(engine, 25)
    assert [await export.round() for _ in range(3)] == [True, True, False]
    assert [len(one.ids) for one in receiver.deliveries] == [10, 10, 5]
    assert sorted(receiver.taken) == [event.id for event in events]
    for one in receiver.deliveries:
        times = [event["time"] for event in one.events]
        assert times == sorted(times)
        assert one.path == "/events"
        assert one.headers["content-type"] == cloud_events.CONTENT_TYPE
        assert one.headers["authorization"] == f"Bearer {TOKEN}"
        signed = cloud_events.signed(
            one.body,
            message_id=cloud_events.batch_id(one.ids),
            unix_seconds=int(still.unix()),
            key=cloud_events.signing_key(SECRET),
        )
        assert signed.items() <= one.headers.items()
    assert {row.delivered_at for row in (await rows(witness)).values()} == {LATER}
    assert await export.round() is False
    assert len(receiver.deliveries) == 3


async def test_an_event_names_its_tenant_as_the_company_does(engine, clock, export, receiver):
    """By the external id where there is one; a correction goes out under an id of its own."""
    acme = await SqlAccounts(engine, clock).create_tenant(TenantFields("a", 1, external_id="acme-7"), by=BY)
    first = ended(of={"tenant_id": acme.id})
    corrected = ended(number=1, cause=Correction.REPRICED, cost_nano_dollars=-3)
    await put(engine, first, corrected, exports=True)
    await export.round()
    subjects = {event["id"]: event["subject"] for event in receiver.deliveries[0].events}
    assert subjects == {first.id: "acme-7", corrected.id: "tn_a"}
    [sent] = [event for event in receiver.deliveries[0].events if event["id"] == corrected.id]
    assert sent["id"] == f"{corrected.booking.id}-1"
    assert (sent["data"]["corrects"], sent["data"]["cost_nano_dollars"]) == (corrected.booking.id, -3)


async def test_without_export_no_event_waits(engine, witness, export, receiver):
    """The outbox of a gate that exports nothing stays empty."""
    await put(engine, ended(), exports=False)
    assert await export.round() is False
    assert (await rows(witness), receiver.deliveries) == ({}, [])


# --- a receiver that is away ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 503, 408, 425, 429, 401, 404, 302, RESET], ids=str)
async def test_a_receiver_that_is_away_is_left_alone_and_tried_again(
    engine, witness, export, receiver, still, status
):
    """However often: nothing is dead, nothing is passed over, and the waits grow."""
    events = await waiting(engine, 12)
    receiver.says = lambda _: status
    waits = []
    for tries in range(1, 13):
        assert await export.round() is False
        assert len(receiver.deliveries) == tries, "it was tried too soon or too late"
        wait = 0.0
        while not await _tried(export, receiver, tries):
            still.pass_seconds(0.25)
            wait += 0.25
        waits.append(wait)
        receiver.deliveries.pop()
    assert waits[:4] == [1, 2, 4, 8]
    assert max(waits) == 300
    found = await rows(witness)
    assert all(row.delivered_at is None and row.dead_at is None for row in found.values())
    assert {row.attempts for row in found.values()} == {0}
    receiver.says = lambda _: 204
    still.pass_seconds(300)
    assert await export.round() is True
    assert await export.round() is False
    assert sorted(receiver.taken) == [event.id for event in events]


async def _tried(export: Export, receiver: EventReceiver, tries: int) -> bool:
    await export.round()
    return len(receiver.deliveries) > tries


async def test_a_receiver_that_names_a_time_is_asked_then(engine, export, receiver, still):
    """`Retry-After` in seconds or as a date, an hour at most."""
    [event] = await waiting(engine, 1)
    date = "Wed, 04 Mar 2026 05:07:50 GMT"
    receiver.says = in_turn((429, {"retry-after": "40"}), (503, {"retry-after": date}))
    await export.round()
    still.pass_seconds(39)
    await export.round()
    assert len(receiver.deliveries) == 1
    still.pass_seconds(1)  # 05:07:47.89
    await export.round()
    assert len(receiver.deliveries) == 2
    still.pass_seconds(2)
    await export.round()
    assert len(receiver.deliveries) == 2
    still.pass_seconds(1)
    await export.round()
    assert receiver.taken == [event.id]


async def test_a_receiver_that_hangs_is_given_up(engine, box, receiver, still, lead, caplog):
    """Within the time that was set; what it took without saying so comes again, under the same ids."""
    [event] = await waiting(engine, 1)
    held = threading.Event()
    receiver.says = in_turn(held)
    slow = HttpReceiver(receiver.url, token="", timeout_seconds=0.2)
    export = exporting(box, slow, still, lead)
    await bounded(export.round())
    assert (await box.status()).last_error == "TimeoutError"
    held.set()
    still.pass_seconds(2)
    await export.round()
    await slow.close()
    assert [one.ids for one in receiver.deliveries if one.status is None] == [[event.id]]
    assert event.id in receiver.taken
    assert "TimeoutError" in caplog.text


async def test_nobody_listening_is_a_receiver_that_is_away(engine, box, receiver, still, lead):
    """A refused connection, a name that is none: the events wait."""
    await waiting(engine, 2)
    for url in ("http://127.0.0.1:1/events", "http://nobody.invalid/events"):
        nowhere = HttpReceiver(url, token="", timeout_seconds=5)
        await bounded(exporting(box, nowhere, still, lead).round())
        await nowhere.close()
        status = await box.status()
        assert (status.pending, status.dead) == (2, 0)
        assert "Client" in str(status.last_error)


# --- events that nobody takes ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_one_bad_event_holds_up_no_other(engine, witness, export, receiver, still, status):
    """It is found by halving, tried by itself a few times, then dead; the others arrive once, at once."""
    events = await waiting(engine, 10)
    poison = events[6].id
    receiver.says = refusing(poison, status=status)
    assert await export.round() is True
    others = [event.id for event in events if event.id != poison]
    assert sorted(receiver.taken) == others
    for attempts in range(2, MAX_ATTEMPTS + 1):
        row = (await rows(witness))[poison]
        assert (row.attempts, row.dead_at) == (attempts - 1, None)
        new = await waiting(engine, 1)
        still.pass_seconds(3600)
        await export.round()
        others += [event.id for event in new]
    assert sorted(receiver.taken) == sorted(others)
    assert sum(one.ids == [poison] for one in receiver.deliveries) == MAX_ATTEMPTS
    row = (await rows(witness))[poison]
    assert (row.attempts, row.delivered_at) == (MAX_ATTEMPTS, None)
    assert row.dead_at == still.now()
    assert row.error == f'{status} {{"detail": "no\\u202e"}}'
    still.pass_seconds(1e6)
    assert await export.round() is False


async def test_a_receiver_that_goes_away_while_the_culprit_is_sought_gets_the_rest_later(
    engine, export, receiver, still, box
):
    """The halves that were not delivered are still due; none of them has an attempt against it."""
    events = await waiting(engine, 8)
    poison = events[0].id
    receiver.says = in_turn(400, 400, 503)
    assert await export.round() is False
    assert receiver.taken == []
    receiver.says = refusing(poison)
    still.pass_seconds(10)
    await export.round()
    assert sorted(receiver.taken) == [event.id for event in events[1:]]
    assert (await box.status()).pending == 1


async def test_dead_letters_are_seen_and_sent_again(engine, export, receiver, still, box, clock):
    """Listed in pages with what the receiver said; one of them, or all; and it stands in the audit log."""
    events = await waiting(engine, 5)
    receiver.says = lambda _: (422, {})
    for _ in range(MAX_ATTEMPTS):
        await export.round()
        still.pass_seconds(3600)
    status = await box.status()
    assert (status.pending, status.dead, status.oldest_pending_at) == (0, 5, None)
    assert str(status.last_error).startswith("422")
    listed = await box.dead(after=None, limit=3)
    listed += await box.dead(after=listed[-1].event_id, limit=3)
    assert [letter.event_id for letter in listed] == [event.id for event in events]
    assert {(letter.tenant_id, letter.attempts) for letter in listed} == {("tn_a", MAX_ATTEMPTS)}
    receiver.says = lambda _: 204
    assert await box.retry([events[0].id, "bk_none"], by=BY) == [events[0].id]
    await export.round()
    assert receiver.taken == [events[0].id]
    assert await box.retry([events[0].id], by=BY) == []
    assert await box.retry(None, by=BY) == [event.id for event in events[1:]]
    await export.round()
    assert sorted(receiver.taken) == [event.id for event in events]
    assert await box.dead(after=None, limit=3) == []
    noted = await SqlAccounts(engine, clock).audit(action="export.retry")
    assert [(entry.target, entry.details) for entry in noted] == [
        ("all", {"events": 4}),
        (events[0].id, {"events": 1}),
    ]
    assert {entry.actor for entry in noted} == {BY.name}


async def test_an_event_that_the_ledger_keeps_no_more_is_a_dead_letter(engine, kind, export, receiver, box):
    """It is not silently gone, and holds up nobody."""
    gone, kept = await waiting(engine, 2)
    async with engine.begin() as connection:
        if kind == "postgresql":
            await connection.execute(text("SET LOCAL session_replication_role = replica"))
        else:
            await connection.execute(text("DROP TRIGGER usage_events_no_delete"))
        await connection.execute(delete(usage_events).where(usage_events.c.id == gone.id))
    await export.round()
    assert receiver.taken == [kept.id]
    [letter] = await box.dead(after=None, limit=9)
    assert (letter.event_id, letter.tenant_id) == (gone.id, None)
    assert "keeps the event no more" in str(letter.error)


# --- who sends, and when it is marked -------------------------------------------------------------------


async def test_who_does_not_lead_sends_nothing(engine, export, receiver, lead, still):
    """And who leads no more stops between two requests."""
    await waiting(engine, 10)
    lead.until = 0
    assert await export.round() is False
    assert receiver.deliveries == []
    still.pass_seconds(1)
    receiver.says = lambda _: 400
    lead.until = 4  # one of them to forget old rows
    assert await export.round() is False
    assert len(receiver.deliveries) == 3


async def test_a_worker_that_dies_before_it_marks_sends_again(
    engine, export, receiver, box, still, lead, http
):
    """Under the same ids, and in a batch of the same id: a duplicate, never a gap."""
    events = await waiting(engine, 3)
    held = threading.Event()
    receiver.says = in_turn(held)
    dying = asyncio.ensure_future(export.round())
    await eventually(lambda: asyncio.to_thread(lambda: receiver.deliveries))
    dying.cancel()
    await asyncio.wait([dying])
    held.set()
    await exporting(box, http, still, lead).round()
    ids = [event.id for event in events]
    assert [one.ids for one in receiver.deliveries if one.status is None] == [ids]
    assert receiver.taken[-3:] == ids
    assert len({one.headers["webhook-id"] for one in receiver.deliveries}) == 1
    assert (await box.status()).pending == 0


async def test_what_could_not_be_marked_is_sent_again(engine, export, receiver, box, monkeypatch):
    """The database may go away between the delivery and the mark."""
    [event] = await waiting(engine, 1)

    async def away(_: object) -> None:
        raise OSError

    with monkeypatch.context() as broken:
        broken.setattr(box, "delivered", away)
        with pytest.raises(OSError, match=""):
            await export.round()
    await export.round()
    assert receiver.taken == [event.id, event.id]
    assert (await box.status()).pending == 0


async def test_no_connection_to_the_database_is_held_while_the_receiver_thinks(engine, export, receiver):
    """A slow receiver costs the ledger nothing."""
    await waiting(engine, 1)
    held, seen = threading.Event(), []

    def look(_: Delivery) -> threading.Event:
        seen.append(engine.pool.checkedout() if hasattr(engine.pool, "checkedout") else 0)
        held.set()
        return held

    receiver.says = look
    await export.round()
    assert seen == [0]


async def test_nothing_secret_is_logged_or_kept(engine, witness, export, receiver, still, caplog):
    """Not the token, though the receiver quotes it, nor the signing secret; a state is logged once."""
    caplog.set_level(logging.DEBUG)
    await waiting(engine, 1)
    receiver.writes = f"you said Bearer {TOKEN}".encode()
    receiver.says = in_turn(401, 401, 400)
    for _ in range(3):
        await export.round()
        still.pass_seconds(60)
    [row] = (await rows(witness)).values()
    assert row.error == "400 you said Bearer ***"
    said = [record.getMessage() for record in caplog.records if record.name == "sluicegate.export"]
    assert [line for line in said if "401" in line] == [
        "the export's receiver answers 401: look at EXPORT_URL, EXPORT_TOKEN and EXPORT_SECRET; "
        "events wait until it takes them"
    ]
    assert TOKEN not in caplog.text + str(row)
    assert SECRET not in caplog.text


# --- the rows -------------------------------------------------------------------------------------------


async def test_the_status_tells_what_waits_and_what_went(engine, export, receiver, box, still):
    """How many wait and since when, what was delivered of a day, and the last thing that went wrong."""
    assert (await box.status()).pending == 0
    await waiting(engine, 3)
    receiver.says = lambda _: 503
    await export.round()
    status = await box.status()
    assert (status.pending, status.oldest_pending_at) == (3, START + timedelta(seconds=1))
    assert (status.delivered_last_day, status.last_delivered_at) == (0, None)
    assert str(status.last_error).startswith("503")
    receiver.says = lambda _: 204
    still.pass_seconds(10)
    await export.round()
    status = await box.status()
    assert (status.pending, status.delivered_last_day, status.last_error) == (0, 3, None)
    assert status.last_delivered_at == still.now()


async def test_rows_are_forgotten_a_month_after_they_were_delivered(engine, witness, export, box, still):
    """What waits and what is dead is kept as long as it takes."""
    old, dead, new = await waiting(engine, 3)
    async with engine.begin() as connection:
        await connection.execute(
            update(outbox).where(outbox.c.event_id == dead.id).values(dead_at=START, attempts=5)
        )
    await export.round()
    async with engine.begin() as connection:
        late = update(outbox).where(outbox.c.event_id == new.id)
        await connection.execute(late.values(delivered_at=still.now() + timedelta(days=1)))
    still.pass_seconds(KEPT.total_seconds() - 1)
    assert await box.prune(10) == 0
    still.pass_seconds(2)
    assert await box.prune(10) == 1
    assert set(await rows(witness)) == {dead.id, new.id}
    assert old.id not in await rows(witness)


async def test_the_export_forgets_old_rows_by_itself(engine, witness, export, still):
    """In bounded steps, now and then."""
    await waiting(engine, 4)
    await export.round()
    still.pass_seconds(KEPT.total_seconds() + 700)
    await export.round()
    assert await rows(witness) == {}


async def test_backfill_gives_rows_to_events_that_have_none(engine, witness, export, receiver, box, clock):
    """Of a period and a tenant; again is the same; and it stands in the audit log."""
    before = ended(START - timedelta(seconds=1))
    mine = [ended(START + timedelta(seconds=number)) for number in range(3)]
    others = ended(START, of={"tenant_id": "tn_b"})
    await put(engine, before, *mine, others, ended(START + timedelta(seconds=3)))
    await put(engine, exported := ended(START), exports=True)
    period = (START, START + timedelta(seconds=3))
    assert await box.backfill(*period, tenant_id="tn_a", by=BY) == 3
    assert set(await rows(witness)) == {exported.id, *(event.id for event in mine)}
    assert await box.backfill(*period, tenant_id=None, by=BY) == 1
    assert await box.backfill(*period, tenant_id=None, by=BY) == 0
    await export.round()
    assert set(receiver.taken) == {exported.id, others.id, *(event.id for event in mine)}
    noted = await SqlAccounts(engine, clock).audit(action="export.backfill")
    assert [(entry.tenant_id, entry.details["events"]) for entry in noted] == [(None, 1), ("tn_a", 3)]


async def test_a_long_backfill_goes_in_pages(engine, witness, box, monkeypatch):
    """None is left out where a page ends."""
    monkeypatch.setattr("api.adapters.outbox_sql._BACKFILLED_AT_ONCE", 3)
    events = [ended(START) for _ in range(9)]
    await put(engine, *events)
    assert await box.backfill(START, LATER, tenant_id=None, by=BY) == 9
    assert set(await rows(witness)) == {event.id for event in events}
