"""A stream with an `Idempotency-Key`: whoever asks again gets the same one, on any worker, billed once."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.wire import WireClient, data_lines
from tests.wire import people
from tests.wire.conftest import two_workers
from tests.wire.people import call, new_key, new_tenant

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2

    from tests.support.gates import GateProcess
    from tests.support.servers import PostgresServer, ScriptedProcess

MESSAGES = [{"role": "user", "content": "hi"}]
LEASE_SECONDS = 3


@pytest.fixture(scope="module")
def gate(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, scripted: ScriptedProcess
) -> Iterator[GateProcess]:
    """Two workers that keep little, and notice the dead soon."""
    with two_workers(
        tmp_path_factory.mktemp("gate"),
        postgres_server,
        scripted,
        ANTHROPIC_BASE_URL=scripted.url,
        LEASE_SECONDS=str(LEASE_SECONDS),
        REPLAY_MAX_BYTES="100000",
    ) as process:
        yield process


@pytest.fixture
def label() -> str:
    """A label for the provider's statistics, and a key that nobody else has."""
    return uuid.uuid4().hex


def caller(gate: GateProcess, minutes: int = 5, **fields: Any) -> tuple[str, str]:
    """A tenant whose streams are kept, and its key."""
    tenant = new_tenant(gate, resume_minutes=minutes)
    return tenant, str(new_key(gate, tenant, **fields)["key"])


def body(label: str, script: str, **more: Any) -> dict[str, Any]:
    model = f"scripted?label={label}&{script}"
    return {"model": model, "messages": MESSAGES, "max_tokens": 9000, "stream": True} | more


def ask(
    gate: GateProcess, key: str, label: str, script: str, path: str = "/v1/chat/completions", **more: Any
) -> httpx2.Response:
    """A stream with the label as its key, read to its end."""
    headers = {"idempotency-key": label}
    return gate.http("POST", path, key, json=body(label, script, **more), headers=headers)


async def begun(gate: GateProcess, key: str, label: str, script: str) -> WireClient:
    """The same, whose client reads some of it."""
    headers = {"idempotency-key": label}
    client = await WireClient.post(
        gate.url, "/v1/chat/completions", body(label, script), key=key, headers=headers
    )
    assert len(await client.events(3)) == 3
    return client


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_who_asks_again_gets_the_same_and_pays_once(
    gate: GateProcess, scripted: ScriptedProcess, label: str, path: str
) -> None:
    """Byte for byte, as often as it is asked, on both workers; the provider was asked once."""
    tenant, key = caller(gate)
    more = {"input": "hi"} if path == "/v1/responses" else {}
    first = ask(gate, key, label, "tokens=20&pace_ms=0", path, **more)
    again = [ask(gate, key, label, "tokens=20&pace_ms=0", path, **more) for _ in range(8)]
    assert {answer.content for answer in again} == {first.content}
    assert {answer.headers["x-sluicegate-replay"] for answer in again} == {"true"}
    assert "x-sluicegate-replay" not in first.headers
    assert scripted.stats(label)["opened"] == 1
    [event] = asyncio.run(people.settled(gate, tenant, 1))
    assert (event["ended"], event["output_tokens"]) == ("finished", 20)


async def test_who_asks_while_it_runs_attaches(
    gate: GateProcess, scripted: ScriptedProcess, label: str
) -> None:
    """From the beginning on, as it comes, to the same end."""
    tenant, key = caller(gate)
    script = "tokens=30&pace_ms=30"
    asked = [asyncio.to_thread(ask, gate, key, label, script) for _ in range(5)]
    contents = {answer.content for answer in await asyncio.gather(*asked)}
    [content] = contents
    assert content.endswith(b"data: [DONE]\n\n")
    assert scripted.stats(label)["opened"] == 1
    assert len(await people.settled(gate, tenant, 1)) == 1


async def test_its_client_may_leave_and_come_back(
    gate: GateProcess, scripted: ScriptedProcess, label: str
) -> None:
    """The stream goes on without anybody; who comes back gets all of it; the provider's count is billed."""
    tenant, key = caller(gate)
    script = "tokens=40&pace_ms=20"
    client = await begun(gate, key, label, script)
    client.leave()
    answer = await asyncio.to_thread(ask, gate, key, label, script)
    assert len(data_lines(answer.content)) == 40 + 3
    assert answer.content.endswith(b"data: [DONE]\n\n")
    assert scripted.stats(label)["opened"] == 1
    [event] = await people.settled(gate, tenant, 1)
    assert (event["ended"], event["source"], event["output_tokens"]) == ("left", "provider", 40)
    await client.close()


async def test_a_stream_can_be_stopped(gate: GateProcess, scripted: ScriptedProcess, label: str) -> None:
    """By the id in its answer, by its own key; the provider is let go, and asking again is asking anew."""
    tenant, key = caller(gate)
    script = "tokens=20&silence_at=5&silence_ms=60000"
    client = await begun(gate, key, label, script)
    stream_id = client.headers["x-sluicegate-stream"]
    client.leave()

    def stop() -> None:
        other = str(new_key(gate, tenant)["key"])
        _, foreign = caller(gate)
        [running] = call(gate, "GET", "/v1/streams", key)
        assert running["id"] == stream_id
        assert call(gate, "GET", "/v1/streams", other) == []
        for stranger in (other, foreign):
            call(gate, "POST", f"/v1/streams/{stream_id}/stop", stranger, 404)
        call(gate, "POST", f"/v1/streams/{stream_id}/stop", key, 202)

    await asyncio.to_thread(stop)
    await asyncio.to_thread(scripted.stats, label, live=0)
    [event] = await people.settled(gate, tenant, 1)
    assert event["ended"] == "left"
    again = await asyncio.to_thread(ask, gate, key, label, "tokens=2&pace_ms=0")
    assert (again.status_code, "x-sluicegate-replay" in again.headers) == (200, False)
    await client.close()


