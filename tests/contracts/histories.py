"""Random histories of admission: the Lua and the pure `Book` side by side, compared after every step.

`World` calls both with the same words, at a time that the test sets: the Lua's TIME becomes a read of a key.
What must hold of any history is in `check_*`; as the two are equal at each step, it holds of both.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from api.adapters.limiter_redis import RedisLimiter
from api.core.demand import STREAMS, Ask, Demand, Held, Reply, Row, Shape, Terms, Verdict
from api.core.limits import MINUTE_US, Book, _Budget
from api.ports import Permit, Renewal, Used
from tests.contracts.helpers import BOUND_SECONDS
from tests.contracts.inventories import in_book, in_redis, retime

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio import Redis

SECOND = 1_000_000
TERMS = Terms(lease_us=15 * SECOND, waiter_us=2 * SECOND, settle_us=3 * SECOND)
TENANT = "tn_a"
_PERMITS = 5

# --- what is asked ----------------------------------------------------------------------------------

_RATES, _BUDGETS = (1, 7, 60, 1_000_000, 100_000_000), (9, 25, 60, 300, 10**6, 1 << 52)
_TABLE = (
    ("c", "streams:key:k", "key", "max_streams", (1, 2, 3)),
    ("c", "streams:user:u", "user", "max_streams", (1, 2)),
    ("r", "requests_per_minute", "tenant", "requests_per_minute", _RATES),
    ("r", "tokens_per_minute", "tenant", "tokens_per_minute", _RATES),
    ("r", "tokens_per_minute:key:k", "key", "tokens_per_minute", _RATES),
    ("b", "tokens_per_day:2026-03-04", "tenant", "tokens_per_day", _BUDGETS),
    ("b", "nano_dollars_per_month:2026-03:key:k", "key", "nano_dollars_per_month", _BUDGETS),
    ("b", "tokens_in_all:token:t", "token", "tokens_in_all", _BUDGETS),
)


def _limit(
    shape: str, counter: str, of: str, name: str, amounts: tuple[int, ...]
) -> st.SearchStrategy[Demand]:
    def make(amount: int, shadow: bool) -> Demand:
        return Demand(Shape(shape), counter, amount, 0, 0, 9999, shadow, of, name)

    return st.builds(make, st.sampled_from(amounts), st.sampled_from((False, False, False, True)))


_LIMITS = st.tuples(
    st.integers(1, 4).map(lambda amount: Demand(Shape.CAP, STREAMS, amount)),
    *(_limit(*row) for row in _TABLE),
)
_PRICE = 3
_MASKS = st.lists(st.integers(0, 255), min_size=_PERMITS, max_size=_PERMITS)
_BASES = st.lists(st.sampled_from((0, 1, 1, 3, 12)), min_size=_PERMITS, max_size=_PERMITS)


def _ask_of(limit: Demand, tokens: int) -> Demand:
    """What a prompt of so many tokens asks of a limit."""
    if limit.shape is Shape.CAP:
        return limit
    if limit.name == "requests_per_minute":
        return limit._replace(base=1)
    factor = _PRICE if limit.is_money else 1
    return limit._replace(base=tokens * factor, each=factor)


@st.composite
def permits_of(draw: st.DrawFn) -> dict[str, Permit]:
    """A few permits that share limits: each with the tenant's cap, and some of the others."""
    limits, masks, bases = draw(_LIMITS), draw(_MASKS), draw(_BASES)
    return {
        f"p{n}": Permit(
            f"p{n}",
            TENANT,
            tuple(_ask_of(limit, base) for i, limit in enumerate(limits) if i == 0 or mask >> (i - 1) & 1),
        )
        for n, (mask, base) in enumerate(zip(masks, bases, strict=True))
    }


