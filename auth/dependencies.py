"""FastAPI security dependencies: what a route writes to say who may call it.

Both schemes stand in the OpenAPI page. The request's state carries the Authenticator (typed lifespan
state), so nothing here is global. A route that declares none of these is open, and a test keeps the list.
Each dependency costs every request some 15 us: there is one, and it reads the headers itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi.security.base import SecurityBase

from auth.principal import NotAllowed, NotAuthenticated, Principal, Scope

if TYPE_CHECKING:
    from auth.authenticator import Authenticator

_BEARER = HTTPBearer(
    scheme_name="Bearer",
    description="An API key (`sg_...`), or a JWT of `/auth/tokens`, `/auth/login` or an identity provider.",
)
_API_KEY = APIKeyHeader(name="x-api-key", scheme_name="ApiKey", description="An API key (`sg_...`).")
_HEADERS = frozenset({b"authorization", b"x-api-key"})

SESSION_COOKIES = {"admin": "sluicegate_admin", "portal": "sluicegate_portal"}
SESSION_HEADER = "x-sluicegate-console"
"""A page's session is a token in a cookie, which alone opens nothing: a page of another site can have it
sent, but no header of its own (OWASP on CSRF: "custom request headers"). This one names the page."""

_MISSING = "You didn't provide an API key. Send `Authorization: Bearer <key or token>` or `x-api-key: <key>`."


def address_of(request: Request) -> str:
    """The client's address; behind trusted proxies the one that they vouch for. Empty on a Unix socket."""
    return request.client.host if request.client is not None else ""


class Authenticated(SecurityBase):
    """A dependency: whoever is calling. The OpenAPI page has it as `Bearer`; see `describe_api_key`."""

    model = _BEARER.model
    scheme_name = _BEARER.scheme_name

    async def __call__(self, request: Request) -> Principal:
        """The principal. Raises NotAuthenticated: also for two credentials, which nobody needs."""
        state = request.scope["state"]
        if "principal" not in state:  # else another dependency has asked
            credential = _credential(request)
            authenticator: Authenticator = state["authenticator"]
            state["principal"] = await authenticator.principal(credential, address_of(request))
        principal: Principal = state["principal"]
        return principal


authenticated = Authenticated()


class Requires(Authenticated):
    """A dependency: a principal that has one of the scopes and, but for admins, belongs to a tenant.

    With no scopes named, any credential of a tenant will do.
    """

    def __init__(self, *scopes: Scope) -> None:
        self.scopes = scopes

    async def __call__(self, request: Request) -> Principal:
        """The principal. Raises NotAuthenticated, NotAllowed."""
        principal = await super().__call__(request)
        if self.scopes and not principal.scopes.intersection(self.scopes):
            raise NotAllowed(f"This credential lacks the scope `{self.scopes[0]}`.")
        if Scope.ADMIN not in self.scopes and principal.tenant_id is None:
            raise NotAllowed("This is for credentials of a tenant: use an API key.")
        return principal


def _credential(request: Request) -> str:
    found = [(name, value) for name, value in request.scope["headers"] if name in _HEADERS]
    if len(found) > 1:
        raise NotAuthenticated("Send one credential, in one header.")
    for name, value in found:
        text: str = value.decode("latin-1")
        scheme, _, credential = ("bearer", "", text) if name == b"x-api-key" else text.partition(" ")
        if scheme.lower() == "bearer" and credential.strip():
            return credential.strip()
    return _session(request)


def _session(request: Request) -> str:
    """The token of a page's cookie. Raises NotAuthenticated."""
    name = SESSION_COOKIES.get(request.headers.get(SESSION_HEADER, ""))
    from_here = request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
    if name is not None and from_here and request.cookies.get(name):
        return request.cookies[name]
    raise NotAuthenticated(_MISSING)


async def still_holds(request: Request) -> None:
    """After anything that may have taken long, such as reading the body: whether the caller may go on.

    Raises NotAuthenticated. A route without a principal has nothing to confirm.
    """
    principal: Principal | None = getattr(request.state, "principal", None)
    if principal is not None:
        authenticator: Authenticator = request.state.authenticator
        await authenticator.confirm(principal)


def describe_api_key(document: dict[str, Any]) -> None:
    """Say in an OpenAPI document that wherever a bearer credential will do an `x-api-key` will too."""
    model = _API_KEY.model.model_dump(mode="json", by_alias=True, exclude_none=True)
    document["components"]["securitySchemes"][_API_KEY.scheme_name] = model
    for operations in document["paths"].values():
        for operation in operations.values():
            if "security" in operation:
                operation["security"].append({_API_KEY.scheme_name: []})
