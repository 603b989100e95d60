"""The error table: nothing of ours is missing from it, and nothing internal gets out through it."""

from __future__ import annotations

import importlib
import json
import pkgutil
from typing import TYPE_CHECKING, Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import api
import auth
from api.accounts import ExternalIdTaken, NoSuchKey, NoSuchTenant
from api.adapters.lease_sql import LostLease
from api.adapters.rollups_sql import NotKept
from api.adapters.sealer_aesgcm import CannotOpen
from api.adapters.spool_file import SpoolFull
from api.cataloging import NoSuchEntry, NoSuchUpstream, UpstreamInUse
from api.core.booking import ENDINGS, Ended, Happening, IllegalStep
from api.core.dialects import openai_chat
from api.core.script import UnknownModel
from api.core.sse import EventTooLarge
from api.core.translate import CannotTranslate
from api.core.translate.ways import Untranslatable
from api.core.usage_query import BadQuery
from api.errors import (
    CUTS,
    ROWS,
    BadRequest,
    Conflict,
    Cut,
    Draining,
    NoSuchModel,
    NotFound,
    TooManyAttempts,
    failure_of,
)
from api.flow.export import Stopped
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
from auth.authenticator import UnknownKey
from auth.jwks import FetchFailed, NotAKeySet
from auth.principal import NotAllowed, NotAuthenticated, SignInBusy, TooManyFailures

if TYPE_CHECKING:
    from types import ModuleType

    from api.core.dialects import Failure

NEEDS_NO_ROW = {
    IllegalStep: "a bug in the gate: a 500 that says nothing is right",
    FetchFailed: "the key set logs it, and the old keys go on serving",
    NotAKeySet: "the same",
    UnknownKey: "counted at the door, and told as NotAuthenticated",
    UnknownModel: "the scripted upstream turns it into UpstreamFailed with a 404",
    Stopped: "a round of the export ends with it, in the export",
    LostLease: "the leader's work ends with it, and another worker leads",
    SpoolFull: "settlements wait in memory, bookings are LedgerUnavailable",
    BadQuery: "routes make it a BadRequest, commands a usage error",
    CannotOpen: "a provider's key is as if it were not there; a command says it",
    CannotTranslate: "the call makes it an UpstreamFailed that blames the request",
    NotKept: "a repair on the command line says what is not there any more",
}
NOT_IMPORTED = (
    "api.main",
    "api.cli.__main__",
    "api.adapters.migrations",
)  # they act when they are imported: serve, migrate
SECRET = "postgresql://admin:hunter2@10.0.0.5/ledger"