_IDS = st.sampled_from([f"p{n}" for n in range(_PERMITS)])
_ANYBODY = st.one_of(_IDS, st.integers(0, 9))
"""Somebody, or the so manieth of those that live."""
_SOME = st.lists(_IDS, unique=True)
_USED = st.integers(0, 30)
_SHARES = st.sampled_from((1, 4))
_SIZES = st.tuples(st.integers(0, 5), st.integers(0, 25), _SHARES)
_AHEAD = st.one_of(
    st.integers(0, SECOND),
    st.sampled_from(
        (SECOND, TERMS.waiter_us, TERMS.settle_us, TERMS.lease_us, TERMS.lease_us - 1, MINUTE_US)
    ),
    st.integers(0, 3 * MINUTE_US),
)
_BACK = st.sampled_from((-1, -SECOND, -MINUTE_US, -10 * MINUTE_US))
_ACQUIRE = st.tuples(st.just("acquire"), _IDS, _SIZES, st.integers(0, 3), st.booleans())
_STEPS: tuple[st.SearchStrategy[tuple[Any, ...]], ...] = (
    _ACQUIRE,
    _ACQUIRE,
    st.tuples(st.just("extend"), _ANYBODY, _SIZES, st.booleans()),
    st.tuples(st.just("renew"), _SOME, _USED, _SOME),
    st.tuples(st.just("release"), _ANYBODY, _USED),
    st.tuples(st.just("again")),
    st.tuples(st.just("peek")),
    st.tuples(st.just("pass"), _AHEAD),
)
_FORGET = st.tuples(st.just("flush"), st.integers(0, 3))
_TURN = st.tuples(st.just("pass"), _BACK)
STEADY = st.lists(st.one_of(*_STEPS), min_size=12, max_size=60)
"""Time goes on, and Redis keeps what it has."""
ANY = st.lists(st.one_of(*_STEPS, _FORGET, _TURN), min_size=12, max_size=60)
"""The clock may jump back, and Redis may be emptied."""


# --- both, side by side -----------------------------------------------------------------------------


@dataclass
class Life:
    """What one budget is charged for one permit: what was used at its release, or else what was told."""

    used: int = 0
    past: int = 0  # of earlier lives of the same name


@dataclass
class Grant:
    """Tokens that a rate granted, or got back (negative)."""

    era: int
    at: int
    units: int


@lru_cache(maxsize=4)
def _limiter(client: Redis) -> RedisLimiter:
    """One for each client, as the product has it: a limiter keeps a connection."""
    limiter = RedisLimiter(client, TERMS, timeout_seconds=BOUND_SECONDS)
    retime(limiter._script)
    return limiter


