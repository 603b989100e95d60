"""The roll-ups equal the events, cube by cube, whoever writes at the same time and wherever a writer is stopped."""

from __future__ import annotations

import asyncio
from datetime import date, datetime, timedelta
from itertools import batched
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import delete, select, update

from api.adapters import rollups_sql
from api.adapters.database_sql import WRITES
from api.adapters.lease_sql import Lease, LostLease
from api.adapters.rollups_sql import NotKept, Rollups
from api.adapters.tables_sql import rollup_queue, usage_events, usage_rollups
from api.core.usage_query import DAY, QUARTER
from tests.contracts.helpers import Clock, bounded, outcomes, snapshot, writing
from tests.contracts.usages import DST, added, append_all, label, leading, random_events, usage_event

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.core.record import UsageEvent
    from api.core.usage_query import Sums

Cubes = dict[tuple[Any, ...], Any]


def cubes_of(events: list[UsageEvent]) -> Cubes:
    """What the roll-ups of these events have to be."""
    rows: dict[tuple[Any, ...], list[UsageEvent]] = {}
    for one in events:
        at = one.booking.started_at
        midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
        quarter = at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)
        tenant, key, user, model, upstream = (
            label(one, name) for name in ("tenant", "key", "end_user", "model", "upstream")
        )
        for cube, starts_at, of in (("quarter", quarter, ""), ("day", midnight, ""), ("user", quarter, user)):
            rows.setdefault((tenant, cube, starts_at, key, of, model, upstream), []).append(one)
    return {key: added(ones) for key, ones in rows.items()}


async def cubes_in(engine: AsyncEngine) -> Cubes:
    """What they are."""
    async with engine.connect() as connection:
        rows = (await connection.execute(select(usage_rollups))).all()
    return {tuple(row[:7]): added([])._replace if False else tuple(row[7:]) for row in rows}


def plain(cubes: dict[tuple[Any, ...], Sums]) -> Cubes:
    names = ("events", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "cost_nano_dollars")
    return {key: tuple(getattr(sums, name) for name in names) for key, sums in cubes.items()}
