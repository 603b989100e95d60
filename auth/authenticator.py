"""From a credential to a Principal.

Keys are remembered for `cache_seconds`, so a warm call does no I/O and a revoked key is refused at most
that much later (P9). Fails closed: if the database does not answer, nobody gets in.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

from auth import keys
from auth.principal import NotAuthenticated, Principal, StoredKey

if TYPE_CHECKING:
    from auth.tokens import TokenSigner

_NO_KEY_SHA256 = bytes(32)


class KeyStore(Protocol):
    """Where keys are kept."""

    async def find_key(self, key_id: str) -> StoredKey | None:
        """The key with that id, with its tenant's state, or None."""
        ...


class Clock(Protocol):
    """The two clocks: one for what is written down, one for what is measured."""

    def unix(self) -> float:
        """UTC seconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Seconds that never jump."""
        ...


class Authenticator:
    """Knows keys and tokens. One for each worker."""

    def __init__(
        self,
        store: KeyStore,
        signer: TokenSigner,
        clock: Clock,
        *,
        cache_seconds: float = 1.0,
        cache_entries: int = 10_000,
    ) -> None:
        self._store = store
        self._signer = signer
        self._clock = clock
        self._cache_seconds = cache_seconds
        self._cache_entries = cache_entries
        self._cache: OrderedDict[str, tuple[float, StoredKey | None]] = OrderedDict()

    async def principal(self, credential: str) -> Principal:
        """Who holds this API key or JWT. Raises NotAuthenticated."""
        if credential.startswith("sg_"):
            return await self._of_key(credential)
        return await self._of_token(credential)

    async def _of_key(self, credential: str) -> Principal:
        key = keys.parse(credential)
        if key is None:
            raise NotAuthenticated
        stored = await self._find(key.id)
        matches = keys.same(key, stored.secret_sha256 if stored else _NO_KEY_SHA256)
        if not matches:
            raise NotAuthenticated
        return _principal(_holding(stored))

    async def _of_token(self, credential: str) -> Principal:
        claims = self._signer.read(credential, now=self._clock.unix())
        if claims.key_id is None:
            return Principal(scopes=claims.scopes, token_id=claims.id, user=claims.user)
        stored = _holding(await self._find(claims.key_id))
        return _principal(
            stored, token_id=claims.id, end_user=claims.end_user, scopes=claims.scopes & stored.scopes
        )

    async def _find(self, key_id: str) -> StoredKey | None:
        now = self._clock.monotonic()
        entry = self._cache.get(key_id)
        if entry is not None and now - entry[0] < self._cache_seconds:
            return entry[1]
        stored = await self._store.find_key(key_id)
        self._cache[key_id] = (now, stored)
        self._cache.move_to_end(key_id)
        if len(self._cache) > self._cache_entries:
            self._cache.popitem(last=False)
        return stored


def _holding(stored: StoredKey | None) -> StoredKey:
    if stored is None or stored.revoked_at is not None or not stored.tenant_active:
        raise NotAuthenticated
    return stored


def _principal(
    stored: StoredKey,
    *,
    token_id: str | None = None,
    end_user: str | None = None,
    scopes: frozenset[str] | None = None,
) -> Principal:
    return Principal(
        scopes=stored.scopes if scopes is None else stored.scopes & scopes,
        tenant_id=stored.tenant_id,
        key_id=stored.id,
        token_id=token_id,
        end_user=end_user,
        max_streams=stored.max_streams,
    )
