"""The ledger's contract, on SQLite and PostgreSQL: what is on the record, and how often."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import select, text

from api.adapters.ledger_sql import SqlLedger
from api.adapters.tables_sql import in_flight, usage_events
from api.core.booking import ENDINGS, Ended, Happening
from api.core.record import Checkpoint, Totals
from api.core.usage import NOTHING, Certainty, Source, Usage
from api.ports import LedgerUnavailable
from api.tasks import Tasks
from tests.contracts.helpers import START, booking, bounded, event, eventually, of_token, outcomes, writing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import RowMapping, Table
    from sqlalchemy.ext.asyncio import AsyncEngine


@pytest.fixture
async def ledger(engine: AsyncEngine) -> AsyncIterator[SqlLedger]:
    """A ledger whose writer runs."""
    async with writing(engine) as (opened, _):
        yield opened


async def rows(engine: AsyncEngine, table: Table) -> dict[str, RowMapping]:
    """What is committed, by id."""
    async with engine.connect() as connection:
        found = (await connection.execute(select(table))).mappings().all()
    return {row["id"]: row for row in found}


# --- bookings ---------------------------------------------------------------------------------------


async def test_a_booking_is_durable_when_its_future_is_done(ledger, witness) -> None:
    """P1: while the database holds the write back the future waits; once it is done others see the row."""
    booked = booking()
    async with witness.connect() as rival:
        sqlite = rival.dialect.name == "sqlite"
        await rival.execution_options(sluicegate_writes=True)
        await rival.begin()
        await rival.execute(text("DELETE FROM users" if sqlite else "LOCK TABLE in_flight"))
        done = ledger.book(booked)
        await asyncio.wait([done], timeout=0.2)
        assert not done.done()
        await rival.rollback()
        await bounded(done)
    row = (await rows(witness, in_flight))[booked.id]
    assert {name: row[name] for name in booked.__dataclass_fields__} == {
        name: getattr(booked, name) for name in booked.__dataclass_fields__
    }
    assert (row["input_tokens"], row["output_tokens"], row["checkpoint_at"]) == (0, 0, None)


async def test_a_commit_is_flushed_to_the_disk(engine) -> None:
    """P1 survives a power cut: neither database may answer before its log is on the disk."""
    async with engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            assert (await connection.execute(text("PRAGMA synchronous"))).scalar_one() == 2  # FULL
        else:
            assert (await connection.execute(text("SHOW synchronous_commit"))).scalar_one() == "on"


async def test_a_waiter_that_gave_up_disturbs_nobody(ledger) -> None:
    """A cancelled future neither breaks the writer nor the rest of its group."""
    gone, kept = ledger.book(booking()), ledger.book(booking())
    gone.cancel()
    assert await outcomes([kept]) == [None]
    assert await outcomes([ledger.book(booking())]) == [None]


# --- settlements ------------------------------------------------------------------------------------

WORST = Usage(2**53 + 1, 2**62, 2**40, 2**41, Source.PROVIDER, Certainty.EXACT, None)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"usage": NOTHING, "first_token_ms": None, "duration_ms": 0},
    {"usage": WORST, "first_token_ms": 0, "duration_ms": 2**40},
    {"answered_model": "水\u2028'\";--\\ 🌊" * 20},
    {"ended_at": START.astimezone(timezone(timedelta(hours=5, minutes=30)))},
    *({"cause": cause, "ended": ended} for cause, ended in ENDINGS.items()),
    *(
        {"usage": Usage(1, 2, 3, 4, source, certainty, "cl100k_base")}
        for source in Source
        for certainty in Certainty
    ),
]


BOOKED: list[dict[str, Any]] = [
    {"end_user": "ü\u0085 user"},
    {"key_id": None, "token_id": "jti of a company's token", "end_user": None},
    {"key_id": "k" * 12, "token_id": None},
    {"key_id": None, "token_id": None},
]


async def test_every_field_of_an_event_comes_back(ledger, witness) -> None:
    """P3: an event is read as it was written, enums and time zones included, and its booking is gone.

    A caller with a token of the company's own identity provider has no key; one with a key has no token.
    """
    written = {}
    for number, variant in enumerate(VARIANTS):
        one = event(booking(**BOOKED[number % len(BOOKED)]), **variant)
        written[one.booking.id] = one
        await bounded(ledger.book(one.booking))
        await bounded(ledger.settle(one))
    read = await ledger.events("tn_a", after=None, limit=len(VARIANTS) + 1)
    assert {one.booking.id: one for one in read} == written
    for one in read:
        kinds = (type(one.ended), type(one.cause), type(one.usage.source), type(one.usage.certainty))
        assert kinds == (Ended, Happening, Source, Certainty)
        assert one.ended_at.utcoffset() == one.booking.started_at.utcoffset() == timedelta(0)
    assert await rows(witness, in_flight) == {}


@pytest.mark.parametrize("together", [True, False], ids=["one group", "a retry"])
async def test_settling_twice_writes_one_event(ledger, witness, together) -> None:
    """P2: a repeated settlement succeeds and writes nothing, in the first one's group and after it."""
    one = event(booking())
    await bounded(ledger.book(one.booking))
    first = ledger.settle(one)
    if not together:
        await bounded(first)
    assert await outcomes([first, ledger.settle(one)]) == [None, None]
    assert list(await rows(witness, usage_events)) == [one.booking.id]
    assert await ledger.totals("tn_a") == Totals(1, one.usage.input_tokens, one.usage.output_tokens)


