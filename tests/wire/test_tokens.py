"""Tokens bought with a key: for a browser or an end user, for minutes, and never wider than the key."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.support.gates import SECRET_KEY, gate_process
from tests.support.wire import data_lines
from tests.wire import people
from tests.wire.people import EVERY_TENANT_SCOPE, buy, call, chat, error_of, new_key, new_tenant

if TYPE_CHECKING:
    from pathlib import Path

    import httpx2

    from tests.support.gates import GateProcess

MESSAGES: Any = [{"role": "user", "content": "hi"}]
PROMPT_TOKENS = 8


@pytest.fixture
def tenant(gate: GateProcess) -> str:
    """A new tenant."""
    return new_tenant(gate)


@pytest.fixture
def key(gate: GateProcess, tenant: str) -> str:
    """A key of it, that may all that a tenant may."""
    return str(new_key(gate, tenant, scopes=EVERY_TENANT_SCOPE)["key"])


def complete(gate: GateProcess, token: str, model: str, **fields: Any) -> httpx2.Response:
    """OpenAI's call, read to its end."""
    body = {"model": model, "messages": MESSAGES, "stream": True} | fields
    return gate.http("POST", "/v1/chat/completions", token, json=body)


def used(gate: GateProcess, key: str, token_id: str) -> list[int]:
    """How many tokens each request of the bought token used, as the ledger says."""
    events = call(gate, "GET", "/v1/usage/events", key)["data"]
    return [e["input_tokens"] + e["output_tokens"] for e in events if e["token_id"] == token_id]


# --- never wider ------------------------------------------------------------------------------------


def test_a_token_may_chat_and_nothing_else_unless_it_is_asked_for(gate: GateProcess, key: str) -> None:
    """By default it reads no usage and manages no keys, be the key as wide as it may."""
    token, _ = buy(gate, key)
    assert chat(gate, token).status_code == 200
    for path in ("/v1/usage", "/v1/usage/events", "/v1/keys", "/admin/tenants"):
        assert error_of(gate.http("GET", path, token)) == (403, "insufficient_scope")
    wide, _ = buy(gate, key, scopes=["usage:read", "tenant:admin"])
    for path in ("/v1/usage", "/v1/usage/events", "/v1/keys"):
        assert gate.http("GET", path, wide).status_code == 200
    assert error_of(chat(gate, wide)) == (403, "insufficient_scope")


@pytest.mark.parametrize("scopes", [["usage:read"], ["chat", "tenant:admin"], ["admin"]])
def test_a_token_gets_no_scope_that_its_key_lacks(gate: GateProcess, tenant: str, scopes: list[str]) -> None:
    """It is refused, by the field's name; not cut down in silence."""
    refused = gate.http(
        "POST", "/auth/tokens", new_key(gate, tenant, scopes=["chat"])["key"], json={"scopes": scopes}
    )
    assert error_of(refused) == (400, "invalid_request")
    assert refused.json()["error"]["param"] == "scopes"


async def test_a_scope_that_the_key_loses_is_lost_to_its_tokens(gate: GateProcess, tenant: str) -> None:
    """A token has what both have, at any time: narrowing the key narrows what it has sold."""
    issued = new_key(gate, tenant)
    token, _ = buy(gate, issued["key"], scopes=["chat", "usage:read"])
    assert gate.http("GET", "/v1/usage", token).status_code == 200
    call(gate, "PATCH", f"/admin/keys/{issued['id']}", gate.admin, json={"scopes": ["chat"]})
    with people.lines(gate) as both:
        for line in both:
            await people.until(partial(line.answers, "/v1/usage", token, 403))
            assert line.get("/v1/models", token) == 200


