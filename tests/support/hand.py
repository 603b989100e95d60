"""Hand-made ASGI and hand-made ports: the test holds every end, so the order of things is the assertion."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from api.adapters.clock_system import SystemClock
from api.adapters.tokenizer_toktok import ToktokTokenizer
from api.core.catalog import ModelSpec, Target
from api.core.demand import NEVER_US, Reply, Shape, Verdict
from api.core.dialects import openai_chat, plain
from api.core.meter import Meter
from api.core.money import Price, Prices, PriceVersion
from api.core.policy import Policy
from api.edge import Connection
from api.flow.gate import Gate
from api.flow.providers import Providers
from api.flow.stream import Order
from api.flow.turns import Places
from api.flow.walk import Walk
from api.ports import Renewed, Used
from auth.principal import Limit, NotAuthenticated, Principal, Scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from api.core.demand import Ask
    from api.core.dialects import Writer
    from api.core.record import Booking, Checkpoint, Spending, UsageEvent
    from api.ports import Permit, Renewal
    from auth.principal import StoredTenant


PRICES = Prices(
    [PriceVersion(1, "scripted*", datetime(2020, 1, 1, tzinfo=UTC), 10**9, 5 * 10**8, 2 * 10**9, 2 * 10**9)]
)
"""The price list as the migration leaves it."""

SCRIPTED = Price(10**9, 5 * 10**8, 2 * 10**9, 2 * 10**9, version="1")
"""The scripted model's price."""


class Log(list[str]):
    """What happened, in order; everybody writes into the same one."""

    async def until(self, entry: str) -> None:
        """Let others run until `entry` is there."""
        while entry not in self:
            await asyncio.sleep(0)

    def in_order(self, *entries: str) -> bool:
        """Whether the entries stand in this order, whatever is between them."""
        rest = iter(self)
        return all(entry in rest for entry in entries)


class HandLedger:
    """A ledger whose writes are durable when the test says so."""

    away = False
    spooled_bytes = 0

    def __init__(self, log: Log) -> None:
        self.log = log
        self.bookings: list[Booking] = []
        self.events: list[UsageEvent] = []
        self.checkpoints: list[Checkpoint] = []
        self.spent_tokens = 0
        self.hold_booking = self.hold_settlement = False
        self.booked: asyncio.Future[None] | None = None
        self.settled: asyncio.Future[None] | None = None

    def book(self, booking: Booking) -> asyncio.Future[None]:
        self.log.append("book")
        self.bookings.append(booking)
        self.booked = self._future(self.hold_booking, "booked")
        return self.booked

    def settle(self, event: UsageEvent) -> asyncio.Future[None]:
        self.log.append("settle")
        self.events.append(event)
        self.settled = self._future(self.hold_settlement, "settled")
        return self.settled

    async def spent(self, tenant_id: str, spending: Spending) -> int:
        return self.spent_tokens

    async def running(self, tenant_id: str, since: datetime) -> Mapping[str, int]:
        return {}

    def checkpoint(self, checkpoints: Sequence[Checkpoint]) -> None:
        self.checkpoints += checkpoints

    def _future(self, held: bool, name: str) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda _: self.log.append(name))
        if not held:
            future.set_result(None)
        return future


