"""What the streams of one worker share: the ports, the live streams, and whether new ones are taken."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from api.core.booking import Happening
from api.core.numbers import Numbers
from api.errors import Draining
from api.flow.pace import Pace
from api.flow.turns import Lines, Places
from api.ports import AccountsUnavailable
from api.tasks import Tasks

if TYPE_CHECKING:
    from api.accounts import Accounts
    from api.cataloging import CatalogBook
    from api.core.money import Prices
    from api.core.policy import Policy
    from api.flow.providers import Providers
    from api.flow.stream import Stream
    from api.ports import Clock, Doorbell, Ledger, Limiter, Tokenizer, UsageReports
    from api.pricing import PriceBook
    from api.replays import Replays
    from api.telemetry import NumbersShelf, Traces
    from auth.authenticator import Authenticator
    from auth.memory import CredentialStore


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass(slots=True)
class Gate:
    """One worker. `live`, and those `waiting` to be admitted, are by permit id.

    `walks` are the streams' tasks, `chores` all others.

    `renewed` is unset while leases are being renewed: a slot given back in the middle of that would be
    registered again by a renewal that Redis happens to see second. `changed` is set when the accounts are
    known to have changed; `flow.watch` waits for it. `prices` are what the price book said when it was last
    read, one reading at a time, so that none undoes a later one.
    """

    clock: Clock
    limiter: Limiter
    replays: Replays
    ledger: Ledger
    usage: UsageReports
    providers: Providers
    catalog_book: CatalogBook
    accounts: Accounts
    credentials: CredentialStore
    authenticator: Authenticator
    doorbell: Doorbell
    tokenizer: Tokenizer
    price_book: PriceBook
    prices: Prices
    policy: Policy
    places: Places
    lines: Lines = field(default_factory=Lines)
    pace: Pace = field(init=False)
    repricing: asyncio.Lock = field(default_factory=asyncio.Lock)
    live: dict[str, Stream] = field(default_factory=dict)
    waiting: dict[str, Stream] = field(default_factory=dict)
    walks: Tasks = field(default_factory=Tasks)
    chores: Tasks = field(default_factory=Tasks)
    renewed: asyncio.Event = field(default_factory=_set_event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    draining: bool = False
    reading_on: int = 0  # streams whose clients have left
    replaying: int = 0  # answers from what is kept
    numbers: Numbers = field(default_factory=Numbers)
    traces: Traces | None = None
    shelf: NumbersShelf | None = None  # where the other workers' numbers are

    def __post_init__(self) -> None:
        """What is made of the other parts."""
        self.pace = Pace(self.clock)

    async def accounts_changed(self) -> None:
        """Something was written to the accounts: this worker knows it on return, the others in a moment."""
        self.changed.set()
        self.chores.start(self.doorbell.ring(), name="ring")
        with suppress(AccountsUnavailable):  # it is written all the same, and whoever is next reads it
            await self.authenticator.memory.refresh()

    async def read_prices(self) -> None:
        """Go by the price book as it is now. Raises AccountsUnavailable; then what was known goes on."""
        async with self.repricing:
            self.prices = await self.price_book.load()

    async def read_catalog(self) -> None:
        """Go by the models and upstreams as they are now. Raises AccountsUnavailable."""
        async with self.repricing:
            await self.providers.follow(await self.catalog_book.load())

    def begin_drain(self) -> None:
        """SIGTERM: no new streams; those that run get `drain_seconds`, then a well-formed end (P12)."""
        if not self.draining:
            self.draining = True
            for stream in self.waiting.values():
                stream.cut(Happening.DRAIN, Draining())
            self.chores.start(self._cut_after_grace(), name="drain")

    async def _cut_after_grace(self) -> None:
        await self.walks.join(timeout_seconds=self.policy.drain_seconds)
        for stream in list(self.live.values()):
            stream.cut(Happening.DRAIN)

    async def drained(self) -> None:
        """Drain, and wait until every stream is settled."""
        self.begin_drain()
        await self.walks.join()
