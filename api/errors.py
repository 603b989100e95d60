"""One table: exception -> status, type, code, text, headers. The same row serves JSON and every dialect.

Public text and internal text are two things: only a row's text, or the text of an exception whose row says
that its text is public, reaches a caller. An exception without a row is a 500 that says nothing of itself;
`tests/guards` finds any exception of ours that lacks one. A 429 and a 503 always carry Retry-After.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api.accounts import ExternalIdTaken, NoSuchKey, NoSuchTenant
from api.cataloging import NoSuchEntry, NoSuchUpstream, UpstreamInUse
from api.core.dialects import Failure
from api.core.sse import EventTooLarge
from api.core.translate.ways import Untranslatable
from api.ports import (
    AccountsUnavailable,
    BudgetSpent,
    GateFull,
    LedgerUnavailable,
    LimiterUnavailable,
    LimitReached,
    NotPriced,
    UpstreamFailed,
)
from auth.principal import NotAllowed, NotAuthenticated, SignInBusy, TooManyFailures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from api.core.booking import Happening


class BadRequest(Exception):  # noqa: N818 - reads as what happened
    """The request cannot be understood; `param` names the field."""

    def __init__(self, message: str, param: str | None = None, *, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.status = status


class NotFound(Exception):  # noqa: N818
    """There is no such thing, or it is not the caller's."""


class Conflict(Exception):  # noqa: N818
    """An `Idempotency-Key` stands for something that cannot be answered with. The text is public."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class NoSuchModel(Exception):  # noqa: N818
    """No entry of the catalog has that model."""

    def __init__(self, model: str) -> None:
        super().__init__(f"The model `{model}` does not exist, or is not for you.")


class TooManyAttempts(Exception):  # noqa: N818
    """A throttled route was called too often."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__("Too many attempts. Wait, then try again.")
        self.retry_after_seconds = retry_after_seconds


class Draining(Exception):  # noqa: N818
    """The worker is shutting down and takes no new streams."""


class Cut(Exception):  # noqa: N818
    """The gate ended a stream; `cause` says why."""

    def __init__(self, cause: Happening) -> None:
        super().__init__(CUTS[cause])
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Row:
    """`text` None means that the exception's own text is public."""

    status: int
    type: str
    code: str
    text: str | None = None


_INVALID = "invalid_request_error"
_SERVER = "server_error"

CUTS: Mapping[str, str] = {
    "deadline": "The stream took longer than this gateway allows.",
    "slow_reader": "The client did not read the stream for too long.",
    "lease_lost": "The stream's slot was lost while the worker was not responding.",
    "drain": "The gateway is restarting. Send the request again.",
    "revoked": "The credential of this stream was revoked.",
    "expired": "The credential of this stream has expired.",
    "ended_by_admin": "This stream was ended on request.",
    "budget": "There is no budget for more.",
}

ROWS: Mapping[type[Exception], Row] = {
    NotAuthenticated: Row(401, _INVALID, "invalid_api_key"),
    AccountsUnavailable: Row(503, _SERVER, "accounts_unavailable", "Keys cannot be checked right now."),
    ClientDisconnect: Row(400, _INVALID, "client_disconnected", "The request was cut short."),
    NotAllowed: Row(403, "permission_error", "insufficient_scope"),
    BadRequest: Row(400, _INVALID, "invalid_request"),
    NotFound: Row(404, _INVALID, "not_found"),
    NoSuchTenant: Row(404, _INVALID, "not_found"),
    NoSuchKey: Row(404, _INVALID, "not_found"),
    ExternalIdTaken: Row(409, _INVALID, "conflict"),
    LimitReached: Row(429, "rate_limit_error", "rate_limit_exceeded"),
    BudgetSpent: Row(429, "insufficient_quota", "insufficient_quota"),
    GateFull: Row(503, _SERVER, "gateway_full"),
    NotPriced: Row(403, "permission_error", "model_not_priced"),
    TooManyFailures: Row(429, "rate_limit_error", "rate_limit_exceeded"),
    SignInBusy: Row(503, _SERVER, "sign_in_busy"),
    TooManyAttempts: Row(429, "rate_limit_error", "rate_limit_exceeded"),
    LimiterUnavailable: Row(503, _SERVER, "limiter_unavailable", "Admission is not possible right now."),
    LedgerUnavailable: Row(503, _SERVER, "ledger_unavailable", "Usage cannot be recorded right now."),
    Draining: Row(503, _SERVER, "shutting_down", "The gateway is restarting. Send the request again."),
    UpstreamFailed: Row(502, _SERVER, "upstream_failed"),
    Conflict: Row(409, _INVALID, "conflict"),
    NoSuchModel: Row(404, _INVALID, "model_not_found"),
    NoSuchUpstream: Row(404, _INVALID, "not_found"),
    NoSuchEntry: Row(404, _INVALID, "not_found"),
    UpstreamInUse: Row(409, _INVALID, "conflict"),
    Untranslatable: Row(502, _SERVER, "upstream_failed", "The provider sent what cannot be translated."),
    EventTooLarge: Row(502, _SERVER, "upstream_failed", "The provider sent an event that is too large."),
    Cut: Row(503, _SERVER, "stream_cut"),
}

