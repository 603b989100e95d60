"""Request and response models of accounts: tenants, keys, tokens, the audit log. Times are UTC."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

from fastapi import Path
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from api.accounts import KeyFields, TenantFields
from api.schema import PRINTABLE, ModelName, Name
from api.schema_limits import EndUserLimits, Limits, LimitsOut, MaxWaiters, MaxWaitSeconds, Streams, Weight
from auth.principal import TENANT_SCOPES, Scope

MAX_LIST = 200
MAX_METADATA = 50
_MAPPED_BITS = 96  # ::ffff:0:0/96 is IPv4 written as IPv6: RFC 4291, 2.5.5.2

_OUT = ConfigDict(from_attributes=True)


def _zone(name: str) -> str:
    if name not in _zones():
        raise ValueError("must be an IANA time zone, such as Europe/Berlin")
    return name


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _network(text: str) -> str:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("must be an IP address, or a network such as 10.0.0.0/8") from None
    mapped = network.network_address.ipv4_mapped if isinstance(network, ipaddress.IPv6Network) else None
    if mapped is not None and network.prefixlen >= _MAPPED_BITS:  # as callers' addresses are compared
        return str(ipaddress.ip_network((int(mapped), network.prefixlen - _MAPPED_BITS)))
    return str(network)


def _utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise ValueError("must be a moment that UTC has") from None


def _distinct(values: list[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _no_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


def _wild_at_the_end(pattern: str) -> str:
    if "*" in pattern[:-1]:
        raise ValueError("may have a `*` at its end alone")
    return pattern


def _not_none(value: Any) -> Any:
    """For a patch: leaving a field out changes nothing, and null is no value that it could have."""
    if value is None:
        raise ValueError("must not be null; leave it out to leave it as it is")
    return value


TenantId = Annotated[str, Path(max_length=40, pattern=PRINTABLE)]
StreamId = Annotated[str, Path(max_length=40, pattern=PRINTABLE)]
KeyId = Annotated[str, Path(max_length=40, pattern=PRINTABLE)]
TOKEN_ID = r"^[\x21-\x7e]{1,128}$"  # noqa: S105 - a pattern
TokenId = Annotated[str, Path(pattern=TOKEN_ID)]
TimeZone = Annotated[str, Field(max_length=64), AfterValidator(_zone)]
Label = Annotated[str, Field(min_length=1, max_length=200, pattern=PRINTABLE)]
Title = Annotated[Name, AfterValidator(_no_blank)]
Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=40)], Annotated[str, Field(max_length=500)]],
    Field(max_length=MAX_METADATA),
]
Pattern = Annotated[ModelName, Field(min_length=1), AfterValidator(_wild_at_the_end)]
Models = Annotated[list[Pattern], Field(min_length=1, max_length=MAX_LIST), AfterValidator(_distinct)]
Scopes = Annotated[list[Scope], Field(min_length=1), AfterValidator(_distinct)]
Network = Annotated[str, Field(max_length=64), AfterValidator(_network)]
Networks = Annotated[list[Network], Field(max_length=MAX_LIST), AfterValidator(_distinct)]
Moment = Annotated[AwareDatetime, AfterValidator(_utc)]


ResumeMinutes = Annotated[int, Field(strict=True, ge=0, le=1440)]


class TenantIn(BaseModel):
    """A new tenant."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"name": "Acme"}})

    name: Title
    max_streams: Streams | None = None
    external_id: Label | None = None
    default_model: ModelName | None = None
    time_zone: TimeZone = "UTC"
    metadata: Metadata = {}
    limits: Limits = Limits()
    end_user_limits: EndUserLimits = EndUserLimits()
    max_waiters: MaxWaiters = 0
    max_wait_seconds: MaxWaitSeconds = 30
    weight: Weight = 1
    resume_minutes: ResumeMinutes = 0

    def fields(self, default_max_streams: int) -> TenantFields:
        """What to create."""
        decided = {
            "max_streams": self.max_streams or default_max_streams,
            "limits": self.limits.stored(),
            "end_user_limits": self.end_user_limits.stored(),
        }
        return TenantFields(**self.model_dump() | decided)


