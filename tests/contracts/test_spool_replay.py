"""Spools are put on the ledger: also if whoever does it dies, if several do it, if rows are refused."""

from __future__ import annotations

import asyncio
import logging
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from api.adapters import ledger_spool
from api.adapters.ledger_spool import LedgerSpool
from api.adapters.ledger_sql import SqlLedger
from api.adapters.spool_file import Spool, path_of
from api.core import spool as records
from api.core.record import Checkpoint, InFlight
from tests.contracts.helpers import START, booking, bounded, event, snapshot
from tests.contracts.spools import MOST, ledger_of, refused_ones, take_over

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.core.record import Booking
    from api.core.spool import Records


class Killed(Exception):  # noqa: N818
    """The worker dies here."""


async def crashing_replay(path: Path, ledger: SqlLedger, survives: int) -> bool:
    """Replay, and die when so many pieces are committed. True if it lived."""
    spool = LedgerSpool(Spool(path, max_bytes=MOST).take())

    async def commit(found: Records) -> None:
        nonlocal survives
        await ledger.commit_again(found)
        survives -= 1
        if survives == 0:
            raise Killed

    try:
        await spool.replay(commit)
    except Killed:
        return False
    finally:
        await spool.close()
    return True


async def test_a_replay_can_end_anywhere_and_begin_again(engine, tmp_path, monkeypatch) -> None:
    """It dies behind every single commit, and before the file is emptied: nothing is written twice."""
    monkeypatch.setattr(ledger_spool, "_PIECE_BYTES", 1)
    ledger, path = SqlLedger(engine), path_of(tmp_path, "host:1")
    one, other, booked = event(booking()), event(booking()), booking()
    lines = [
        records.of_booking(one.booking),
        records.of_booking(other.booking),
        records.of_checkpoints([Checkpoint(one.booking.id, 1, 1, START)]),
        records.of_event(one),
        records.of_booking(booked),
        records.of_event(other),
        records.of_checkpoints([Checkpoint(booked.id, 5, 7, START), Checkpoint(one.booking.id, 1, 1, START)]),
    ]
    path.write_bytes(b"".join(lines))
    deaths = 0
    while not await crashing_replay(path, ledger, deaths + 1):
        deaths += 1
    assert deaths >= len(lines) // 2, "a piece is a line or two"
    assert await ledger_of(engine) == ([one, other], [InFlight(booked, 5, 7, START)])
    before = await snapshot(engine)
    assert before["usage_events"]
    path.write_bytes(b"".join(lines))
    assert await take_over(engine, tmp_path) == 1
    assert await snapshot(engine) == before, "an old spool changes nothing"


async def test_pieces_are_replayed_in_order_and_it_takes_more_meanwhile(tmp_path, monkeypatch) -> None:
    """What is put there while it is replayed comes behind what was there, and is replayed too."""
    monkeypatch.setattr(ledger_spool, "_PIECE_BYTES", 1)
    spool = LedgerSpool(Spool(path_of(tmp_path, "host:1"), max_bytes=MOST).make())
    ones, seen = [event(booking()) for _ in range(4)], []
    assert await spool.put(ones[:3])

    async def commit(found: Records) -> None:
        if not seen:
            assert await bounded(spool.put(ones[3:]))
        seen.extend(found.events)

    await spool.replay(commit)
    assert (seen, spool.size_bytes) == (ones, 0)
    await spool.close()


async def test_a_row_that_is_refused_does_not_hold_up_the_others(engine, tmp_path, caplog) -> None:
    """It is said that there was one, not what was in it; the others of its spool are on the ledger."""
    good, bad = [event(booking()) for _ in range(3)], refused_ones()
    settled = [good[0], bad[0], good[1], bad[1], good[2]]
    lines = [records.of_booking(one.booking) for one in settled] + [records.of_event(one) for one in settled]
    path_of(tmp_path, "host:1").write_bytes(b"".join(lines))
    assert await take_over(engine, tmp_path) == 1
    events, still_open = await ledger_of(engine)
    assert (events, [one.booking for one in still_open]) == (good, [one.booking for one in bad])
    said = [line.getMessage() for line in caplog.records if line.levelno >= logging.ERROR]
    assert len(said) == 2
    assert all("refused" in line and "half" not in line for line in said)


async def test_broken_lines_are_said_and_cost_only_themselves(engine, tmp_path, caplog) -> None:
    """A disk that lies does not keep a dead worker's other settlements from the ledger."""
    ones = [event(booking()) for _ in range(2)]
    await book_all(engine, [one.booking for one in ones])
    path_of(tmp_path, "host:1").write_bytes(
        records.of_event(ones[0]) + b"0000\x00 not what was written\n" + records.of_event(ones[1])
    )
    assert await take_over(engine, tmp_path) == 1
    assert (await ledger_of(engine))[0] == ones
    assert "1 lines of the spool host_1.spool cannot be read" in caplog.text


async def book_all(engine: AsyncEngine, bookings: list[Booking]) -> None:
    """They are open."""
    for one in bookings:
        await SqlLedger(engine).commit_again(records.Records([one], {}, []))


async def test_two_workers_that_take_over_write_each_event_once(engine, witness, tmp_path) -> None:
    """Copies of one spool, replayed at the same moment by two: the ledger has each event once."""
    ones = [event(booking()) for _ in range(20)]
    await book_all(engine, [one.booking for one in ones])
    (tmp_path / "a").mkdir()
    path_of(tmp_path / "a", "host:1").write_bytes(b"".join(records.of_event(one) for one in ones))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    taken = await asyncio.gather(take_over(engine, tmp_path / "a"), take_over(witness, tmp_path / "b"))
    assert taken == [1, 1]
    assert await ledger_of(engine) == (ones, [])
    other = replace(ones[0], duration_ms=ones[0].duration_ms + 1)
    path_of(tmp_path / "a", "host:2").write_bytes(records.of_event(other))
    await take_over(engine, tmp_path / "a")
    assert await ledger_of(engine) == (ones, []), "what is settled is settled"