def test_a_token_uses_the_models_that_it_and_its_key_may(gate: GateProcess, tenant: str) -> None:
    """Both lists bind, for the call and for what is listed; a `*` is an ending."""

    def listed(token: str) -> list[str]:
        return sorted(model["id"] for model in call(gate, "GET", "/v1/models", token)["data"])

    key = new_key(gate, tenant, models=["gpt-4o*"])["key"]
    assert listed(key) == ["gpt-4o", "gpt-4o-mini"]
    mini, _ = buy(gate, key, models=["gpt-4o-mini", "scripted*"])
    assert listed(mini) == ["gpt-4o-mini"]
    for model, fine in (("gpt-4o-mini", True), ("gpt-4o", False), ("scripted", False), ("gpt-4o-min", False)):
        brief = gate.http("POST", "/chat/stream", mini, json=people.plain(model, max_tokens=1))
        for answer in (brief, complete(gate, mini, model, max_tokens=1)):
            assert answer.status_code == 200 if fine else error_of(answer) == (403, "model_not_allowed"), (
                model
            )
    nothing, _ = buy(gate, key, models=["scripted*"])
    assert listed(nothing) == []


async def test_a_token_has_no_more_streams_than_it_was_sold(gate: GateProcess, key: str) -> None:
    """Its own cap is named in the 429; the key and other tokens have theirs."""
    (token, _), (other, _) = buy(gate, key, max_streams=1), buy(gate, key)
    stream = await people.held(gate, token)
    refused = chat(gate, token)
    assert error_of(refused) == (429, "rate_limit_exceeded")
    assert "with this token" in refused.json()["error"]["message"]
    assert [chat(gate, credential).status_code for credential in (key, other)] == [200, 200]
    stream.leave()
    await stream.close()


def test_a_token_buys_and_revokes_no_other(gate: GateProcess, key: str) -> None:
    """A token cannot prolong itself, nor take others' away."""
    (token, _), (_, other) = buy(gate, key, scopes=EVERY_TENANT_SCOPE), buy(gate, key)
    assert error_of(gate.http("POST", "/auth/tokens", token)) == (400, "invalid_request")
    assert gate.http("DELETE", f"/v1/tokens/{other}", token).status_code == 403
    assert error_of(gate.http("POST", "/auth/logout", key)) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ttl_seconds", 9),
        ("ttl_seconds", 3601),
        ("max_tokens", 0),
        ("max_streams", 0),
        ("models", []),
        ("models", ["a*b"]),
        ("scopes", []),
        ("scopes", ["root"]),
        ("end_user", "a\nb"),
        ("who", "knows"),
    ],
)
def test_what_cannot_be_bought_is_named(gate: GateProcess, key: str, name: str, value: Any) -> None:
    """A 400 names the field."""
    refused = gate.http("POST", "/auth/tokens", key, json={name: value})
    assert error_of(refused) == (400, "invalid_request")
    assert refused.json()["error"]["param"].partition(".")[0] == name


# --- an allowance -----------------------------------------------------------------------------------


def test_an_allowance_is_never_exceeded(gate: GateProcess, key: str) -> None:
    """One after the other: the last answer is cut to what is left, and then there is a 429 that is final."""
    token, name = buy(gate, key, max_tokens=100)
    model = "scripted?pace_ms=0&tokens=48"
    first, second = (complete(gate, token, model) for _ in range(2))
    for answer, reason in ((first, "stop"), (second, "length")):
        chunks = [json.loads(line) for line in data_lines(answer.content)[:-1]]
        assert [r for chunk in chunks for c in chunk["choices"] if (r := c["finish_reason"])] == [reason]
    assert used(gate, key, name) == [PROMPT_TOKENS + 48, PROMPT_TOKENS + 36]
    spent = complete(gate, token, model)
    assert error_of(spent) == (429, "insufficient_quota")
    assert spent.headers["x-should-retry"] == "false"
    assert error_of(chat(gate, token)) == (429, "insufficient_quota")
    assert chat(gate, key).status_code == 200


