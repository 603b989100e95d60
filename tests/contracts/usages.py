"""Random usage, written as the ledger writes it, and its sums by the slowest and plainest way there is."""

from __future__ import annotations

import random
from bisect import bisect_right
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select

from api.adapters.database_sql import WRITES
from api.adapters.lease_sql import Lease
from api.adapters.ledger_writes_sql import append
from api.adapters.rollups_sql import Rollups
from api.adapters.tables_sql import usage_events
from api.core.booking import Correction
from api.core.ids import sortable_id
from api.core.usage import NOTHING
from api.core.usage_query import DAY, FILTERS, GROUPS, INTERVALS, QUARTER, Sums, UsageQuery
from tests.contracts.helpers import Clock, booking, event

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.core.record import UsageEvent

DST = datetime(2026, 10, 25, tzinfo=UTC)
"""The day on which the clocks of Berlin go back."""
_ZONES = ("UTC", "Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns")
_VALUES = {
    "tenant": ("tn_a", "tn_b", "tn_B"),
    "key": ("", "k1", "K1", "k2"),
    "end_user": ("", "ann", "Ann", "änn", "a,nn", "=1+1", "z" * 200),
    "model": ("gpt-4o", "gpt-4o-mini", "scripted"),
    "upstream": ("one", "two"),
}


def usage_event(at: datetime, entropy: int = 0, **changes: object) -> UsageEvent:
    """An event of a request that came then, with an id that says so."""
    made = sortable_id("bk_", int(at.timestamp() * 1000), entropy.to_bytes(10))
    return event(booking(**{"id": made, "started_at": at} | changes))


def random_events(
    seed: int, count: int = 300, days: int = 3, tenants: Sequence[str] = _VALUES["tenant"]
) -> list[UsageEvent]:
    """Events of the days about DST, many of them at the very edges of quarters; some of them corrections."""
    chance = random.Random(seed)
    found: list[UsageEvent] = []
    for number in range(count):
        at = DST - DAY + timedelta(microseconds=chance.randrange(days * 86_400_000_000))
        if number % 4 == 0:  # on a quarter, or one microsecond before
            at = at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)
            at -= timedelta(microseconds=number // 4 % 2)
        labels = {name: chance.choice(values) or None for name, values in _VALUES.items()}
        one = usage_event(
            max(at, DST - DAY),
            number,
            tenant_id=chance.choice(tenants),
            key_id=labels["key"],
            end_user=labels["end_user"],
            model=labels["model"],
            upstream=labels["upstream"],
        )
        found.append(_with_amounts(one, chance, 0))
        if chance.random() < 0.2:
            wrong = replace(one, number=1, cause=Correction.REPRICED)
            found.append(_with_amounts(wrong, chance, -1000))
    return found


def _with_amounts(one: UsageEvent, chance: random.Random, least: int) -> UsageEvent:
    names = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
    amounts = {name: chance.randrange(least, 10_000) for name in names}
    cost = chance.choice((None, chance.randrange(least, 10**12)))
    return replace(one, usage=replace(NOTHING, **amounts), cost_nano_dollars=cost)


def random_query(chance: random.Random) -> UsageQuery:
    """About the time of `random_events`."""
    since = DST + chance.randrange(-150, 100) * QUARTER
    until = since + chance.randrange(1, 300) * QUARTER
    interval = chance.choice((None, *INTERVALS))
    groups = tuple(name for name in GROUPS if chance.random() < 0.3)
    filters = {name: chance.choice(_VALUES[name]) for name in FILTERS if chance.random() < 0.15}
    ends = [
        since if interval or chance.random() < 0.7 else None,
        until if interval or chance.random() < 0.7 else None,
    ]
    return UsageQuery(
        chance.choice((None, *_VALUES["tenant"], "nobody")),
        *ends,
        chance.choice(_ZONES),
        interval,
        groups,
        filters,
    )


def label(one: UsageEvent, name: str) -> str:
    """What an event says of a group."""
    field = {"tenant": "tenant_id", "key": "key_id"}.get(name, name)
    return getattr(one.booking, field) or ""


def added(events: Iterable[UsageEvent]) -> Sums:
    """One by one."""
    sums = [0] * 6
    for one in events:
        usage = one.usage
        amounts = (usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.reasoning_tokens)
        row = (int(one.number == 0), *amounts, one.cost_nano_dollars or 0)
        sums = [before + more for before, more in zip(sums, row, strict=True)]
    return Sums(*sums)


def naive(events: Iterable[UsageEvent], query: UsageQuery) -> dict[tuple[object, ...], Sums]:
    """The sums by interval and groups, of each event that is asked for by itself."""
    spans = list(query.spans())
    begins = [span.starts_at for span in spans]
    rows: dict[tuple[object, ...], list[UsageEvent]] = {(spans[0],): []} if query.is_one_row else {}
    for one in events:
        wanted = dict(query.filters) | ({} if query.tenant_id is None else {"tenant": query.tenant_id})
        begin, end = query.whole
        if begin <= one.booking.started_at < end and all(label(one, n) == v for n, v in wanted.items()):
            span = spans[bisect_right(begins, one.booking.started_at) - 1]
            rows.setdefault((span, *(label(one, name) for name in query.order)), []).append(one)
    return {key: added(ones) for key, ones in rows.items()}


async def append_all(engine: AsyncEngine, events: Iterable[UsageEvent]) -> None:
    """In a transaction of their own, queued as the ledger does it."""
    async with engine.connect() as connection:
        await connection.execution_options(**WRITES)
        async with connection.begin():
            await append(connection, list(events), exports=False)


async def leading(engine: AsyncEngine, holder: str = "worker") -> Rollups:
    """A writer of roll-ups whose lease is held."""
    lease = Lease(engine, Clock(), holder, seconds=60)
    assert await lease.hold()
    return Rollups(engine, lease)


async def event_ids(engine: AsyncEngine) -> set[str]:
    """All that are on the ledger."""
    async with engine.connect() as connection:
        return set((await connection.execute(select(usage_events.c.id))).scalars())
