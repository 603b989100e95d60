"""P9: what is revoked is refused by every worker within a second, and its streams end in words.

Two workers, with streams of the credential held open on both; the revocation reaches one of them, or none
(the command line). Whatever becomes of Redis, the feed of changes in the database carries it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import openai
import pytest
import redis as sync_redis
from openai import AsyncOpenAI

from tests.support.gates import SECRET_KEY, GateProcess, gate_process
from tests.support.servers import RedisServer, running
from tests.wire import people
from tests.wire.people import buy, call, new_key, new_tenant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.support.servers import PostgresServer, ScriptedProcess
    from tests.support.wire import WireClient

    Gates = Iterator[GateProcess]

MODELS = "/v1/models"


@contextmanager
def two_workers(directory: Path, redis: RedisServer, scripted: ScriptedProcess, database: str) -> Gates:
    """A gate; when it is there, both of its workers are."""
    process = gate_process(
        directory,
        DATABASE_URL=database,
        REDIS_URL=redis.url,
        OPENAI_BASE_URL=f"{scripted.url}/v1",
        WEB_CONCURRENCY="2",
        DRAIN_SECONDS="1",
        REDIS_TIMEOUT_SECONDS="5",  # the tests share two cores with the servers
        SECRET_KEY=SECRET_KEY,
        ADMIN_PASSWORD="correct horse battery staple",
    )
    with process as gate, people.lines(gate):
        yield gate


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """The gate's Redis, whose pub/sub can be taken away."""
    with running(RedisServer()) as server:
        server.start()
        yield server


@pytest.fixture(scope="module")
def gate(
    tmp_path_factory: pytest.TempPathFactory,
    postgres_server: PostgresServer,
    scripted: ScriptedProcess,
    redis: RedisServer,
) -> Gates:
    """Two workers."""
    directory = tmp_path_factory.mktemp("gate")
    with two_workers(directory, redis, scripted, postgres_server.new_database()) as process:
        yield process


@dataclass
class Case:
    """A credential of a tenant, and what takes it away."""

    tenant: str
    credential: str
    revoke: Callable[[], Any]


def by_admin(gate: GateProcess) -> Case:
    tenant = new_tenant(gate)
    key = new_key(gate, tenant)
    return Case(tenant, key["key"], lambda: call(gate, "DELETE", f"/admin/keys/{key['id']}", gate.admin))


def by_its_tenant(gate: GateProcess) -> Case:
    tenant = new_tenant(gate)
    key, boss = new_key(gate, tenant), new_key(gate, tenant, scopes=["tenant:admin"])
    return Case(tenant, key["key"], lambda: call(gate, "DELETE", f"/v1/keys/{key['id']}", boss["key"]))


def by_command(gate: GateProcess) -> Case:
    tenant = new_tenant(gate)
    key = new_key(gate, tenant)
    return Case(tenant, key["key"], lambda: gate.cli("key", "revoke", key["id"]))


def tenant_suspended(gate: GateProcess) -> Case:
    tenant = new_tenant(gate)
    key = new_key(gate, tenant)
    path = f"/admin/tenants/{tenant}/suspend"
    return Case(tenant, key["key"], lambda: call(gate, "POST", path, gate.admin))


def tenant_deleted(gate: GateProcess) -> Case:
    tenant = new_tenant(gate)
    key = new_key(gate, tenant)
    return Case(tenant, key["key"], lambda: call(gate, "DELETE", f"/admin/tenants/{tenant}", gate.admin))


def token_by_its_key(gate: GateProcess) -> Case:
    tenant = new_tenant(gate)
    key = new_key(gate, tenant)["key"]
    token, name = buy(gate, key)
    return Case(tenant, token, lambda: call(gate, "DELETE", f"/v1/tokens/{name}", key, 204))


def token_by_admin(gate: GateProcess) -> Case:
    tenant = new_tenant(gate)
    token, name = buy(gate, new_key(gate, tenant)["key"])
    path = f"/admin/tokens/{name}?tenant={tenant}"
    return Case(tenant, token, lambda: call(gate, "DELETE", path, gate.admin, 204))


