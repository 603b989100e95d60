"""Sign-in for admins, and short-lived tokens for those who hold an API key; both throttled.

slowapi asks its storage synchronously, so the throttle is a plain `def` dependency, which FastAPI runs in
a thread: the event loop never waits for it. argon2 runs in threads too, two at a time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, Request
from slowapi import Limiter
from slowapi.util import get_remote_address

from api.deps import Caller, GateDep, SignerDep
from api.errors import BadRequest
from api.routes.bodies import openapi_body, read_body
from api.schema import LoginIn, TokenIn, TokenOut
from auth.passwords import verify_password
from auth.principal import NotAuthenticated, Scope

if TYPE_CHECKING:
    from collections.abc import Callable

ADMIN_TOKEN_SECONDS = 8 * 3600
_LOGINS = "10/minute"
_TOKENS = "120/minute"


def throttle(storage_url: str) -> Limiter:
    """Slowapi's limiter, by client address; if Redis is away each worker counts for itself."""
    if storage_url.startswith("unix://"):
        storage_url = f"redis+{storage_url}"
    options: dict[str, Any] = {}
    if storage_url.startswith("redis"):
        options = {"socket_timeout": 0.25, "socket_connect_timeout": 0.25}
    return Limiter(
        key_func=get_remote_address,
        storage_uri=storage_url,
        in_memory_fallback_enabled=True,
        storage_options=options,
    )


def _limited(limiter: Limiter, rate: str, name: str) -> Callable[[Request], None]:
    def check(request: Request) -> None:
        """Refused by slowapi before this runs."""

    check.__name__ = name
    limited: Callable[[Request], None] = limiter.limit(rate)(check)
    return limited


def router(limiter: Limiter) -> APIRouter:
    """The routes, throttled by `limiter`."""
    routes = APIRouter(prefix="/auth", tags=["sign-in"])
    hashing = asyncio.Semaphore(2)
    login_throttle = Depends(_limited(limiter, _LOGINS, "login"))
    token_throttle = Depends(_limited(limiter, _TOKENS, "tokens"))

    @routes.post("/login", dependencies=[login_throttle], openapi_extra=openapi_body(LoginIn))
    async def login(gate: GateDep, signer: SignerDep, request: Request) -> TokenOut:
        """An admin's password buys a token with the scope `admin`."""
        asked, _ = await read_body(request, LoginIn)
        stored = await gate.accounts.password_hash(asked.email)
        async with hashing:
            good = await asyncio.to_thread(verify_password, asked.password, stored)
        if not good:
            raise NotAuthenticated("Wrong e-mail address or password.")
        token = signer.sign(
            now=gate.clock.unix(),
            ttl_seconds=ADMIN_TOKEN_SECONDS,
            scopes=frozenset({Scope.ADMIN}),
            user=asked.email.casefold(),
        )
        return TokenOut(access_token=token, expires_in=ADMIN_TOKEN_SECONDS)

    @routes.post("/tokens", dependencies=[token_throttle], openapi_extra=openapi_body(TokenIn))
    async def tokens(caller: Caller, gate: GateDep, signer: SignerDep, request: Request) -> TokenOut:
        """An API key buys a token of minutes, for a browser or an end user; never wider than the key."""
        asked, _ = await read_body(request, TokenIn, optional=True)
        if caller.token_id is not None:
            raise BadRequest("A token cannot buy a token; use the API key.")
        token = signer.sign(
            now=gate.clock.unix(),
            ttl_seconds=asked.ttl_seconds,
            scopes=caller.scopes,
            key_id=caller.key_id,
            end_user=asked.end_user,
        )
        return TokenOut(access_token=token, expires_in=asked.ttl_seconds)

    return routes
