"""An admin sees what runs, on whichever worker, and ends one of them: two workers, real Redis."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.support.gates import SECRET_KEY, GateProcess, gate_process
from tests.support.servers import RedisServer, running
from tests.wire import people
from tests.wire.people import buy, call, new_key, new_tenant
from tests.wire.test_revocation import without_pubsub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.servers import PostgresServer, ScriptedProcess
    from tests.support.wire import WireClient
    from tests.wire.people import Line

STREAMS = "/admin/streams"


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """The gate's Redis, which can be taken away."""
    with running(RedisServer()) as server:
        server.start()
        yield server


@pytest.fixture(scope="module")
def environment(
    postgres_server: PostgresServer, scripted: ScriptedProcess, redis: RedisServer
) -> dict[str, str]:
    """What gates have in common that share a ledger."""
    return {
        "DATABASE_URL": postgres_server.new_database(),
        "REDIS_URL": redis.url,
        "OPENAI_BASE_URL": f"{scripted.url}/v1",
        "REDIS_TIMEOUT_SECONDS": "5",  # the tests share two cores with the servers
        "LEASE_SECONDS": "3",
        "TICK_SECONDS": "1",
        "DRAIN_SECONDS": "1",
        "SECRET_KEY": SECRET_KEY,
        "ADMIN_PASSWORD": "correct horse battery staple",
    }


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[GateProcess]:
    """Two workers, both there."""
    directory = tmp_path_factory.mktemp("gate")
    with gate_process(directory, WEB_CONCURRENCY="2", **environment) as process, people.lines(process):
        yield process


def shown(gate: GateProcess, tenant: str) -> list[dict[str, Any]]:
    """A tenant's streams, as an admin sees them."""
    return list(call(gate, "GET", f"{STREAMS}?tenant={tenant}", gate.admin))


async def id_of(gate: GateProcess, tenant: str, client: WireClient) -> str:
    """The id of a client's stream."""
    found = await asyncio.to_thread(shown, gate, tenant)
    return next(str(one["id"]) for one in found if one["request_id"] == client.headers["x-request-id"])


def worker_of(gate: GateProcess, client: WireClient) -> int:
    """The process that serves it, by the system's own table of sockets."""
    return people.worker_of(gate, client._writer.get_extra_info("sockname")[1])


def delete(line: Line, path: str, token: str) -> tuple[int, Any]:
    """The answer of the line's worker."""
    line._http.request("DELETE", path, headers={"authorization": f"Bearer {token}"})
    answer = line._http.getresponse()
    return answer.status, json.loads(answer.read())


# --- what runs --------------------------------------------------------------------------------------


async def test_an_admin_sees_every_stream_with_what_it_is(gate: GateProcess) -> None:
    """Whose it is, of which model, on which worker, since when, and the tokens of its last checkpoint."""
    tenant = await asyncio.to_thread(new_tenant, gate)
    key = new_key(gate, tenant)
    token, token_id = buy(gate, key["key"], end_user="ann")
    began = datetime.now(UTC)
    streams = await people.held_on_both(gate, token)
    try:

        def counted() -> bool:
            return {one["output_tokens"] for one in shown(gate, tenant)} == {10}

        await people.until(counted)
        found = await asyncio.to_thread(shown, gate, tenant)
        assert [one["request_id"] for one in found] == [c.headers["x-request-id"] for c in streams]
        for one, client in zip(found, streams, strict=True):
            started = datetime.fromisoformat(one["started_at"])
            assert began <= started <= datetime.now(UTC)
            assert 0 < one["age_seconds"] <= (datetime.now(UTC) - started).total_seconds()
            assert one["worker"].startswith(f"{socket.gethostname()}:{worker_of(gate, client)}:")
            expected = {
                "tenant_id": tenant,
                "key_id": key["id"],
                "token_id": token_id,
                "end_user": "ann",
                "model": people.HELD,
                "state": "live",
                "input_tokens": 8,
            }
            assert {name: one[name] for name in expected} == expected
        assert len({one["worker"] for one in found}) == 2
    finally:
        await people.leave(streams)
    await people.until(lambda: shown(gate, tenant) == [])