async def test_two_ledgers_that_settle_one_booking_write_one_event(ledger, engine, witness) -> None:
    """P2: whoever deletes the booking owns its event, also over two workers at the same moment."""
    ones = [event(booking()) for _ in range(20)]
    await outcomes([ledger.book(one.booking) for one in ones])
    async with writing(witness) as (second, _):
        ends = [worker.settle(one) for one in ones for worker in (ledger, second)]
        assert await outcomes(ends) == [None] * len(ends)
    assert sorted(await rows(engine, usage_events)) == [one.booking.id for one in ones]


async def test_settling_what_was_never_booked_writes_nothing(ledger, witness) -> None:
    """An event needs its booking: without one the settlement succeeds and leaves no trace."""
    assert await outcomes([ledger.settle(event(booking()))]) == [None]
    assert await rows(witness, usage_events) == {}
    assert await ledger.totals("tn_a") == Totals(0, 0, 0)


async def test_a_booking_and_its_settlement_may_share_a_group(ledger, witness) -> None:
    """A stream that ends before its booking is written is on the record all the same."""
    ones = [event(booking()) for _ in range(3)]
    ends = [done for one in ones for done in (ledger.book(one.booking), ledger.settle(one))]
    assert await outcomes(ends) == [None] * 6
    assert sorted(await rows(witness, usage_events)) == [one.booking.id for one in ones]
    assert await rows(witness, in_flight) == {}


# --- groups -----------------------------------------------------------------------------------------


BAD_BOOKINGS = {
    "a naive time": {"started_at": START.replace(tzinfo=None)},
    "no model": {"model": None},
    "a lone surrogate": {"model": "m\ud800"},
    "a NUL": {"model": "m\0"},
    "an endless name": {"model": "m" * 300},
}
FITS_SQLITE = {"a NUL", "an endless name"}  # SQLite has no such limits, and may take them


def fails(what: str, engine: AsyncEngine) -> list[type]:
    """How a bad row may end."""
    refused = [LedgerUnavailable]
    return [*refused, type(None)] if what in FITS_SQLITE and engine.name == "sqlite" else refused


@pytest.mark.parametrize("what", BAD_BOOKINGS)
async def test_a_bad_booking_fails_alone(ledger, engine, witness, what) -> None:
    """P10: one tenant's row that the database refuses does not take down those of its group."""
    good = [booking(tenant_id="tn_b") for _ in range(4)]
    bad = booking(**BAD_BOOKINGS[what])
    ends = await outcomes([ledger.book(one) for one in (*good[:2], bad, *good[2:])])
    assert [ends[i] for i in (0, 1, 3, 4)] == [None] * 4
    assert type(ends[2]) in fails(what, engine)
    assert {one.id for one in good} <= set(await rows(witness, in_flight))


async def test_a_duplicate_booking_fails_alone(ledger, witness) -> None:
    """An id that is taken is refused; the first row stands, and the others of the group are written."""
    taken = booking()
    await bounded(ledger.book(taken))
    again = replace(taken, model="another")
    ends = await outcomes([ledger.book(one) for one in (booking(), again, booking())])
    assert [type(end) for end in ends] == [type(None), LedgerUnavailable, type(None)]
    assert (await rows(witness, in_flight))[taken.id]["model"] == taken.model


