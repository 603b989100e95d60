"""What the flow needs of the world, as Protocols; adapters fulfil them, and tests bring others.

The refusals that ports can raise stand here too; `api.errors` has a row for each.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from api.core.booking import Ended, Happening
    from api.core.usage import Usage
    from auth.principal import Cap


# --- refusals ---------------------------------------------------------------------------------------


class StreamsExhausted(Exception):  # noqa: N818 - reads as what happened
    """There are as many live streams as `cap` allows. `retry_after_seconds` is a hint."""

    def __init__(self, cap: Cap, retry_after_seconds: int) -> None:
        whose = {"tenant": "", "key": " with this key", "token": " with this token"}[cap.kind]
        super().__init__(
            f"You have {cap.limit} streams open{whose}, which is your limit. Retry when one has ended."
        )
        self.retry_after_seconds = retry_after_seconds


class AllowanceSpent(Exception):  # noqa: N818
    """The token that calls may use no more tokens, or not enough for this request."""

    def __init__(self) -> None:
        super().__init__("This token's allowance is used up, or too small for this request.")


class LimiterUnavailable(Exception):  # noqa: N818
    """Redis did not answer in time; admission fails closed."""


class LedgerUnavailable(Exception):  # noqa: N818
    """The database did not take a booking; without one no token may be delivered (P1)."""


class AccountsUnavailable(Exception):  # noqa: N818
    """The database does not answer; nobody can be let in."""


class UpstreamFailed(Exception):  # noqa: N818
    """The provider did not answer, broke off, or refused.

    `status` is the provider's, None where it sent none. `body` is its error object where it blames the
    request (and only then is it shown to the caller). `timed_out` tells a 504 from a 502.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int | None = None,
        body: Mapping[str, Any] | None = None,
        retry_after: str | None = None,
        timed_out: bool = False,
    ) -> None:
        super().__init__(reason)
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

    `granted_tokens` is what was reserved of the allowance of token `allowance_of`, where it has one.
    """

    id: str
    tenant_id: str
    caps: tuple[Cap, ...]
    allowance_of: str | None = None
    granted_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a token may use in all, and what this request asks of it: at least `least`, at most `most`.

    `spent` is what the ledger says, for when Redis does not know; None until the ledger was asked.
    """

    token_id: str
    total: int
    least: int
    most: int
    spent: int | None = None


@dataclass(frozen=True, slots=True)
class Booking:
    """The row that says: this request is in flight. Times are UTC."""

    id: str
    request_id: str
    tenant_id: str
    key_id: str | None
    token_id: str | None
    end_user: str | None
    dialect: str
    model: str
    upstream: str
    worker: str
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The running count of a booking."""

    booking_id: str
    input_tokens: int
    output_tokens: int
    at: datetime


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """The ledger's row for one booking. Appended once, never changed."""

    booking: Booking
    answered_model: str
    usage: Usage
    ended: Ended
    cause: Happening
    first_token_ms: int | None
    duration_ms: int
    ended_at: datetime

    def flat(self) -> dict[str, Any]:
        """All of it by field name: a row of the ledger, and what the API and the CLI show."""
        parts = {**asdict(self.booking), **asdict(self.usage)}
        rest = ("answered_model", "ended", "cause", "first_token_ms", "duration_ms", "ended_at")
        return parts | {name: getattr(self, name) for name in rest}


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over a tenant's usage events."""

    events: int
    input_tokens: int
    output_tokens: int


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
    """Caps on what a tenant may have at one time. Fails closed, with LimiterUnavailable, in bounded time."""

    async def acquire(
        self, tenant_id: str, permit_id: str, caps: tuple[Cap, ...], allowance: Allowance | None = None
    ) -> Permit | None:
        """Take a slot under each cap, and tokens of the allowance: all or nothing.

        Raises StreamsExhausted, AllowanceSpent or LimiterUnavailable. None where an allowance is asked for
        and it is not known what is spent of it: ask the ledger, and say so in `allowance.spent`.
        """
        ...

    async def renew(self, permits: Mapping[str, Permit]) -> set[str]:
        """Renew the leases of all live streams of a worker in one round trip.

        Returns the ids of permits that are lost: their lease had run out and the slot is taken.
        Raises LimiterUnavailable.
        """
        ...

    async def release(self, permit: Permit, used_tokens: int = 0) -> None:
        """Give the slots back, and of the allowance what was not used.

        A failure is logged and not raised: the leases run out by themselves.
        """
        ...

    async def live(self, tenant_id: str) -> int:
        """How many slots of a tenant are taken."""
        ...

    async def ping(self) -> None:
        """Raises LimiterUnavailable."""
        ...


class Ledger(Protocol):
    """The record. Writes of all streams of a worker are committed in groups."""

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

    async def spent(self, tenant_id: str, token_id: str) -> int:
        """How many tokens, in and out, the events of one bought token say it used."""
        ...

    async def events(self, tenant_id: str, *, after: str | None, limit: int) -> list[UsageEvent]:
        """A tenant's events by id, the next `limit` after the id `after`."""
        ...

    async def ping(self) -> None:
        """Raises LedgerUnavailable."""
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


class Upstream(Protocol):
    """A provider's endpoint that speaks OpenAI chat completions."""

    name: str

    async def open(self, body: dict[str, Any]) -> UpstreamAnswer:
        """Send a request; returns when the status line says 200. Raises UpstreamFailed.

        Cancelling it, also while the provider is silent, closes the connection.
        """
        ...

    async def models(self) -> bytes:
        """The JSON of OpenAI's model list. Raises UpstreamFailed."""
        ...


class Tokenizer(Protocol):
    """Exact token counts, offline. Never runs on the event loop."""

    async def count(self, texts: Sequence[str], encoding: str) -> list[int]:
        """Tokens of each text. Lone surrogates count as U+FFFD."""
        ...


# --- what a request carries with it -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Policy:
    """How streams are treated; all times in seconds."""

    lease_seconds: float = 15.0
    tick_seconds: float = 1.0
    heartbeat_seconds: float = 15.0
    stream_seconds: float = 600.0
    send_seconds: float = 30.0
    settle_seconds: float = 5.0
    drain_seconds: float = 20.0
    watch_seconds: float = 0.5
    last_used_seconds: float = 60.0
    max_event_bytes: int = 4 << 20
    max_answer_bytes: int = 64 << 20
    default_model: str = "scripted"
    default_max_streams: int = 20
    worker: str = field(default="worker")
