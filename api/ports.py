"""What the flow needs of the world, as Protocols; adapters fulfil them, and tests bring others.

The refusals that ports can raise stand here too; `api.errors` has a row for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from api.core.demand import MAX_TOKENS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from api.core.demand import Ask, Demand, Reply, State
    from api.core.record import Booking, Checkpoint, InFlight, Spending, Totals, UsageEvent
    from api.core.usage_query import Place, UsagePage, UsageQuery


# --- refusals ---------------------------------------------------------------------------------------


class LimitReached(Exception):  # noqa: N818 - reads as what happened
    """A limit on streams or per minute. Waiting helps for `retry_after_seconds`; None: it never does."""

    def __init__(
        self,
        text: str,
        retry_after_seconds: float | None,
        headers: Mapping[str, str],
        *,
        limit: str = "",
        of: str = "",
    ) -> None:
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds
        self.headers = headers
        self.limit, self.of = limit, of  # which one, and whose


class BudgetSpent(LimitReached):
    """A budget is used up, or has not enough left for this request, until its period ends."""


class GateFull(Exception):  # noqa: N818
    """This worker has as many streams as it may, and the caller's tenant has no place in the queue."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__("The gateway is full right now. Retry in a moment.")
        self.retry_after_seconds = retry_after_seconds


class NotPriced(Exception):  # noqa: N818
    """The caller has a budget in money, and nobody knows what the model costs."""

    def __init__(self, model: str) -> None:
        super().__init__(f"The model `{model}` has no price, and there is a budget in money to keep.")


class LimiterUnavailable(Exception):  # noqa: N818
    """Redis did not answer in time, or cannot be asked yet."""

    retry_after_seconds = 2.0


class LedgerUnavailable(Exception):  # noqa: N818
    """The database did not take a booking; without one no token may be delivered (P1)."""


class AccountsUnavailable(Exception):  # noqa: N818
    """The database does not answer; nobody can be let in."""


class UpstreamFailed(Exception):  # noqa: N818
    """The provider did not answer, broke off, or refused.

    `status` is the provider's, None where it sent none. `body` is its error object where it blames the
    request (and only then is it shown to the caller). `timed_out` tells a 504 from a 502. Where it was not
    asked at all, because it would not understand, another one may: `elsewhere`.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int | None = None,
        body: Mapping[str, Any] | None = None,
        retry_after: str | None = None,
        timed_out: bool = False,
        elsewhere: bool = False,
    ) -> None:
        super().__init__(reason)
        self.elsewhere = elsewhere
        self.status = status
        self.body = body or {}
        self.retry_after = retry_after
        self.timed_out = timed_out


CALLERS_FAULT = frozenset({400, 404, 413, 415, 422})
"""Statuses with which a provider blames the request; their error objects are for the caller to see."""


# --- values -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Permit:
    """What admission granted: a slot under each cap, as leases that expire unless they are renewed.

    `tokens` of output are granted on credit of its rates and budgets; it can be extended. `degraded` was
    granted without Redis. Its id is also that of its booking.
    """

    id: str
    tenant_id: str
    demands: tuple[Demand, ...]
    tokens: int = 0
    degraded: bool = False

    def reserved(self, demand: Demand) -> int:
        """What it has reserved of a limit so far."""
        return demand.base + demand.each * self.tokens


class Used(NamedTuple):
    """What a stream used, or is to be charged for: tokens in and out, and nano-dollars."""

    tokens: int = 0
    nano_dollars: int = 0

    def of(self, demand: Demand) -> int:
        """As a limit counts it; of a cap, or of requests, nothing."""
        if demand.each == 0:
            return 0
        return min(self.nano_dollars if demand.is_money else self.tokens, MAX_TOKENS)


class Renewal(NamedTuple):
    """A permit to be renewed, and what its stream has used so far."""

    permit: Permit
    used: Used


class Renewed(NamedTuple):
    """Permits that are lost (their leases had run out, and the slots are taken), and streams by tenant."""

    lost: set[str]
    streams: Mapping[str, int]


class Fleet(NamedTuple):
    """How many workers there are, and how many of them come before this one."""

    workers: int
    before: int


class Peek(NamedTuple):
    """What is left of each limit that was asked for, and how often limits in shadow would have refused."""

    states: tuple[State, ...]
    would_refuse: Mapping[str, int]


# --- ports ------------------------------------------------------------------------------------------


class Clock(Protocol):
    """The time. Nothing else may ask the machine for it."""

    def now(self) -> datetime:
        """UTC, with a time zone."""
        ...

    def unix(self) -> float:
        """UTC seconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Seconds that never jump; only differences mean something."""
        ...


class Limiter(Protocol):
    """All limits on what tenants use. Answers in bounded time, or raises LimiterUnavailable."""

    @property
    def degraded(self) -> bool:
        """Whether it decides without Redis."""
        ...

    async def acquire(self, tenant_id: str, ask: Ask) -> Reply:
        """Grant all that a request asks, or nothing; or give it a place in the queue.

        UNKNOWN: ask the ledger for what `reply.unknown` names, and ask again. The same again is the same.
        """
        ...

    async def extend(self, tenant_id: str, ask: Ask) -> Reply:
        """Grant a permit more tokens of output: GRANTED, REFUSED or UNKNOWN. `base` is not charged again."""
        ...

    async def renew(self, renewals: Iterable[Renewal], waiters: Mapping[str, Sequence[str]]) -> Renewed:
        """Renew the leases of all live streams of a worker, and of its waiters by tenant."""
        ...

    async def release(self, permit: Permit, used: Used) -> None:
        """Give back slots, what was reserved and not used, and a place in the queue. Again is the same."""
        ...

    async def peek(self, tenant_id: str, demands: Sequence[Demand]) -> Peek:
        """What is left of each limit."""
        ...

    async def live(self, tenant_id: str) -> list[str]:
        """The permits of a tenant's live streams, over all workers."""
        ...

    async def ping(self) -> None:
        """Raises LimiterUnavailable where nobody new can be admitted."""
        ...