def token_of_a_revoked_key(gate: GateProcess) -> Case:
    tenant = new_tenant(gate)
    key = new_key(gate, tenant)
    token, _ = buy(gate, key["key"])
    return Case(tenant, token, lambda: call(gate, "DELETE", f"/admin/keys/{key['id']}", gate.admin))


def logout(gate: GateProcess) -> Case:
    tenant = new_tenant(gate)
    token, _ = buy(gate, new_key(gate, tenant)["key"])
    return Case(tenant, token, lambda: call(gate, "POST", "/auth/logout", token, 204))


WAYS = [
    by_admin,
    by_its_tenant,
    by_command,
    tenant_suspended,
    tenant_deleted,
    token_by_its_key,
    token_by_admin,
    token_of_a_revoked_key,
    logout,
]


def answered(revoke: Callable[[], Any]) -> float:
    """Do it; the moment of its answer."""
    revoke()
    return time.monotonic()


async def read_until_cut(streams: list[WireClient], since: float, code: str = "revoked") -> None:
    """Every stream ends in an error event with that code, in time, and whole."""
    for last in await asyncio.gather(*map(people.last_event, streams)):
        assert set(last) == {"error", "code"}
        assert last["code"] == code
    assert time.monotonic() - since < people.CUT_SECONDS


async def is_settled(gate: GateProcess, tenant: str, streams: int, cause: str = "revoked") -> None:
    """The ledger says of each stream how it ended, and the ten tokens that it had; two workers wrote it."""
    events = await people.ledger_events(gate, tenant)
    assert [(e["ended"], e["cause"], e["output_tokens"]) for e in events] == [("cut", cause, 10)] * streams
    assert len({event["worker"] for event in events}) == 2


async def check(gate: GateProcess, case: Case) -> None:
    """P9 for one case."""
    streams = await people.held_on_both(gate, case.credential)
    with people.lines(gate) as both:
        assert [line.get(MODELS, case.credential) for line in both] == [200, 200]
        since = await asyncio.to_thread(answered, case.revoke)
        await asyncio.gather(
            read_until_cut(streams, since),
            *(asyncio.to_thread(line.refused_in_time, MODELS, case.credential, since) for line in both),
        )
    await is_settled(gate, case.tenant, len(streams))


@asynccontextmanager
async def without_pubsub(redis: RedisServer) -> AsyncIterator[None]:
    """Nobody may publish or subscribe; all else in Redis goes on."""
    with sync_redis.Redis(port=redis.port) as client:

        def heard_by(count: int) -> bool:
            return dict(client.pubsub_numsub("sg:accounts")) == {b"sg:accounts": count}

        await people.until(partial(heard_by, 2))
        client.execute_command("ACL", "SETUSER", "default", "resetchannels")
        client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await people.until(partial(heard_by, 0))
        try:
            yield
            assert heard_by(0)
        finally:
            client.execute_command("ACL", "SETUSER", "default", "allchannels")
        await people.until(partial(heard_by, 2))


@pytest.mark.parametrize("way", WAYS)
async def test_every_worker_refuses_it_and_cuts_its_streams(
    gate: GateProcess, way: Callable[[GateProcess], Case]
) -> None:
    """Refused within a second by both workers; each stream ends in `revoked`, settled with its tokens."""
    await check(gate, await asyncio.to_thread(way, gate))


async def test_the_same_without_the_doorbell(gate: GateProcess, redis: RedisServer) -> None:
    """With Redis' pub/sub denied the same bound holds: workers read the feed of changes by themselves."""
    ways = (by_admin, by_command, tenant_suspended, token_by_its_key)
    cases = [await asyncio.to_thread(way, gate) for way in ways]
    async with without_pubsub(redis):
        await asyncio.gather(*(check(gate, case) for case in cases))