BAD_EVENTS = {
    "a naive time": {"ended_at": START.replace(tzinfo=None)},
    "no model": {"answered_model": None},
    "a lone surrogate": {"answered_model": "m\ud800"},
    "a NUL": {"answered_model": "m\0"},
    "an endless name": {"answered_model": "m" * 300},
    "a count over 64 bits": {"usage": replace(NOTHING, output_tokens=10**20)},
}


@pytest.mark.parametrize("what", BAD_EVENTS)
async def test_a_bad_event_fails_alone(ledger, engine, witness, what) -> None:
    """P2 for all others: an event that the database refuses is neither retried for ever nor contagious."""
    good = [event(booking()) for _ in range(4)]
    bad = event(booking(), **BAD_EVENTS[what])
    group = (*good[:2], bad, *good[2:])
    await outcomes([ledger.book(one.booking) for one in group])
    ends = await outcomes([ledger.settle(one) for one in group])
    assert [ends[i] for i in (0, 1, 3, 4)] == [None] * 4
    assert type(ends[2]) in fails(what, engine)
    assert {one.booking.id for one in good} <= set(await rows(witness, usage_events))
    assert await outcomes([ledger.book(booking())]) == [None]


# --- checkpoints ------------------------------------------------------------------------------------


async def test_the_latest_checkpoint_of_a_booking_stands(ledger, witness) -> None:
    """P3: the running count that a dead worker leaves behind is its last one."""
    booked, other = booking(), booking()
    await outcomes([ledger.book(booked), ledger.book(other)])
    for tokens in (1, 2, 3):
        late = START + timedelta(seconds=tokens)
        ledger.checkpoint([Checkpoint(booked.id, 10 * tokens, tokens - 1, late)])
        ledger.checkpoint([Checkpoint(booked.id, 100 * tokens, tokens, late)])

        async def there(tokens: int = tokens, late: object = late) -> bool:
            row = (await rows(witness, in_flight))[booked.id]
            return (row["input_tokens"], row["output_tokens"], row["checkpoint_at"]) == (
                100 * tokens,
                tokens,
                late,
            )

        await eventually(there)
    assert (await rows(witness, in_flight))[other.id]["checkpoint_at"] is None


async def test_a_bad_row_does_not_swallow_the_checkpoints_of_its_group(ledger, witness) -> None:
    """P3: a stream that pauses after its checkpoint is not asked for another one, so none may be lost."""
    booked = booking()
    await bounded(ledger.book(booked))
    ledger.checkpoint([Checkpoint(booked.id, 5, 7, START)])
    await outcomes([ledger.book(booking()), ledger.book(booked)])
    await outcomes([ledger.book(booking())])

    async def there() -> bool:
        return (await rows(witness, in_flight))[booked.id]["output_tokens"] == 7

    await eventually(there)


async def test_a_checkpoint_that_comes_during_a_commit_is_written_too(ledger, engine, witness) -> None:
    """P3: no count is taken for written because an older one of the same booking just was."""
    for last in range(1, 6):
        booked, sent = booking(), []
        await bounded(ledger.book(booked))
        ledger.checkpoint([Checkpoint(booked.id, 0, 100, START)])

        def count_on(_: object, *, booked=booked, sent=sent, last=last) -> None:
            if len(sent) < last:
                sent.append(len(sent) + 1)
                ledger.checkpoint([Checkpoint(booked.id, 0, sent[-1], START)])

        sqlalchemy_event.listen(engine.sync_engine, "commit", count_on)
        while len(sent) < last:
            await outcomes([ledger.book(booking()), ledger.book(booked)])  # the second is refused
        sqlalchemy_event.remove(engine.sync_engine, "commit", count_on)

        async def there(booked=booked, last=last) -> bool:
            return (await rows(witness, in_flight))[booked.id]["output_tokens"] == last

        await eventually(there)