async def test_streams_are_listed_for_one_tenant_or_for_all(gate: GateProcess) -> None:
    """Oldest first; another tenant's are not among those of the one that was asked for."""
    tenants = [await asyncio.to_thread(new_tenant, gate) for _ in range(2)]
    streams = [await people.held(gate, new_key(gate, tenant)["key"]) for tenant in tenants]
    ids = [await id_of(gate, tenant, client) for tenant, client in zip(tenants, streams, strict=True)]
    every = [one["id"] for one in call(gate, "GET", STREAMS, gate.admin)]
    assert [one for one in every if one in ids] == ids
    assert every == sorted(every)
    for tenant, stream_id in zip(tenants, ids, strict=True):
        assert [one["id"] for one in shown(gate, tenant)] == [stream_id]
    assert shown(gate, "tn_nobody") == []
    await people.leave(streams)


async def test_streams_are_for_admins_alone(gate: GateProcess) -> None:
    """A tenant's own admin sees none and ends none, not even its own."""
    tenant = await asyncio.to_thread(new_tenant, gate)
    key = new_key(gate, tenant, scopes=people.EVERY_TENANT_SCOPE)["key"]
    client = await people.held(gate, key)
    path = f"{STREAMS}/{await id_of(gate, tenant, client)}"
    for credential, status in ((key, 403), ("", 401)):
        assert gate.http("GET", STREAMS, credential).status_code == status
        assert gate.http("DELETE", path, credential).status_code == status
    await people.until(lambda: [one["state"] for one in shown(gate, tenant)] == ["live"])
    await people.leave([client])


# --- ending one -------------------------------------------------------------------------------------


async def ends_one_of_each_worker(gate: GateProcess) -> None:
    """Each of two streams is ended by the worker that does not have it; a third goes on."""
    tenant = await asyncio.to_thread(new_tenant, gate)
    key = new_key(gate, tenant)["key"]
    going_on = await people.held(gate, key)
    streams = await people.held_on_both(gate, key)
    for client in streams:
        stream_id = await id_of(gate, tenant, client)
        here = worker_of(gate, client)
        with people.lines(gate) as both:  # new ones: the gate hangs up on one that was idle for long
            line = next(line for line in both if line.worker != here)
            status, said = await asyncio.to_thread(delete, line, f"{STREAMS}/{stream_id}", gate.admin)
        since = time.monotonic()
        assert (status, said["id"], said["tenant_id"]) == (202, stream_id, tenant)
        last = await people.last_event(client)
        assert time.monotonic() - since < people.CUT_SECONDS
        assert last == {"error": "This stream was ended on request.", "code": "ended_by_admin"}
    events = await people.settled(gate, tenant, len(streams))
    ends = {(event["ended"], event["cause"], event["output_tokens"]) for event in events}
    assert ends == {("cut", "ended_by_admin", 10)}
    assert [one["request_id"] for one in shown(gate, tenant)] == [going_on.headers["x-request-id"]]
    await people.leave([going_on])
    first, *_ = await people.settled(gate, tenant, len(streams) + 1)
    assert first["cause"] == "client_left"


async def test_any_worker_ends_the_stream_of_another(gate: GateProcess) -> None:
    """Within a second, in words, and on the ledger with its tokens; no other stream of its key is touched."""
    await ends_one_of_each_worker(gate)


async def test_the_same_without_the_doorbell(gate: GateProcess, redis: RedisServer) -> None:
    """With Redis' pub/sub denied the feed of changes carries it, in the same bound."""
    async with without_pubsub(redis):
        await ends_one_of_each_worker(gate)


async def test_the_sdk_raises_with_the_code(gate: GateProcess) -> None:
    """In OpenAI's dialect it is an error chunk: openai-python raises, after all that had come."""
    tenant = await asyncio.to_thread(new_tenant, gate)
    key, words = new_key(gate, tenant)["key"], 0
    async with AsyncOpenAI(base_url=f"{gate.url}/v1", api_key=key, max_retries=0) as sdk:
        stream = await sdk.chat.completions.create(
            model=people.HELD, messages=[{"role": "user", "content": "hi"}], stream=True
        )
        with pytest.raises(openai.APIError) as caught:
            async for chunk in stream:
                words += bool(chunk.choices[0].delta.content)
                if words == 10:
                    [one] = await asyncio.to_thread(shown, gate, tenant)
                    await asyncio.to_thread(call, gate, "DELETE", f"{STREAMS}/{one['id']}", gate.admin, 202)
    assert (caught.value.code, words) == ("ended_by_admin", 10)