async def test_an_allowance_is_shared_by_what_runs_at_once(gate: GateProcess, key: str) -> None:
    """Five at a time on two workers, each of which may be the last: together no more than was sold."""
    token, name = buy(gate, key, max_tokens=100)
    statuses: list[int] = []
    while 200 in statuses[-5:] or not statuses:
        assert len(statuses) < 50, "it is never used up"
        asked = (
            asyncio.to_thread(complete, gate, token, "scripted?pace_ms=1&tokens=48", max_tokens=limit)
            for limit in (20, 20, 20, 20, 20)
        )
        answers = await asyncio.gather(*asked)
        statuses += [answer.status_code for answer in answers]
        assert {error_of(a) for a in answers if a.status_code != 200} <= {(429, "insufficient_quota")}
    spent = used(gate, key, name)
    assert len(spent) == statuses.count(200) >= 3
    assert 100 - PROMPT_TOKENS <= sum(spent) <= 100


def test_a_broken_answer_is_charged_for_what_came(gate: GateProcess, key: str) -> None:
    """Every token that arrived was counted (ADR 6): the next answer has what the ledger leaves."""
    token, name = buy(gate, key, max_tokens=100)
    broken = complete(gate, token, "scripted?pace_ms=0&tokens=48&eof_at=10", max_tokens=20)
    assert b"error" in data_lines(broken.content)[-1]
    assert complete(gate, token, "scripted?pace_ms=0&tokens=100").status_code == 200
    broken_off = PROMPT_TOKENS + 10
    assert used(gate, key, name) == [broken_off, 100 - broken_off]
    assert error_of(complete(gate, token, people.SHORT)) == (429, "insufficient_quota")


# --- who signs --------------------------------------------------------------------------------------


async def test_a_new_secret_key_keeps_the_tokens_of_the_retired_one(
    gate: GateProcess, key: str, tmp_path: Path
) -> None:
    """With SECRET_KEY_RETIRED a token from before holds, and new ones are bought; without it, it is a 401."""
    token, _ = buy(gate, key, ttl_seconds=600)
    fresh = {"DATABASE_URL": gate.environment["DATABASE_URL"], "SECRET_KEY": SECRET_KEY.swapcase()}
    with ExitStack() as stack:
        rotated, forgotten = await asyncio.gather(
            *(
                asyncio.to_thread(stack.enter_context, gate_process(tmp_path / name, **fresh, **retired))
                for name, retired in (("rotated", {"SECRET_KEY_RETIRED": SECRET_KEY}), ("forgotten", {}))
            )
        )
        assert [chat(rotated, credential).status_code for credential in (key, token)] == [200, 200]
        assert chat(forgotten, key).status_code == 200
        assert error_of(chat(forgotten, token)) == (401, "invalid_api_key")
        new, _ = await asyncio.to_thread(buy, rotated, key)
        assert [chat(where, new).status_code for where in (rotated, forgotten)] == [200, 200]
    assert error_of(chat(gate, new)) == (401, "invalid_api_key")  # whoever knows the old secret alone
    assert chat(gate, token).status_code == 200


async def test_the_sdk_works_with_a_bought_token(gate: GateProcess, tenant: str, key: str) -> None:
    """As an API key: streams and models; its end user is on the ledger, its end a RateLimitError."""
    token, name = await asyncio.to_thread(buy, gate, key, end_user="ann", max_tokens=PROMPT_TOKENS + 5)
    async with AsyncOpenAI(base_url=f"{gate.url}/v1", api_key=token) as sdk:
        assert "gpt-4o" in [model.id async for model in sdk.models.list()]
        model = "scripted?pace_ms=0&tokens=12"
        stream = await sdk.chat.completions.create(model=model, messages=MESSAGES, stream=True)
        assert len([1 async for chunk in stream if chunk.choices[0].delta.content]) == 5
        with pytest.raises(openai.RateLimitError) as caught:
            await sdk.chat.completions.create(model=model, messages=MESSAGES, stream=True)
    assert caught.value.code == "insufficient_quota"
    [event] = await people.ledger_events(gate, tenant)
    assert (event["end_user"], event["token_id"], event["output_tokens"]) == ("ann", name, 5)
