"""Admission that goes on when Redis does not: each worker enforces its share of the limits by itself.

While Redis answers, it decides. From the first call that it does not answer, this worker decides alone, with
the very book that the Lua follows, until a renewal has reached Redis again. For two more ticks, until all
workers have told Redis what runs, both must agree: the book, and Redis. What ended meanwhile is owed to Redis
and told first. `mode` says what "alone" means: `share` (this worker's part of each limit), `closed` (nobody
new gets in) or `open` (everybody does). Running streams go on in any of them.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Literal

from api.core.demand import MAX_TOKENS, NEVER_US, STREAMS, Held, Reply, Row, Shape, Verdict
from api.core.limits import Book
from api.ports import Fleet, LimiterUnavailable, Peek, Permit, Renewal, Renewed, Used

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from api.adapters.limiter_redis import RedisLimiter
    from api.core.demand import Ask, Demand, Terms
    from api.ports import Clock

log = logging.getLogger("sluicegate.limiter")

Mode = Literal["share", "closed", "open"]

_RETRY_US = 2_000_000
_LOG_SECONDS = 1.0
_MAX_OWED = 100_000
_PAID_AT_ONCE = 1000  # in one tick, which must not last as long as a lease


class ShareLimiter:
    """Redis where it answers, this worker's share where it does not. One for each worker."""

    def __init__(
        self,
        redis: RedisLimiter,
        clock: Clock,
        terms: Terms,
        *,
        worker: str,
        mode: Mode = "share",
        workers: int = 1,
        tick_seconds: float = 1.0,
    ) -> None:
        self._redis = redis
        self._clock = clock
        self._terms = terms
        self._worker = worker
        self._mode = mode
        self._tick_seconds = tick_seconds
        self._fleet = Fleet(workers, 0)
        self._away_since: float | None = None
        self._alone_until = 0.0
        self._logged_at = float("-inf")
        self._permits: dict[str, Permit] = {}
        self._owed: dict[str, tuple[Permit, Used]] = {}
        self._given_back: set[str] = set()
        self._untold: set[str] = set()  # granted alone, and Redis does not know it yet
        self._strangers: set[str] = set()  # who asks and has nothing, and Redis never heard of
        self._books: dict[str, Book] = {}
        self._spent: dict[tuple[str, str], int] = {}

    @property
    def degraded(self) -> bool:
        """Whether this worker decides alone."""
        return self._away_since is not None or self._clock.monotonic() < self._alone_until

    # --- the port -------------------------------------------------------------------------------

    async def acquire(self, tenant_id: str, ask: Ask) -> Reply:
        """Grant all that a request asks, or nothing. Raises LimiterUnavailable in the mode `closed`."""
        asks = not self.degraded
        if not asks:
            self._strangers.add(ask.permit_id)
        else:
            self._strangers.discard(ask.permit_id)
            try:
                reply = await self._redis.acquire(tenant_id, ask)
            except LimiterUnavailable as error:
                self._lost_sight(error)
            else:
                if reply.verdict is not Verdict.SETTLING:
                    return self._noted(tenant_id, ask, reply, 0)
        reply = self._noted(tenant_id, ask, self._alone(tenant_id, ask), 0)
        if reply.verdict is Verdict.REFUSED and asks:  # what it asked of Redis may have been granted
            await self.release(Permit(ask.permit_id, tenant_id, ask.demands), _NOTHING)
        if reply.verdict is Verdict.GRANTED and self._away_since is None and self._mode == "share":
            return await self._registered(ask, reply)
        if reply.verdict is Verdict.GRANTED:
            self._untold.add(ask.permit_id)
        return reply

    async def _registered(self, ask: Ask, reply: Reply) -> Reply:
        """While Redis answers but does not know all yet, it has to have room for what is granted alone."""
        permit = self._permits[ask.permit_id]
        try:
            renewed = await self._redis.renew([Renewal(permit, _NOTHING)], {})
        except LimiterUnavailable as error:
            self._lost_sight(error)
            self._untold.add(permit.id)
            return reply
        if permit.id not in renewed.lost:
            return reply
        await self.release(permit, _NOTHING)
        return Reply(Verdict.REFUSED, wait_us=_RETRY_US, states=reply.states, degraded=True)

    async def extend(self, tenant_id: str, ask: Ask) -> Reply:
        """More tokens of output for a running stream: from Redis, or from this worker's share."""
        reply = await self._extend(tenant_id, ask)
        before = self._permits.get(ask.permit_id)
        return self._noted(tenant_id, ask, reply, before.tokens if before else 0)

    async def _extend(self, tenant_id: str, ask: Ask) -> Reply:
        if not self.degraded:
            try:
                return await self._redis.extend(tenant_id, ask)
            except LimiterUnavailable as error:
                self._lost_sight(error)
        if self._mode == "open":
            return Reply(Verdict.GRANTED, ask.most)
        return self._book(tenant_id).extend(self._now(), self._scaled(tenant_id, ask))

    async def renew(self, renewals: Iterable[Renewal], waiters: Mapping[str, Sequence[str]]) -> Renewed:
        """Renew what runs; the first renewal that gets through ends an outage."""
        told = list(renewals)
        self._permits = {renewal.permit.id: renewal.permit for renewal in told}
        for tenant_id, book in self._books.items():
            mine = [renewal for renewal in told if renewal.permit.tenant_id == tenant_id]
            book.renew(self._now(), _as_held(mine))
            book.renew_waiters(self._now(), waiters.get(tenant_id, ()))
        try:
            self._fleet = await self._redis.enlist(self._worker)
            await self._pay()  # first, so that what runs finds the slots free of what has ended
            renewed = await self._redis.renew(told, waiters)
            self._untold.difference_update(renewal.permit.id for renewal in told)
        except LimiterUnavailable as error:
            self._lost_sight(error)
            return Renewed(set(), {})
        self._in_sight()
        return renewed

    async def release(self, permit: Permit, used: Used) -> None:
        """Give back; while Redis is away it is owed, and told when it is back. Never raises."""
        self._permits.pop(permit.id, None)
        if permit.tenant_id in self._books:
            spent = [used.of(demand) for demand in permit.demands]
            self._books[permit.tenant_id].release(self._now(), permit.id, permit.demands, spent)
        if permit.id in self._strangers:
            self._strangers.remove(permit.id)
            return
        untold = permit.id in self._untold
        self._untold.discard(permit.id)
        if self._away_since is None and not untold:
            try:
                await self._redis.release(permit, used)
                return
            except LimiterUnavailable as error:
                self._lost_sight(error)
        if len(self._owed) < _MAX_OWED:  # beyond that, leases run out and the ledger knows
            self._owed[permit.id] = (permit, used)

    async def peek(self, tenant_id: str, demands: Sequence[Demand]) -> Peek:
        """What is left of each limit. Raises LimiterUnavailable."""
        return await self._redis.peek(tenant_id, demands)

    async def live(self, tenant_id: str) -> list[str]:
        """The permits of a tenant's streams. Raises LimiterUnavailable."""
        return await self._redis.live(tenant_id)

    async def ping(self) -> None:
        """Raises LimiterUnavailable where nobody new can be admitted."""
        if self._mode == "closed":
            await self._redis.ping()

    # --- alone ----------------------------------------------------------------------------------

    def _alone(self, tenant_id: str, ask: Ask) -> Reply:
        if self._mode == "closed":
            raise LimiterUnavailable("Redis does not answer")
        if self._mode == "open":
            return Reply(Verdict.GRANTED, ask.most, degraded=True)
        if ask.elsewhere is None:  # what runs on other workers: the ledger knows
            return Reply(Verdict.UNKNOWN, unknown=(-1,), degraded=True)
        reply = self._book(tenant_id).acquire(self._now(), self._scaled(tenant_id, ask))
        if reply.wait_us == NEVER_US and ask.demands[reply.at].shape is Shape.RATE:
            reply = reply._replace(wait_us=_RETRY_US)  # this worker's share is too small, the limit is not
        return reply._replace(degraded=True)

    def _noted(self, tenant_id: str, ask: Ask, reply: Reply, before: int) -> Reply:
        """Remember who has what, beside `before` tokens: alone, this worker has to know."""
        if reply.verdict is Verdict.GRANTED:
            self._strangers.discard(ask.permit_id)
            permit = self._permits.get(ask.permit_id) or Permit(ask.permit_id, tenant_id, ask.demands)
            self._permits[ask.permit_id] = replace(permit, tokens=before + reply.tokens)
        elif reply.verdict is Verdict.REFUSED:
            self._strangers.discard(ask.permit_id)
        return reply

    def _book(self, tenant_id: str) -> Book:
        book = self._books.get(tenant_id)
        if book is None:
            book = self._books[tenant_id] = Book(self._terms, known=True)
            mine = [permit for permit in self._permits.values() if permit.tenant_id == tenant_id]
            book.renew(self._now(), _as_held([Renewal(permit, _NOTHING) for permit in mine]))
        return book

    def _scaled(self, tenant_id: str, ask: Ask) -> Ask:
        """The same, of this worker's share of each limit."""
        for i, amount in ask.spent.items():
            self._spent[tenant_id, ask.demands[i].counter] = amount
        demands = tuple(self._share(tenant_id, demand, ask.elsewhere or 0) for demand in ask.demands)
        return replace(ask, demands=demands)

    def _share(self, tenant_id: str, demand: Demand, elsewhere: int) -> Demand:
        if demand.shape is Shape.CAP and self._away_since is None:  # Redis will say whether there is room
            return demand._replace(amount=max(0, demand.amount - elsewhere * (demand.counter == STREAMS)))
        if demand.shape is Shape.BUDGET:
            spent = self._spent.get((tenant_id, demand.counter), 0)
            left = max(0, demand.amount - spent)
            return demand._replace(amount=spent + left // self._fleet.workers)
        amount = demand.amount // self._fleet.workers
        amount += self._fleet.before < demand.amount % self._fleet.workers
        if demand.counter == STREAMS:
            amount = min(amount, demand.amount - elsewhere)
        return demand._replace(amount=max(0, amount))

    # --- losing and finding Redis ---------------------------------------------------------------

    def _now(self) -> int:
        return int(self._clock.monotonic() * 1_000_000)

    def _lost_sight(self, error: Exception) -> None:
        now = self._clock.monotonic()
        if self._away_since is None:
            if not self.degraded:
                self._books.clear()  # what is left of an earlier outage
            self._away_since = now
        if now - self._logged_at >= _LOG_SECONDS:
            self._logged_at = now
            log.warning("Redis does not answer, admission is `%s`: %s", self._mode, error)

    def _in_sight(self) -> None:
        now = self._clock.monotonic()
        if self._away_since is not None:
            away, self._away_since = now - self._away_since, None
            self._alone_until = now + 2 * self._tick_seconds
            log.warning("Redis answers again, after %.1f s", away)
        if not self.degraded and self._books:
            self._books.clear()
            self._spent.clear()

    async def _pay(self) -> None:
        """Tell Redis what ended: first that it ran, where it may not know, and then what it used."""
        owed = list(islice(self._owed.values(), _PAID_AT_ONCE))
        await self._redis.renew([Renewal(permit, _NOTHING) for permit, used in owed if used != _NOTHING], {})
        await self._redis.release_all(owed)
        for permit, used in owed:
            if used == _NOTHING and permit.id not in self._given_back:
                self._given_back.add(permit.id)  # and once more: what it asked may still lie before Redis
                continue
            self._given_back.discard(permit.id)
            del self._owed[permit.id]


_NOTHING = Used()


def _as_held(renewals: Iterable[Renewal]) -> dict[str, tuple[list[Demand], Held]]:
    """As a book renews them, and none is lost for being over this worker's share."""
    return {
        permit.id: (
            [d._replace(amount=MAX_TOKENS) for d in permit.demands],
            Held(
                permit.tokens,
                {
                    d.counter: Row(permit.reserved(d), used.of(d))
                    for d in permit.demands
                    if d.shape is Shape.BUDGET
                },
            ),
        )
        for permit, used in renewals
    }
