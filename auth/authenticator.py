"""From a credential to a Principal: API keys, our own tokens, tokens of the company's identity provider.

Warm calls do no I/O (auth.memory); a token's signature is checked once and remembered. Fails closed: if the
accounts do not answer, nobody gets in. Whatever is wrong with a credential, the answer is the same.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from auth import jws, keys
from auth.issuers import ForeignClaims
from auth.memory import put
from auth.principal import (
    Limit,
    NotAllowed,
    NotAuthenticated,
    Principal,
    Scope,
    StoredKey,
    StoredTenant,
    fingerprint,
    limits_of_user,
)
from auth.tokens import ISSUER

if TYPE_CHECKING:
    from collections.abc import Callable

    from auth.door import Door
    from auth.issuers import Issuers
    from auth.memory import Clock, Memory
    from auth.principal import StoredUser
    from auth.tokens import Claims, TokenSigner

_NO_SECRET_SHA256 = bytes(32)
_NOBODY = StoredKey("", StoredTenant("", active=False, max_streams=0), _NO_SECRET_SHA256, frozenset())
"""What a secret is compared with where there is no such key: the work is the same."""
_VERIFIED_ENTRIES = 10_000
_VERIFIED_SECONDS = 30.0
"""How long a checked signature is believed: a key that an identity provider withdraws counts no longer."""


class UnknownKey(NotAuthenticated):
    """A well-formed key that there is not: it had to be looked up."""


class Authenticator:
    """Knows keys and tokens. One for each worker."""

    def __init__(
        self, memory: Memory, signer: TokenSigner, issuers: Issuers, door: Door, clock: Clock
    ) -> None:
        self.memory = memory
        self._signer = signer
        self._issuers = issuers
        self._door = door
        self._clock = clock
        self._used: dict[str, datetime] = {}
        self._verified: OrderedDict[bytes, tuple[float, Claims | ForeignClaims]] = OrderedDict()

    async def principal(self, credential: str, address: str) -> Principal:
        """Who holds this API key or JWT, calling from `address`.

        Raises NotAuthenticated, NotAllowed (a key that may not be used from there), TooManyFailures.
        """
        await self.memory.current()
        as_of = self.memory.version
        try:
            if credential.startswith("sg_"):
                return await self._of_key(credential, address, as_of)
            return await self._of_token(credential, as_of)
        except UnknownKey:
            self._door.failed(address)
            raise NotAuthenticated from None

    async def again(self, principal: Principal) -> Principal:
        """The principal, with the end that it has now. Raises NotAuthenticated where it holds no more.

        What else was changed of its key, such as its scopes or its caps, is for its next request.
        """
        await self.memory.current()
        as_of, now = self.memory.version, self._clock.unix()
        until = principal.expires_at
        if principal.key_id is not None:
            key = _holding(await self.memory.key(principal.key_id), now)
            until = _earlier(_earlier(until, _unix(key.expires_at)), _end_of_proof(key, principal.proof))
        elif principal.tenant_id is not None:
            _active(await self.memory.tenant(principal.tenant_id))
        elif principal.proof is not None:
            _signed_in(await self.memory.user(principal.user or ""), principal.proof)
        if principal.token_id is not None and self.memory.revoked(principal.tenant_id, principal.token_id):
            raise NotAuthenticated
        if until is not None and now >= until:
            raise NotAuthenticated
        return replace(principal, expires_at=until, as_of=as_of)

    async def confirm(self, principal: Principal) -> None:
        """Whether it still holds, some time after it was decided. Raises NotAuthenticated."""
        await self.memory.current()
        until = principal.expires_at
        if principal.as_of != self.memory.version or (until is not None and self._clock.unix() >= until):
            await self.again(principal)

    def take_used(self) -> dict[str, datetime]:
        """Which keys were used, and when last, since this was last asked."""
        used, self._used = self._used, {}
        return used

    # --- keys -----------------------------------------------------------------------------------

    async def _of_key(self, credential: str, address: str, as_of: int) -> Principal:
        key = keys.parse(credential)
        if key is None:
            raise NotAuthenticated
        stored = await self._stored(key.id, address)
        now, sent = self._clock.unix(), key.sha256

        def is_it(kept: bytes) -> bool:
            return keys.same(sent, kept)

        try:
            end = _end_of_secret(stored or _NOBODY, is_it)
        except NotAuthenticated:  # perhaps it was rotated on another worker a moment ago
            await self.memory.doubt()
            stored = await self._stored(key.id, address)
            end = _end_of_secret(stored or _NOBODY, is_it)
        stored = _holding(stored, now)
        if end is not None and now >= end:
            raise NotAuthenticated
        if not stored.allows(address):
            raise NotAllowed("This key may not be used from your address.", "address_not_allowed")
        self._used[stored.id] = datetime.fromtimestamp(now, UTC)
        until = _earlier(_unix(stored.expires_at), end)
        return _of_stored(stored, expires_at=until, proof=fingerprint(sent), as_of=as_of)

    async def _stored(self, key_id: str, address: str) -> StoredKey | None:
        return await self.memory.key(key_id, asker=address, guard=lambda: self._door.open_for(address))

    # --- tokens ---------------------------------------------------------------------------------

    async def _of_token(self, credential: str, as_of: int) -> Principal:
        claims = await self._claims(credential)
        await self.memory.current()  # again: an identity provider may have taken its time
        if isinstance(claims, ForeignClaims):
            found = await self._of_foreign(claims, as_of)
        elif claims.key_id is not None:
            found = await self._of_bought(claims, claims.key_id, as_of)
        else:
            found = await self._of_user(claims, as_of)
        if found.token_id is not None and self.memory.revoked(found.tenant_id, found.token_id):
            raise NotAuthenticated
        return found

    async def _claims(self, credential: str) -> Claims | ForeignClaims:
        digest, now = hashlib.sha256(credential.encode(errors="replace")).digest(), self._clock.monotonic()
        at, claims = self._verified.get(digest, (0.0, None))
        if claims is None or now - at >= _VERIFIED_SECONDS or self._clock.unix() >= claims.expires_at:
            peeked = jws.peek(credential)
            if peeked.issuer == ISSUER:
                claims = self._signer.read(credential, now=self._clock.unix())
            else:
                claims = await self._issuers.read(credential, peeked)
            at = now
        put(self._verified, digest, (at, claims), _VERIFIED_ENTRIES)
        return claims

    async def _of_user(self, claims: Claims, as_of: int) -> Principal:
        user = _signed_in(await self.memory.user(claims.user) if claims.user else None, claims.proof)
        return Principal(
            scopes=claims.scopes,
            token_id=claims.id,
            user=user.email,
            expires_at=claims.expires_at,
            proof=claims.proof,
            as_of=as_of,
        )

    async def _of_bought(self, claims: Claims, key_id: str, as_of: int) -> Principal:
        stored = _holding(await self.memory.key(key_id), self._clock.unix())
        until = _earlier(_unix(stored.expires_at), _end_of_proof(stored, claims.proof))
        if until is not None and self._clock.unix() >= until:
            raise NotAuthenticated
        return _of_stored(
            stored,
            scopes=stored.scopes & claims.scopes,
            token_id=claims.id,
            end_user=claims.end_user,
            limits=_limits_of(stored.tenant, claims.end_user, *stored.limits, *_limits_of_token(claims)),
            models=tuple(models for models in (stored.models, claims.models) if models is not None),
            expires_at=_earlier(until, claims.expires_at),
            proof=claims.proof,
            as_of=as_of,
        )

    async def _of_foreign(self, claims: ForeignClaims, as_of: int) -> Principal:
        if claims.tenant is None:  # an admin: auth.issuers has seen to it
            return Principal(
                scopes=claims.scopes & {Scope.ADMIN},
                token_id=claims.token_id,
                user=f"{claims.end_user or claims.token_id} of {claims.issuer}",
                expires_at=claims.expires_at,
                as_of=as_of,
            )
        tenant = _active(await self.memory.tenant(claims.tenant))
        return Principal(
            scopes=claims.scopes - {Scope.ADMIN},  # who belongs to a tenant does not decide for others
            tenant_id=tenant.id,
            token_id=claims.token_id,
            end_user=claims.end_user,
            limits=_limits_of(tenant, claims.end_user),
            terms=tenant.terms,
            default_model=tenant.default_model,
            expires_at=claims.expires_at,
            as_of=as_of,
        )


def _active(tenant: StoredTenant | None) -> StoredTenant:
    if tenant is None or not tenant.active:
        raise NotAuthenticated
    return tenant


def _holding(stored: StoredKey | None, now: float) -> StoredKey:
    if stored is None or stored.revoked_at is not None or not stored.tenant.active:
        raise NotAuthenticated
    if stored.expires_at is not None and now >= stored.expires_at.timestamp():
        raise NotAuthenticated
    return stored


def _signed_in(user: StoredUser | None, proof: str | None) -> StoredUser:
    if user is None or not hmac.compare_digest(proof or "", fingerprint(user.password_hash)):
        raise NotAuthenticated
    return user


def _end_of_secret(stored: StoredKey, is_it: Callable[[bytes], bool]) -> float | None:
    """Until when a secret holds: None for no end. Raises NotAuthenticated for a wrong one.

    Two hashes are compared whatever is stored.
    """
    current = is_it(stored.secret_sha256)
    previous = is_it(stored.previous_sha256 or _NO_SECRET_SHA256)
    if current:
        return None
    if not previous or stored.previous_until is None:
        raise NotAuthenticated if stored is not _NOBODY else UnknownKey
    return stored.previous_until.timestamp()


def _end_of_proof(stored: StoredKey, proof: str | None) -> float | None:
    """The same for the fingerprint of a secret; whoever has none stands on the key alone."""
    if proof is None:
        return None
    return _end_of_secret(stored, lambda kept: hmac.compare_digest(proof, fingerprint(kept)))


def _limits_of(tenant: StoredTenant, end_user: str | None, *narrower: Limit) -> tuple[Limit, ...]:
    return (*tenant.limits, *narrower, *limits_of_user(tenant.terms, end_user))


def _limits_of_token(claims: Claims) -> tuple[Limit, ...]:
    amounts = {"max_streams": claims.max_streams, "tokens_in_all": claims.max_tokens}
    return tuple(
        Limit("token", claims.id, amount, name) for name, amount in amounts.items() if amount is not None
    )


def _of_stored(stored: StoredKey, **more: Any) -> Principal:
    """Whoever acts for the key; `more` is what a token says otherwise."""
    fields: dict[str, Any] = {
        "scopes": stored.scopes,
        "tenant_id": stored.tenant.id,
        "key_id": stored.id,
        "limits": _limits_of(stored.tenant, None, *stored.limits),
        "terms": stored.tenant.terms,
        "models": () if stored.models is None else (stored.models,),
        "default_model": stored.tenant.default_model,
    }
    return Principal(**(fields | more))


def _unix(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()


def _earlier(one: float | None, other: float | None) -> float | None:
    return min((at for at in (one, other) if at is not None), default=None)
