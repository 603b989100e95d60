"""Sessions of our own pages: a token in a cookie that no script can read. auth/dependencies.py takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from api.deps import GateDep, SignerDep
from api.errors import BadRequest
from api.routes.bodies import openapi_body, read_body
from api.routes.throttles import by_address
from api.schema_accounts import KeySessionIn
from auth.dependencies import SESSION_COOKIES, SESSION_HEADER, address_of
from auth.principal import NotAllowed, Scope

if TYPE_CHECKING:
    from slowapi import Limiter

SESSION_SECONDS = 8 * 3600
_KEY_SESSIONS = "30/minute"


def router(limiter: Limiter) -> APIRouter:
    """The route of tenants' admins; that of the gateway's is beside `/auth/login`."""
    routes = APIRouter(prefix="/auth", tags=["sign-in"])
    routes.post(
        "/session/key",
        status_code=204,
        dependencies=[by_address(limiter, _KEY_SESSIONS, "key_session")],
        openapi_extra=openapi_body(KeySessionIn),
    )(key_session)
    return routes


async def key_session(gate: GateDep, signer: SignerDep, request: Request) -> Response:
    """A key with `tenant:admin` buys a session of its tenant's page, which then need not keep the key."""
    asked, _ = await read_body(request, KeySessionIn)
    caller = await gate.authenticator.principal(asked.key.strip(), address_of(request))
    if caller.key_id is None or caller.token_id is not None:
        raise BadRequest("Sign in with an API key.", "key")
    if Scope.TENANT_ADMIN not in caller.scopes:
        raise NotAllowed("This key lacks the scope `tenant:admin`.")
    token = signer.sign(
        now=gate.clock.unix(),
        ttl_seconds=SESSION_SECONDS,
        scopes=caller.scopes - {Scope.ADMIN},
        key_id=caller.key_id,
        proof=caller.proof,
    )
    return with_session(request, "portal", token.text)


def with_session(request: Request, page: str, token: str) -> Response:
    """An answer that begins a page's session."""
    answer = Response(status_code=204)
    answer.set_cookie(
        SESSION_COOKIES[page],
        token,
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


def without_session(request: Request) -> Response:
    """An answer that ends the session of the page that asks, if it is one."""
    answer = Response(status_code=204)
    page = request.headers.get(SESSION_HEADER, "")
    if page in SESSION_COOKIES:
        answer.delete_cookie(SESSION_COOKIES[page], httponly=True, samesite="strict")
    return answer
