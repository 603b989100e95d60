"""JWTs of our own, by python-jose; the only file that imports it.

One algorithm is pinned (HS256), and `exp`, `iss`, `aud`, `sub` and `jti` must be there. Times are whole
UTC seconds, as RFC 7519 has them; expiry is checked against the caller's clock with no leeway.
"""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from typing import Any

from jose import jwk, jwt
from jose.exceptions import JOSEError

from auth.principal import NotAuthenticated, Scope

ALGORITHM = "HS256"
ISSUER = "sluicegate"
AUDIENCE = "sluicegate"
MAX_TOKEN_CHARACTERS = 4096
_REQUIRED = ("exp", "iat", "iss", "aud", "sub", "jti", "scope")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says. `key_id` is set when an API key bought it, `user` when an admin signed in."""

    id: str
    scopes: frozenset[Scope]
    expires_at: int
    key_id: str | None = None
    user: str | None = None
    end_user: str | None = None


class TokenSigner:
    """Signs and reads tokens with one secret."""

    def __init__(self, secret: str) -> None:
        # As a JWK, because python-jose takes a text that looks like JSON or like a PEM file for a key file.
        octets = base64.urlsafe_b64encode(secret.encode()).rstrip(b"=").decode()
        self._key = jwk.construct({"kty": "oct", "k": octets}, ALGORITHM)

    def sign(
        self,
        *,
        now: float,
        ttl_seconds: int,
        scopes: frozenset[Scope],
        key_id: str | None = None,
        user: str | None = None,
        end_user: str | None = None,
    ) -> str:
        """A token that holds from `now` (UTC seconds) for `ttl_seconds`."""
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": user or key_id,
            "jti": secrets.token_urlsafe(12),
            "iat": int(now),
            "exp": int(now) + ttl_seconds,
            "scope": " ".join(sorted(scopes)),
        }
        extra = {"key": key_id, "user": user, "end_user": end_user}
        claims |= {name: value for name, value in extra.items() if value is not None}
        return str(jwt.encode(claims, self._key, algorithm=ALGORITHM))

    def read(self, token: str, *, now: float) -> Claims:
        """The claims of a token that holds at `now`. Raises NotAuthenticated for any other."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise NotAuthenticated
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                # jose would read the wall clock: expiry is checked below, against ours.
                options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
            )
            if any(name not in claims for name in _REQUIRED) or "nbf" in claims:
                raise NotAuthenticated
            if not (isinstance(claims["exp"], int) and now < claims["exp"]):
                raise NotAuthenticated
            return Claims(
                id=_text(claims["jti"]),
                scopes=frozenset(Scope(word) for word in _text(claims["scope"]).split()),
                expires_at=claims["exp"],
                key_id=_text(claims["key"]) if "key" in claims else None,
                user=_text(claims["user"]) if "user" in claims else None,
                end_user=_text(claims["end_user"]) if "end_user" in claims else None,
            )
        except (JOSEError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise NotAuthenticated from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