async def test_ending_one_lets_the_next_in(gate: GateProcess, redis: RedisServer) -> None:
    """Its slot is free: who waits in the tenant's queue, and was not shown while it did, gets it."""
    tenant = await asyncio.to_thread(new_tenant, gate, max_streams=1, max_waiters=5)
    key = new_key(gate, tenant)["key"]
    client = await people.held(gate, key)
    waits = asyncio.create_task(asyncio.to_thread(people.chat, gate, key))
    with redis.client() as client_of_redis:
        await people.until(lambda: client_of_redis.zcard(f"sg:{{{tenant}}}:waiting") == 1)
    [one] = shown(gate, tenant)
    assert one["request_id"] == client.headers["x-request-id"]
    call(gate, "DELETE", f"{STREAMS}/{one['id']}", gate.admin, 202)
    assert (await people.last_event(client))["code"] == "ended_by_admin"
    assert (await waits).text.endswith("data: [DONE]\n\n")


async def test_what_does_not_run_cannot_be_ended(gate: GateProcess) -> None:
    """404 for an id that nobody has, for a stream that has finished, and for one that was ended before."""
    tenant = await asyncio.to_thread(new_tenant, gate)
    key = new_key(gate, tenant)["key"]
    assert people.chat(gate, key).status_code == 200
    client = await people.held(gate, key)
    cut = await id_of(gate, tenant, client)
    call(gate, "DELETE", f"{STREAMS}/{cut}", gate.admin, 202)
    await people.last_event(client)
    events = await people.settled(gate, tenant, 2)
    assert events[1]["id"] == cut
    before = call(gate, "GET", "/admin/audit?limit=1", gate.admin)["data"]
    for name in ("bk_nobody", events[0]["id"], cut):
        refused = gate.http("DELETE", f"{STREAMS}/{name}", gate.admin)
        assert people.error_of(refused) == (404, "not_found")
    assert call(gate, "GET", "/admin/audit?limit=1", gate.admin)["data"] == before


async def test_the_audit_log_says_who_ended_what(gate: GateProcess) -> None:
    """Who, what, whose, when and in which request."""
    tenant = await asyncio.to_thread(new_tenant, gate)
    client = await people.held(gate, new_key(gate, tenant)["key"])
    stream_id = await id_of(gate, tenant, client)
    headers = {"x-request-id": f"end-{stream_id}"}
    call(gate, "DELETE", f"{STREAMS}/{stream_id}", gate.admin, 202, headers=headers)
    await people.last_event(client)
    entries = call(gate, "GET", f"/admin/audit?tenant={tenant}&limit=100", gate.admin)["data"]
    [entry] = [one for one in entries if one["target"] == stream_id]
    expected = {
        "action": "stream.end",
        "kind": "stream",
        "tenant_id": tenant,
        "actor": f"user:{gate.facts['admin_email']}",
        "address": "127.0.0.1",
        "request_id": f"end-{stream_id}",
    }
    assert {name: entry[name] for name in expected} == expected


# --- without its worker, without Redis --------------------------------------------------------------


async def test_a_stream_of_a_killed_worker_leaves_the_list_and_is_lost(
    gate: GateProcess, environment: dict[str, str], tmp_path: Path
) -> None:
    """Before its lease is over it is live; then another worker closes it, from its last checkpoint."""
    tenant = await asyncio.to_thread(new_tenant, gate)
    key = new_key(gate, tenant)["key"]
    with gate_process(tmp_path, **environment) as other:
        client = await people.held(other, key)
        await people.until(lambda: [one["output_tokens"] for one in shown(gate, tenant)] == [10])
        assert [one["state"] for one in shown(gate, tenant)] == ["live"]
        other.stop(signal.SIGKILL)
    await people.until(lambda: shown(gate, tenant) == [])
    [event] = await people.settled(gate, tenant, 1)
    said = [event[name] for name in ("ended", "certainty", "input_tokens", "output_tokens")]
    assert said == ["lost", "at_least", 8, 10]
    await people.leave([client])


async def test_without_redis_nobody_knows_and_the_list_is_there(
    gate: GateProcess, redis: RedisServer
) -> None:
    """The state is `unknown`; a stream can be ended all the same, and one that goes on is live again."""
    tenant = await asyncio.to_thread(new_tenant, gate)
    key = new_key(gate, tenant)["key"]
    going_on, ended = await people.held(gate, key), await people.held(gate, key)
    path = f"{STREAMS}/{await id_of(gate, tenant, ended)}"
    redis.stop()
    try:
        assert [one["state"] for one in shown(gate, tenant)] == ["unknown"] * 2
        assert call(gate, "DELETE", path, gate.admin, 202)["state"] == "unknown"
        assert (await people.last_event(ended))["code"] == "ended_by_admin"
    finally:
        await asyncio.to_thread(redis.start)
    await people.until(lambda: [one["state"] for one in shown(gate, tenant)] == ["live"])
    await people.leave([going_on])
