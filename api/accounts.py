"""Tenants, their keys, admins and the audit log: the values, the port, and its refusals.

Every change takes an Actor and stands in the audit log, written in the same transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from auth.principal import Scope


# --- values -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Actor:
    """Who changes something, from which address, by which request: for the audit log."""

    name: str
    address: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class TenantFields:
    """What an admin decides of a tenant. `max_streams` is its cap on streams at one time.

    `external_id` is its name in the company's own systems, and in tokens of its identity provider.
    `time_zone` (IANA) is where its budget days begin. `limits` and `end_user_limits` are amounts by the names
    of auth.principal.LIMITS, and under "shadow" the names that refuse nothing. Up to `max_waiters` requests
    over a limit wait, for `max_wait_seconds` at most; `weight` is its share of a worker that is full.
    A stream with an `Idempotency-Key` is kept for `resume_minutes`; 0: it is not.
    """

    name: str
    max_streams: int
    external_id: str | None = None
    default_model: str | None = None
    time_zone: str = "UTC"
    metadata: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, Any] = field(default_factory=dict)
    end_user_limits: Mapping[str, Any] = field(default_factory=dict)
    max_waiters: int = 0
    max_wait_seconds: int = 30
    weight: int = 1
    resume_minutes: int = 0


@dataclass(frozen=True, slots=True)
class Tenant(TenantFields):
    """A customer. `state` is active, suspended or deleted."""

    id: str = field(kw_only=True)
    state: str = field(kw_only=True)
    created_at: datetime = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class KeyFields:
    """What is decided of a key.

    `models` are names, or beginnings with a `*`; None is all. `max_streams` and `limits` are its own beside
    the tenant's. `allowed_addresses` are networks in CIDR notation; none means any.
    """

    name: str
    scopes: tuple[Scope, ...]
    models: tuple[str, ...] | None = None
    max_streams: int | None = None
    allowed_addresses: tuple[str, ...] = ()
    expires_at: datetime | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KeyInfo(KeyFields):
    """What may be shown of an API key. `previous_until`: so long the secret before a rotation holds."""

    id: str = field(kw_only=True)
    tenant_id: str = field(kw_only=True)
    created_at: datetime = field(kw_only=True)
    created_by: str = field(kw_only=True)
    last_used_at: datetime | None = field(kw_only=True, default=None)
    previous_until: datetime | None = field(kw_only=True, default=None)
    revoked_at: datetime | None = field(kw_only=True, default=None)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who changed what, when, from where. Appended with the change itself, never changed."""

    id: int
    at: datetime
    actor: str
    address: str
    request_id: str
    action: str
    tenant_id: str | None
    kind: str
    target: str
    details: Mapping[str, Any]


# --- refusals ---------------------------------------------------------------------------------------


class NoSuchTenant(Exception):  # noqa: N818
    """No tenant has that id, or none that is still there."""

    def __init__(self, tenant_id: str) -> None:
        super().__init__(f"No tenant has the id `{tenant_id}`.")


class NoSuchKey(Exception):  # noqa: N818
    """No key has that id, or it is another tenant's."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"No key has the id `{key_id}`.")


class ExternalIdTaken(Exception):  # noqa: N818
    """Another tenant has that external id."""

    def __init__(self, external_id: str) -> None:
        super().__init__(f"Another tenant has the external id `{external_id}`.")


# --- the port ---------------------------------------------------------------------------------------


class Keys(Protocol):
    """API keys: one tenant's, or all of them. Those of others are not there, whatever is asked."""

    async def issue(self, tenant_id: str, fields: KeyFields, *, by: Actor) -> tuple[KeyInfo, str]:
        """A new key and its text, which is shown this once. Raises NoSuchTenant."""
        ...

    async def all_of(self, tenant_id: str) -> list[KeyInfo]:
        """A tenant's keys, oldest first. Raises NoSuchTenant."""
        ...

    async def get(self, key_id: str) -> KeyInfo:
        """One key. Raises NoSuchKey, as all that follow."""
        ...

    async def change(self, key_id: str, changes: Mapping[str, Any], *, by: Actor) -> KeyInfo:
        """Set some of KeyFields. Limits are merged (RFC 7396): null takes one away, `shadow` is replaced."""
        ...

    async def rotate(self, key_id: str, *, grace_seconds: int, by: Actor) -> tuple[KeyInfo, str]:
        """A new secret for the key, shown this once; the one before holds for `grace_seconds` more."""
        ...

    async def revoke(self, key_id: str, *, by: Actor) -> KeyInfo:
        """Revoke a key; again is the same."""
        ...


class Accounts(Protocol):
    """Tenants, their keys, and admins. Each change stands in the audit log, in the same transaction."""

    def keys(self, tenant_id: str | None) -> Keys:
        """The keys of one tenant, or for an admin (None) of all."""
        ...

    async def create_tenant(self, fields: TenantFields, *, by: Actor) -> Tenant:
        """A new tenant. Raises ExternalIdTaken."""
        ...

    async def tenants(self, *, deleted: bool = False) -> list[Tenant]:
        """All tenants, oldest first; those that were deleted only on request."""
        ...

    async def tenant(self, tenant_id: str) -> Tenant:
        """One tenant, also a deleted one. Raises NoSuchTenant."""
        ...

    async def change_tenant(self, tenant_id: str, changes: Mapping[str, Any], *, by: Actor) -> Tenant:
        """Set some of TenantFields; limits are merged (RFC 7396). Raises NoSuchTenant, ExternalIdTaken."""
        ...

    async def suspend(self, tenant_id: str, *, by: Actor) -> Tenant:
        """Nobody of the tenant gets in any more, and its streams are cut. Raises NoSuchTenant."""
        ...

    async def resume(self, tenant_id: str, *, by: Actor) -> Tenant:
        """Undo `suspend`. Raises NoSuchTenant."""
        ...

    async def delete(self, tenant_id: str, *, by: Actor) -> Tenant:
        """Suspend for ever, and revoke all keys. Usage stays. Raises NoSuchTenant."""
        ...

    async def revoke_token(self, tenant_id: str | None, token_id: str, *, by: Actor) -> None:
        """Revoke a token of that tenant (None: of an admin), whether or not there is one."""
        ...

    async def admins(self) -> list[str]:
        """The admins' addresses."""
        ...

    async def put_admin(self, email: str, password_hash: str, *, by: Actor) -> None:
        """Create an admin, or change the password: tokens from before hold no more."""
        ...

    async def remove_admin(self, email: str, *, by: Actor) -> bool:
        """Remove an admin; False if there is none of that address."""
        ...

    async def used(self, times: Mapping[str, datetime]) -> None:
        """Write when keys were last used; an earlier time than the one that stands changes nothing."""
        ...

    async def note(
        self, action: str, kind: str, target: str, *, by: Actor, tenant_id: str | None = None
    ) -> None:
        """Write an audit entry of something that changes nothing, such as a sign-in."""
        ...

    async def audit(
        self,
        *,
        tenant_id: str | None = None,
        actor: str | None = None,
        action: str | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[AuditEntry]:
        """The audit log, newest first, the next `limit` entries before number `before`."""
        ...
