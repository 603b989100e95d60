"""The export and its receiver, over real HTTP: each event arrives at least once, and none is passed over."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING

import pytest

from api.accounts import TenantFields
from api.adapters.accounts_sql import SqlAccounts
from api.adapters.export_http import HttpReceiver
from api.core import cloud_events
from api.core.booking import Correction
from api.ports import AccountsUnavailable
from tests.contracts.exporting import LATER, SECRET, TOKEN, in_turn, refusing, rows, set_up
from tests.contracts.helpers import BY, bounded, eventually
from tests.contracts.ledgers import ended, put
from tests.support.receivers import RESET

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from tests.contracts.exporting import Stage
    from tests.support.receivers import Delivery


@pytest.fixture
async def stage(engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    async with set_up(engine) as opened:
        yield opened


# --- what is sent ---------------------------------------------------------------------------------------


async def test_events_arrive_in_batches_in_the_order_of_their_times(stage: Stage, witness) -> None:
    """As CloudEvents, signed, with the token; and are marked once they were taken."""
    events = await stage.waiting(25)
    assert [await stage.export.round() for _ in range(4)] == [True, True, False, False]
    deliveries = stage.receiver.deliveries
    assert [one.ids for one in deliveries] == [[e.id for e in events[n : n + 10]] for n in (0, 10, 20)]
    for one in deliveries:
        assert one.path == "/events"
        assert one.headers["content-type"] == cloud_events.CONTENT_TYPE
        assert one.headers["authorization"] == f"Bearer {TOKEN}"
        signed = cloud_events.signed(
            one.body,
            message_id=cloud_events.batch_id(one.ids),
            unix_seconds=int(stage.clock.unix()),
            key=cloud_events.signing_key(SECRET),
        )
        assert signed.items() <= one.headers.items()
    assert {row.delivered_at for row in (await rows(witness)).values()} == {LATER}


async def test_an_event_names_its_tenant_as_the_company_does(stage: Stage, clock) -> None:
    """By the external id where there is one; a correction goes out under an id of its own."""
    acme = TenantFields("a", 1, external_id="acme-7")
    tenant = await SqlAccounts(stage.engine, clock).create_tenant(acme, by=BY)
    first = ended(of={"tenant_id": tenant.id})
    corrected = ended(number=1, cause=Correction.REPRICED, cost_nano_dollars=-3)
    await put(stage.engine, first, corrected, exports=True)
    await stage.export.round()
    sent = {event["id"]: event for event in stage.receiver.deliveries[0].events}
    assert {name: event["subject"] for name, event in sent.items()} == {
        first.id: "acme-7",
        f"{corrected.booking.id}-1": "tn_a",
    }
    data = sent[corrected.id]["data"]
    assert (data["corrects"], data["cost_nano_dollars"]) == (corrected.booking.id, -3)


async def test_without_export_no_event_waits(stage: Stage, witness) -> None:
    """The outbox of a gate that exports nothing stays empty."""
    await put(stage.engine, ended(), exports=False)
    assert await stage.export.round() is False
    assert (await rows(witness), stage.receiver.deliveries) == ({}, [])


# --- a receiver that is away ----------------------------------------------------------------------------


@pytest.mark.parametrize("says", [500, 429, 401, RESET], ids=str)
async def test_a_receiver_that_is_away_is_left_alone_and_tried_again(stage: Stage, witness, says) -> None:
    """However often: nothing is dead, nothing is passed over, and the waits grow to five minutes."""
    events = await stage.waiting(12)
    stage.receiver.says = lambda _: says
    assert await stage.export.round() is False
    for tries, wait in enumerate((1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300), start=1):
        stage.clock.pass_seconds(wait - 0.01)
        assert await stage.export.round() is False
        assert len(stage.receiver.deliveries) == tries
        stage.clock.pass_seconds(0.02)
        assert await stage.export.round() is False
        assert len(stage.receiver.deliveries) == tries + 1
    found = (await rows(witness)).values()
    assert {(row.delivered_at, row.dead_at, row.attempts) for row in found} == {(None, None, 0)}
    stage.receiver.says = lambda _: 204
    stage.clock.pass_seconds(301)
    assert [await stage.export.round() for _ in range(2)] == [True, False]
    assert stage.receiver.taken == [event.id for event in events]


async def test_a_receiver_that_names_a_time_is_asked_then(stage: Stage) -> None:
    """`Retry-After` in seconds or as a date."""
    [event] = await stage.waiting(1)
    date = "Wed, 04 Mar 2026 05:07:50 GMT"  # it is 05:07:07.890123
    stage.receiver.says = in_turn((429, {"retry-after": "40"}), (503, {"retry-after": date}))
    for seconds, asked in ((0, 1), (39.9, 1), (0.2, 2), (1.8, 2), (0.3, 3)):
        stage.clock.pass_seconds(seconds)
        await stage.export.round()
        assert len(stage.receiver.deliveries) == asked, seconds
    assert stage.receiver.taken == [event.id]


async def test_a_receiver_that_hangs_is_given_up(stage: Stage, caplog) -> None:
    """Within the time that was set; what it may have taken comes again, under the same ids."""
    [event] = await stage.waiting(1)
    held = threading.Event()
    stage.receiver.says = in_turn(held)
    slow = HttpReceiver(stage.receiver.url, token="", timeout_seconds=0.2)
    export = stage.another(slow)
    await bounded(export.round())
    assert (await stage.box.status()).last_error == "TimeoutError"
    held.set()
    stage.clock.pass_seconds(2)
    await export.round()
    await slow.close()
    assert [one.ids for one in stage.receiver.deliveries if one.status is None] == [[event.id]]
    assert event.id in stage.receiver.taken
    assert "TimeoutError" in caplog.text


async def test_nobody_listening_is_a_receiver_that_is_away(stage: Stage) -> None:
    """A refused connection, a name that is none: the events wait."""
    await stage.waiting(2)
    for url in ("http://127.0.0.1:1/events", "http://nobody.invalid/events"):
        nowhere = HttpReceiver(url, token="", timeout_seconds=5)
        await bounded(stage.another(nowhere).round())
        await nowhere.close()
        status = await stage.box.status()
        assert (status.pending, status.dead) == (2, 0)
        assert "Client" in str(status.last_error)


async def test_a_redirect_is_not_followed(stage: Stage) -> None:
    """Events go where the setting says, and nowhere else."""
    [event] = await stage.waiting(1)
    stage.receiver.says = in_turn((307, {"location": stage.receiver.url}))
    await stage.export.round()
    assert [one.status for one in stage.receiver.deliveries] == [307]
    stage.clock.pass_seconds(2)
    await stage.export.round()
    assert stage.receiver.taken == [event.id]


async def test_a_receiver_that_goes_away_while_the_culprit_is_sought_gets_the_rest_later(
    stage: Stage,
) -> None:
    """The halves that were not delivered are still due; none of them has an attempt against it."""
    events = await stage.waiting(8)
    stage.receiver.says = in_turn(400, 400, 503)
    assert await stage.export.round() is False
    assert stage.receiver.taken == []
    stage.receiver.says = refusing(events[0].id)
    stage.clock.pass_seconds(10)
    await stage.export.round()
    assert stage.receiver.taken == [event.id for event in events[1:]]
    assert (await stage.box.status()).pending == 1


# --- who sends, and when it is marked -------------------------------------------------------------------


async def test_who_does_not_lead_sends_nothing(stage: Stage) -> None:
    """And who leads no more stops between two requests."""
    await stage.waiting(10)
    stage.lead.questions = 0
    assert await stage.export.round() is False
    assert stage.receiver.deliveries == []
    stage.receiver.says = lambda _: 400
    stage.lead.questions = 3
    assert await stage.export.round() is False
    assert len(stage.receiver.deliveries) == 3


async def test_a_worker_that_dies_before_it_marks_has_it_sent_again(stage: Stage) -> None:
    """Under the same ids, and in a batch of the same id: a duplicate, never a gap."""
    events = await stage.waiting(3)
    held = threading.Event()
    stage.receiver.says = in_turn(held)
    dying = asyncio.ensure_future(stage.export.round())
    await eventually(lambda: asyncio.to_thread(lambda: stage.receiver.deliveries))
    dying.cancel()
    await asyncio.wait([dying])
    held.set()
    await stage.another().round()
    ids = [event.id for event in events]
    assert [one.ids for one in stage.receiver.deliveries if one.status is None] == [ids]
    assert stage.receiver.taken[-3:] == ids
    assert len({one.headers["webhook-id"] for one in stage.receiver.deliveries}) == 1
    assert (await stage.box.status()).pending == 0


async def test_what_could_not_be_marked_is_sent_again(stage: Stage, monkeypatch) -> None:
    """The database may go away between the delivery and the mark."""
    [event] = await stage.waiting(1)

    async def away(_: object) -> None:
        raise AccountsUnavailable

    with monkeypatch.context() as broken:
        broken.setattr(stage.box, "delivered", away)
        with pytest.raises(AccountsUnavailable):
            await stage.export.round()
    await stage.export.round()
    assert stage.receiver.taken == [event.id, event.id]
    assert (await stage.box.status()).pending == 0


async def test_no_connection_to_the_database_is_held_while_the_receiver_thinks(stage: Stage) -> None:
    """A slow receiver costs the ledger nothing."""
    await stage.waiting(1)
    seen: list[str] = []

    def look(_: Delivery) -> int:
        seen.append(stage.engine.pool.status())
        return 204

    stage.receiver.says = look
    before = stage.engine.pool.status()
    await stage.export.round()
    assert seen == [before]


async def test_nothing_secret_is_logged_or_kept(stage: Stage, witness, caplog) -> None:
    """Not the token, though the receiver quotes it, nor the signing secret; a state is logged once."""
    caplog.set_level(logging.DEBUG)
    await stage.waiting(1)
    stage.receiver.writes = f"you said Bearer {TOKEN}".encode()
    stage.receiver.says = in_turn(401, 401, 400)
    for _ in range(3):
        await stage.export.round()
        stage.clock.pass_seconds(60)
    [row] = (await rows(witness)).values()
    assert row.error == "400 you said Bearer ***"
    said = [record.getMessage() for record in caplog.records if record.name == "sluicegate.export"]
    [line] = [line for line in said if "401" in line]
    assert "look at EXPORT_URL, EXPORT_TOKEN and EXPORT_SECRET" in line
    assert TOKEN not in caplog.text + str(row)
    assert "you said" not in " ".join(said), "what others write has no place in the log"
    assert SECRET not in caplog.text
