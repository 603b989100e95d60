"""What a route's security dependency lets through, in a small app of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import httpx2
import pytest
from fastapi import FastAPI, Security
from fastapi.responses import JSONResponse

from auth import keys
from auth.dependencies import Requires, authenticated, describe_api_key
from auth.principal import TENANT_SCOPES, NotAllowed, NotAuthenticated, Principal, Scope
from tests.auth.accounts import FOREIGN, HOME, Bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Headers = list[tuple[str, str]]
ROUTES: dict[str, tuple[Scope, ...]] = {
    "/tenant": (),
    "/either": (Scope.CHAT, Scope.EMBEDDINGS),
    "/both-worlds": (Scope.ADMIN, Scope.TENANT_ADMIN),
    **{f"/{scope.name.lower()}": (scope,) for scope in Scope},
}
NO_CREDENTIAL: list[Headers] = [
    [],
    [("authorization", "")],
    [("authorization", "Bearer")],
    [("authorization", "Bearer ")],
    [("authorization", "Basic dXNlcjpwYXNz")],
    [("authorization", "garbage")],
    [("x-api-key", "")],
    [("api-key", "garbage")],
    [("proxy-authorization", "Bearer garbage")],
]
BAD_CREDENTIAL: list[Headers] = [
    [("authorization", "Bearer garbage")],
    [("authorization", "Bearer a.b.c")],
    [("x-api-key", "garbage")],
    [("x-api-key", keys.mint().text)],
]


class World(Bench):
    """The small app's accounts, and a client."""

    def __init__(self, address: tuple[str, int] | None = (HOME, 50_000)) -> None:
        super().__init__()
        inner = small_app()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope["state"] = {"authenticator": self.authenticator}
            scope["client"] = address
            await inner(scope, receive, send)

        self.client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://gate")

    async def get(self, path: str, headers: Headers) -> tuple[int, Any]:
        answer = await self.client.get(path, headers=headers)
        return answer.status_code, answer.json()

    async def opened(self, credential: str) -> set[str]:
        """The routes that it opens; of all others it is told that it may not."""
        statuses = {path: (await self.get(path, [("x-api-key", credential)]))[0] for path in ROUTES}
        assert set(statuses.values()) <= {200, 403}
        return {path for path, status in statuses.items() if status == 200}


def small_app() -> FastAPI:
    app = FastAPI()

    @app.get("/anyone")
    async def anyone(caller: Annotated[Principal, Security(authenticated)]) -> dict:
        return {"tenant": caller.tenant_id}

    def add(path: str, scopes: tuple[Scope, ...]) -> None:
        needed = Security(Requires(*scopes))

        @app.get(path)
        async def route(caller: Principal = needed) -> dict:
            return {"name": caller.name}

    for path, scopes in ROUTES.items():
        add(path, scopes)
    app.exception_handler(NotAuthenticated)(lambda _r, error: JSONResponse({"why": str(error)}, 401))
    app.exception_handler(NotAllowed)(
        lambda _r, error: JSONResponse({"why": str(error), "code": error.code}, 403)
    )
    return app


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    async with made.client:
        yield made


async def test_a_key_is_taken_from_either_header(world):
    """`Authorization: Bearer` as OpenAI's clients send it, `x-api-key` as Anthropic's do."""
    key = world.store.add_key()
    for header in (
        ("authorization", f"Bearer {key.text}"),
        ("Authorization", f"bearer {key.text}"),
        ("AUTHORIZATION", f"BEARER {key.text}"),
        ("x-api-key", key.text),
        ("X-Api-Key", key.text),
    ):
        assert await world.get("/anyone", [header]) == (200, {"tenant": "tn_1"})


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
async def test_a_token_is_taken_from_either_header(world, header):
    """A browser's client library may know the one way or the other."""
    token = world.token(key_id=world.store.add_key().id)
    text = f"Bearer {token}" if header == "authorization" else token
    assert await world.get("/anyone", [(header, text)]) == (200, {"tenant": "tn_1"})


@pytest.mark.parametrize("path", ["/anyone", *ROUTES])
async def test_two_credentials_are_refused(world, path):
    """Also two good ones, and an empty one: what one hop checks must be what the next one uses."""
    key = world.store.add_key(scopes=frozenset(Scope)).text
    bearer, x_api_key = ("authorization", f"Bearer {key}"), ("x-api-key", key)
    assert (await world.get(path, [bearer]))[0] == (await world.get(path, [x_api_key]))[0] == 200
    for headers in (
        [bearer, x_api_key],
        [bearer, bearer],
        [x_api_key, x_api_key],
        [("x-api-key", "bad"), bearer],
        [("x-api-key", ""), bearer],
        [("authorization", ""), x_api_key],
        [("authorization", "Basic dXNlcjpwYXNz"), x_api_key],
    ):
        assert await world.get(path, headers) == (401, {"why": "Send one credential, in one header."})


