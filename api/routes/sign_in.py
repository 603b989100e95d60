"""Sign-in for admins, and short-lived tokens for those who hold an API key; both throttled.

A sign-in says the same, after the same work, whether or not there is such an account. argon2 runs in one
thread of its own, below everybody else's priority: a hundred sign-ins wait for each other and no stream
waits for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Request, Response

from api.deps import Anyone, By, GateDep, SignerDep, Tenant, actor_named
from api.errors import BadRequest
from api.routes.bodies import openapi_body, read_body
from api.routes.sessions import SESSION_SECONDS, with_session, without_session
from api.routes.throttles import by_account, by_address, by_caller
from api.schema_accounts import LoginIn, TokenIn, TokenOut
from auth.passwords import Hasher
from auth.principal import NotAuthenticated, Principal, Scope, fingerprint

if TYPE_CHECKING:
    from slowapi import Limiter

    from api.flow.gate import Gate
    from auth.tokens import TokenSigner

ADMIN_TOKEN_SECONDS = SESSION_SECONDS
END_USER_SCOPES = frozenset({Scope.CHAT, Scope.EMBEDDINGS})
"""What a bought token may do unless more is asked for: a browser has no business with a tenant's usage."""

_LOGINS, _LOGINS_OF_ACCOUNT = "10/minute", "30/minute"
_TOKENS, _TOKENS_OF_ACCOUNT = "600/minute", "6000/minute"


async def _login(request: Request) -> LoginIn:
    asked, _ = await read_body(request, LoginIn)
    request.state.account = asked.email.casefold()
    return asked


Login = Annotated[LoginIn, Depends(_login)]


def router(limiter: Limiter, hasher: Hasher) -> APIRouter:
    """The routes, throttled by `limiter`; passwords are compared by `hasher`."""
    routes = APIRouter(prefix="/auth", tags=["sign-in"])
    sign_ins = [  # counted together, whichever door
        by_address(limiter, _LOGINS, "login"),
        by_account(limiter, _LOGINS_OF_ACCOUNT, "login", _login),
    ]

    @routes.post(
        "/login",
        dependencies=sign_ins,
        openapi_extra=openapi_body(LoginIn),
    )
    async def login(asked: Login, gate: GateDep, signer: SignerDep, request: Request) -> TokenOut:
        """An admin's password buys a token with the scope `admin`, which holds as long as the password."""
        return await _sign_in(asked, gate, signer, request)

    @routes.post(
        "/session",
        status_code=204,
        dependencies=sign_ins,
        openapi_extra=openapi_body(LoginIn),
    )
    async def session(asked: Login, gate: GateDep, signer: SignerDep, request: Request) -> Response:
        """The same for the console: the token is in a cookie that no script can read."""
        token = await _sign_in(asked, gate, signer, request)
        return with_session(request, "admin", token.access_token)

    async def _sign_in(asked: LoginIn, gate: Gate, signer: TokenSigner, request: Request) -> TokenOut:
        user = await gate.credentials.find_user(asked.email)
        good = await hasher.verify(asked.password, user.password_hash if user else None)
        by = actor_named(f"user:{asked.email.casefold()}", request)
        await gate.accounts.note("ok" if good else "refused", "login", asked.email.casefold(), by=by)
        if user is None or not good:
            raise NotAuthenticated("Wrong e-mail address or password.")
        token = signer.sign(
            now=gate.clock.unix(),
            ttl_seconds=ADMIN_TOKEN_SECONDS,
            scopes=frozenset({Scope.ADMIN}),
            user=user.email,
            proof=fingerprint(user.password_hash),
        )
        return TokenOut(id=token.id, access_token=token.text, expires_in=ADMIN_TOKEN_SECONDS)

    @routes.post(
        "/tokens",
        dependencies=[
            by_address(limiter, _TOKENS, "tokens"),
            by_caller(limiter, _TOKENS_OF_ACCOUNT, "tokens"),
        ],
        openapi_extra=openapi_body(TokenIn),
    )
    async def tokens(caller: Tenant, gate: GateDep, signer: SignerDep, request: Request) -> TokenOut:
        """An API key buys a token of minutes, for a browser or an end user; never wider than the key."""
        asked, _ = await read_body(request, TokenIn, optional=True)
        if caller.token_id is not None:
            raise BadRequest("A token cannot buy a token; use the API key.")
        scopes = _narrowed(caller, asked)
        try:
            token = signer.sign(
                now=gate.clock.unix(),
                ttl_seconds=asked.ttl_seconds,
                scopes=scopes,
                key_id=caller.key_id,
                end_user=asked.end_user,
                models=asked.models,
                max_streams=asked.max_streams,
                max_tokens=asked.max_tokens,
                proof=caller.proof,
            )
        except ValueError:
            raise BadRequest("The token would be too long: name fewer models.", "models") from None
        return TokenOut(id=token.id, access_token=token.text, expires_in=asked.ttl_seconds)

    @routes.post("/logout", status_code=204)
    async def logout(caller: Anyone, by: By, gate: GateDep, request: Request) -> Response:
        """Revoke the token that calls: it, and its streams, are refused everywhere within a second."""
        if caller.token_id is None:
            raise BadRequest("An API key does not sign out; revoke it instead.")
        await gate.accounts.revoke_token(caller.tenant_id, caller.token_id, by=by)
        await gate.accounts_changed()
        return without_session(request)

    return routes


def _narrowed(caller: Principal, asked: TokenIn) -> frozenset[Scope]:
    """The scopes of a token. Raises BadRequest for more than the key has, and for none."""
    wanted = frozenset(asked.scopes or END_USER_SCOPES & caller.scopes)
    if Scope.ADMIN in wanted or not wanted <= caller.scopes:
        raise BadRequest("A token can have no scope that its key lacks, and never `admin`.", "scopes")
    if not wanted:
        raise BadRequest("Say which of the key's scopes the token should have.", "scopes")
    return wanted