async def test_the_same_without_redis(
    tmp_path: Path, postgres_server: PostgresServer, scripted: ScriptedProcess
) -> None:
    """With Redis stopped the same bound holds, for new requests and for streams that were open before."""
    with running(RedisServer()) as redis:
        redis.start()
        with two_workers(tmp_path, redis, scripted, postgres_server.new_database()) as gate:
            case = await asyncio.to_thread(by_its_tenant, gate)
            revoke = case.revoke

            def stop_and_revoke() -> None:
                redis.stop()
                revoke()

            case.revoke = stop_and_revoke
            await check(gate, case)


async def test_a_resumed_tenant_gets_in_again(gate: GateProcess) -> None:
    """Suspending is undone by resuming, for both workers and the same key."""
    case = await asyncio.to_thread(tenant_suspended, gate)
    with people.lines(gate) as both:
        assert [line.get(MODELS, case.credential) for line in both] == [200, 200]
        await asyncio.to_thread(case.revoke)
        for line in both:
            await asyncio.to_thread(line.refused_in_time, MODELS, case.credential, time.monotonic())
        call(gate, "POST", f"/admin/tenants/{case.tenant}/resume", gate.admin)
        for line in both:
            await people.until(partial(line.answers, MODELS, case.credential, 200))
    assert people.chat(gate, case.credential).status_code == 200


async def test_the_usage_of_a_deleted_tenant_stays(gate: GateProcess) -> None:
    """An admin reads it after the tenant is gone; the tenant is listed on request alone."""
    case = await asyncio.to_thread(tenant_deleted, gate)
    assert people.chat(gate, case.credential).status_code == 200
    case.revoke()
    usage = call(gate, "GET", f"/admin/usage?tenant={case.tenant}", gate.admin)
    assert (usage["events"], usage["output_tokens"]) == (1, 3)
    assert call(gate, "GET", f"/admin/tenants/{case.tenant}", gate.admin)["state"] == "deleted"
    shown, with_deleted = (
        {tenant["id"] for tenant in call(gate, "GET", f"/admin/tenants{query}", gate.admin)}
        for query in ("", "?deleted=true")
    )
    assert case.tenant in with_deleted - shown


async def test_a_revoked_token_takes_nothing_else_with_it(gate: GateProcess) -> None:
    """The key that bought it and other tokens of that key go on, on both workers, with their streams."""
    tenant = await asyncio.to_thread(new_tenant, gate)
    key = new_key(gate, tenant)["key"]
    (token, name), (other, _) = buy(gate, key), buy(gate, key)
    cut, *going_on = [await people.held_on_both(gate, credential) for credential in (token, key, other)]
    await asyncio.to_thread(call, gate, "DELETE", f"/v1/tokens/{name}", key, 204)
    await read_until_cut(cut, time.monotonic())
    with people.lines(gate) as both:
        for line in both:
            assert [line.get(MODELS, credential) for credential in (key, other, token)] == [200, 200, 401]
    live = [stream for streams in going_on for stream in streams]
    await people.leave(live)  # so they lived until then, says the ledger
    causes = Counter(event["cause"] for event in await people.settled(gate, tenant, len(live) + len(cut)))
    assert causes == {"client_left": len(live), "revoked": len(cut)}


async def test_a_removed_admin_is_refused_everywhere(gate: GateProcess) -> None:
    """`admin remove` on the command line: the admin's token holds on no worker within a second."""
    email, password = "second@example.com", "another horse battery staple"
    await asyncio.to_thread(_put_admin, gate, email, password)
    login = call(gate, "POST", "/auth/login", json={"email": email, "password": password})
    token, path = login["access_token"], "/admin/audit?limit=1"
    with people.lines(gate) as both:
        assert [line.get(path, token) for line in both] == [200, 200]
        assert await asyncio.to_thread(gate.cli, "admin", "remove", email) == {"removed": email}
        since = time.monotonic()
        for line in both:
            await asyncio.to_thread(line.refused_in_time, path, token, since)
            assert line.get(path, gate.admin) == 200


def _put_admin(gate: GateProcess, email: str, password: str) -> None:
    command = [sys.executable, "-m", "api.cli", "admin", "put", email, "--stdin"]
    subprocess.run(command, env=gate.environment, input=password, text=True, check=True, capture_output=True)


