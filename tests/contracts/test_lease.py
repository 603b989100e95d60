"""One leader among all workers, on both databases: nobody else while it leads, and soon somebody after it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.exc import DBAPIError

from api.adapters import lease_sql
from api.adapters.clock_system import SystemClock
from api.adapters.database_sql import WRITES
from api.adapters.lease_sql import Lease, LostLease
from api.adapters.tables_sql import leases, workers
from api.tasks import Tasks
from tests.contracts.helpers import START, bounded, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

LONG_SECONDS = 60.0


def lease(engine: AsyncEngine, holder: str, *, seconds: float = LONG_SECONDS, name: str = "leader") -> Lease:
    """What a worker has of the lease."""
    return Lease(engine, SystemClock(), holder, seconds=seconds, name=name)


class AnHourLater(Lease):
    """For this worker the others' leases are over."""

    async def _now(self, connection: AsyncConnection) -> datetime:
        return await super()._now(connection) + timedelta(hours=1)


@asynccontextmanager
async def fenced(engine: AsyncEngine, one: Lease) -> AsyncIterator[AsyncConnection]:
    """Work that only the leader may do."""
    async with engine.connect() as connection:
        await connection.execution_options(**WRITES)
        async with connection.begin():
            await one.fence(connection)
            yield connection


async def expire(engine: AsyncEngine) -> None:
    """As if its holder had been stopped for longer than the lease lasts."""
    async with engine.connect() as connection:
        await connection.execution_options(**WRITES)
        async with connection.begin():
            await connection.execute(update(leases).values(expires_at=datetime(2000, 1, 1, tzinfo=UTC)))


def mark(name: str) -> Any:
    """Something that a leader writes."""
    return insert(workers).values(id=name, beat=1, started_at=START)


async def marks(engine: AsyncEngine) -> list[str]:
    """What leaders have written."""
    async with engine.connect() as connection:
        return list((await connection.execute(select(workers.c.id).order_by(workers.c.id))).scalars())


async def test_of_many_that_ask_at_once_one_leads(engine, witness) -> None:
    """The first time, when there is no row yet, and every time after; it is the same one."""
    many = [lease(of, f"{of is engine} {number}") for number in range(4) for of in (engine, witness)]
    rounds = [await bounded(asyncio.gather(*[one.hold() for one in many])) for _ in range(3)]
    assert [held.count(True) for held in rounds] == [1, 1, 1]
    assert rounds[0] == rounds[1] == rounds[2]


async def test_whoever_holds_it_renews_it(engine) -> None:
    """By asking again, and by fenced work: each moves its end."""
    one, ends = lease(engine, "a"), []

    async def end() -> datetime:
        async with engine.connect() as connection:
            return (await connection.execute(select(leases.c.expires_at))).scalar_one()

    for _ in range(2):
        assert await one.hold()
        ends.append(await end())
        async with fenced(engine, one):
            pass
        ends.append(await end())
    assert ends == sorted(set(ends))


async def test_a_lease_that_ran_out_is_for_whoever_comes(engine, witness) -> None:
    """Its former holder is told, and may not write; the next one may."""
    old, new = lease(engine, "a"), lease(witness, "b")
    assert await old.hold()
    assert not await new.hold()
    await expire(witness)
    assert await new.hold()
    assert not await old.hold()
    with pytest.raises(LostLease):
        async with fenced(engine, old) as connection:
            await connection.execute(mark("old"))
    async with fenced(witness, new) as connection:
        await connection.execute(mark("new"))
    assert await marks(witness) == ["new"]


async def test_a_lease_runs_out_by_itself(engine, witness) -> None:
    """Nobody has to say that its holder is dead."""
    assert await lease(engine, "a", seconds=0.3).hold()
    await eventually(lease(witness, "b").hold)


