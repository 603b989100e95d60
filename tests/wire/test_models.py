"""Models, upstreams and tenants' own keys, as admins set them: on two workers, over HTTP and by commands."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.contracts.helpers import until
from tests.wire import people
from tests.wire.commands import fine, sluicegate, told
from tests.wire.people import call, new_key, new_tenant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import httpx2

    from tests.support.gates import GateProcess
    from tests.support.servers import ScriptedProcess

KEY = "sk-THE-PROVIDERS-SECRET"
MODEL = "scripted?tokens=3&pace_ms=0"
CHUNK = b'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]}\n\n'
ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    + CHUNK
    + b"data: [DONE]\n\n"
)


def ask(gate: GateProcess, key: str, model: str, path: str = "/v1/chat/completions") -> httpx2.Response:
    """A stream, read to its end."""
    body = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    return gate.http("POST", path, key, json=body)


def put(gate: GateProcess, path: str, body: dict[str, Any], status: int = 200) -> Any:
    """What an admin says."""
    return call(gate, "PUT", f"/admin{path}", gate.admin, status, json=body)


@pytest.fixture(scope="module")
def catalog(gate: GateProcess, scripted: ScriptedProcess) -> GateProcess:
    """A gate whose models are said: `fast` fails over, `claude` speaks messages, `gone*` goes to nobody."""
    put(gate, "/upstreams/dead", {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "api_key": KEY})
    put(gate, "/upstreams/live", {"kind": "openai", "base_url": f"{scripted.url}/v1"})
    put(gate, "/upstreams/theirs", {"kind": "anthropic", "base_url": scripted.url, "api_key": KEY})
    dead, live = {"upstream": "dead"}, {"upstream": "live", "model": MODEL, "order": 1}
    put(gate, "/models", {"name": "fast", "targets": [dead, live], "price": {"input": "1", "output": "2"}})
    put(gate, "/models", {"name": "claude", "targets": [{"upstream": "theirs", "model": MODEL}]})
    put(gate, "/models", {"name": "gone*", "targets": [dead]})
    put(gate, "/models", {"name": "scripted*", "targets": [{"upstream": "openai"}]})
    _, key = gate.tenant()
    until(lambda: {ask(gate, key, "claude").status_code for _ in range(8)} == {200}, "both workers know")
    return gate


def test_the_next_upstream_answers_and_all_are_told(catalog: GateProcess) -> None:
    """The header, the ledger and the price: by the public name, whoever answered."""
    tenant, key = catalog.tenant()
    answer = ask(catalog, key, "fast")
    assert answer.status_code == 200
    assert answer.headers["x-sluicegate-upstream"] == "live"
    assert answer.content.endswith(b"data: [DONE]\n\n")
    [event] = asyncio.run(people.settled(catalog, tenant, 1))
    assert (event["model"], event["upstream"], event["output_tokens"]) == ("fast", "live", 3)
    assert event["cost_nano_dollars"] == (8 * 1000 + 3 * 2000)


def test_a_model_is_asked_for_in_any_dialect(catalog: GateProcess) -> None:
    """An OpenAI client gets Anthropic's answer as chunks, and an Anthropic client OpenAI's as events."""
    _, key = catalog.tenant()
    chunks = ask(catalog, key, "claude").content
    assert b'"object":"chat.completion.chunk"' in chunks
    assert chunks.endswith(b"data: [DONE]\n\n")
    events = ask(catalog, key, "fast", "/v1/messages").content
    assert events.startswith(b"event: message_start")
    assert events.endswith(b'event: message_stop\ndata: {"type":"message_stop"}\n\n')


def test_a_model_that_nobody_named_is_not_found(catalog: GateProcess) -> None:
    """404 in the shape of the API that was called, before anything is admitted or booked."""
    tenant, key = catalog.tenant()
    answer = ask(catalog, key, "no-such-model")
    assert people.error_of(answer) == (404, "model_not_found")
    answer = ask(catalog, key, "no-such-model", "/v1/messages")
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
    assert asyncio.run(people.ledger_events(catalog, tenant)) == []


def test_what_cannot_be_translated_is_a_clear_400(catalog: GateProcess) -> None:
    """By the field's name; it costs nothing."""
    tenant, key = catalog.tenant()
    body = {"model": "claude", "messages": [{"role": "user", "content": "hi"}], "seed": 7, "stream": True}
    answer = catalog.http("POST", "/v1/chat/completions", key, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_translatable")
    assert answer.json()["error"]["param"] == "seed"
    odd = {"model": "claude", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}
    answer = catalog.http("POST", "/v1/chat/completions", key, json=odd)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_translatable")
    answer = catalog.http("POST", "/v1/embeddings", key, json={"model": "claude", "input": "x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
    events = asyncio.run(people.settled(catalog, tenant, 3))
    assert {event["output_tokens"] for event in events} == {0}


def test_a_provider_that_nobody_reaches_is_said_without_its_address(catalog: GateProcess) -> None:
    """502, and neither host nor key."""
    _, key = catalog.tenant()
    answer = ask(catalog, key, "gone-model")
    assert people.error_of(answer) == (502, "upstream_failed")
    assert "127.0.0.1" not in answer.text


def test_the_models_that_are_said_are_listed(catalog: GateProcess) -> None:
    """By name, without beginnings; in both shapes."""
    _, key = catalog.tenant()
    listed = call(catalog, "GET", "/v1/models", key)
    assert {model["id"] for model in listed["data"]} - {"kept"} == {"claude", "fast"}
    theirs = call(catalog, "GET", "/v1/models", key, headers={"anthropic-version": "2023-06-01"})
    assert {model["type"] for model in theirs["data"]} == {"model"}
    assert call(catalog, "GET", "/v1/models/fast", key)["id"] == "fast"
    call(catalog, "GET", "/v1/models/none", key, 404)


def test_keys_are_never_shown(catalog: GateProcess) -> None:
    """Of a provider's key the last four characters; in no answer, and not in the audit log."""
    shown = catalog.http("GET", "/admin/upstreams", catalog.admin).text
    shown += catalog.http("GET", "/admin/audit", catalog.admin).text + catalog.log
    assert KEY not in shown
    by_name = {one["name"]: one for one in call(catalog, "GET", "/admin/upstreams", catalog.admin)}
    assert by_name["dead"]["key_hint"] == KEY[-4:]
    assert by_name["live"]["key_hint"] is None
    assert by_name["openai"]["updated_by"] == "environment"


def test_readiness_tells_how_upstreams_stand(catalog: GateProcess) -> None:
    """By name; one that fails takes no worker out."""
    _, key = catalog.tenant()
    for _ in range(12):
        ask(catalog, key, "gone-model")
    answer = catalog.http("GET", "/readyz")
    assert answer.status_code == 200
    assert answer.json()["upstream live"] == "closed"
    told = catalog.http("GET", "/metrics").text
    assert 'standing="closed",upstream="live"' in told
    standings = {catalog.http("GET", "/readyz").json()["upstream dead"] for _ in range(20)}
    assert standings & {"open", "half_open"}


def test_what_a_provider_keeps_is_for_whose_account_it_is(catalog: GateProcess) -> None:
    """An earlier answer's id is refused in the account that all share, and passes to a tenant's own."""
    tenant, key = catalog.tenant()
    asked = {"model": MODEL, "input": "hi", "previous_response_id": "resp_1"}
    answer = catalog.http("POST", "/v1/responses", key, json=asked)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "previous_response_id")
    put(catalog, f"/tenants/{tenant}/provider-keys/openai", {"api_key": "sk-of-the-tenant-itself"})

    def passes() -> bool:
        answers = [catalog.http("POST", "/v1/responses", key, json=asked) for _ in range(8)]
        return {one.status_code for one in answers} == {200}

    until(passes, "both workers know")
    answer = catalog.http("POST", "/v1/responses", key, json=asked | {"background": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "background")


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[int, list[bytes]]]:
    """A provider that keeps what it is sent."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(ANSWER)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], heard


async def test_a_tenant_goes_to_its_provider_with_its_own_key(
    gate: GateProcess, catalog: GateProcess
) -> None:
    """Its own, where it has one; all others go with the upstream's."""
    async with listening() as (port, heard):
        base = {"kind": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "api_key": KEY}

        def prepare() -> tuple[str, str, str]:
            put(gate, "/upstreams/kept", base)
            put(gate, "/models", {"name": "kept", "targets": [{"upstream": "kept"}]})
            mine, other = new_tenant(gate), new_tenant(gate)
            put(gate, f"/tenants/{mine}/provider-keys/kept", {"api_key": "sk-of-the-tenant-itself"})
            listed = call(gate, "GET", f"/admin/tenants/{mine}/provider-keys", gate.admin)
            assert [(one["upstream"], one["key_hint"]) for one in listed] == [("kept", "self")]
            call(
                gate,
                "PUT",
                f"/admin/tenants/{mine}/provider-keys/none",
                gate.admin,
                404,
                json={"api_key": "x"},
            )
            return mine, str(new_key(gate, mine)["key"]), str(new_key(gate, other)["key"])

        mine, own, other = await asyncio.to_thread(prepare)

        def known() -> bool:
            return {ask(gate, own, "kept").status_code for _ in range(8)} == {200}

        await asyncio.to_thread(until, known, "both workers know")
        heard.clear()
        assert (await asyncio.to_thread(ask, gate, own, "kept")).status_code == 200
        assert (await asyncio.to_thread(ask, gate, other, "kept")).status_code == 200
        assert b"Bearer sk-of-the-tenant-itself\r\n" in heard[0]
        assert f"Bearer {KEY}\r\n".encode() in heard[1]
        await asyncio.to_thread(
            call, gate, "DELETE", f"/admin/tenants/{mine}/provider-keys/kept", gate.admin, 204
        )


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/upstreams/x", {"kind": "openai", "base_url": "http://169.254.169.254/v1"}, "base_url"),
        ("/upstreams/x", {"kind": "openai", "base_url": "http://u:p@host/v1"}, "base_url"),
        ("/upstreams/x", {"kind": "other"}, "kind"),
        ("/upstreams/x", {"kind": "openai", "api_key": "with\nnewline"}, "api_key"),
        ("/upstreams/x", {"kind": "openai", "surprise": 1}, "surprise"),
        ("/models", {"name": "m*x", "targets": [{"upstream": "live"}]}, "name"),
        ("/models", {"name": "m", "targets": []}, "targets"),
        ("/models", {"name": "m", "targets": [{"upstream": "live", "weight": 0}]}, "targets.0.weight"),
        ("/models", {"name": "m", "targets": [{"upstream": "live"}], "price": {"input": "x"}}, "price"),
    ],
)
def test_nonsense_is_refused_by_the_name_of_its_field(
    catalog: GateProcess, path: str, body: dict[str, Any], param: str
) -> None:
    """And a secret among it is not repeated."""
    error = put(catalog, path, body, 400)["error"]
    assert error["param"] == param
    assert "newline" not in error["message"]
    assert "u:p" not in error["message"]


