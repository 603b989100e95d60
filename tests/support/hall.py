"""Several requests of several tenants at one gate; ASGI by hand, and for a limiter the pure book.

It is the book that the Lua in Redis follows (tests/contracts/test_limits_reference.py), so who waits for whom
is as in production; only the servers are missing.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from api.core.demand import Terms as LimiterTerms
from api.core.limits import Book
from api.flow.providers import Providers
from api.flow.turns import Places
from api.ports import Renewed
from auth.principal import Limit, Principal, Scope, Terms
from tests.contracts.helpers import bounded, eventually
from tests.support.hand import DONE, FINISH, USAGE, Hand, token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from api.core.demand import Ask, Reply
    from api.ports import Permit, Renewal, Used

LONG_US = 600_000_000
WHOLE = token("water") + FINISH + USAGE + DONE


class BookLimiter:
    """A book for each tenant, as Redis keeps them."""

    def __init__(self) -> None:
        self.books: dict[str, Book] = {}
        self.fault: Exception | None = None
        self.hold_reply: asyncio.Event | None = (
            None  # the answer of whoever asks now is on its way until then
        )

    def book(self, tenant_id: str) -> Book:
        terms = LimiterTerms(LONG_US, LONG_US, LONG_US)
        return self.books.setdefault(tenant_id, Book(terms, known=True))

    async def acquire(self, tenant_id: str, ask: Ask) -> Reply:
        if self.fault is not None:
            raise self.fault
        await asyncio.sleep(0)
        reply, hold = self.book(tenant_id).acquire(now_us(), ask), self.hold_reply
        if hold is not None:
            await hold.wait()
        return reply

    async def renew(self, renewals: Iterable[Renewal], waiters: Mapping[str, Sequence[str]]) -> Renewed:
        for tenant_id, permit_ids in waiters.items():
            self.book(tenant_id).renew_waiters(now_us(), permit_ids)
        return Renewed(set(), {})

    async def release(self, permit: Permit, used: Used) -> None:
        spent = [used.of(demand) for demand in permit.demands]
        self.book(permit.tenant_id).release(now_us(), permit.id, permit.demands, spent)

    @property
    def waiting(self) -> int:
        return sum(len(book.waiting) for book in self.books.values())


def now_us() -> int:
    """The books' clock."""
    return int(asyncio.get_running_loop().time() * 1_000_000)


class Hall:
    """Requests of several tenants at one gate. Each is a Hand with a client and a provider of its own."""

    name = "hand"  # as each Hand's own is called

    def __init__(self, places: int = 0, **policy: Any) -> None:
        self.first = Hand(**policy)
        self.gate = self.first.gate
        self.ledger = self.first.ledger
        self.limiter = BookLimiter()
        self.gate.limiter = self.limiter  # type: ignore[assignment] - the parts that the flow uses
        self.gate.places = Places(places)
        self.gate.providers = Providers.of(self)  # type: ignore[arg-type] - as above
        self.hands: dict[str, Hand] = {}
        self.opened: list[str] = []

    async def open(self, body: dict[str, Any], *_dialect: str, **_options: Any) -> Any:
        """The provider: whose request it is stands in the body."""
        self.opened.append(body["user"])
        return await self.hands[body["user"]].upstream.open(body)

    def ask(self, name: str, *, tenant: str = "tn_1", cap: int = 1, **how: Any) -> asyncio.Task[None]:
        """A request, running: under a cap, and waiting if its tenant may."""
        made = {word: how.pop(word) for word in ("dialect", "stream") if word in how}
        hand = self.hands[name] = Hand(**made)
        hand.gate = self.gate
        hand.order.body["user"] = name
        limits = (Limit("tenant", tenant, cap), *how.pop("limits", ()))
        terms = Terms(**{"max_waiters": 10, "max_wait_seconds": 60} | how)
        scopes = frozenset({Scope.CHAT})
        hand.caller = Principal(scopes, tenant_id=tenant, key_id="k1", limits=limits, terms=terms)
        return hand.start()

    async def flowing(self, name: str, **how: Any) -> asyncio.Task[None]:
        """A stream with one token delivered."""
        running = self.ask(name, **how)
        self.hands[name].upstream.feed(token("water"))
        await bounded(self.hands[name].log.until('data: {"token":"water"}'))
        return running

    async def queued(self, name: str, **how: Any) -> asyncio.Task[None]:
        """A request that waits."""
        before = len(self.gate.waiting)
        running = self.ask(name, **how)
        await self.until(lambda: len(self.gate.waiting) > before)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not running.done()
        return running

    async def until(self, holds: Callable[[], bool]) -> None:
        async def there() -> bool:
            return holds()

        await eventually(there)

    async def finish(self, name: str, running: asyncio.Task[None]) -> None:
        """Its provider says the rest; the client gets all of it."""
        self.hands[name].upstream.feed(WHOLE)
        await bounded(running)
        assert self.hands[name].body.endswith(DONE)

    def error(self, name: str) -> tuple[int, str]:
        """The status of an answer, and the code of the error in it or in its last event."""
        last = json.loads(self.hands[name].body.split(b"data: ")[-1])
        error = last.get("error", last)
        return self.hands[name].status, error["code"] if isinstance(error, dict) else last["code"]

    def headers(self, name: str) -> dict[str, str]:
        return {key.decode(): value.decode() for key, value in self.hands[name].sent[0]["headers"]}

    def empty(self) -> bool:
        """Whether nobody waits any more, here or at the limiter, and nothing is taken."""
        slots = [ids for book in self.limiter.books.values() for ids in book.slots.values()]
        return not (self.gate.waiting or self.limiter.waiting or any(slots) or self.gate.places._taken)
