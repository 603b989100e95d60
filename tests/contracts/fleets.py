"""Workers that share one Redis, each with a line to it that can be cut; and one clock for all of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from api.adapters.limiter_share import ShareLimiter
from api.core.demand import Ask, Verdict
from api.ports import LimiterUnavailable, Renewal, Used
from tests.contracts.admission import SECOND, Dial, ask, used
from tests.contracts.helpers import TERMS

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from api.adapters.limiter_redis import RedisLimiter
    from api.adapters.limiter_share import Mode
    from api.core.demand import Demand, Reply
    from api.ports import Permit, Renewed

_TERMS = TERMS._replace(settle_us=2 * SECOND)


class HandClock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.at = 100.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.at, UTC)

    def unix(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


class Line:
    """A RedisLimiter that is not reached while it is `away`; while it is `deaf` its answers are lost."""

    def __init__(self, limiter: RedisLimiter) -> None:
        self.away = self.deaf = False
        self.calls: list[str] = []
        self.renewed: list[str] = []
        self._limiter = limiter

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._limiter, name)

        async def call(*args: Any) -> Any:
            self.calls.append(name)
            if name == "renew":
                self.renewed += [renewal.permit.id for renewal in args[0]]
            if self.away:
                raise LimiterUnavailable("away")
            answer = await method(*args)
            if self.deaf:
                raise LimiterUnavailable("deaf")
            return answer

        return call


@dataclass
class Worker:
    """A worker's limiter, and what it serves."""

    limiter: ShareLimiter
    line: Line
    others: Callable[[Worker], int] = lambda _: 0
    streams: dict[str, Permit] = field(default_factory=dict)

    async def start(self, permit_id: str, *demands: Demand, **more: int) -> Reply:
        """As the flow does it: whoever is not granted gives back what it may have."""
        from api.ports import Permit

        try:
            reply = await ask(self.limiter, permit_id, *demands, elsewhere=self.others(self), **more)  # type: ignore[arg-type]
        except LimiterUnavailable:
            await self.limiter.release(Permit(permit_id, "tn_a", demands), Used())
            raise
        permit = Permit(permit_id, "tn_a", demands, reply.tokens, reply.degraded)
        if reply.verdict is Verdict.GRANTED:
            self.streams[permit_id] = permit
        return reply

    async def fill(self, name: str, *demands: Demand) -> int:
        """How many streams it gets in before it refuses one."""
        count = 0
        while (await self.start(f"{name}{count}", *demands)).verdict is Verdict.GRANTED:
            count += 1
        return count

    async def extend(self, permit_id: str, least: int, most: int, *, spent: int = 0) -> Reply:
        """More credit; the ledger, where it is asked, says `spent`."""
        permit = self.streams[permit_id]
        asked = Ask(permit_id, tuple(one for one in permit.demands if one.each), least, most)
        reply = await self.limiter.extend("tn_a", asked)
        if reply.verdict is Verdict.UNKNOWN and -1 not in reply.unknown:
            reply = await self.limiter.extend(
                "tn_a", replace(asked, spent=dict.fromkeys(reply.unknown, spent))
            )
        if reply.verdict is Verdict.GRANTED:
            self.streams[permit_id] = replace(permit, tokens=permit.tokens + reply.tokens)
        return reply

    async def end(self, permit_id: str, count: int = 0) -> None:
        """It has used so many tokens."""
        await self.limiter.release(self.streams.pop(permit_id), used(count))

    async def tick(self) -> Renewed:
        """What happens once a second."""
        return await self.limiter.renew([Renewal(one, Used()) for one in self.streams.values()], {})


class Fleet:
    """So many workers of one mode, that know of each other."""

    def __init__(self, client: Redis, count: int, mode: Mode) -> None:
        self.clock, self.dial = HandClock(), Dial(client, _TERMS)
        self.workers = []
        for n in range(count):
            line = Line(self.dial.limiter)
            limiter = ShareLimiter(
                line,  # type: ignore[arg-type]
                self.clock,
                _TERMS,
                worker=f"w{n}",
                mode=mode,
            )
            self.workers.append(Worker(limiter, line, self._others))

    def _others(self, worker: Worker) -> int:
        """What the ledger says of a worker's others."""
        return sum(len(one.streams) for one in self.workers if one is not worker)

    async def meet(self) -> None:
        """Two ticks of everybody, so that the first knows of the last."""
        await self.dial.turn()
        for _ in range(2):
            await self.tick()

    async def tick(self) -> list[Renewed]:
        return [await worker.tick() for worker in self.workers]

    async def later(self, seconds: float) -> None:
        """Nobody ticks meanwhile."""
        self.clock.at += seconds
        await self.dial.turn(int(seconds * SECOND))
        await asyncio.sleep(0)

    def cut(self, *, away: bool = True) -> None:
        """All lines, or none of them any longer."""
        for worker in self.workers:
            worker.line.away = away

    async def heal(self) -> None:
        """All lines are back, and it is as if nothing had been."""
        self.cut(away=False)
        await self.tick()
        await self.later(2)
        await self.tick()
