"""FastAPI security dependencies: what a route writes to say who may call it.

Both schemes stand in the OpenAPI page. The request's state carries the Authenticator (typed lifespan
state), so nothing here is global. A route that declares none of these is open, and a test keeps the list.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from auth.authenticator import Authenticator
from auth.principal import NotAllowed, NotAuthenticated, Principal, Scope

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="Bearer",
    description="An API key (`sg_...`), or a JWT of `/auth/tokens`, `/auth/login` or an identity provider.",
)
_api_key = APIKeyHeader(
    name="x-api-key", auto_error=False, scheme_name="ApiKey", description="An API key (`sg_...`)."
)

_MISSING = "You didn't provide an API key. Send `Authorization: Bearer <key or token>` or `x-api-key: <key>`."


def address_of(request: Request) -> str:
    """The client's address; behind trusted proxies the one that they vouch for. Empty on a Unix socket."""
    return request.client.host if request.client is not None else ""


async def authenticated(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    api_key: Annotated[str | None, Security(_api_key)],
) -> Principal:
    """Whoever is calling. Raises NotAuthenticated: also for two credentials, which nobody needs."""
    headers = request.headers
    if len(headers.getlist("authorization")) + len(headers.getlist("x-api-key")) > 1:
        raise NotAuthenticated("Send one credential, in one header.")
    credential = bearer.credentials if bearer is not None else api_key
    if not credential:
        raise NotAuthenticated(_MISSING)
    authenticator: Authenticator = request.state.authenticator
    request.state.principal = await authenticator.principal(credential, address_of(request))
    principal: Principal = request.state.principal
    return principal


async def still_holds(request: Request) -> None:
    """After anything that may have taken long, such as reading the body: whether the caller may go on.

    Raises NotAuthenticated. A route without a principal has nothing to confirm.
    """
    principal: Principal | None = getattr(request.state, "principal", None)
    if principal is not None:
        authenticator: Authenticator = request.state.authenticator
        await authenticator.confirm(principal)


class Requires:
    """A dependency: a principal that has one of the scopes and, but for admins, belongs to a tenant.

    With no scopes named, any credential of a tenant will do.
    """

    def __init__(self, *scopes: Scope) -> None:
        self.scopes = scopes

    async def __call__(self, principal: Annotated[Principal, Security(authenticated)]) -> Principal:
        """The principal. Raises NotAllowed."""
        if self.scopes and not principal.scopes.intersection(self.scopes):
            raise NotAllowed(f"This credential lacks the scope `{self.scopes[0]}`.")
        if Scope.ADMIN not in self.scopes and principal.tenant_id is None:
            raise NotAllowed("This is for credentials of a tenant: use an API key.")
        return principal
