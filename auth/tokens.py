"""Tokens of our own: what `/auth/tokens` and `/auth/login` hand out.

One algorithm is pinned (HS256), and `exp`, `iat`, `iss`, `aud`, `sub`, `jti` and `scope` must be there. A
claim that is not known is refused: a newer worker may have meant it as a limit. Times are whole UTC seconds
(RFC 7519, 2); expiry is checked against the caller's clock with no leeway, because both ends are ours.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from auth import jws
from auth.principal import NotAuthenticated, Scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ALGORITHM = "HS256"
ISSUER = "sluicegate"
AUDIENCE = "sluicegate"

_REQUIRED = frozenset({"exp", "iat", "iss", "aud", "sub", "jti", "scope"})
_OPTIONAL = frozenset({"key", "user", "end_user", "models", "max_streams", "max_tokens", "proof"})
_MAX_INTEGER = 2**53 - 1  # RFC 8259, 6: what every reader of JSON takes for the same number


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says.

    `key_id` is set when an API key bought it, `user` when an admin signed in. `issued_at` and `expires_at`
    are whole UTC seconds. `models` are patterns, None for all; `max_streams` is how many streams it may have
    at one time, `max_tokens` how many tokens it may use in its life; None for no limit of its own. `proof` is
    the fingerprint of what it was got with, a key's secret or an admin's password: it ends with that.
    """

    id: str
    scopes: frozenset[Scope]
    issued_at: int
    expires_at: int
    key_id: str | None = None
    user: str | None = None
    end_user: str | None = None
    models: tuple[str, ...] | None = None
    max_streams: int | None = None
    max_tokens: int | None = None
    proof: str | None = None


@dataclass(frozen=True, slots=True)
class SignedToken:
    """A token that was just made. `id` is its `jti`; from the UTC second `expires_at` on it is refused."""

    text: str = field(repr=False)
    id: str
    expires_at: int


class TokenSigner:
    """Signs with one secret, reads with that and the retired ones.

    A secret is replaced by making it `retired` for as long as the longest token lives. Secrets have at least
    32 bytes (RFC 7518, 3.2).
    """

    def __init__(self, secret: str, retired: Sequence[str] = ()) -> None:
        self._kid = _kid(secret)
        self._keys = {_kid(text): jws.key_of(text.encode(), ALGORITHM) for text in (secret, *retired)}

    def sign(
        self,
        *,
        now: float,
        ttl_seconds: int,
        scopes: Iterable[Scope],
        key_id: str | None = None,
        user: str | None = None,
        end_user: str | None = None,
        models: Sequence[str] | None = None,
        max_streams: int | None = None,
        max_tokens: int | None = None,
        proof: str | None = None,
    ) -> SignedToken:
        """A token that holds from `now` (UTC seconds) for `ttl_seconds`.

        Raises ValueError for what `read` would refuse.
        """
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": user or key_id,
            "jti": secrets.token_urlsafe(12),
            "iat": int(now),
            "exp": int(now) + ttl_seconds,
            "scope": " ".join(sorted(scopes)),
        }
        optional = {
            "key": key_id,
            "user": user,
            "end_user": end_user,
            "models": None if models is None else list(models),
            "max_streams": max_streams,
            "max_tokens": max_tokens,
            "proof": proof,
        }
        claims |= {name: value for name, value in optional.items() if value is not None}
        meant = _read(claims, now)
        text = jws.sign(claims, self._keys[self._kid], self._kid)
        if len(text) > jws.MAX_TOKEN_CHARACTERS:
            raise ValueError("the token would be too long")
        return SignedToken(text, meant.id, meant.expires_at)

    def read(self, token: str, *, now: float) -> Claims:
        """The claims of a token that holds at `now`. Raises NotAuthenticated for any other."""
        key = self._keys.get(jws.peek(token).kid or "")
        if key is None:
            raise NotAuthenticated
        try:
            return _read(jws.verify(token, key), now)
        except ValueError:
            raise NotAuthenticated from None


def _kid(secret: str) -> str:
    """A name for the secret that does not tell it."""
    return hashlib.sha256(b"sluicegate token key\0" + secret.encode()).hexdigest()[:16]


def _read(claims: dict[str, Any], now: float) -> Claims:
    """The claims in words of ours. Raises ValueError."""
    if not _REQUIRED <= claims.keys() <= _REQUIRED | _OPTIONAL:
        raise ValueError("claims that are missing, or not known")
    audience = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
    if claims["iss"] != ISSUER or AUDIENCE not in audience:
        raise ValueError("not a token of ours")
    expires_at = _number(claims["exp"])
    if now >= expires_at:
        raise ValueError("expired")
    _text(claims["sub"])
    return Claims(
        id=_text(claims["jti"]),
        scopes=frozenset(Scope(word) for word in _text(claims["scope"]).split()),
        issued_at=_number(claims["iat"], least=0),
        expires_at=expires_at,
        key_id=_text(claims["key"]) if "key" in claims else None,
        user=_text(claims["user"]) if "user" in claims else None,
        end_user=_text(claims["end_user"]) if "end_user" in claims else None,
        models=_texts(claims["models"]) if "models" in claims else None,
        max_streams=_number(claims["max_streams"]) if "max_streams" in claims else None,
        max_tokens=_number(claims["max_tokens"]) if "max_tokens" in claims else None,
        proof=_text(claims["proof"]) if "proof" in claims else None,
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("not text")  # noqa: TRY004 - one kind of error
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("not a list of texts")
    return tuple(map(_text, value))


def _number(value: object, *, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MAX_INTEGER:
        raise ValueError("not a number in its range")
    return value
