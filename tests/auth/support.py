"""A clock turned by hand, tokens made without the code under test, and a gate that reads tokens alone."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Any

from auth import jws
from auth.issuers import IssuerConfig, Issuers
from auth.tokens import ISSUER, TokenSigner
from tests.support.openid import AUDIENCE, base64url, compact

if TYPE_CHECKING:
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