_CUT_STATUS: Mapping[str, int] = {"deadline": 504, "revoked": 401, "expired": 401}

_UNKNOWN = Row(500, _SERVER, "internal_error", "The gateway failed. The request id helps to find out why.")


def failure_of(error: Exception) -> Failure:
    """What a caller is told of an error; a 429 or 503 always with Retry-After."""
    failure = _of_framework(error) if isinstance(error, HTTPException) else _of_ours(error)
    if failure.status in {429, 503} and "retry-after" not in failure.headers:
        return replace(failure, headers={**failure.headers, **_when(error)})
    return failure


_NEVER_SECONDS = 86400
_JITTER = 0.25
_SOON_SECONDS = 60


def _when(error: Exception) -> dict[str, str]:
    """When to come back. Those who were refused together are not sent back together.

    Whole seconds for everybody, and milliseconds for SDKs that read them.
    """
    wait = getattr(error, "retry_after_seconds", 1.0)
    if wait is None:
        return {"retry-after": str(_NEVER_SECONDS), "x-should-retry": "false"}
    if wait < _SOON_SECONDS:
        wait *= 1 + _JITTER * random.random()  # noqa: S311 - nobody gains by guessing it
    headers = {"retry-after": str(max(1, math.ceil(wait))), "retry-after-ms": str(math.ceil(wait * 1000))}
    return headers | ({"x-should-retry": "false"} if isinstance(error, BudgetSpent) else {})


def _of_ours(error: Exception) -> Failure:
    row = ROWS.get(type(error), _UNKNOWN)
    if isinstance(error, UpstreamFailed):
        return _of_upstream(error, row)
    status, code, param, headers = row.status, row.code, None, {}
    if isinstance(error, BadRequest):
        status, param = error.status, error.param
        code = {408: "request_timeout", 413: "request_too_large"}.get(status, code)
    elif isinstance(error, Cut):
        code = error.cause
        status = _CUT_STATUS.get(error.cause, status)
    elif isinstance(error, NotAllowed | Conflict):
        code = error.code
    elif isinstance(error, NotAuthenticated):
        headers = {"www-authenticate": "Bearer"}
    elif isinstance(error, LimitReached):
        headers = dict(error.headers)
    return Failure(status, row.type, code, row.text or str(error), param, headers)


def _of_upstream(error: UpstreamFailed, row: Row) -> Failure:
    if error.body and error.status is not None:  # the provider blames the request: its own words
        param, code = error.body.get("param"), error.body.get("code")
        return Failure(
            status=error.status,
            type=str(error.body.get("type") or _INVALID),
            code=str(code or ("model_not_found" if error.status == 404 else "invalid_request")),  # noqa: PLR2004
            message=str(error.body.get("message") or error),
            param=param if isinstance(param, str) else None,
        )
    if error.status == 429:  # noqa: PLR2004 - HTTP
        text = "The provider is at its rate limit. Retry later."
        headers = {"retry-after": _seconds(error.retry_after)}
        return Failure(429, "rate_limit_error", "upstream_rate_limited", text, headers=headers)
    if error.timed_out:
        return Failure(504, row.type, "upstream_timeout", str(error))
    return Failure(row.status, row.type, row.code, str(error))


def _seconds(retry_after: str | None) -> str:
    """The provider's Retry-After if it is a plain number of seconds, else one second."""
    return retry_after if retry_after and retry_after.isascii() and retry_after.isdigit() else "1"


def _of_framework(error: HTTPException) -> Failure:
    text = {404: "No such route.", 405: "This route does not take that method."}.get(error.status_code)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    return Failure(
        error.status_code, _INVALID, code, text or "The request cannot be understood.", headers=headers
    )