def test_what_is_named_stays_and_what_is_not_there_is_not_found(catalog: GateProcess) -> None:
    """409 and 404."""
    call(catalog, "DELETE", "/admin/upstreams/live", catalog.admin, 409)
    call(catalog, "DELETE", "/admin/upstreams/none", catalog.admin, 404)
    call(catalog, "DELETE", "/admin/models?name=none", catalog.admin, 404)
    put(catalog, "/models", {"name": "m", "targets": [{"upstream": "none"}]}, 404)


def test_commands_do_the_same(office: Path) -> None:
    """Upstreams, models and keys by the command line; a file as a whole; no key on the screen."""
    said = fine("upstream", "set", "backup", "--kind", "anthropic", "--key-stdin", stdin=f"{KEY}\n")
    assert "sluicegate model set" in said
    tenant = told("tenant", "create", "Acme")["id"]
    fine("model", "set", "fast", "--target", "scripted,weight=3", "--target", "backup/small,order=1")
    [row] = told("model", "list")
    assert row["targets"][1] == {"upstream": "backup", "model": "small", "weight": 1, "order": 1}
    assert "scripted, backup/small" in fine("model", "list")
    fine("provider-key", "set", tenant, "backup", stdin="sk-of-the-tenant-itself\n")
    assert told("provider-key", "list", tenant)[0]["key_hint"] == "self"
    shown = fine("upstream", "list") + fine("audit") + fine("provider-key", "list", tenant)
    assert KEY not in shown
    assert "of-the-tenant" not in shown
    file = office / "models.json"
    file.write_text(json.dumps({"models": [{"name": "slow", "targets": [{"upstream": "scripted"}]}]}))
    assert "add" in fine("model", "import", str(file), "--dry-run")
    assert [one["name"] for one in told("model", "import", str(file))] == ["slow"]
    assert "holds already" in fine("model", "import", str(file))
    fine("model", "remove", "fast")
    fine("provider-key", "remove", tenant, "backup")
    fine("upstream", "remove", "backup")
    assert told("provider-key", "reseal") == {"resealed": 0}


@pytest.mark.parametrize(
    ("words", "stdin", "said"),
    [
        (
            ("upstream", "set", "x", "--kind", "openai", "--base-url", "http://169.254.169.254"),
            None,
            "link-local",
        ),
        (("upstream", "set", "x", "--kind", "other"), None, "kind"),
        (("model", "set", "x", "--target", "nobody"), None, "no upstream `nobody`"),
        (("model", "set", "x", "--target", "scripted,wait=3"), None, "weight=N"),
        (("model", "remove", "x"), None, "no model `x`"),
        (("upstream", "remove", "x"), None, "no upstream `x`"),
        (("provider-key", "set", "tn_none", "scripted"), "sk-x\n", "tn_none"),
        (("model", "import", "-"), "{", "not JSON"),
        (("model", "import", "-"), "[]", "must be an object"),
    ],
)
def test_commands_say_what_is_wrong(
    office: Path, words: tuple[str, ...], stdin: str | None, said: str
) -> None:
    """With a status that is not 0, and no trace."""
    done = sluicegate(*words, stdin=stdin)
    assert done.status != 0
    assert said in done.err
