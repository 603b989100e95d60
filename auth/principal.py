"""The words of authentication: principals, scopes, what is stored of accounts, and the refusals."""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime


class Scope(StrEnum):
    """What a credential may be used for."""

    CHAT = "chat"
    EMBEDDINGS = "embeddings"
    USAGE_READ = "usage:read"
    TENANT_ADMIN = "tenant:admin"
    ADMIN = "admin"


TENANT_SCOPES = frozenset({Scope.CHAT, Scope.EMBEDDINGS, Scope.USAGE_READ})
"""What a tenant's key may do unless it was issued with less, or more."""


class Limit(NamedTuple):
    """At most `amount` for one `kind` ("tenant", "key", "user", "token") of the given id.

    `name` says of what: one of LIMITS. In `shadow` it is only counted what it would have refused.
    """

    kind: str
    id: str
    amount: int
    name: str = "max_streams"
    shadow: bool = False


LIMITS = (
    "max_streams",
    "requests_per_minute",
    "tokens_per_minute",
    "tokens_per_day",
    "tokens_per_month",
    "nano_dollars_per_day",
    "nano_dollars_per_month",
    "tokens_in_all",
)
"""Tokens are input and output together. `tokens_in_all` is a bought token's allowance."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a tenant's limits need to know beside their amounts.

    `time_zone` (IANA) is where its budget days begin. A request over a limit that will pass may wait for
    `max_wait_seconds`, with up to `max_waiters` at one time; `weight` is its share of a worker that is full.
    `end_user_limits` holds for each of its end users; their `id` is empty. A stream with an `Idempotency-Key`
    is kept for `resume_minutes`; 0: it is not.
    """

    time_zone: str = "UTC"
    max_waiters: int = 0
    max_wait_seconds: int = 30
    weight: int = 1
    end_user_limits: tuple[Limit, ...] = ()
    resume_minutes: int = 0


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling.

    `tenant_id` is None for an admin who signed in, `key_id` for one and for a token of the company's own
    identity provider; `user` is set for an admin alone. `models` are patterns, None for all. `expires_at`
    is UTC seconds: what runs then is cut. `limits` are all that bind it, those of its end user too. `as_of`
    is how much of the accounts' change feed was known when this was decided. `proof` is the fingerprint of
    what it stands on: the secret of its key, or an admin's password.
    """

    scopes: frozenset[Scope]
    tenant_id: str | None = None
    key_id: str | None = None
    token_id: str | None = None
    user: str | None = None
    end_user: str | None = None
    limits: tuple[Limit, ...] = ()
    terms: Terms = Terms()
    models: tuple[tuple[str, ...], ...] = ()
    default_model: str | None = None
    expires_at: float | None = None
    as_of: int = 0
    proof: str | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Who it is, in a log or an audit line."""
        if self.user is not None:
            return f"user:{self.user}"
        if self.key_id is not None:
            return f"key:{self.key_id}"
        return f"token:{self.token_id}"

    def acting_for(self, end_user: str) -> Principal:
        """The same, for one of its end users: whom a key names in a request, unless its credential has."""
        if self.end_user is not None:
            return self
        return replace(self, end_user=end_user, limits=self.limits + limits_of_user(self.terms, end_user))

    def may_use(self, model: str) -> bool:
        """Whether each of the lists that bind this caller (its key's, its token's) allows the model."""
        return all(any(matches(model, pattern) for pattern in patterns) for patterns in self.models)


def limits_of_user(terms: Terms, end_user: str | None) -> tuple[Limit, ...]:
    """What binds one end user of a tenant."""
    if end_user is None:
        return ()
    return tuple(limit._replace(id=end_user) for limit in terms.end_user_limits)


def fingerprint(stored: bytes | str) -> str:
    """A short name of a stored hash that does not tell it."""
    text = stored.encode() if isinstance(stored, str) else stored
    return hashlib.sha256(b"sluicegate proof\0" + text).hexdigest()[:16]


def matches(model: str, pattern: str) -> bool:
    """A pattern is a model's name, or its beginning and a `*`."""
    return model.startswith(pattern[:-1]) if pattern.endswith("*") else model == pattern


@dataclass(frozen=True, slots=True)
class StoredTenant:
    """What authentication needs to know of a tenant."""

    id: str
    active: bool
    max_streams: int
    default_model: str | None = None
    more_limits: tuple[Limit, ...] = ()
    streams_in_shadow: bool = False
    terms: Terms = Terms()

    @property
    def limits(self) -> tuple[Limit, ...]:
        """All that bind the tenant, its cap on streams first."""
        streams = Limit("tenant", self.id, self.max_streams, shadow=self.streams_in_shadow)
        return (streams, *self.more_limits)


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What the database knows of an API key. Hashes are 32 bytes of SHA-256.

    `previous_sha256` is the secret before the last rotation; it holds until `previous_until`.
    `allowed_addresses` are networks in CIDR notation; none means any address.
    """

    id: str
    tenant: StoredTenant
    secret_sha256: bytes
    scopes: frozenset[Scope]
    revoked_at: datetime | None = None
    expires_at: datetime | None = None
    previous_sha256: bytes | None = None
    previous_until: datetime | None = None
    models: tuple[str, ...] | None = None
    max_streams: int | None = None
    allowed_addresses: tuple[str, ...] = ()
    more_limits: tuple[Limit, ...] = ()
    streams_in_shadow: bool = False

    @property
    def limits(self) -> tuple[Limit, ...]:
        """All that bind the key alone."""
        if self.max_streams is None:
            return self.more_limits
        streams = Limit("key", self.id, self.max_streams, shadow=self.streams_in_shadow)
        return (streams, *self.more_limits)

    def allows(self, address: str) -> bool:
        """Whether the key may be used from there. What is no IP address is nowhere."""
        if not self.allowed_addresses:
            return True
        try:
            caller = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(caller, ipaddress.IPv6Address) and caller.ipv4_mapped is not None:
            caller = caller.ipv4_mapped
        return any(caller in ipaddress.ip_network(network) for network in self.allowed_addresses)


@dataclass(frozen=True, slots=True)
class StoredUser:
    """An admin. A token holds as long as the password that it was got with."""

    email: str
    password_hash: str


class Change(NamedTuple):
    """Something that is remembered has changed: `kind` is key, tenant, token, user; or a stream was ended."""

    seq: int
    kind: str
    id: str


class NotAuthenticated(Exception):  # noqa: N818 - reads as what happened
    """No credential, or none that holds. The text is public, and the same whatever was wrong with it."""

    def __init__(self, text: str = "Incorrect API key or token provided.") -> None:
        super().__init__(text)


class NotAllowed(Exception):  # noqa: N818 - reads as what happened
    """A good credential that does not carry so far. The text is public."""

    def __init__(self, text: str, code: str = "insufficient_scope") -> None:
        super().__init__(text)
        self.code = code


class SignInBusy(Exception):  # noqa: N818 - reads as what happened
    """So many passwords wait to be compared that one more would wait for too long."""

    def __init__(self) -> None:
        super().__init__("Too many sign-ins are waiting. Try again in a moment.")
        self.retry_after_seconds = 5


class TooManyFailures(Exception):  # noqa: N818 - reads as what happened
    """Too many credentials from one address did not hold. `retry_after_seconds` is when to come back."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__("Too many attempts with credentials that do not hold. Wait, then try again.")
        self.retry_after_seconds = retry_after_seconds
