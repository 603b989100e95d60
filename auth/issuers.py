"""Tokens of the company's own identity providers: whom we trust, for what, and what their words mean here.

Each issuer is bound to its own keys and its own algorithms (RFC 8725, 3.1 and 3.8), may give no more than its
`grants`, and says in claims of its choosing which tenant and which end user is calling. Fails closed: what a
token says in a shape that is not expected is refused, not left out. `docs/issuers.md` is for operators.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from auth import jws
from auth.jwks import KeySet
from auth.principal import TENANT_SCOPES, NotAuthenticated, Scope
from auth.tokens import ISSUER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from auth.memory import Clock

MAX_LIFETIME_SECONDS = 86_400
"""No token is accepted that lives longer, so that a revocation can be forgotten (auth.memory)."""
MAX_SKEW_SECONDS = 300

_MAX_TENANT_CHARACTERS = 200
_MAX_END_USER_CHARACTERS = 200
_MAX_TOKEN_ID_CHARACTERS = 128

Text = Annotated[str, StringConstraints(min_length=1, max_length=512)]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class IssuerConfig(BaseModel):
    """One identity provider whose tokens are accepted. Frozen; the texts of its errors hold no value.

    Names of claims are found as they are first (`https://acme.com/tenant`), then as paths into nested
    objects (`realm_access.roles`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    issuer: Text
    audience: Annotated[tuple[Text, ...], BeforeValidator(_listed), Field(min_length=1)]
    algorithms: Annotated[tuple[jws.Algorithm, ...], Field(min_length=1)] = ("RS256",)
    jwks_url: Text | None = None
    public_key: str | None = None
    secret: Annotated[SecretStr, Field(min_length=32)] | None = None
    tenant_claim: Text = "tenant"
    tenant: Annotated[str, Field(min_length=1, max_length=_MAX_TENANT_CHARACTERS)] | None = None
    scope_claim: Text = "scope"
    scope_map: dict[str, Scope] = {}
    grants: frozenset[Scope] = TENANT_SCOPES
    default_scopes: frozenset[Scope] = frozenset()
    end_user_claim: Text | None = "sub"
    clock_skew_seconds: Annotated[int, Field(strict=True, ge=0, le=MAX_SKEW_SECONDS)] = 60
    max_lifetime_seconds: Annotated[int, Field(strict=True, ge=1, le=MAX_LIFETIME_SECONDS)] = (
        MAX_LIFETIME_SECONDS
    )

    @field_validator("issuer")
    @classmethod
    def _is_not_ours(cls, issuer: str) -> str:
        if issuer.casefold() == ISSUER:
            raise ValueError("this is the gateway's own name")
        return issuer

    @field_validator("jwks_url")
    @classmethod
    def _cannot_be_overheard(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is not None:
            _check_url(url)
            if any(name.startswith("HS") for name in info.data.get("algorithms", ())):
                raise ValueError("HS* need a secret")
        return url

    @field_validator("public_key")
    @classmethod
    def _fits_the_algorithms(cls, public_key: str | None, info: ValidationInfo) -> str | None:
        if public_key is not None:
            _keys_of(public_key, info.data.get("algorithms", ()))
        return public_key

    @field_validator("secret")
    @classmethod
    def _is_long_enough(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if secret is not None:
            _keys_of(secret.get_secret_value().encode(), info.data.get("algorithms", ()))
        return secret

    @field_validator("default_scopes")
    @classmethod
    def _are_granted(cls, scopes: frozenset[Scope], info: ValidationInfo) -> frozenset[Scope]:
        if not scopes <= info.data.get("grants", scopes):
            raise ValueError("has a scope that grants has not")
        return scopes

    @model_validator(mode="after")
    def _says_all_once(self) -> Self:
        if sum(source is not None for source in (self.jwks_url, self.public_key, self.secret)) != 1:
            raise ValueError("exactly one of jwks_url, public_key and secret has to be there")
        if self.tenant is not None and "tenant_claim" in self.model_fields_set:
            raise ValueError("only one of tenant and tenant_claim can be there")
        if self.tenant is not None and Scope.ADMIN in self.grants:
            raise ValueError("an issuer for one tenant cannot grant admin, which decides for all")
        return self


@dataclass(frozen=True, slots=True)
class ForeignClaims:
    """What a token of another issuer says, in words of ours.

    `tenant` is what the issuer calls it; None only where `scopes` contain ADMIN. `issued_at` is whole UTC
    seconds. From the UTC second `expires_at` on it is refused: the clock skew is already in it.
    """

    issuer: str
    tenant: str | None
    scopes: frozenset[Scope]
    end_user: str | None
    token_id: str
    issued_at: int
    expires_at: int


class Issuers:
    """All identity providers that are trusted. One for each worker.

    `fetch` returns the body behind a URL, see `auth.jwks.KeySet`.
    """

    def __init__(
        self, configs: Iterable[IssuerConfig], fetch: Callable[[str], Awaitable[bytes]], clock: Clock
    ) -> None:
        configs = tuple(configs)
        _check_unique(configs)
        self._clock = clock
        self._issuers = {config.issuer: _Issuer(config, fetch, clock) for config in configs}

    @property
    def has_key_sets(self) -> bool:
        """Whether there is anything to refresh."""
        return any(issuer.key_set is not None for issuer in self._issuers.values())

    async def read(self, token: str, peeked: jws.Peeked) -> ForeignClaims:
        """The claims of a token that holds now. Raises NotAuthenticated for any other."""
        issuer = self._issuers.get(peeked.issuer or "")
        if issuer is None or peeked.algorithm not in issuer.config.algorithms:
            raise NotAuthenticated
        key = await issuer.key(peeked)
        if key is None:
            raise NotAuthenticated
        claims = jws.verify(token, key)
        try:
            return _read(claims, issuer.config, token, self._clock.unix())
        except ValueError:
            raise NotAuthenticated from None

    async def refresh(self) -> None:
        """Fetch the key sets that are due, all at one time. For a loop in the background."""
        async with asyncio.TaskGroup() as group:
            for issuer in self._issuers.values():
                if issuer.key_set is not None:
                    group.create_task(issuer.key_set.refresh_if_due())


def load_issuers(text: str) -> tuple[IssuerConfig, ...]:
    """The issuers of a JSON document: a list of them, or an object with the list as `issuers`.

    Raises ValueError. Its text names the entry and the field, never a value: some are secret.
    """
    document = jws.load_json(text)
    if isinstance(document, dict) and document.keys() == {"issuers"}:
        document = document["issuers"]
    if not isinstance(document, list):
        raise ValueError('issuers: a list is wanted, or {"issuers": [...]}')  # noqa: TRY004 - one kind of error
    configs = tuple(_load(entry, f"issuers[{position}]") for position, entry in enumerate(document))
    _check_unique(configs)
    return configs


def _load(entry: Any, name: str) -> IssuerConfig:
    try:
        return IssuerConfig.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # Only the field: what stands deeper in the place of a fault may be a key of the operator's own map.
    field = f".{first['loc'][0]}" if first["loc"] else ""
    raise ValueError(f"{name}{field}: {first['msg'].removeprefix('Value error, ')}")


def _check_unique(configs: Sequence[IssuerConfig]) -> None:
    names = [config.issuer for config in configs]
    for position, name in enumerate(names):
        if name in names[:position]:
            raise ValueError(f"issuers[{position}].issuer: the same as of issuers[{names.index(name)}]")


def _keys_of(material: str | bytes, algorithms: Iterable[str]) -> dict[str, jws.VerificationKey]:
    return {algorithm: jws.key_of(material, algorithm) for algorithm in algorithms}


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.username is not None or parts.password is not None or parts.fragment or not host:
        raise ValueError("a URL with a host is wanted, without a user, a password and a fragment")
    local = host == "localhost" or is_loopback(host)
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise ValueError("https is wanted (http on loopback alone)")


def is_loopback(address: str) -> bool:
    """Whether it is an IP address of this machine alone; a name is none."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class _Issuer:
    """An issuer's config with its keys: its own key set, or the one key that the config holds."""

    def __init__(self, config: IssuerConfig, fetch: Callable[[str], Awaitable[bytes]], clock: Clock) -> None:
        self.config = config
        self.key_set: KeySet | None = None
        self._keys: dict[str, jws.VerificationKey] = {}
        if config.jwks_url is not None:
            self.key_set = KeySet(config.jwks_url, fetch, config.algorithms, clock)
            return
        material: str | bytes | None = config.public_key
        if config.secret is not None:
            material = config.secret.get_secret_value().encode()
        if material is not None:
            self._keys = _keys_of(material, config.algorithms)

    async def key(self, peeked: jws.Peeked) -> jws.VerificationKey | None:
        """The key that has to have signed the token."""
        if self.key_set is not None:
            return await self.key_set.find(peeked.kid, peeked.algorithm)
        return self._keys.get(peeked.algorithm)


def _read(claims: dict[str, Any], config: IssuerConfig, token: str, now: float) -> ForeignClaims:
    """The claims in words of ours. Raises ValueError."""
    if claims.get("iss") != config.issuer:
        raise ValueError("another issuer")
    _check_audience(claims.get("aud"), config)
    expires_at, issued_at = _check_times(claims, config, now)
    scopes = _scopes(claims, config)
    return ForeignClaims(
        issuer=config.issuer,
        tenant=_tenant(claims, config, scopes),
        scopes=scopes,
        end_user=_end_user(claims, config),
        token_id=_token_id(claims, token),
        issued_at=issued_at,
        expires_at=expires_at,
    )


def _check_audience(audience: object, config: IssuerConfig) -> None:
    """RFC 7519, 4.1.3: a text, or a list of them; one of them has to be ours."""
    named = audience if isinstance(audience, list) else [audience]
    if not all(isinstance(name, str) for name in named) or not set(named) & set(config.audience):
        raise ValueError("for somebody else")


def _check_times(claims: dict[str, Any], config: IssuerConfig, now: float) -> tuple[int, int]:
    """When it stops being accepted and when it was issued, in whole UTC seconds (RFC 7519, 4.1.4 to 4.1.6).

    `iat` must be there (OpenID Connect Core, 2; RFC 9068, 2.2), because the longest life counts from it: a
    token that lives longer would be accepted on its last day, when a revocation of it is long forgotten.
    """
    skew, expires_at = config.clock_skew_seconds, _seconds(claims.get("exp"))
    issued_at = _seconds(claims.get("iat"))
    not_before = _seconds(claims["nbf"]) if "nbf" in claims else 0
    if now >= expires_at + skew or now + skew < not_before or now + skew < issued_at:
        raise ValueError("not now")
    if expires_at > issued_at + config.max_lifetime_seconds:
        raise ValueError("for too long")
    return math.ceil(expires_at + skew), int(issued_at)


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ValueError("no time")
    return value


def _scopes(claims: dict[str, Any], config: IssuerConfig) -> frozenset[Scope]:
    """Never more than `grants`. Words that mean nothing here are none.

    Where there is a map, its words alone count: an issuer's own `admin` may mean something else.
    """
    value = _claim(claims, config.scope_claim)
    if value is None:
        return config.default_scopes
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("scopes in a shape that is not known")
    meaning = config.scope_map or {scope.value: scope for scope in Scope}
    return frozenset(meaning[word] for word in words if word in meaning) & config.grants


def _tenant(claims: dict[str, Any], config: IssuerConfig, scopes: frozenset[Scope]) -> str | None:
    if config.tenant is not None:
        return config.tenant
    value = _claim(claims, config.tenant_claim)
    if value is None and Scope.ADMIN in scopes:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return _text(value, _MAX_TENANT_CHARACTERS)


def _end_user(claims: dict[str, Any], config: IssuerConfig) -> str | None:
    value = None if config.end_user_claim is None else _claim(claims, config.end_user_claim)
    return None if value is None else _text(value, _MAX_END_USER_CHARACTERS)


def _token_id(claims: dict[str, Any], token: str) -> str:
    """The `jti`; without one, a digest of what was signed.

    Not of the signature: one of ECDSA can be turned into another good one by anybody, which would make the
    same token a new one that nobody has revoked.
    """
    if "jti" in claims:
        return _text(claims["jti"], _MAX_TOKEN_ID_CHARACTERS)
    signed = token.rpartition(".")[0]
    return f"sha256:{hashlib.sha256(signed.encode()).hexdigest()[:32]}"


def _claim(claims: dict[str, Any], name: str) -> Any:
    """The claim of that name, or what the path leads to; None where there is nothing, or null."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _text(value: object, max_characters: int) -> str:
    if not isinstance(value, str) or not jws.is_printable(value, max_characters):
        raise ValueError("no printable text of that length")
    return value