@pytest.mark.parametrize("path", ["/anyone", *ROUTES])
async def test_no_credential_is_401_and_says_how_to_send_one(world, path):
    """Before anything else is looked at, or anything is asked."""
    for headers in NO_CREDENTIAL:
        status, body = await world.get(path, headers)
        assert (status, "x-api-key: <key>" in body["why"]) == (401, True)
    assert world.store.calls == []


@pytest.mark.parametrize("path", ["/anyone", *ROUTES])
async def test_a_credential_that_does_not_hold_is_401(world, path):
    """Not 403: who is not known is not told what would be needed."""
    for headers in BAD_CREDENTIAL:
        assert await world.get(path, headers) == (401, {"why": str(NotAuthenticated())})


async def test_a_raw_key_without_a_scheme_is_refused(world):
    """A key in `Authorization` alone is no bearer token."""
    assert (await world.get("/anyone", [("authorization", world.store.add_key().text)]))[0] == 401


@pytest.mark.parametrize(
    "name", ["key", "api_key", "api-key", "x-api-key", "token", "access_token", "authorization"]
)
async def test_a_credential_in_the_query_string_is_ignored(world, name):
    """Query strings stand in logs and in histories: nobody shall get used to it."""
    key = world.store.add_key().text
    for text in (key, f"Bearer {key}"):
        answer = await world.client.get("/anyone", params={name: text})
        assert answer.status_code == 401
        assert key not in answer.text
    world.client.cookies.set(name, key)
    assert (await world.get("/anyone", []))[0] == 401
    assert world.store.calls == []


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("held", [frozenset(), *(frozenset({scope}) for scope in Scope), frozenset(Scope)])
async def test_a_route_is_open_to_any_of_its_scopes_alone(world, path, held):
    """A key with one of them passes, as itself; any other is told one that it lacks. No scopes: any key."""
    key, scopes = world.store.add_key(scopes=held), ROUTES[path]
    answer = await world.get(path, [("x-api-key", key.text)])
    if not scopes or held & set(scopes):
        assert answer == (200, {"name": f"key:{key.id}"})
    else:
        why = f"This credential lacks the scope `{scopes[0].value}`."
        assert answer == (403, {"why": why, "code": "insufficient_scope"})


async def test_who_belongs_to_no_tenant_may_not_act_as_one(world):
    """An admin who signed in has no tenant to bill: only where admins are asked for does the token open."""
    world.store.add_user()
    foreign = replace(FOREIGN, tenant=None, scopes=frozenset(Scope))
    for token in (world.token(user="ann@gate", scopes=frozenset(Scope)), world.issuers.issue(foreign)):
        assert await world.opened(token) == {"/admin", "/both-worlds"}


async def test_a_token_opens_what_its_key_and_itself_allow(world):
    """A token bought with a key, narrowed to chat."""
    key = world.store.add_key(scopes=TENANT_SCOPES)
    token = world.token(key_id=key.id, scopes={Scope.CHAT, Scope.ADMIN})
    assert await world.opened(token) == {"/tenant", "/chat", "/either"}


@pytest.mark.parametrize(
    ("address", "status"), [((HOME, 1), 200), (("192.0.2.8", 1), 403), (("testclient", 1), 403), (None, 403)]
)
async def test_the_callers_address_is_that_of_the_connection(address, status):
    """None on a Unix socket: a key that is bound to addresses may not be used there."""
    world = World(address)
    key = world.store.add_key(allowed_addresses=(f"{HOME}/32",))
    async with world.client:
        headers = [("x-api-key", key.text), ("x-forwarded-for", HOME), ("forwarded", f"for={HOME}")]
        assert (await world.get("/anyone", headers))[0] == status
        assert (await world.get("/anyone", [("x-api-key", world.store.add_key().text)]))[0] == 200


def test_both_ways_stand_in_the_openapi_page():
    """Each route says that it takes either; nothing else is offered."""
    page = small_app().openapi()
    describe_api_key(page)
    schemes = page["components"]["securitySchemes"]
    assert {
        name: (entry["type"], entry.get("in"), entry.get("scheme")) for name, entry in schemes.items()
    } == {
        "Bearer": ("http", None, "bearer"),
        "ApiKey": ("apiKey", "header", None),
    }
    for path in ("/anyone", *ROUTES):
        security = page["paths"][path]["get"]["security"]
        assert sorted(name for entry in security for name in entry) == ["ApiKey", "Bearer"]
