"""The words of authentication: principals, scopes, stored keys, and the two refusals."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


class Scope(StrEnum):
    """What a credential may be used for."""

    CHAT = "chat"
    USAGE_READ = "usage:read"
    ADMIN = "admin"


TENANT_SCOPES = frozenset({Scope.CHAT, Scope.USAGE_READ})
"""What a tenant's key may do unless it was issued with less."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling.

    `tenant_id` and `key_id` are None for an admin who signed in; `user` is None for a key.
    `max_streams` is the tenant's cap on streams at one time.
    """

    scopes: frozenset[Scope]
    tenant_id: str | None = None
    key_id: str | None = None
    token_id: str | None = None
    user: str | None = None
    end_user: str | None = None
    max_streams: int = 0


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What the database knows of an API key and of its tenant. `secret_sha256` is 32 bytes."""

    id: str
    tenant_id: str
    secret_sha256: bytes
    scopes: frozenset[Scope]
    revoked_at: datetime | None
    tenant_active: bool
    max_streams: int


class NotAuthenticated(Exception):  # noqa: N818 - reads as what happened
    """No credential, or none that holds. The text is public, and the same whatever was wrong with it."""

    def __init__(self, text: str = "Incorrect API key or token provided.") -> None:
        super().__init__(text)


class NotAllowed(Exception):  # noqa: N818 - reads as what happened
    """A good credential without the scope that the route asks for."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(f"This credential lacks the scope `{scope}`.")
        self.scope = scope