class Ledger(Protocol):
    """The record. Writes of all streams of a worker are committed in groups."""

    @property
    def spooled_bytes(self) -> int:
        """What waits on disk for the database."""
        ...

    @property
    def away(self) -> bool:
        """Whether its database is, and what is to be written waits on this host's disk."""
        ...

    def book(self, booking: Booking) -> asyncio.Future[None]:
        """Start writing a booking; the future is done once it is durable, or fails: LedgerUnavailable."""
        ...

    def settle(self, event: UsageEvent) -> asyncio.Future[None]:
        """Start turning a booking into its usage event; retried until it is written, and idempotent."""
        ...

    def checkpoint(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Write running counts, some time soon. A later one replaces one that still waits."""
        ...

    async def totals(self, tenant_id: str) -> Totals:
        """Sums over a tenant's events."""
        ...

    async def spent(self, tenant_id: str, spending: Spending) -> int:
        """How many tokens, in and out, or nano-dollars a tenant's events say were used."""
        ...

    async def running(self, tenant_id: str, since: datetime) -> Mapping[str, int]:
        """How many of a tenant's bookings are open that began since then, by worker."""
        ...

    async def in_flight(self, tenant_id: str | None = None, booking_id: str | None = None) -> list[InFlight]:
        """Open bookings, oldest first: all, a tenant's, or the one with that id. Raises LedgerUnavailable."""
        ...

    async def events(self, tenant_id: str, *, after: str | None, limit: int) -> list[UsageEvent]:
        """A tenant's events by id, the next `limit` after the id `after`."""
        ...

    async def ping(self) -> None:
        """Raises LedgerUnavailable."""
        ...


class UsageReports(Protocol):
    """What was used. Answers equal the sum of events, at every moment. Raises LedgerUnavailable."""

    async def page(
        self, query: UsageQuery, *, after: Place | None = None, limit: int, totals: bool = True
    ) -> UsagePage:
        """At most `limit` rows from a place on, and the sums of all: of one moment.

        They may be fewer, or none, though there are more: the last page is the one without an `after`.
        """
        ...

    async def events(
        self,
        tenant_id: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        after: str | None = None,
        limit: int,
    ) -> list[UsageEvent]:
        """A tenant's events of a time, by id, the next `limit` after the id `after`."""
        ...


class Doorbell(Protocol):
    """Tells the other workers that an account has changed. Best effort: nobody depends on it."""

    async def ring(self) -> None:
        """Ring at all workers. A failure is logged and not raised."""
        ...

    async def listen(self, heard: Callable[[], None]) -> None:
        """Call `heard` for each ring, and after each gap in listening, until cancelled."""
        ...


class UpstreamAnswer(Protocol):
    """A provider's open answer: a body that is read in pieces."""

    async def read(self) -> bytes:
        """The next bytes; b"" at the end. Raises UpstreamFailed where the answer breaks off."""
        ...

    async def finish(self) -> None:
        """After the terminal event: read to the end, in bounded time, so that the connection can be kept."""
        ...

    async def close(self) -> None:
        """Give the connection back, or break it if the answer was not read to its end. Never raises."""
        ...


class Patience(NamedTuple):
    """How long to wait for a connection to a provider, and then for its next bytes."""

    connect_seconds: float = 5.0
    silence_seconds: float = 120.0


NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Upstream(Protocol):
    """A provider's endpoint."""

    name: str

    async def open(
        self,
        body: dict[str, Any],
        dialect: str = "openai_chat",
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        api_key: str | None = None,
        patience: Patience | None = None,
    ) -> UpstreamAnswer:
        """Send a request in a dialect; returns when the status line says 200. Raises UpstreamFailed.

        `api_key` and `patience` take the place of its own.

        Cancelling it, also while the provider is silent, closes the connection.
        """
        ...

    async def prepare(self, dialect: str) -> object:
        """Get ready for requests in a dialect, so that the first one does not wait for that."""
        ...

    async def models(self) -> bytes:
        """The JSON of OpenAI's model list. Raises UpstreamFailed."""
        ...

    async def close(self) -> None:
        """Close the pool."""
        ...


class Tokenizer(Protocol):
    """Exact token counts, offline. Never runs on the event loop."""

    async def count(self, texts: Sequence[str], encoding: str) -> list[int]:
        """Tokens of each text. Lone surrogates count as U+FFFD."""
        ...
