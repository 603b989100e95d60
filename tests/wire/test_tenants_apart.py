"""P10: a tenant sees and changes nothing of another, and cannot even learn what there is.

Another tenant's ids answer as ids that never were; all that a tenant can list is its own; nothing of a
tenant's opens the admins' doors; and one tenant's flood takes no slot of another.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from fastapi.routing import iter_route_contexts

from api.app import create_app
from api.settings import Settings
from tests.support.gates import SECRET_KEY
from tests.support.wire import data_lines
from tests.wire import people
from tests.wire.people import EVERY_TENANT_SCOPE, buy, call, new_key, new_tenant

if TYPE_CHECKING:
    from tests.support.gates import GateProcess

APP = create_app(Settings(_env_file=None, secret_key=SECRET_KEY, redis_url="memory://", web_concurrency=1))
ROUTES = sorted(
    (method, (route.path or "").replace(":path", ""))
    for route in iter_route_contexts(APP.routes)
    for method in route.methods or ()
)
ADMIN_ROUTES = [
    (method, path) for method, path in ROUTES if path.startswith("/admin") and path != "/admin/ui"
]

NEVER = {
    "stream_id": "bk_never",
    "key_id": "NeverIssued0",
    "tenant_id": "tn_never",
    "token_id": "never-bought",
    "name": "upstream-of-nobody",
}
"""Ids that nothing ever had."""

WITH_IDS: dict[tuple[str, str], tuple[int, Any]] = {
    ("GET", "/v1/keys/{key_id}"): (404, None),
    ("PATCH", "/v1/keys/{key_id}"): (404, {"name": "mine now"}),
    ("POST", "/v1/keys/{key_id}/rotate"): (404, {"grace_seconds": 0}),
    ("DELETE", "/v1/keys/{key_id}"): (404, None),
    ("DELETE", "/v1/tokens/{token_id}"): (204, None),
    ("POST", "/v1/streams/{stream_id}/stop"): (404, None),
}
"""A tenant's routes with somebody's id in the path: the answer for an id that is not the caller's."""

ID_FREE = {
    ("GET", "/static/{name}"): "the page's files; a fixed list",
    (
        "GET",
        "/v1/models/{model}",
    ): "a model's name; a tenant's own are its own in tests/wire/test_models.py",
}


@dataclass
class Tenant:
    """A tenant with one of everything. `ids` are by the name of the path parameter."""

    id: str
    key: str
    token: str
    ids: dict[str, str]

    @property
    def marks(self) -> set[str]:
        """What must be in no other tenant's answers."""
        return {self.id, *self.ids.values()}


def tenant_of(gate: GateProcess) -> Tenant:
    tenant = new_tenant(gate)
    issued = new_key(gate, tenant, scopes=EVERY_TENANT_SCOPE)
    token, token_id = buy(gate, issued["key"], scopes=EVERY_TENANT_SCOPE)
    assert people.chat(gate, token).status_code == 200
    [event] = call(gate, "GET", "/v1/usage/events", issued["key"])["data"]
    ids = {"key_id": issued["id"], "tenant_id": tenant, "token_id": token_id, "after": event["id"]}
    ids |= {"stream_id": event["id"], "name": f"upstream-of-{tenant}"}
    return Tenant(tenant, issued["key"], token, ids)


@pytest.fixture(scope="module")
def ours(gate: GateProcess) -> Tenant:
    """Who looks around."""
    return tenant_of(gate)


@pytest.fixture(scope="module")
def theirs(gate: GateProcess) -> Tenant:
    """Who is looked at."""
    return tenant_of(gate)


def is_as_before(gate: GateProcess, tenant: Tenant) -> None:
    """Its key and its token work, on either worker, and nobody has changed the key."""
    for credential in (tenant.key, tenant.token):
        with people.lines(gate) as both:
            assert [line.get("/v1/models", credential) for line in both] == [200, 200]
    [key] = call(gate, "GET", "/v1/keys", tenant.key)
    assert (key["name"], key["revoked_at"], key["previous_until"]) == ("default", None, None)


def seen(answer: httpx2.Response, ids: dict[str, str]) -> tuple[Any, ...]:
    """All of an answer that could tell something; the ids that were asked for are the same word."""
    passing = {"x-request-id", "date", "content-length"}
    headers = sorted((name, value) for name, value in answer.headers.items() if name not in passing)
    return answer.status_code, headers, re.sub("|".join(map(re.escape, ids.values())), "ID", answer.text)


def test_every_route_of_a_tenant_that_takes_an_id_is_tried() -> None:
    """Whoever adds one says here what it answers for another tenant's id."""
    taking = {(method, path) for method, path in ROUTES if "{" in path and (method, path) not in ADMIN_ROUTES}
    assert taking == set(WITH_IDS) | set(ID_FREE)
    assert len(ADMIN_ROUTES) > 12


@pytest.mark.parametrize("credential", ["key", "token"])
@pytest.mark.parametrize(("method", "path"), WITH_IDS)
def test_anothers_id_answers_as_one_that_never_was(
    gate: GateProcess, ours: Tenant, theirs: Tenant, method: str, path: str, credential: str
) -> None:
    """Status, headers and body are the same, whichever credential asks; and nothing has changed."""
    status, body = WITH_IDS[method, path]
    asking = getattr(ours, credential)
    if (credential, path) == ("token", "/v1/tokens/{token_id}"):
        status = 403  # a token revokes no other, wherever that is from
    found = [
        seen(gate.http(method, path.format(**ids), asking, json=body), ids) for ids in (theirs.ids, NEVER)
    ]
    assert found[0] == found[1]
    assert found[0][0] == status
    is_as_before(gate, theirs)


