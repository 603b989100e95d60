"""The export on a stage: a database, a clock that stands, a real receiver, and whether this worker leads."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from api.adapters.export_http import HttpReceiver
from api.adapters.outbox_sql import SqlOutbox
from api.adapters.tables_sql import outbox
from api.core import cloud_events
from api.core.delivery import MAX_ATTEMPTS
from api.flow.export import Export, Terms
from tests.contracts.helpers import START
from tests.contracts.ledgers import StillClock, ended, put
from tests.support.receivers import EventReceiver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from api.core.record import UsageEvent
    from tests.support.receivers import Said

SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZmdoaWprbG1ub3BxcnN0dXY="
TOKEN = "om_token-that-nobody-must-see"
LATER = START + timedelta(minutes=1)


class Lead:
    """Whether this worker leads: so many questions long."""

    def __init__(self) -> None:
        self.questions = 1 << 30

    async def __call__(self) -> bool:
        self.questions -= 1
        return self.questions >= 0


@dataclass
class Stage:
    """What there is. `export` is the one under test; `another` is the one of the next worker."""

    engine: AsyncEngine
    receiver: EventReceiver
    http: HttpReceiver
    clock: StillClock = field(default_factory=lambda: StillClock(LATER))
    lead: Lead = field(default_factory=Lead)
    box: SqlOutbox = field(init=False)
    export: Export = field(init=False)

    def __post_init__(self) -> None:
        self.box = SqlOutbox(self.engine, self.clock)
        self.export = self.another()

    def another(self, http: HttpReceiver | None = None) -> Export:
        terms = Terms("sluicegate", 10, cloud_events.signing_key(SECRET))
        return Export(self.box, http or self.http, self.clock, self.lead, terms, jitter=lambda: 1.0)

    async def bury(self, events: list[UsageEvent], status: int) -> None:
        """Have them refused until they are dead, while others are taken."""
        self.receiver.says = refusing(*(event.id for event in events), status=status)
        for _ in range(MAX_ATTEMPTS):
            await put(self.engine, ended(START), exports=True)
            await self.export.round()
            self.clock.pass_seconds(3600)

    async def waiting(self, count: int) -> list[UsageEvent]:
        """So many events that are to be exported, in the order of their times."""
        events = [ended(START + timedelta(seconds=number)) for number in range(count)]
        await put(self.engine, *random.sample(events, count), exports=True)
        return events


@asynccontextmanager
async def set_up(engine: AsyncEngine) -> AsyncIterator[Stage]:
    """A stage on a database; nothing goes through the machine's own proxies."""
    with EventReceiver() as receiver:
        http = HttpReceiver(receiver.url, token=TOKEN, timeout_seconds=5)
        yield Stage(engine, receiver, http)
        await http.close()


async def rows(engine: AsyncEngine) -> dict[str, Any]:
    """The outbox, as committed."""
    async with engine.connect() as connection:
        return {row.event_id: row for row in await connection.execute(select(outbox))}


def in_turn(*said: Said) -> Any:
    """Answers, one after the other; then all is taken."""
    left = list(said)
    return lambda _: left.pop(0) if left else 204


def refusing(*poison: str, status: int = 400) -> Any:
    """A receiver that takes no batch with one of these in it."""
    return lambda asked: status if set(poison) & set(asked.ids) else 204