EXAMPLES: dict[type[Exception], list[Exception]] = {
    NotAuthenticated: [NotAuthenticated(), NotAuthenticated("Send one credential.")],
    NotAllowed: [
        NotAllowed("This credential lacks the scope `chat`."),
        NotAllowed("no", "model_not_allowed"),
    ],
    BadRequest: [BadRequest("no"), BadRequest("no", "prompt"), BadRequest("too large", status=413)],
    NotFound: [NotFound("No such thing.")],
    NoSuchTenant: [NoSuchTenant("tn_1")],
    NoSuchKey: [NoSuchKey("k1")],
    ExternalIdTaken: [ExternalIdTaken("acme")],
    LimitReached: [LimitReached("no", 3, {}), LimitReached("never", None, {"ratelimit": "x"})],
    BudgetSpent: [BudgetSpent("spent", 86_000, {"ratelimit": "x"}), BudgetSpent("spent", None, {})],
    GateFull: [GateFull(2.5)],
    NotPriced: [NotPriced("mystery")],
    TooManyFailures: [TooManyFailures(17)],
    SignInBusy: [SignInBusy()],
    TooManyAttempts: [TooManyAttempts(60)],
    LimiterUnavailable: [LimiterUnavailable(SECRET), LimiterUnavailable()],
    AccountsUnavailable: [AccountsUnavailable(SECRET), AccountsUnavailable()],
    ClientDisconnect: [ClientDisconnect()],
    LedgerUnavailable: [LedgerUnavailable(SECRET), LedgerUnavailable()],
    Draining: [Draining(), Draining(SECRET)],
    EventTooLarge: [EventTooLarge(SECRET)],
    Untranslatable: [Untranslatable(SECRET)],
    NoSuchModel: [NoSuchModel("mystery")],
    Conflict: [Conflict("no", "idempotency_key_reused")],
    NoSuchUpstream: [NoSuchUpstream("backup")],
    NoSuchEntry: [NoSuchEntry("There is no model `x`.")],
    UpstreamInUse: [UpstreamInUse("backup", "fast")],
    UpstreamFailed: [
        UpstreamFailed("The provider could not be reached."),
        UpstreamFailed("The provider fell silent.", timed_out=True),
        *(
            UpstreamFailed("The provider refused.", status=status)
            for status in (400, 401, 403, 429, 500, 503)
        ),
        UpstreamFailed("limit", status=429, retry_after="17"),
        UpstreamFailed("limit", status=429, retry_after="Wed, 21 Oct 2026 07:28:00 GMT"),
        UpstreamFailed("limit", status=429, retry_after="1\r\nx-evil: 1"),
        UpstreamFailed("no", status=404, body={"message": "The model `x` does not exist", "code": None}),
        UpstreamFailed("no", status=400, body={"message": None, "type": 7, "param": ["a"], "code": 400}),
        UpstreamFailed("no", status=422, body={"detail": "something else"}),
    ],
    Cut: [Cut(Happening(cause)) for cause in CUTS],
}
FAILURES = [(error, failure_of(error)) for errors in EXAMPLES.values() for error in errors]


def modules() -> list[ModuleType]:
    found = [
        importlib.import_module(info.name)
        for package in (api, auth)
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not info.name.startswith(NOT_IMPORTED)
    ]
    assert len(found) > 30
    return found


def exceptions_of_ours() -> set[type[Exception]]:
    return {
        thing
        for module in modules()
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, Exception) and thing.__module__ == module.__name__
    }


def test_every_exception_of_ours_has_a_row():
    """Whoever adds one says what a caller is told of it, or here why no caller ever meets it."""
    assert exceptions_of_ours() - set(ROWS) == set(NEEDS_NO_ROW)


def test_every_row_is_tried_here():
    """A new row gets an example, so that the tests below look at it."""
    assert set(EXAMPLES) == set(ROWS)


@pytest.mark.parametrize(("error", "failure"), FAILURES, ids=lambda value: type(value).__name__)
def test_every_failure_is_one_that_clients_understand(error: Exception, failure: Failure):
    """A status of 4xx or 5xx, OpenAI's error object with text in each place, headers that can be sent."""
    assert 400 <= failure.status <= 599
    body: dict[str, Any] = json.loads(openai_chat.error_body(failure, "req_1"))["error"]
    assert set(body) == {"message", "type", "param", "code"}
    for field in ("message", "type", "code"):
        assert isinstance(body[field], str), field
        assert body[field], field
    assert body["param"] is None or isinstance(body["param"], str)
    for name, value in failure.headers.items():
        assert name == name.lower()
        assert value.isprintable()


@pytest.mark.parametrize(
    ("error", "failure"),
    [*FAILURES, *((error, failure_of(error)) for error in (HTTPException(429), HTTPException(503)))],
    ids=lambda value: type(value).__name__,
)
def test_every_429_and_503_says_when_to_come_back(error: Exception, failure: Failure):
    """A client without Retry-After retries at once, or for ever (LiteLLM #37754)."""
    if failure.status in {429, 503}:
        assert int(failure.headers["retry-after"]) >= 1
    else:
        assert "retry-after" not in failure.headers