QUERIES = ["/v1/usage/events?after={after}", "/v1/usage?key={key_id}&group_by=key", "/v1/usage?key={key_id}"]


@pytest.mark.parametrize("path", QUERIES)
def test_anothers_id_in_a_query_tells_nothing(
    gate: GateProcess, ours: Tenant, theirs: Tenant, path: str
) -> None:
    """A page behind another's event is a page of one's own, and another's key is one that never was."""
    never = NEVER | {"after": theirs.ids["after"][:-1] + "_"}
    found = [seen(gate.http("GET", path.format(**ids), ours.key), ids) for ids in (theirs.ids, never)]
    assert found[0] == found[1]
    assert found[0][0] == 200


def test_what_a_tenant_can_list_is_its_own(gate: GateProcess, ours: Tenant, theirs: Tenant) -> None:
    """Every GET of a tenant that takes no id answers without a trace of another, and with its own."""
    paths = [p for method, p in ROUTES if method == "GET" and p.startswith("/v1") and "{" not in p]
    assert {"/v1/keys", "/v1/usage", "/v1/usage/events", "/v1/models"} <= set(paths)
    for credential in (ours.key, ours.token):
        texts = {path: gate.http("GET", path, credential).text for path in paths}
        for path, text in texts.items():
            assert not any(mark in text for mark in theirs.marks), path
        assert ours.ids["key_id"] in texts["/v1/keys"]
        assert ours.ids["after"] in texts["/v1/usage/events"]
    for tenant in (ours, theirs):
        assert call(gate, "GET", "/v1/usage", tenant.key)["events"] == 1


@pytest.mark.parametrize(("method", "path"), ADMIN_ROUTES)
def test_a_tenants_credential_opens_no_door_of_the_admins(
    gate: GateProcess, ours: Tenant, theirs: Tenant, method: str, path: str
) -> None:
    """403 with the same answer, whether or not the ids are somebody's, and before the body is read."""
    for credential in (ours.key, ours.token):
        answers = {
            json.dumps(seen(gate.http(method, path.format(**ids), credential, content=b"no JSON"), ids))
            for ids in (theirs.ids, ours.ids, NEVER)
        }
        assert len(answers) == 1
        status, _, body = json.loads(answers.pop())
        assert (status, json.loads(body)["error"]["code"]) == (403, "insufficient_scope")


def test_a_tenants_admin_cannot_make_or_take_an_admins_key(gate: GateProcess, ours: Tenant) -> None:
    """The scope `admin` is not a tenant's to give; a key that has it is not there for a tenant's admin."""
    asked = {"scopes": ["chat", "admin"]}
    for method, path in (("POST", "/v1/keys"), ("PATCH", f"/v1/keys/{ours.ids['key_id']}")):
        refused = gate.http(method, path, ours.key, json=asked)
        assert people.error_of(refused) == (400, "invalid_request")
        assert refused.json()["error"]["param"] == "scopes"
    tokens = gate.http("POST", "/auth/tokens", ours.key, json={"scopes": ["admin"]})
    assert people.error_of(tokens) == (400, "invalid_request")
    master = new_key(gate, ours.id, scopes=["admin", "chat"])
    ids = {"key_id": master["id"]}
    for (method, path), (status, body) in WITH_IDS.items():
        if "{key_id}" in path:
            answers = [
                seen(gate.http(method, path.format(**given), ours.key, json=body), given)
                for given in (ids, NEVER)
            ]
            assert answers[0] == answers[1]
            assert answers[0][0] == status == 404
    assert master["id"] not in gate.http("GET", "/v1/keys", ours.key).text
    assert call(gate, "GET", f"/admin/keys/{master['id']}", master["key"])["revoked_at"] is None
    bought = gate.http("POST", "/auth/tokens", master["key"], json={"scopes": ["admin"]})
    assert people.error_of(bought) == (400, "invalid_request")


async def test_one_tenants_flood_takes_nothing_from_another(gate: GateProcess) -> None:
    """While a tenant at its cap is refused again and again, another uses all of its own, on both workers."""
    _, loud = await asyncio.to_thread(gate.tenant, 1)
    _, quiet = await asyncio.to_thread(gate.tenant, 2)
    held = await people.held(gate, loud)
    over = asyncio.Event()

    async def flood(client: httpx2.AsyncClient) -> set[int]:
        seen: list[int] = []
        while not over.is_set() or len(seen) < 10:
            answer = await client.post("/chat/stream", json=people.plain())
            seen.append(answer.status_code)
        return set(seen)

    async def stream() -> list[bytes]:
        client = await people.WireClient.post(
            gate.url, "/chat/stream", people.plain("scripted?tokens=20&pace_ms=2"), key=quiet
        )
        lines = data_lines(await client.body())
        await client.close()
        return lines

    headers = {"authorization": f"Bearer {loud}"}
    async with httpx2.AsyncClient(base_url=gate.url, headers=headers, trust_env=False, timeout=30) as client:
        floods = [asyncio.create_task(flood(client)) for _ in range(8)]
        for _ in range(10):
            for lines in await asyncio.gather(stream(), stream()):
                assert (len(lines), lines[-1]) == (21, b"[DONE]")
        over.set()
        assert await asyncio.gather(*floods) == [{429}] * 8
    held.leave()
    await held.close()