@dataclass
class World:
    """One tenant, in Redis and in a book."""

    client: Redis
    permits: dict[str, Permit]
    book: Book = field(default_factory=lambda: Book(TERMS))
    now: int = 1_770_000_000 * SECOND
    latest: int = 1_770_000_000 * SECOND
    era: int = 0
    """Counts jumps back and losses of memory: what must hold of a window holds within one."""
    running: int = 0
    ledger: int = 5
    exact: bool = False
    last: tuple[Any, ...] | None = None
    grants: dict[str, list[Grant]] = field(default_factory=dict)
    lives: dict[tuple[str, str], Life] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.limiter = _limiter(self.client)

    async def start(self, *, known: bool) -> None:
        """An empty Redis; or one that knows of every budget what the ledger says."""
        await self.client.flushall()
        await self._set_clock()
        self.exact = known
        if known:
            self.book = Book(TERMS, known=True)
            await self.client.set(f"sg:{{{TENANT}}}:known", 0)
            for permit in self.permits.values():
                for demand in permit.demands:
                    if demand.shape is Shape.BUDGET:
                        self.book.budgets[demand.counter] = _Budget(self.ledger)
                        await self.client.hset(f"sg:{{{TENANT}}}:{demand.counter}", "spent", self.ledger)

    async def _set_clock(self) -> None:
        await self.client.hset("clock", mapping={"s": self.now // SECOND, "us": self.now % SECOND})

    async def take(self, step: tuple[Any, ...]) -> None:
        """One step, in both; whatever it changes is the same."""
        if step[0] == "again":
            if self.last is None:
                return
            step = self.last
        elif step[0] in {"acquire", "extend", "release"}:
            self.last = step
        await getattr(self, f"_{step[0]}")(*step[1:])
        assert await in_redis(self.client) == in_book(self.book)
        self.check_caps()

    # --- steps ---

    async def _pass(self, micros: int) -> None:
        self.era += micros < 0
        self.now += micros
        self.latest = max(self.latest, self.now)
        await self._set_clock()

    async def _flush(self, running: int) -> None:
        await self.client.flushall()
        await self._set_clock()
        self.book = Book(TERMS)
        self.running, self.era = running, self.era + 1
        self.lives.clear()

    async def _peek(self) -> None:
        every = {demand.counter: demand for permit in self.permits.values() for demand in permit.demands}
        demands = tuple(every.values())
        peek = await self.limiter.peek(TENANT, demands)
        assert peek.states == self.book.peek(self.now, demands)
        assert peek.would_refuse == self.book.would_refuse

    async def _acquire(
        self, permit_id: str, sizes: tuple[int, int, int], max_waiters: int, whole: bool
    ) -> None:
        least, more, share = sizes
        permit = self.permits[permit_id]
        ask = Ask(permit_id, permit.demands, least, least + more, share, whole, max_waiters=max_waiters)
        reply = await self._acquire_both(ask)
        if reply.verdict is Verdict.UNKNOWN:
            reply = await self._acquire_both(self._told(ask, reply))
            assert reply.verdict is not Verdict.UNKNOWN

    def _told(self, ask: Ask, reply: Reply) -> Ask:
        spent = {i: self.ledger for i in reply.unknown if i >= 0}
        return replace(ask, spent=spent, running=self.running if -1 in reply.unknown else None)

    async def _acquire_both(self, ask: Ask) -> Reply:
        before = self._purged()
        again = ask.permit_id in before.slots.get(STREAMS, {})
        theirs, mine = await self.limiter.acquire(TENANT, ask), self.book.acquire(self.now, ask)
        assert theirs == mine
        if mine.verdict in {Verdict.REFUSED, Verdict.WAITING} and ask.running is None and not ask.spent:
            assert _counted(before) == _counted(self.book)
        self._check_queue(before, ask, mine)
        if mine.verdict is Verdict.GRANTED and not again:
            self._granted(self.permits[ask.permit_id], ask.demands, mine.tokens)
            self.permits[ask.permit_id] = replace(self.permits[ask.permit_id], tokens=mine.tokens)
            for demand in ask.demands:
                life = self._life(ask.permit_id, demand)
                if life is not None:
                    life.past, life.used = life.past + life.used, 0
        return mine

    def _purged(self) -> Book:
        before = deepcopy(self.book)
        before._purge(self.now)
        before.renew_waiters(self.now, ())
        return before

    async def _extend(self, who: str | int, sizes: tuple[int, int, int], lost: bool) -> None:
        least, more, share = sizes
        permit_id = self._one_of(who, self.book.held)
        permit = self.permits[permit_id]
        demands = tuple(demand for demand in permit.demands if demand.each)
        ask = Ask(permit_id, demands, least, least + more, share)
        for _ in range(2):
            before = _counted(self.book)
            theirs, mine = await self.limiter.extend(TENANT, ask), self.book.extend(self.now, ask)
            assert theirs == mine
            if mine.verdict is Verdict.REFUSED and not ask.spent:
                assert before == _counted(self.book)
            if mine.verdict is not Verdict.UNKNOWN or -1 in mine.unknown:
                break
            ask = self._told(ask, mine)
        assert mine.verdict is not Verdict.UNKNOWN or mine.unknown == (-1,)
        if mine.verdict is Verdict.GRANTED:
            bare = tuple(demand._replace(base=0) for demand in demands)
            self._granted(permit, bare, mine.tokens)
            if not lost:
                self.permits[permit_id] = replace(permit, tokens=permit.tokens + mine.tokens)

    async def _renew(self, permit_ids: list[str], used: int, waiters: list[str]) -> None:
        renewals = [Renewal(self.permits[one], Used(used, used * _PRICE)) for one in permit_ids]
        theirs = await self.limiter.renew(renewals, {TENANT: waiters})
        told = {}
        for permit, so_far in renewals:
            rows = {
                demand.counter: Row(permit.reserved(demand), so_far.of(demand))
                for demand in permit.demands
                if demand.shape is Shape.BUDGET
            }
            told[permit.id] = (permit.demands, Held(permit.tokens, rows))
            for demand in permit.demands:
                life = self._life(permit.id, demand)
                if life is not None:
                    life.used = so_far.of(demand)
        lost = self.book.renew(self.now, told)
        self.book.renew_waiters(self.now, waiters)
        assert theirs.lost == lost
        assert theirs.streams == {TENANT: self.book._taken(STREAMS, self.now)}

    @staticmethod
    def _one_of(who: str | int, alive: Iterable[str]) -> str:
        among = sorted(alive) or ["p0"]
        return who if isinstance(who, str) else among[who % len(among)]

    async def _release(self, who: str | int, used: int) -> None:
        permit_id = self._one_of(who, self.book.slots.get(STREAMS, ()))
        if self.last is not None and self.last[0] == "release":
            self.last = ("release", permit_id, used)  # the same again is of the same
        permit, spent = self.permits[permit_id], Used(used, used * _PRICE)
        held = self.book.held.get(permit_id)
        for demand in permit.demands:
            life = self.lives.get((permit_id, demand.counter))
            if life is not None:
                life.used = spent.of(demand)
            if held and not held.told and demand.shape is Shape.RATE and demand.each:
                unused = demand.base + demand.each * held.tokens - spent.of(demand)
                self._note(demand, -max(0, unused))
        await self.limiter.release(permit, spent)
        self.book.release(
            self.now, permit_id, permit.demands, [spent.of(demand) for demand in permit.demands]
        )

    # --- what must hold ---

    def _life(self, permit_id: str, demand: Demand) -> Life | None:
        if demand.shape is not Shape.BUDGET:
            return None
        return self.lives.setdefault((permit_id, demand.counter), Life())

    def _note(self, demand: Demand, units: int) -> None:
        self.grants.setdefault(demand.counter, []).append(Grant(self.era, self.now, units))

    def _granted(self, permit: Permit, demands: tuple[Demand, ...], tokens: int) -> None:
        """A budget is not exceeded, and no rate grants more than a minute's worth and what time has paid."""
        for demand in demands:
            if demand.shadow:
                continue
            if demand.shape is Shape.BUDGET:
                budget = self.book.budgets[demand.counter]
                assert budget.spent is not None
                assert budget.spent + budget.reserved <= demand.amount
            elif demand.shape is Shape.RATE:
                self._note(demand, demand.base + demand.each * tokens)
                sum_units = 0
                for grant in reversed(self.grants[demand.counter]):
                    if grant.era != self.era:
                        break
                    sum_units += grant.units
                    assert (sum_units - demand.amount) * MINUTE_US <= demand.amount * (self.now - grant.at)

    def _check_queue(self, before: Book, ask: Ask, reply: Reply) -> None:
        """Whoever came first to a counter gets it first, and nobody moves up past another."""
        if reply.verdict is Verdict.GRANTED:
            ours = {demand.counter for demand in ask.demands if not demand.shadow}
            for permit_id, (counter, _, _) in before.waiting.items():
                if permit_id == ask.permit_id:
                    break
                assert counter not in ours or ask.permit_id in before.slots.get(STREAMS, {})
        stayed = [one for one in before.waiting if one in self.book.waiting]
        assert stayed == list(self.book.waiting)[: len(stayed)]

    def check_caps(self) -> None:
        """Never more live streams than the cap."""
        for permit in self.permits.values():
            for demand in permit.demands:
                if demand.shape is Shape.CAP and not demand.shadow:
                    assert self.book._taken(demand.counter, self.now) <= demand.amount

    async def finish(self) -> None:
        """All workers die: a lease later nothing is held or reserved, and each permit was charged once."""
        await self.take(("pass", self.latest + TERMS.lease_us - self.now))
        await self.take(("renew", [], 0, []))
        assert self.book.held == {}
        assert {counter: one.reserved for counter, one in self.book.budgets.items() if one.reserved} == {}
        charged: dict[str, int] = {}
        for (_, counter), life in self.lives.items():
            charged[counter] = charged.get(counter, 0) + life.past + life.used
        for counter, budget in self.book.budgets.items():
            if self.exact:
                assert budget.spent == self.ledger + charged.get(counter, 0)


def _counted(book: Book) -> Any:
    """What a refusal must not change."""
    return {name: value for name, value in in_book(book).items() if name != "waiting"}
