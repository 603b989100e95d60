"""A clock turned by hand, a store of keys that counts, and tokens made without the code under test."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from auth import jws, keys
from auth.issuers import IssuerConfig, Issuers
from auth.principal import TENANT_SCOPES, Scope, StoredKey
from auth.tokens import ISSUER, TokenSigner
from tests.support.openid import AUDIENCE, base64url, compact

if TYPE_CHECKING:
    from collections.abc import Callable

    from auth.issuers import ForeignClaims
    from auth.tokens import Claims
    from tests.support.openid import KeyRing

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


def kid_of(secret: str) -> str:
    """The name that the gate gives to a secret of its own."""
    return hashlib.sha256(b"sluicegate token key\0" + secret.encode()).hexdigest()[:16]


def forge(
    payload: bytes | dict[str, Any],
    header: bytes | dict[str, Any] | None = None,
    secret: str = SECRET,
    digest: Any = hashlib.sha256,
) -> str:
    """A token with any header and payload, signed by HMAC without a library.

    A header that is a dict is laid over a good one, which names the key of SECRET; None takes a member away.
    """
    if not isinstance(header, bytes):
        good = {"alg": "HS256", "typ": "JWT", "kid": kid_of(SECRET)}
        header = {name: value for name, value in (good | (header or {})).items() if value is not None}
    signed = compact(header, payload)
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


class TokenGate:
    """Peeks, chooses and reads as the authenticator does. `asked` are the URLs that were fetched.

    It trusts SECRET, and providers by the URL of their keys: pinned to the algorithm that they sign with.
    """

    def __init__(self, providers: dict[str, KeyRing], **config: Any) -> None:
        self.asked: list[str] = []
        self.clock = HandClock()
        self.signer = TokenSigner(SECRET)
        self.providers = providers
        configs = [self._config(url, ring, config) for url, ring in providers.items()]
        self.issuers = Issuers(configs, self._fetch, self.clock)

    async def admit(self, token: str) -> Claims | ForeignClaims:
        peeked = jws.peek(token)
        if peeked.issuer == ISSUER:
            return self.signer.read(token, now=self.clock.unix())
        return await self.issuers.read(token, peeked)

    def _config(self, url: str, ring: KeyRing, config: dict[str, Any]) -> IssuerConfig:
        pinned = [ring.keys[ring.signs].algorithm]
        entry = {"issuer": ring.issuer, "audience": AUDIENCE, "jwks_url": url, "algorithms": pinned}
        return IssuerConfig.model_validate(entry | config)

    async def _fetch(self, url: str) -> bytes:
        self.asked.append(url)
        return self.providers[url].document()