class HandLimiter:
    """Slots in a set; `lost` is what the next renewal says was lost, `replies` what is answered instead."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.taken: set[str] = set()
        self.lost: set[str] = set()
        self.used = Used()
        self.credit: int | None = None  # tokens that there are in all; None: without end
        self.spent_known = True
        self.asks: list[Ask] = []
        self.renewed: list[list[Renewal]] = []
        self.waiters: Mapping[str, Sequence[str]] = {}
        self.hold: asyncio.Event | None = None
        self.hold_renewal: asyncio.Event | None = None
        self.replies: list[Reply | Exception] = []

    async def acquire(self, tenant_id: str, ask: Ask) -> Reply:
        self.log.append("acquire")
        self.asks.append(ask)
        if self.hold is not None:
            await self.hold.wait()
        if self.replies:
            reply = self.replies.pop(0)
            if isinstance(reply, Exception):
                raise reply
            return reply
        budgets = [i for i, demand in enumerate(ask.demands) if demand.shape is Shape.BUDGET]
        if budgets and not ask.spent and not self.spent_known:
            return Reply(Verdict.UNKNOWN, unknown=tuple(budgets))
        for i, demand in enumerate(ask.demands):
            if demand.shape is Shape.CAP and len(self.taken) >= demand.amount:
                return Reply(Verdict.REFUSED, at=i, wait_us=1_000_000)
        self.taken.add(ask.permit_id)
        return self._credit(ask, sum(ask.spent.values()))

    async def extend(self, tenant_id: str, ask: Ask) -> Reply:
        self.log.append("extend")
        self.asks.append(ask)
        return self._credit(ask, 0)

    def _credit(self, ask: Ask, spent: int) -> Reply:
        if self.credit is None:
            return Reply(Verdict.GRANTED, ask.most)
        base = max(demand.base for demand in ask.demands) if self.log[-1] == "acquire" else 0
        room = self.credit - spent - base
        if room < ask.least:
            return Reply(Verdict.REFUSED, at=len(ask.demands) - 1, wait_us=NEVER_US)
        granted = min(ask.most, room)
        self.credit -= granted + base + spent
        return Reply(Verdict.GRANTED, granted, room)

    async def renew(self, renewals: Iterable[Renewal], waiters: Mapping[str, Sequence[str]]) -> Renewed:
        self.log.append("renew")
        self.waiters = waiters
        if self.hold_renewal is not None:
            await self.hold_renewal.wait()
        self.renewed.append(list(renewals))
        ids = {renewal.permit.id for renewal in self.renewed[-1]}
        self.taken |= ids  # as the real one does with a slot that is free
        return Renewed(self.lost & ids, {})

    async def release(self, permit: Permit, used: Used) -> None:
        self.log.append("release")
        self.used = used
        self.taken.discard(permit.id)


class HandAuthenticator:
    """Accounts that change when the test says so: `change` is what the feed brings next."""

    def __init__(self) -> None:
        self.memory = self
        self.version = 0
        self.revoked = False
        self.fault: Exception | None = None
        self.tenants: dict[str, StoredTenant] = {}
        self._news: set[tuple[str, str]] = set()

    def change(self, kind: str, name: str) -> None:
        self.version += 1
        self._news.add((kind, name))

    async def tenant(self, name: str) -> StoredTenant | None:
        return self.tenants.get(name)

    async def refresh(self) -> None:
        if self.fault is not None:
            raise self.fault

    def take_news(self) -> set[tuple[str, str]]:
        news, self._news = self._news, set()
        return news

    async def again(self, principal: Principal) -> Principal:
        await self.refresh()
        if self.revoked:
            raise NotAuthenticated
        return replace(principal, as_of=self.version)


class HandPrices:
    """A price book that says what the test puts there."""

    def __init__(self) -> None:
        self.prices = PRICES
        self.fault: Exception | None = None

    async def load(self) -> Prices:
        if self.fault is not None:
            raise self.fault
        return self.prices


class HandUpstream:
    """A provider whose bytes the test writes: `feed`, `end`, `break_off`."""

    name = "hand"

    def __init__(self, log: Log) -> None:
        self.log = log
        self.bytes: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self.opens: asyncio.Future[Exception | None] | None = None
        self.bodies: list[dict[str, Any]] = []

    def feed(self, data: bytes | Exception) -> None:
        self.bytes.put_nowait(data)

    async def open(self, body: dict[str, Any], *_dialect: str, **_options: Any) -> HandUpstream:
        self.log.append("open")
        self.bodies.append(body)
        try:
            if self.opens is not None and (error := await self.opens) is not None:
                raise error
        except asyncio.CancelledError:
            self.log.append("open cancelled")
            raise
        return self

    async def read(self) -> bytes:
        data = await self.bytes.get()
        if isinstance(data, Exception):
            raise data
        return data

    async def models(self) -> bytes:
        return b""

    async def finish(self) -> None:
        self.log.append("finish")

    async def close(self) -> None:
        self.log.append("close")


class Hand:
    """A gate, one request, and a client, all held by the test."""

    def __init__(self, *, dialect: str = plain.NAME, stream: bool = True, **policy: Any) -> None:
        self.log = Log()
        self.ledger = HandLedger(self.log)
        self.limiter = HandLimiter(self.log)
        self.upstream = HandUpstream(self.log)
        self.authenticator = HandAuthenticator()
        self.price_book = HandPrices()
        self.gate = Gate(
            clock=SystemClock(),
            limiter=self.limiter,  # type: ignore[arg-type] - the parts that the flow uses
            ledger=self.ledger,  # type: ignore[arg-type]
            replays=None,  # type: ignore[arg-type]
            usage=None,  # type: ignore[arg-type]
            providers=Providers.of(self.upstream),
            catalog_book=None,  # type: ignore[arg-type]
            accounts=None,  # type: ignore[arg-type]
            credentials=None,  # type: ignore[arg-type]
            authenticator=self.authenticator,  # type: ignore[arg-type]
            doorbell=None,  # type: ignore[arg-type]
            tokenizer=ToktokTokenizer(),
            price_book=self.price_book,  # type: ignore[arg-type]
            prices=PRICES,
            policy=Policy(**policy),
            places=Places(0),
        )
        body = plain.chat_body("hi", "scripted", None, None) | {"stream": stream}
        writer: Writer | None = None
        if stream:
            writer = (
                plain.PlainWriter() if dialect == plain.NAME else openai_chat.ChatWriter(include_usage=False)
            )
        meter = Meter("scripted", openai_chat.prompt_of(body))
        self.order = Order(
            request_id="req_1",
            dialect=openai_chat,
            name=dialect,
            body=body,
            meter=meter,
            writer=writer,
            spec=ModelSpec("scripted", (Target("hand"),)),
        )
        self.caller = Principal(
            frozenset({Scope.CHAT}), tenant_id="tn_1", key_id="k1", limits=(Limit("tenant", "tn_1", 1),)
        )
        self.left = asyncio.Event()
        self.sent: list[Any] = []
        self.hold_sends: asyncio.Event | None = None
        self.aborted = False

    def start(self) -> asyncio.Task[None]:
        """The request, running."""
        connection = Connection(self._send, self._abort, lambda: None, bool)
        scope = {"type": "http", "state": {"connection": connection}}
        return asyncio.create_task(Walk(self.gate, self.caller, self.order)(scope, self._receive, self._send))

    def _abort(self) -> None:
        self.aborted = True
        self.log.append("abort")

    async def _receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if self.hold_sends is not None:
            self.log.append("send held")
            await self.hold_sends.wait()
        self.sent.append(message)
        body = message.get("body", b"")
        self.log.append(
            "start" if message["type"] == "http.response.start" else body.decode().strip() or "body"
        )
        if message["type"] == "http.response.body" and not message["more_body"]:
            self.left.set()  # as servers do: once the answer is out, `receive` says so

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


def token(word: str) -> bytes:
    """A chunk with one word."""
    return b'data: {"choices": [{"index": 0, "delta": {"content": "%s"}}]}\n\n' % word.encode()


USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": 2}}\n\n'
FINISH = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"
