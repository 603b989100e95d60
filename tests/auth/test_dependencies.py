"""What a route's security dependency lets through, in a small app of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import httpx2
import pytest
from fastapi import FastAPI, Security
from fastapi.responses import JSONResponse

from auth.authenticator import Authenticator
from auth.dependencies import Requires, authenticated
from auth.principal import NotAllowed, NotAuthenticated, Principal, Scope
from auth.tokens import TokenSigner
from tests.auth.support import SECRET, CountingStore, HandClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SIGNER = TokenSigner(SECRET)
Headers = list[tuple[str, str]]


class World:
    """The small app's store, clock and client."""

    def __init__(self) -> None:
        self.store, self.clock = CountingStore(), HandClock()
        authenticator = Authenticator(self.store, SIGNER, self.clock)
        inner = small_app()

        async def app(scope, receive, send):
            scope["state"] = {"authenticator": authenticator}
            await inner(scope, receive, send)

        self.client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://gate")

    def token(self, *scopes: Scope, **who: str) -> str:
        return SIGNER.sign(now=self.clock.unix(), ttl_seconds=60, scopes=frozenset(scopes), **who)

    async def status(self, path: str, headers: Headers) -> int:
        return (await self.client.get(path, headers=headers)).status_code


def small_app() -> FastAPI:
    app = FastAPI()

    @app.get("/anyone")
    async def anyone(caller: Annotated[Principal, Security(authenticated)]) -> dict:
        return {"tenant": caller.tenant_id}

    def add(scope: Scope) -> None:
        @app.get(f"/{scope.name.lower()}", dependencies=[Security(Requires(scope))])
        async def route() -> dict:
            return {}

    for scope in Scope:
        add(scope)
    app.exception_handler(NotAuthenticated)(lambda _r, error: JSONResponse({"why": str(error)}, 401))
    app.exception_handler(NotAllowed)(lambda _r, error: JSONResponse({"scope": error.scope}, 403))
    return app


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    async with made.client:
        yield made


async def test_a_key_is_taken_from_either_header(world):
    """`Authorization: Bearer` as OpenAI's clients send it, `x-api-key` as Anthropic's do."""
    key = world.store.add()
    for headers in (
        [("authorization", f"Bearer {key.text}")],
        [("authorization", f"bearer {key.text}")],
        [("x-api-key", key.text)],
    ):
        answer = await world.client.get("/anyone", headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"tenant": "tn_1"})


async def test_two_credentials_are_refused(world):
    """Also two good ones: what one hop checks must be what the next one uses."""
    key = world.store.add().text
    bearer, x_api_key = ("authorization", f"Bearer {key}"), ("x-api-key", key)
    for headers in (
        [bearer, x_api_key],
        [bearer, bearer],
        [x_api_key, x_api_key],
        [("x-api-key", "bad"), bearer],
    ):
        assert await world.status("/anyone", headers) == 401


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", "Basic dXNlcjpwYXNz")],
        [("authorization", "Bearer garbage")],
        [("x-api-key", "")],
        [("x-api-key", "garbage")],
    ],
)
@pytest.mark.parametrize("path", ["/anyone", *(f"/{scope.name.lower()}" for scope in Scope)])
async def test_no_credential_or_none_that_holds_is_401(world, path, headers):
    """Before anything else is looked at."""
    assert await world.status(path, headers) == 401
    assert world.store.calls == []


async def test_a_raw_key_without_a_scheme_is_refused(world):
    """A key in `Authorization` alone is no bearer token."""
    assert await world.status("/anyone", [("authorization", world.store.add().text)]) == 401


@pytest.mark.parametrize("asked", list(Scope))
@pytest.mark.parametrize("held", [frozenset(), *(frozenset({scope}) for scope in Scope), frozenset(Scope)])
async def test_a_route_is_open_to_its_scope_alone(world, asked, held):
    """A key with the scope passes, any other is told which scope it lacks."""
    key = world.store.add(held)
    answer = await world.client.get(f"/{asked.name.lower()}", headers=[("x-api-key", key.text)])
    if asked in held:
        assert answer.status_code == 200
    else:
        assert (answer.status_code, answer.json()) == (403, {"scope": asked})


async def test_who_belongs_to_no_tenant_may_not_act_as_one(world):
    """An admin who signed in has no tenant to bill: the scope alone does not open a tenant's routes."""
    everything = world.token(*Scope, user="admin@localhost")
    headers = [("authorization", f"Bearer {everything}")]
    statuses = {scope: await world.status(f"/{scope.name.lower()}", headers) for scope in Scope}
    assert statuses == {Scope.CHAT: 403, Scope.USAGE_READ: 403, Scope.ADMIN: 200}


async def test_a_token_opens_what_its_key_and_itself_allow(world):
    """A token bought with a key, narrowed to chat."""
    key = world.store.add()
    headers = [("authorization", f"Bearer {world.token(Scope.CHAT, Scope.ADMIN, key_id=key.id)}")]
    statuses = {scope: await world.status(f"/{scope.name.lower()}", headers) for scope in Scope}
    assert statuses == {Scope.CHAT: 200, Scope.USAGE_READ: 403, Scope.ADMIN: 403}