# --- what ends by itself ----------------------------------------------------------------------------


async def test_an_expiring_key_takes_its_streams_with_it(gate: GateProcess) -> None:
    """At `expires_at` its streams end in `expired`, not before, and no worker takes it any more."""
    tenant = await asyncio.to_thread(new_tenant, gate)
    expires = datetime.now(UTC) + timedelta(seconds=3)
    key = new_key(gate, tenant, expires_at=expires.isoformat())["key"]
    streams = await people.held_on_both(gate, key)
    for last in await asyncio.gather(*map(people.last_event, streams)):
        assert last["code"] == "expired"
    await is_settled(gate, tenant, len(streams), "expired")
    assert all(event["ended_at"] >= expires for event in await people.ledger_events(gate, tenant))
    with people.lines(gate) as both:
        assert [line.get(MODELS, key) for line in both] == [401, 401]


async def test_streams_of_a_secret_that_was_rotated_end_with_its_grace(gate: GateProcess) -> None:
    """Both secrets work until the grace is over; then the old one's tokens and streams end."""
    tenant = await asyncio.to_thread(new_tenant, gate)
    issued = new_key(gate, tenant)
    old, path = issued["key"], f"/admin/keys/{issued['id']}/rotate"
    token, _ = buy(gate, old)
    streams = await people.held_on_both(gate, old) + await people.held_on_both(gate, token)
    rotated = call(gate, "POST", path, gate.admin, json={"grace_seconds": 3})
    until, new = datetime.fromisoformat(rotated["previous_until"]), rotated["key"]
    with people.lines(gate) as both:
        for line in both:
            await people.until(partial(line.answers, MODELS, new, 200))
            assert [line.get(MODELS, credential) for credential in (old, token)] == [200, 200]
        streams += await people.held_on_both(gate, old)
        live = await people.held_on_both(gate, new)
        for last in await asyncio.gather(*map(people.last_event, streams)):
            assert last["code"] == "expired"
        assert [line.get(MODELS, c) for line in both for c in (old, token, new)] == [401, 401, 200] * 2
    await people.leave(live)
    events = await people.settled(gate, tenant, len(live) + len(streams))
    assert Counter(e["cause"] for e in events) == {"client_left": len(live), "expired": len(streams)}
    assert all(event["ended_at"] >= until for event in events)


# --- how a cut looks to others ----------------------------------------------------------------------


async def test_the_sdk_raises_when_its_key_is_revoked_in_mid_stream(gate: GateProcess) -> None:
    """In OpenAI's dialect the cut is an error chunk, which openai-python raises with the code `revoked`."""
    case = await asyncio.to_thread(by_admin, gate)
    words = 0
    async with AsyncOpenAI(base_url=f"{gate.url}/v1", api_key=case.credential, max_retries=0) as sdk:
        stream = await sdk.chat.completions.create(
            model=people.HELD, messages=[{"role": "user", "content": "hi"}], stream=True
        )
        with pytest.raises(openai.APIError) as caught:
            async for chunk in stream:
                words += bool(chunk.choices[0].delta.content)
                if words == 10:
                    await asyncio.to_thread(case.revoke)
    assert (caught.value.code, words) == ("revoked", 10)


async def test_a_whole_answer_that_is_waited_for_becomes_a_401(
    gate: GateProcess, scripted: ScriptedProcess
) -> None:
    """Without streaming there is no stream to end: the answer is OpenAI's error with the code `revoked`."""
    case = await asyncio.to_thread(by_admin, gate)
    label = f"whole-{case.tenant}"
    body = {
        "model": f"scripted?label={label}&first_ms=60000",
        "messages": [{"role": "user", "content": "hi"}],
    }
    asking = asyncio.create_task(
        asyncio.to_thread(gate.http, "POST", "/v1/chat/completions", case.credential, json=body)
    )
    await asyncio.to_thread(scripted.stats, label, opened=1)
    await asyncio.to_thread(case.revoke)
    assert people.error_of(await asking) == (401, "revoked")
    assert [e["cause"] for e in await people.ledger_events(gate, case.tenant)] == ["revoked"]