class TenantPatch(BaseModel):
    """What to change of a tenant; fields that are left out stay as they are, also those of its limits."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"max_streams": 50, "limits": {"tokens_per_day": 1_000_000}}},
    )

    name: Annotated[Title | None, AfterValidator(_not_none)] = None
    max_streams: Annotated[Streams | None, AfterValidator(_not_none)] = None
    external_id: Label | None = None
    default_model: ModelName | None = None
    time_zone: Annotated[TimeZone | None, AfterValidator(_not_none)] = None
    metadata: Annotated[Metadata | None, AfterValidator(_not_none)] = None
    limits: Annotated[Limits | None, AfterValidator(_not_none)] = None
    end_user_limits: Annotated[EndUserLimits | None, AfterValidator(_not_none)] = None
    max_waiters: Annotated[MaxWaiters | None, AfterValidator(_not_none)] = None
    max_wait_seconds: Annotated[MaxWaitSeconds | None, AfterValidator(_not_none)] = None
    weight: Annotated[Weight | None, AfterValidator(_not_none)] = None
    resume_minutes: Annotated[ResumeMinutes | None, AfterValidator(_not_none)] = None


class TenantOut(BaseModel):
    """A tenant."""

    model_config = _OUT

    id: str
    name: str
    state: Literal["active", "suspended", "deleted"]
    max_streams: int
    external_id: str | None
    default_model: str | None
    time_zone: str
    metadata: dict[str, str]
    limits: LimitsOut
    end_user_limits: LimitsOut
    max_waiters: int
    max_wait_seconds: int
    weight: int
    resume_minutes: int
    created_at: datetime


class KeyIn(BaseModel):
    """A new key."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"name": "web", "scopes": ["chat"], "max_streams": 5}}
    )

    name: Title = "default"
    scopes: Scopes | None = None
    models: Models | None = None
    max_streams: Streams | None = None
    allowed_addresses: Networks = []
    expires_at: Moment | None = None
    limits: Limits = Limits()

    def fields(self) -> KeyFields:
        """What to issue."""
        scopes = tuple(self.scopes or sorted(TENANT_SCOPES))
        return KeyFields(**self.model_dump() | {"scopes": scopes, "limits": self.limits.stored()})


class KeyPatch(BaseModel):
    """What to change of a key; fields that are left out stay as they are, also those of its limits."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"name": "mobile", "scopes": ["chat"]}}
    )

    name: Annotated[Title | None, AfterValidator(_not_none)] = None
    scopes: Annotated[Scopes | None, AfterValidator(_not_none)] = None
    models: Models | None = None
    max_streams: Streams | None = None
    allowed_addresses: Annotated[Networks | None, AfterValidator(_not_none)] = None
    expires_at: Moment | None = None
    limits: Annotated[Limits | None, AfterValidator(_not_none)] = None


class RotateIn(BaseModel):
    """How long the secret from before still holds: a day unless it is said, a week at most."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"grace_seconds": 3600}})

    grace_seconds: Annotated[int, Field(ge=0, le=7 * 86400)] = 86400


class KeyOut(BaseModel):
    """What can be shown of a key."""

    model_config = _OUT

    id: str
    tenant_id: str
    name: str
    scopes: list[Scope]
    models: list[str] | None
    max_streams: int | None
    allowed_addresses: list[str]
    expires_at: datetime | None
    limits: LimitsOut
    created_at: datetime
    created_by: str
    last_used_at: datetime | None
    previous_until: datetime | None
    revoked_at: datetime | None


class KeyIssued(KeyOut):
    """A key just issued or rotated. `key` is shown this once."""

    key: str


class LoginIn(BaseModel):
    """An admin's sign-in."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"email": "you@example.com", "password": "..."}}
    )

    email: Annotated[str, Field(min_length=1, max_length=320, pattern=PRINTABLE)]
    password: Annotated[str, Field(min_length=1, max_length=1024)]


class KeySessionIn(BaseModel):
    """A tenant admin's sign-in to its page."""

    model_config = ConfigDict(
        extra="forbid", hide_input_in_errors=True, json_schema_extra={"example": {"key": "sg_..."}}
    )

    key: Annotated[str, Field(min_length=1, max_length=4096)]


class TokenIn(BaseModel):
    """What a token of an API key should be; never wider than the key.

    `max_tokens` is how many tokens, in and out, may be used with it in all.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"ttl_seconds": 900, "end_user": "ann", "max_tokens": 10_000}},
    )

    ttl_seconds: Annotated[int, Field(ge=10, le=3600)] = 900
    end_user: Name | None = None
    scopes: Scopes | None = None
    models: Annotated[Models | None, Field(max_length=20)] = None
    max_streams: Streams | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1 << 53)] | None = None


class TokenOut(BaseModel):
    """A token, as OAuth 2 names the fields. `id` is its `jti`, by which it can be revoked."""

    id: str
    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - a word of OAuth
    expires_in: int


class AuditEntryOut(BaseModel):
    """Who changed what, when, from where."""

    model_config = _OUT

    id: int
    at: datetime
    actor: str
    address: str
    request_id: str
    action: str
    tenant_id: str | None
    kind: str
    target: str
    details: dict[str, Any]


class AuditPage(BaseModel):
    """A page of the audit log, newest first; `next` is the `before` of the page behind it."""

    data: list[AuditEntryOut]
    next: int | None