def test_what_failed_is_asked_anew(gate: GateProcess, scripted: ScriptedProcess, label: str) -> None:
    """A refusal, or an answer that broke off, is nobody's second answer."""
    tenant, key = caller(gate)
    for _ in range(2):
        assert ask(gate, key, label, "status=500").status_code == 502
    assert b"upstream_failed" in ask(gate, key, label, "tokens=9&pace_ms=0&error_at=5").content
    assert ask(gate, key, label, "tokens=3&pace_ms=0").content.endswith(b"data: [DONE]\n\n")
    assert scripted.stats(label)["opened"] == 4
    assert len(asyncio.run(people.settled(gate, tenant, 4))) == 4


def test_a_key_stands_for_one_request_of_one_tenant(gate: GateProcess, label: str) -> None:
    """Another body under it is a 409; another tenant's stream, and another end user's, are their own."""
    _, key = caller(gate)
    _, foreign = caller(gate)
    assert ask(gate, key, label, "tokens=3&pace_ms=0").status_code == 200
    answer = ask(gate, key, label, "tokens=4&pace_ms=0")
    assert people.error_of(answer) == (409, "idempotency_key_reused")
    assert "x-sluicegate-replay" not in ask(gate, foreign, label, "tokens=3&pace_ms=0").headers
    theirs = [people.buy(gate, key, end_user=user)[0] for user in ("ann", "bob")]
    for token in theirs:
        assert "x-sluicegate-replay" not in ask(gate, token, label, "tokens=3&pace_ms=0").headers
    assert "x-sluicegate-replay" in ask(gate, theirs[0], label, "tokens=3&pace_ms=0").headers


def test_who_has_not_asked_for_it_pays_twice(
    gate: GateProcess, scripted: ScriptedProcess, label: str
) -> None:
    """It is the tenant's choice: without it the header means nothing; nor does it without a stream."""
    _, key = caller(gate, minutes=0)
    for _ in range(2):
        assert ask(gate, key, label, "tokens=3&pace_ms=0").status_code == 200
    _, keeping = caller(gate)
    for _ in range(2):
        assert ask(gate, keeping, label, "tokens=3&pace_ms=0", stream=False).status_code == 200
    assert scripted.stats(label)["opened"] == 4


def test_what_is_too_large_is_not_kept_and_not_paid_for_again(
    gate: GateProcess, scripted: ScriptedProcess, label: str
) -> None:
    """The first client gets all of it; whoever asks again is told, while it would have been kept."""
    _, key = caller(gate)
    first = ask(gate, key, label, "tokens=2000&per_chunk=10&pad=1000&pace_ms=1")
    assert first.content.endswith(b"data: [DONE]\n\n")
    answer = ask(gate, key, label, "tokens=2000&per_chunk=10&pad=1000&pace_ms=1")
    assert people.error_of(answer) == (409, "replay_too_large")
    assert scripted.stats(label)["opened"] == 1


@pytest.mark.parametrize("name", ["", "x" * 256, "with\ttab"])
def test_a_key_that_is_none_is_refused(gate: GateProcess, name: str) -> None:
    """400, and nothing is asked for."""
    _, key = caller(gate)
    answer = gate.http(
        "POST",
        "/v1/chat/completions",
        key,
        json=body("x", "tokens=1"),
        headers={"idempotency-key": name},
    )
    assert answer.status_code == 400


async def test_who_attached_is_cut_with_its_key(gate: GateProcess, label: str) -> None:
    """P9 holds for those who read what is kept, too."""
    _, key = caller(gate)
    script = "tokens=20&silence_at=5&silence_ms=60000"
    client, attached = [await begun(gate, key, label, script) for _ in range(2)]
    await asyncio.to_thread(call, gate, "DELETE", f"/admin/keys/{key.split('_')[1]}", gate.admin)
    for one in (client, attached):
        assert (await people.last_event(one))["error"]["code"] == "revoked"


async def test_a_killed_owner_leaves_no_reader_waiting(gate: GateProcess, label: str) -> None:
    """Whoever is attached on another worker gets an error event once the lease has run out."""
    _, key = caller(gate)
    script = "tokens=20&silence_at=5&silence_ms=60000"

    def worker(client: WireClient) -> int:
        return people.worker_of(gate, client._writer.get_extra_info("sockname")[1])

    clients = [await begun(gate, key, label, script)]
    owner = await asyncio.to_thread(worker, clients[0])
    while await asyncio.to_thread(worker, clients[-1]) == owner:
        assert len(clients) < 40, "one worker gets all connections"
        clients.append(await begun(gate, key, label, script))
    os.kill(owner, signal.SIGKILL)
    assert (await people.last_event(clients[-1]))["error"]["code"] == "stream_lost"
    for client in clients[:-1]:
        await client.close()