def test_retry_after_is_the_refusals_own():
    """The limiter's hint, the throttle's, and the provider's where it is a number of seconds."""
    seconds = {
        LimitReached("no", None, {}): "86400",
        BudgetSpent("spent", 7200, {}): "7200",
        TooManyAttempts(60): "60",
        UpstreamFailed("x", status=429, retry_after="17"): "17",
        UpstreamFailed("x", status=429, retry_after="tomorrow"): "1",
    }
    assert {error: failure_of(error).headers["retry-after"] for error in seconds} == seconds


def test_a_short_wait_is_spread():
    """Those who were refused together do not come back together: up to a quarter longer."""
    waits = {int(failure_of(LimitReached("no", 4, {})).headers["retry-after-ms"]) for _ in range(50)}
    assert min(waits) >= 4000
    assert max(waits) <= 5000
    assert len(waits) > 10


def test_what_cannot_pass_says_that_a_retry_is_useless():
    """A spent budget, and a request that is larger than its limit."""
    for error in (BudgetSpent("spent", 60, {}), LimitReached("never", None, {})):
        assert failure_of(error).headers["x-should-retry"] == "false"
    assert "x-should-retry" not in failure_of(LimitReached("no", 1, {})).headers


def test_a_401_says_how_to_authenticate():
    """RFC 9110, 15.5.2: it must carry a challenge."""
    assert failure_of(NotAuthenticated()).headers == {"www-authenticate": "Bearer"}


def test_a_405_keeps_the_list_of_what_is_allowed():
    """RFC 9110, 15.5.6: it must say so in `Allow`."""
    assert failure_of(HTTPException(405, headers={"Allow": "GET"})).headers == {"allow": "GET"}


@pytest.mark.parametrize(
    "error", [kind(SECRET) for kind, row in ROWS.items() if row.text is not None], ids=repr
)
def test_a_row_with_a_text_of_its_own_hides_the_exceptions(error: Exception):
    """What an adapter wrote for the log does not reach a caller."""
    assert failure_of(error).message == ROWS[type(error)].text
    assert "hunter2" not in repr(failure_of(error))


@pytest.mark.parametrize(
    "error", [RuntimeError(SECRET), KeyError(SECRET), ValueError(SECRET), IllegalStep(SECRET)]
)
def test_an_exception_without_a_row_is_a_500_that_says_nothing(error: Exception):
    """Neither its text nor its type gets out."""
    failure = failure_of(error)
    assert failure.status == 500
    assert "hunter2" not in repr(failure)
    assert type(error).__name__ not in repr(failure)


def test_a_frameworks_text_does_not_get_out():
    """Its details are for developers."""
    assert "hunter2" not in repr(failure_of(HTTPException(400, SECRET)))


def test_a_provider_is_heard_only_where_it_blames_the_request():
    """Its own words and status for the caller's fault; for its own faults a 502 of ours."""
    blame = {"message": "max_tokens is too large", "type": "t", "param": "max_tokens", "code": "c"}
    failure = failure_of(UpstreamFailed("x", status=400, body=blame))
    assert (failure.status, failure.message, failure.param) == (400, "max_tokens is too large", "max_tokens")
    assert (failure.type, failure.code) == ("t", "c")
    assert [failure_of(UpstreamFailed("x", status=status)).status for status in (401, 403, 500, 503)] == [
        502
    ] * 4
    assert failure_of(UpstreamFailed("x", timed_out=True)).status == 504


def test_every_cut_has_a_text():
    """Each happening that cuts a stream off is explained to the client, and nothing else is called a cut."""
    cuts = {happening for happening, ended in ENDINGS.items() if ended is Ended.CUT}
    assert set(CUTS) == cuts
    assert {Cut(cause).cause: failure_of(Cut(cause)).code for cause in cuts} == {
        cause: cause for cause in cuts
    }


def test_a_cuts_status_says_whether_to_retry():
    """504 where it took too long, 401 where the credential is gone; all others can be retried at once."""
    statuses = {cause: failure_of(Cut(Happening(cause))).status for cause in CUTS}
    assert statuses.pop("deadline") == 504
    assert (statuses.pop("revoked"), statuses.pop("expired")) == (401, 401)
    assert set(statuses.values()) == {503}
