"""All limits of one tenant, as a pure book: what `adapters/lua/limits.lua` does in Redis, step by step.

Three shapes. A cap counts live streams as leases that expire. A rate is GCRA (ITU-T I.371, as the leaky
bucket it is equivalent to): a debt that a minute pays off, so that a whole minute's worth may come at once.
A budget is what was spent in a period plus what is reserved by live streams; the two together never exceed
it. A request is granted under all of its limits or under none, and a refusal changes nothing.

Workers run this very book, on their share of the limits, while Redis does not answer. Times are
microseconds of whichever clock is passed in; it may jump, and then no debt is paid twice and none forgiven.
`tests/contracts/test_limits_reference.py` compares the two, reply by reply, over random histories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from api.core.demand import MAX_TOKENS, NEVER_US, STREAMS, Held, Reply, Row, Shape, State, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from api.core.demand import Ask, Demand, Terms

MINUTE_US = 60_000_000
_FIRST_GAP_US = 1_000_000
_MAX_GAP_US = 30_000_000
_ASKED_US = 3_000_000
"""The ledger answers within two seconds, or not at all."""
_GAP_WEIGHT = 8  # each new gap between two endings counts for an eighth
_MAX_LAPSED = 10_000  # in Redis they are forgotten after an hour


@dataclass(slots=True)
class _Budget:
    spent: int | None = None
    reserved: int = 0
    late: int | None = None  # settled since the ledger was asked, so perhaps not in its answer
    asked_at: int = 0


class _Room(NamedTuple):
    """How much more a limit has; `wait_us` is 0 where that suffices."""

    units: int
    wait_us: int


class Book:
    """One tenant's counters."""

    def __init__(self, terms: Terms, *, known: bool = False) -> None:
        self._terms = terms
        self._known_from: int | None = 0 if known else None
        self.slots: dict[str, dict[str, int]] = {}
        self.debts: dict[str, tuple[int, int]] = {}
        self.budgets: dict[str, _Budget] = {}
        self.held: dict[str, Held] = {}
        self.lapsed: dict[str, Held] = {}
        self.waiting: dict[str, tuple[str, int, int]] = {}  # permit -> counter, lease, ticket; in order
        self.would_refuse: dict[str, int] = {}
        self._freed_at: int | None = None
        self._gap_us: int | None = None

    # --- the calls ------------------------------------------------------------------------------

    def acquire(self, now: int, ask: Ask) -> Reply:
        """All that a request asks, or nothing."""
        self._purge(now)
        if ask.permit_id in self.slots.get(STREAMS, {}):  # the same again: its answer was lost
            held = self.held.get(ask.permit_id)
            tokens = held.tokens if held else ask.most
            allowed = self._allowed(now, ask.demands, tokens) if held else MAX_TOKENS
            return Reply(Verdict.GRANTED, tokens, allowed, states=self._states(ask.demands, now))
        unknown = self._ask_ledger(now, ask)
        streams_unknown = self._known_from is None and ask.running is None
        if streams_unknown or unknown:
            return Reply(Verdict.UNKNOWN, unknown=((-1,) if streams_unknown else ()) + unknown)
        if self._known_from is None:
            self._known_from = now + (self._terms.settle_us if ask.running else 0)
        if 0 < self._known_from - now <= self._terms.settle_us:
            return Reply(Verdict.SETTLING, wait_us=self._known_from - now)
        whole = ask.most if ask.whole else ask.least
        rooms = [
            self._room(demand, now, whole if demand.shape is Shape.RATE else ask.least)
            for demand in ask.demands
        ]
        blocked = self._blocked(ask, rooms)
        if blocked is not None:
            return self._queue(now, ask, blocked, rooms)
        self.waiting.pop(ask.permit_id, None)
        tokens, allowed = _credit(ask.demands, rooms, ask.least, ask.most, ask.share)
        self._take(now, ask, rooms, tokens)
        return Reply(Verdict.GRANTED, tokens, allowed, states=self._states(ask.demands, now))

    def extend(self, now: int, ask: Ask) -> Reply:
        """More tokens of output for a permit; `base` of the demands is not asked again. Lost: UNKNOWN."""
        held = self.held.get(ask.permit_id)
        if held is None:
            return Reply(Verdict.UNKNOWN, unknown=(-1,))
        demands = tuple(demand._replace(base=0) for demand in ask.demands)
        unknown = self._ask_ledger(now, ask)
        if unknown:
            return Reply(Verdict.UNKNOWN, unknown=unknown)
        rooms = [self._room(demand, now, ask.least) for demand in demands]
        refusal = _worst(demands, rooms)
        if refusal is not None:
            return Reply(Verdict.REFUSED, at=refusal, wait_us=rooms[refusal].wait_us)
        tokens, allowed = _credit(demands, rooms, ask.least, ask.most, ask.share)
        for demand, room in zip(demands, rooms, strict=True):
            self._charge(demand, now, room, demand.each * tokens, held.rows)
        held.tokens += tokens
        return Reply(Verdict.GRANTED, tokens, allowed)

    def renew(self, now: int, permits: Mapping[str, tuple[Sequence[Demand], Held]]) -> set[str]:
        """Renew leases, tell what was used, and tell again what was forgotten. Returns the lost permits."""
        self._purge(now)
        if self._known_from is None and permits:  # Redis was emptied
            self._known_from = now + self._terms.settle_us
        lost = self._renew_slots(now, permits)
        for permit_id, (demands, held) in permits.items():
            if any(demand.each for demand in demands):
                self._hold(permit_id, held)
                if (permit_id, STREAMS) in lost:  # nobody would see it lapse
                    self._lapse(permit_id)
        return {permit_id for permit_id, _ in lost}

    def _renew_slots(
        self, now: int, permits: Mapping[str, tuple[Sequence[Demand], Held]]
    ) -> set[tuple[str, str]]:
        """Returns what is lost, by permit and counter."""
        missing: list[tuple[str, Demand]] = []
        for permit_id, (demands, _) in permits.items():
            for demand in demands:
                if demand.shape is not Shape.CAP:
                    continue
                if self.slots.get(demand.counter, {}).get(permit_id, 0) > now:
                    self._lease(now, demand.counter, permit_id)
                else:
                    missing.append((permit_id, demand))
        lost: set[tuple[str, str]] = set()
        for permit_id, demand in missing:
            if demand.shadow or self._taken(demand.counter, now) < demand.amount:
                self._lease(now, demand.counter, permit_id)
            else:
                lost.add((permit_id, demand.counter))
        return lost

    def release(self, now: int, permit_id: str, demands: Iterable[Demand], used: Sequence[int]) -> None:
        """Give the slots back, and what was reserved and not used. `used` is by demand."""
        self.waiting.pop(permit_id, None)
        held, lapsed = self.held.pop(permit_id, None), self.lapsed.get(permit_id)
        for demand, amount in zip(demands, used, strict=True):
            if demand.shape is Shape.CAP:
                there = self.slots.get(demand.counter, {}).pop(permit_id, None) is not None
                if there and demand.counter == STREAMS:
                    self._note_free(now)
            elif demand.shape is Shape.RATE:
                if held is not None and not held.told and demand.each and not demand.shadow:
                    self._adjust(demand, now, amount - demand.base - demand.each * held.tokens)
            elif held is not None and demand.counter in held.rows:
                row = held.rows[demand.counter]
                self._budget(demand.counter).reserved -= row.reserved
                row.used = self._spend(demand.counter, amount)
            elif lapsed is not None and demand.counter in lapsed.rows:
                row = lapsed.rows[demand.counter]
                row.used += self._spend(demand.counter, amount - row.used)
        if held is not None and held.rows:  # should the answer be lost, it is not charged twice
            self._remember(permit_id, held)

    def renew_waiters(self, now: int, permit_ids: Iterable[str]) -> None:
        """So that whoever waits keeps its place."""
        for permit_id in permit_ids:
            if permit_id in self.waiting:
                counter, _, ticket = self.waiting[permit_id]
                self.waiting[permit_id] = (counter, now + self._terms.waiter_us, ticket)

    def peek(self, now: int, demands: Sequence[Demand]) -> tuple[State, ...]:
        """What is left of each limit. A budget of which nothing is known counts as untouched."""
        return self._states(demands, now)

    # --- streams and waiters --------------------------------------------------------------------

    def _purge(self, now: int) -> None:
        """Dead workers' streams: their leases are over."""
        streams = self.slots.get(STREAMS, {})
        for permit_id in [one for one, expiry in streams.items() if expiry <= now]:
            del streams[permit_id]
            self._lapse(permit_id)
        for permit_id in [one for one, (_, expiry, _) in self.waiting.items() if expiry <= now]:
            del self.waiting[permit_id]

    def _lapse(self, permit_id: str) -> None:
        """What it is known to have used counts as spent, until it is heard of again."""
        held = self.held.pop(permit_id, None)
        if held is None:
            return
        for counter, row in held.rows.items():
            self._budget(counter).reserved -= row.reserved
            sure = self._budget(counter).spent is not None
            row.used = self._spend(counter, row.used) * sure  # `late` may be begun anew
        if held.rows:
            self._remember(permit_id, held)

    def _remember(self, permit_id: str, held: Held) -> None:
        self.lapsed[permit_id] = held
        if len(self.lapsed) > _MAX_LAPSED:
            del self.lapsed[next(iter(self.lapsed))]

    def _lease(self, now: int, counter: str, permit_id: str) -> None:
        members = self.slots.setdefault(counter, {})
        members[permit_id] = now + self._terms.lease_us
        if counter != STREAMS:  # those of the dead: who is in `streams` has more to be seen to
            for dead in [one for one, expiry in members.items() if expiry <= now]:
                del members[dead]

    def _taken(self, counter: str, now: int) -> int:
        return sum(expiry > now for expiry in self.slots.get(counter, {}).values())

    def _blocked(self, ask: Ask, rooms: list[_Room]) -> int | None:
        """Which demand refuses, or has somebody waiting for it who came before."""
        worst = _worst(ask.demands, rooms)
        if worst is not None:
            return worst
        ahead: set[str] = set()
        for permit_id, (counter, _, _) in self.waiting.items():
            if permit_id == ask.permit_id:
                break
            ahead.add(counter)
        asked = enumerate(ask.demands)
        return next((i for i, demand in asked if demand.counter in ahead and not demand.shadow), None)

    def _queue(self, now: int, ask: Ask, at: int, rooms: list[_Room]) -> Reply:
        wait, states = rooms[at].wait_us, self._states(ask.demands, now)
        _, _, ticket = self.waiting.get(ask.permit_id, ("", 0, 0))
        if wait < NEVER_US and (ticket or len(self.waiting) < ask.max_waiters):
            ticket = ticket or max((other for _, _, other in self.waiting.values()), default=0) + 1
            self.waiting[ask.permit_id] = (ask.demands[at].counter, now + self._terms.waiter_us, ticket)
            return Reply(Verdict.WAITING, ticket, at=at, wait_us=wait or self._gap(), states=states)
        self.waiting.pop(ask.permit_id, None)
        return Reply(Verdict.REFUSED, at=at, wait_us=wait or self._gap(), states=states)

    def _note_free(self, now: int) -> None:
        """A stream ended: how long ago did the one before?"""
        if self._freed_at is not None and now > self._freed_at:
            gap = min(now - self._freed_at, _MAX_GAP_US)
            before = gap if self._gap_us is None else self._gap_us
            self._gap_us = before + (gap - before) // _GAP_WEIGHT
        self._freed_at = now

    def _gap(self) -> int:
        return self._gap_us or _FIRST_GAP_US

    # --- rates and budgets ----------------------------------------------------------------------

    def _room(self, demand: Demand, now: int, least: int) -> _Room:
        need = demand.base + demand.each * least
        if demand.shape is Shape.CAP:
            free = demand.amount - self._taken(demand.counter, now)
            return _Room(free, 0 if free > 0 else self._gap())
        if demand.shape is Shape.BUDGET:
            budget = self._budget(demand.counter)
            left = demand.amount - (budget.spent or 0) - budget.reserved
            return _Room(left, 0 if left >= need else NEVER_US)
        free = demand.amount * MINUTE_US - self._debt(demand, now)
        if free >= need * MINUTE_US:
            return _Room(free // MINUTE_US, 0)
        if need > demand.amount:
            return _Room(free // MINUTE_US, NEVER_US)
        return _Room(free // MINUTE_US, -(-(need * MINUTE_US - free) // max(demand.amount, 1)))

    def _debt(self, demand: Demand, now: int) -> int:
        debt, at = self.debts.get(demand.counter, (0, now))
        return max(0, debt - max(0, now - at) * demand.amount)

    def _adjust(self, demand: Demand, now: int, units: int) -> None:
        self.debts[demand.counter] = (max(0, self._debt(demand, now) + units * MINUTE_US), now)

    def _budget(self, counter: str) -> _Budget:
        return self.budgets.setdefault(counter, _Budget())

    def _spend(self, counter: str, amount: int) -> int:
        """Returns what was counted: nothing, where the ledger has yet to be asked."""
        budget = self._budget(counter)
        if budget.spent is not None:
            budget.spent += amount
        elif budget.late is not None:
            budget.late += amount
        else:
            return 0
        return amount

    def _ask_ledger(self, now: int, ask: Ask) -> tuple[int, ...]:
        """Take in what the ledger said was spent. Returns the budgets of which it has yet to say."""
        unknown: list[int] = []
        for i, demand in enumerate(ask.demands):
            if demand.shape is not Shape.BUDGET:
                continue
            budget = self._budget(demand.counter)
            if budget.spent is not None:
                continue
            if i in ask.spent and budget.late is not None:
                budget.spent, budget.late = ask.spent[i] + budget.late, None
                continue
            if budget.late is None or abs(now - budget.asked_at) > _ASKED_US:
                budget.late, budget.asked_at = 0, now  # whoever asked before has no answer
            unknown.append(i)
        return tuple(unknown)

    def _take(self, now: int, ask: Ask, rooms: list[_Room], tokens: int) -> None:
        rows: dict[str, Row] = {}
        credit = False
        for demand, room in zip(ask.demands, rooms, strict=True):
            if demand.shadow and room.wait_us:
                name = f"{demand.of}:{demand.name}"
                self.would_refuse[name] = self.would_refuse.get(name, 0) + 1
            if demand.shape is Shape.CAP:
                self._lease(now, demand.counter, ask.permit_id)
            else:
                self._charge(demand, now, room, demand.base + demand.each * tokens, rows)
                credit = credit or demand.each > 0
        if credit:
            self.held[ask.permit_id] = Held(tokens, rows)

    def _charge(self, demand: Demand, now: int, room: _Room, amount: int, rows: dict[str, Row]) -> None:
        if demand.shape is Shape.BUDGET:
            self._budget(demand.counter).reserved += amount
            row = rows.setdefault(demand.counter, Row(0))
            row.reserved += amount
        elif demand.shape is Shape.RATE and not (demand.shadow and room.wait_us):
            self._adjust(demand, now, amount)

    def _hold(self, permit_id: str, told: Held) -> None:
        """What a worker says that a permit has: news after an outage, and where Redis forgot it."""
        known = self.held.get(permit_id)
        if known is None:
            known = self.held[permit_id] = Held(told.tokens, {}, told=True)
            lapsed = self.lapsed.pop(permit_id, None)
            for counter, row in lapsed.rows.items() if lapsed else ():
                self._spend(counter, -row.used)
        for counter, row in told.rows.items():
            mine = known.rows.setdefault(counter, Row(0))
            more = max(0, row.reserved - mine.reserved)
            self._budget(counter).reserved += more
            mine.reserved, mine.used = mine.reserved + more, row.used

    def _allowed(self, now: int, demands: Sequence[Demand], tokens: int) -> int:
        """How many tokens of output a permit that has so many of them may have."""
        bare = [demand._replace(base=0) for demand in demands]
        _, more = _credit(bare, [self._room(demand, now, 0) for demand in bare], 0, 0, 1)
        return min(MAX_TOKENS, tokens + max(0, more))

    def _states(self, demands: Sequence[Demand], now: int) -> tuple[State, ...]:
        return tuple(self._state(demand, now) for demand in demands)

    def _state(self, demand: Demand, now: int) -> State:
        room = self._room(demand, now, 0)
        if demand.shape is not Shape.RATE:
            return State(max(0, room.units))
        return State(max(0, room.units), -(-self._debt(demand, now) // max(demand.amount, 1)))


def _worst(demands: Sequence[Demand], rooms: list[_Room]) -> int | None:
    """The demand that refuses for longest; of equals the first."""
    worst = None
    for i, (demand, room) in enumerate(zip(demands, rooms, strict=True)):
        if room.wait_us and not demand.shadow and (worst is None or room.wait_us > rooms[worst].wait_us):
            worst = i
    return worst


def _credit(
    demands: Sequence[Demand], rooms: list[_Room], least: int, most: int, share: int
) -> tuple[int, int]:
    """How many tokens of output are granted, and how many the budgets have room for."""
    tokens, allowed = most, MAX_TOKENS
    for demand, room in zip(demands, rooms, strict=True):
        if demand.each == 0 or demand.shadow:
            continue
        free = room.units - demand.base
        tokens = min(tokens, free // demand.each)
        if demand.shape is Shape.BUDGET:
            allowed = min(allowed, free // demand.each)
            tokens = min(tokens, max(least, free // share // demand.each))
    return tokens, allowed