@pytest.mark.parametrize("late", [True, False], ids=["after it", "before it"])
async def test_no_checkpoint_touches_what_is_settled(ledger, witness, late) -> None:
    """A checkpoint that comes with or after the settlement changes no event and brings no booking back."""
    one = event(booking())
    await bounded(ledger.book(one.booking))
    stale = [Checkpoint(one.booking.id, 999, 999, START)]
    if late:
        done = ledger.settle(one)
        ledger.checkpoint(stale)
    else:
        ledger.checkpoint(stale)
        done = ledger.settle(one)
    await bounded(done)
    await bounded(ledger.book(booking(id="behind all that")))
    assert list(await rows(witness, in_flight)) == ["behind all that"]
    assert await ledger.events("tn_a", after=None, limit=9) == [one]


# --- reading ----------------------------------------------------------------------------------------


async def test_events_come_in_pages_and_totals_are_their_sums(ledger) -> None:
    """Paging by `after` shows each event of the tenant once, in order; totals are the sums of the same."""
    ones = [event(booking(), usage=replace(NOTHING, input_tokens=i, output_tokens=3 * i)) for i in range(7)]
    await outcomes([ledger.book(one.booking) for one in ones])
    await outcomes([ledger.settle(one) for one in reversed(ones)])
    pages, after = [], None
    while page := await ledger.events("tn_a", after=after, limit=3):
        pages.append(page)
        after = page[-1].booking.id
    assert pages == [ones[:3], ones[3:6], ones[6:]]
    assert await ledger.totals("tn_a") == Totals(7, 21, 63)


async def test_a_tenant_sees_and_counts_its_own_events_only(ledger) -> None:
    """P10: neither sums nor pages hold another tenant's events, and its ids are no key to them."""
    mine, theirs = event(booking()), event(booking(tenant_id="tn_b"))
    await outcomes([ledger.book(one.booking) for one in (mine, theirs)])
    await outcomes([ledger.settle(one) for one in (mine, theirs)])
    assert await ledger.events("tn_a", after=None, limit=9) == [mine]
    assert await ledger.events("tn_b", after=mine.booking.id, limit=9) == [theirs]
    assert await ledger.totals("tn_b") == Totals(1, 11, 13)
    assert await ledger.totals("nobody") == Totals(0, 0, 0)
    assert await ledger.events("nobody", after=None, limit=9) == []


async def test_what_a_token_spent_is_the_sum_of_its_settled_events(ledger) -> None:
    """An allowance is refilled from this: in and out, of that tenant's token alone, once it is settled."""
    used = [replace(NOTHING, input_tokens=10**n, output_tokens=2 * 10**n) for n in range(5)]
    of = [
        {"token_id": "jti"},
        {"token_id": "jti", "key_id": None},
        {"token_id": "jti", "tenant_id": "tn_b"},
        {"token_id": "other"},
        {"token_id": None},
    ]
    ones = [event(booking(**label), usage=usage) for label, usage in zip(of, used, strict=True)]
    assert await ledger.spent("tn_a", of_token("jti")) == 0
    await outcomes([ledger.book(booked) for booked in (booking(), *(one.booking for one in ones))])
    assert await ledger.spent("tn_a", of_token("jti")) == 0
    await outcomes([ledger.settle(one) for one in ones])
    assert await ledger.spent("tn_a", of_token("jti")) == 33
    assert await ledger.spent("tn_b", of_token("jti")) == 300
    assert [await ledger.spent(tenant, of_token("other")) for tenant in ("tn_a", "tn_b")] == [3000, 0]
    vast = event(booking(token_id="vast"), usage=replace(NOTHING, input_tokens=2**61, output_tokens=2**61))
    await outcomes([ledger.book(vast.booking), ledger.settle(vast)])
    assert await ledger.spent("tn_a", of_token("vast")) == 2**62


# --- the end ----------------------------------------------------------------------------------------


async def test_close_writes_everything_that_waits(engine, witness) -> None:
    """P12: what was submitted before `close` is written when the writer has ended."""
    ledger, tasks = SqlLedger(engine), Tasks()
    writer = tasks.start(ledger.run(), name="ledger")
    ones = [event(booking()) for _ in range(600)]
    ends = [ledger.book(one.booking) for one in ones] + [ledger.settle(one) for one in ones[1:]]
    ledger.checkpoint([Checkpoint(ones[0].booking.id, 1, 2, START)])
    await ledger.close()
    await bounded(writer)
    assert await outcomes(ends) == [None] * len(ends)
    assert len(await rows(witness, usage_events)) == 599
    assert list(await rows(witness, in_flight)) == [ones[0].booking.id]
