"""A clock turned by hand, a store of keys that counts, and tokens made without the code under test."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from auth import keys
from auth.principal import TENANT_SCOPES, Scope, StoredKey

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "s" * 32
NOW = 1_800_000_000


class HandClock:
    """Both clocks, moved by `seconds +=`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def unix(self) -> float:
        return NOW + self.seconds

    def monotonic(self) -> float:
        return 100 + self.seconds


class CountingStore:
    """Keys in a dict. `calls` are the ids asked for; `before_answer` runs while a read is under way."""

    def __init__(self) -> None:
        self.keys: dict[str, StoredKey] = {}
        self.calls: list[str] = []
        self.before_answer: Callable[[], None] = lambda: None

    async def find_key(self, key_id: str) -> StoredKey | None:
        self.calls.append(key_id)
        found = self.keys.get(key_id)
        self.before_answer()
        return found

    def add(self, scopes: frozenset[Scope] = TENANT_SCOPES, tenant_id: str = "tn_1") -> keys.ApiKey:
        """A new key; the store knows its hash alone."""
        key = keys.mint()
        self.keys[key.id] = StoredKey(
            id=key.id,
            tenant_id=tenant_id,
            secret_sha256=key.sha256,
            scopes=scopes,
            revoked_at=None,
            tenant_active=True,
            max_streams=20,
        )
        return key

    def change(self, key: keys.ApiKey, **changes: Any) -> None:
        self.keys[key.id] = replace(self.keys[key.id], **changes)

    def revoke(self, key: keys.ApiKey) -> None:
        self.change(key, revoked_at=datetime(2026, 1, 1, tzinfo=UTC))


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forge(
    payload: bytes | dict[str, Any],
    header: bytes | dict[str, Any] | None = None,
    secret: str = SECRET,
    digest: Any = hashlib.sha256,
) -> str:
    """A token with any header and payload, signed by HMAC without a library."""
    header = {"alg": "HS256", "typ": "JWT"} if header is None else header
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    signed = ".".join(map(base64url, parts))
    return f"{signed}.{base64url(hmac.new(secret.encode(), signed.encode(), digest).digest())}"


def claims(**changes: Any) -> dict[str, Any]:
    """Claims that hold at NOW; None takes one away."""
    good = {
        "iss": "sluicegate",
        "aud": "sluicegate",
        "sub": "admin@localhost",
        "jti": "j1",
        "iat": NOW,
        "exp": NOW + 60,
        "scope": "admin",
        "user": "admin@localhost",
    }
    return {name: value for name, value in (good | changes).items() if value is not None}
