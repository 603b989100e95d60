"""Every route asks who is calling, but for a short list; and the OpenAPI page says so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from fastapi.routing import iter_route_contexts

from api.app import create_app
from api.openapi import OWN_BODIES
from api.settings import Settings
from auth.dependencies import Authenticated, Requires
from tests.support.gates import SECRET_KEY
from tests.support.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi.dependencies.models import Dependant

OPEN = {
    "/": "the page asks for a key itself",
    "/static/{name}": "the page's files; a fixed list",
    "/admin/ui": "the console asks for a sign-in itself",
    "/auth/session": "this is where an admin gets the console's session; throttled",
    "/auth/session/key": "this is where a tenant's admin gets the page's session; throttled",
    "/portal": "the page asks for a key itself",
    "/healthz": "a load balancer has no key",
    "/streamz": "three numbers, for whoever looks at a proxy",
    "/readyz": "a load balancer has no key",
    "/metrics": "Prometheus has no key; it says nothing of tenants",
    "/auth/login": "this is where an admin gets a credential; throttled",
    "/openapi.json": "the description of the interface",
    "/docs": "the same, to read",
    "/docs/oauth2-redirect": "part of /docs",
    "/redoc": "the same, to read",
}
APP = create_app(Settings(_env_file=None, secret_key=SECRET_KEY, redis_url="memory://", web_concurrency=1))
ROUTES = [
    ((route.path or "").replace(":path}", "}"), sorted(route.methods or ()), route)
    for route in iter_route_contexts(APP.routes)
]
GUARDED = [(method, path) for path, methods, _ in ROUTES if path not in OPEN for method in methods]


def dependencies(dependant: Dependant) -> Iterator[Any]:
    for inner in dependant.dependencies:
        yield inner.call
        yield from dependencies(inner)


def asks_who_calls(route: Any) -> bool:
    dependant = getattr(route, "dependant", None)
    calls = list(dependencies(dependant)) if dependant is not None else []
    return any(isinstance(call, Authenticated) for call in calls)


def test_every_route_needs_a_principal_unless_it_is_on_the_list():
    """Whoever adds a route says who may call it; the list names nothing that needs one or is gone."""
    assert len(ROUTES) > 15
    assert {path for path, _, route in ROUTES if not asks_who_calls(route)} == set(OPEN)


@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_a_call_without_a_credential_is_401(method, path):
    """Before the body is read, before the path's ids are looked at, and with OpenAI's error object."""
    transport = httpx2.ASGITransport(app=APP, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://gate") as client:
        answer = await client.request(method, path, content=b"not even JSON")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-request-id"]
    assert answer.json()["error"]["code"] == "invalid_api_key"


ANY = {
    "/auth/tokens": "any key may buy a token; the route itself keeps it from being wider",
    "/v1/limits": "whoever is bound by limits may know them",
    "/v1/tokens/{token_id}": "a key takes back what it bought, within its tenant",
}
"""Routes for every credential of a tenant, whatever its scopes."""

UNSCOPED = {"/auth/logout": "whoever holds a token may give it up"}
"""Routes for every credential at all."""


def scopes_of(path: str) -> tuple[str, ...]:
    """What a route should ask for, from where it stands."""
    if path.startswith("/admin"):
        return ("admin",)
    if "usage" in path:
        return ("usage:read", "tenant:admin")
    if path.startswith(("/v1/models", "/v1/embeddings")):
        return ("chat", "embeddings") if "models" in path else ("embeddings",)
    return ("tenant:admin",) if path.startswith("/v1/keys") else ("chat",)


def test_the_scope_that_a_route_requires_follows_from_where_it_stands():
    """What costs money asks for chat or embeddings, what decides for an admin; two lists of others."""
    for path, _, route in ROUTES:
        if path not in OPEN:
            asked = {call.scopes for call in dependencies(route.dependant) if isinstance(call, Requires)}
            wanted = {()} if path in ANY else set() if path in UNSCOPED else {scopes_of(path)}
            assert asked == wanted, path
    assert set(ANY) | set(UNSCOPED) <= {path for path, _, _ in ROUTES}


# --- the OpenAPI page -----------------------------------------------------------------------------------

DOCUMENT = APP.openapi()
OPERATIONS = [
    (method, path, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_both_security_schemes_are_described():
    """A bearer key or token, or a key in `x-api-key`: what `/docs` offers under Authorize."""
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert {
        name: (scheme["type"], scheme.get("scheme") or scheme.get("name")) for name, scheme in schemes.items()
    } == {
        "Bearer": ("http", "bearer"),
        "ApiKey": ("apiKey", "x-api-key"),
    }


def test_every_guarded_route_offers_both_schemes_and_open_ones_none():
    """What the page says of a route's security is what the route does."""
    for method, path, operation in OPERATIONS:
        offered = {name for scheme in operation.get("security", []) for name in scheme}
        assert offered == (set() if path in OPEN else {"Bearer", "ApiKey"}), (method, path)


def test_every_reference_resolves():
    """Also those to the bodies that routes read themselves."""
    found = set(references(DOCUMENT))
    assert any(reference.endswith("/ChatRequest") for reference in found)
    for reference in found:
        node: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
        assert node


def test_the_committed_document_is_the_apps():
    """`sluicegate openapi > docs/openapi.json` was run: whoever changes the interface sees it in the diff."""
    committed = json.loads((ROOT / "docs/openapi.json").read_text())
    assert committed == json.loads(json.dumps(DOCUMENT))


def test_every_body_has_an_example_that_is_one():
    """What `/docs` fills in can be sent."""
    for model in OWN_BODIES:
        example = DOCUMENT["components"]["schemas"][model.__name__]["example"]
        assert model.model_validate_json(json.dumps(example))


def test_every_operation_says_how_its_errors_look():
    """In the shape of the API that is called; nothing of FastAPI's own 422 is left."""
    for _, path, operation in OPERATIONS:
        answers = operation["responses"]
        if path not in {"/healthz", "/readyz", "/metrics", "/streamz"}:
            shape = "AnthropicErrorAnswer" if path == "/v1/messages" else "ErrorAnswer"
            for status in [status for status in answers if status[0] in "45"]:
                assert answers[status]["content"]["application/json"]["schema"]["$ref"].endswith(f"/{shape}")
            assert {"4XX", "5XX"} <= set(answers)
        assert "422" not in answers


BODILESS = {
    "/auth/logout",
    "/admin/tenants/{tenant_id}/suspend",
    "/admin/tenants/{tenant_id}/resume",
    "/v1/streams/{stream_id}/stop",
}
"""What these do is all said in their path."""


def test_every_route_that_changes_something_describes_its_body():
    """A POST without a described body could not be tried on `/docs`."""
    for method, path, operation in OPERATIONS:
        if method in {"post", "put", "patch"} and path not in BODILESS:
            assert operation["requestBody"]["content"]["application/json"]["schema"], path


def test_every_public_route_is_on_the_page():
    """But for the page at `/`, its files, and the documentation itself."""
    hidden = {path for path, _, _ in ROUTES} - set(DOCUMENT["paths"])
    assert hidden == set(OPEN) - {
        "/healthz",
        "/readyz",
        "/metrics",
        "/streamz",
        "/auth/login",
        "/auth/session",
        "/auth/session/key",
    }


async def test_a_wrong_method_says_which_are_right():
    """RFC 9110, 15.5.6: a 405 must carry `Allow`."""
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=APP), base_url="http://gate") as client:
        answer = await client.delete("/healthz")
    assert (answer.status_code, answer.headers.get("allow")) == (405, "GET")