async def test_without_the_lease_nobody_writes(engine, witness) -> None:
    """Nor with one that ran out though nobody else has taken it: whoever was stopped looks anew first."""
    one = lease(engine, "a")
    with pytest.raises(LostLease):
        async with fenced(engine, one) as connection:
            await connection.execute(mark("never held"))
    assert await one.hold()
    await expire(witness)
    with pytest.raises(LostLease):
        async with fenced(engine, one) as connection:
            await connection.execute(mark("ran out"))
    assert await one.hold()
    async with fenced(engine, one) as connection:
        await connection.execute(mark("held again"))
    assert await marks(witness) == ["held again"]


async def test_while_fenced_work_goes_on_nobody_else_leads(engine, witness) -> None:
    """Also when the lease is over by then: who asks waits, or is told no, until the work is committed."""
    old, new, order = lease(engine, "a"), AnHourLater(witness, SystemClock(), "b", seconds=LONG_SECONDS), []
    tasks = Tasks()

    async def ask() -> None:
        while not await new.hold():
            pass
        order.append(await marks(witness))

    assert await old.hold()
    async with fenced(engine, old) as connection:
        await connection.execute(mark("a"))
        asking = tasks.start(ask(), name="ask")
        await asyncio.wait([asking], timeout=0.3)
        assert order == []
    await bounded(asking)
    assert order == [["a"]]


async def test_giving_it_up_lets_the_next_one_have_it_at_once(engine, witness) -> None:
    """A shutdown does not keep the others waiting; and nobody gives up what somebody else has."""
    old, new = lease(engine, "a"), lease(witness, "b")
    assert await old.hold()
    await new.give_up()
    assert not await new.hold()
    await old.give_up()
    assert await new.hold()
    await old.give_up()
    assert not await old.hold()


async def test_leases_of_other_names_are_others(engine, witness) -> None:
    """Whoever leads in one thing does not in another."""
    assert await lease(engine, "a").hold()
    assert await lease(witness, "b", name="something else").hold()
    assert not await lease(witness, "b").hold()


async def test_no_two_ever_work_at_the_same_time(engine, witness) -> None:
    """Six ask all the time, for leases that are over at once: each gets it, and their work never overlaps."""
    inside = most = 0

    async def work(one: Lease, of: AsyncEngine) -> None:
        nonlocal inside, most
        done = 0
        while done < 2:
            if not await one.hold():
                continue
            with suppress(LostLease):
                async with fenced(of, one) as connection:
                    inside += 1
                    most = max(most, inside)
                    await connection.execute(select(leases))
                    inside -= 1
                    done += 1

    many = [
        (lease(of, f"{of is engine} {n}", seconds=0.05), of) for n in range(3) for of in (engine, witness)
    ]
    await bounded(asyncio.gather(*[work(one, of) for one, of in many]))
    assert most == 1


# --- PostgreSQL only: who holds a row's lock can be stopped -----------------------------------------


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_leader_that_is_stopped_in_its_work_loses_it(engine, witness, monkeypatch) -> None:
    """The database ends its transaction: nothing of it is written, and nobody waits for it any longer."""
    assert "idle_in_transaction_session_timeout = '5s'" in lease_sql._PATIENCE[1]
    soon = ("SET LOCAL lock_timeout = '100ms'", "SET LOCAL idle_in_transaction_session_timeout = '300ms'")
    monkeypatch.setattr(lease_sql, "_PATIENCE", soon)
    old, new = lease(engine, "a"), AnHourLater(witness, SystemClock(), "b", seconds=LONG_SECONDS)
    assert await old.hold()
    with pytest.raises(DBAPIError):
        async with fenced(engine, old) as connection:
            await connection.execute(mark("a"))
            assert not await new.hold(), "it is told no, and does not wait"
            await eventually(new.hold)
            await connection.execute(mark("a, who did not notice"))
    assert await marks(witness) == []
    async with fenced(witness, new) as connection:
        await connection.execute(mark("b"))
    assert await marks(witness) == ["b"]
