"""What the streams of one worker share: the ports, the live streams, and whether new ones are taken."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from api.core.booking import Happening
from api.tasks import Tasks

if TYPE_CHECKING:
    from api.flow.stream import Stream
    from api.ports import Accounts, Clock, Ledger, Limiter, Policy, Tokenizer, Upstream


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass(slots=True)
class Gate:
    """One worker. `live` is by permit id; `walks` are the streams' tasks, `chores` all others.

    `renewed` is unset while leases are being renewed: a slot given back in the middle of that would be
    registered again by a renewal that Redis happens to see second.
    """

    clock: Clock
    limiter: Limiter
    ledger: Ledger
    upstream: Upstream
    accounts: Accounts
    tokenizer: Tokenizer
    policy: Policy
    live: dict[str, Stream] = field(default_factory=dict)
    walks: Tasks = field(default_factory=Tasks)
    chores: Tasks = field(default_factory=Tasks)
    renewed: asyncio.Event = field(default_factory=_set_event)
    draining: bool = False

    def begin_drain(self) -> None:
        """SIGTERM: no new streams; those that run get `drain_seconds`, then a well-formed end (P12)."""
        if not self.draining:
            self.draining = True
            self.chores.start(self._cut_after_grace(), name="drain")

    async def _cut_after_grace(self) -> None:
        await self.walks.join(timeout_seconds=self.policy.drain_seconds)
        for stream in list(self.live.values()):
            stream.cut(Happening.DRAIN)

    async def drained(self) -> None:
        """Drain, and wait until every stream is settled."""
        self.begin_drain()
        await self.walks.join()
