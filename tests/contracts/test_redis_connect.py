"""Clients of every kind of REDIS_URL do the same: scripts, bounds, rings, and not a word of the password."""

from __future__ import annotations

import asyncio
import logging
import traceback
import uuid
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import NoScriptError, RedisError

from api.adapters.doorbell_redis import RedisDoorbell
from api.adapters.redis_connect import CONNECTIONS
from api.tasks import Tasks
from tests.contracts.helpers import BOUND_SECONDS, LoopTurns, bounded, eventually
from tests.contracts.redis_kinds import (
    CALL_SECONDS,
    TENANTS,
    Script,
    answers,
    comes_back,
    connections,
    key,
    opened,
)
from tests.support.redis_servers import MASTER, RedisCluster, RedisSentinel
from tests.support.servers import RedisServer, free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis.asyncio import Redis

KINDS = ["redis", "cluster", "sentinel"]
PASSWORD = "hush/hush@2"
QUOTED = "hush%2Fhush%402"


@pytest.fixture(params=["memory", "unix", *KINDS])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty Redis of each kind."""
    match request.param:
        case "memory":
            yield "memory://"
        case "unix":
            with running(RedisServer("--unixsocket", str(tmp_path / "redis.sock"))) as server:
                server.start()
                yield f"unix://{tmp_path / 'redis.sock'}"
        case "redis":
            yield request.getfixturevalue("redis_url")
        case _:
            yield request.getfixturevalue(f"redis_{request.param}").url


@pytest.fixture(scope="module")
def cluster_to_break() -> Iterator[RedisCluster]:
    """A cluster of this module's own: it takes two seconds to start one."""
    with running(RedisCluster()) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture(params=KINDS)
def own(request: pytest.FixtureRequest) -> Iterator[RedisServer | RedisCluster | RedisSentinel]:
    """A Redis of each kind that a test may pause, kill and lock."""
    if request.param == "cluster":
        cluster = request.getfixturevalue("cluster_to_break")
        yield cluster
        cluster.mend()
        return
    with running(RedisServer() if request.param == "redis" else RedisSentinel()) as server:
        server.start()
        yield server


def parts(server: RedisServer | RedisCluster | RedisSentinel) -> list[RedisServer]:
    """The servers of it that hold data."""
    match server:
        case RedisCluster():
            return server.nodes
        case RedisSentinel():
            return [server.master, server.replica]
        case _:
            return [server]


async def test_scripts_run_for_several_tenants_at_once(url) -> None:
    """One pipeline with a script for each tenant: answers in order, and from servers that had not seen it."""
    script = Script(uuid.uuid4().hex)
    async with opened(url, BOUND_SECONDS) as client:
        pipe = client.pipeline(transaction=False)
        for tenant in TENANTS:
            pipe.evalsha(script.sha, 1, key(tenant), "0")
            pipe.hsetnx(f"sg:{{{tenant}}}:h", "field", tenant)
            pipe.expire(f"sg:{{{tenant}}}:h", 60)
        first = await pipe.execute(raise_on_error=False)
        assert [type(answer) for answer in first[::3]] == [NoScriptError] * len(TENANTS)
        assert first[1::3] == first[2::3] == [1] * len(TENANTS)
        for value in ("1", "2"):
            got = await script.all(client, TENANTS, value)
            assert {tenant: answer[0] for tenant, answer in got.items()} == dict.fromkeys(
                TENANTS, value.encode()
            )
        assert (await script.one(client, "tn_other", "3"))[0] == b"3"
        assert await client.get(key(TENANTS[7])) == b"2"
        assert await client.ping()
        seconds, _ = await client.time()
        assert seconds > 0


async def test_an_error_in_a_pipeline_is_raised_if_it_is_asked_for(url) -> None:
    """As redis-py does it, on all kinds."""
    async with opened(url, BOUND_SECONDS) as client:
        await client.set(key("tn_a"), "no set")
        pipe = client.pipeline(transaction=False)
        pipe.set(key("tn_b"), "1").zadd(key("tn_a"), {"m": 1})
        with pytest.raises(RedisError):
            await pipe.execute()
        assert await pipe.execute() == []


async def test_more_callers_than_connections_wait_their_turn(own) -> None:
    """500 calls at once, and pipelines among them: all are answered, on no more connections than allowed."""
    async with opened(own.url, BOUND_SECONDS) as client:
        for _ in range(2):  # the first time it has to be known, too, who is to be asked
            pipes = [client.pipeline(transaction=False) for _ in range(100)]
            for pipe in pipes:
                for tenant in TENANTS:
                    pipe.set(key(tenant), "2")
            calls = [client.set(f"{{{number}}}", "1") for number in range(500)]
            done = await bounded(asyncio.gather(*calls, *(pipe.execute() for pipe in pipes)))
            assert done == [True] * 500 + [[True] * len(TENANTS)] * 100
        for server in parts(own):
            assert connections(server) <= CONNECTIONS + 4, "its sentinel's, and one for the topology"


async def test_a_silent_redis_keeps_a_call_no_longer_than_its_bound(own) -> None:
    """It stops, all calls end in time and the event loop turns; it goes on, and so do they."""
    servers = parts(own)
    async with opened(own.url) as client:
        assert await answers(client, *TENANTS)
        for server in servers:
            server.pause()
        try:
            async with LoopTurns() as turns:
                for _ in range(3):
                    served = await asyncio.gather(*(answers(client, tenant) for tenant in TENANTS))
                    assert not any(served)
            assert turns.count > 100
            assert turns.most_ms < CALL_SECONDS * 1000
        finally:
            for server in servers:
                server.resume()
        await comes_back(client)


async def test_a_caller_without_a_bound_of_its_own_is_not_kept_for_ever(own) -> None:
    """The client's own time-outs are longer than its callers', and there."""
    async with opened(own.url, 0.05) as client:
        await comes_back(client)
        for server in parts(own):
            server.pause()
        try:
            pipe = client.pipeline(transaction=False)
            pipe.set(key("tn_a"), "1")
            for work in (client.set(key("tn_a"), "1"), pipe.execute(), client.ping()):
                with pytest.raises(RedisError):
                    await bounded(work)
        finally:
            for server in parts(own):
                server.resume()


async def test_a_redis_that_was_killed_and_started_again_is_found_again(own) -> None:
    """Calls fail meanwhile, at once or within their bound; then they work, and scripts are loaded anew."""
    servers = parts(own)
    script = Script("again")
    async with opened(own.url) as client:
        await script.all(client, TENANTS, "1")
        for server in servers:
            server.kill()
        assert not any(await asyncio.gather(*(answers(client, tenant) for tenant in TENANTS)))
        await asyncio.gather(*(asyncio.to_thread(server.start) for server in servers))
        await comes_back(client)
        got = await script.all(client, TENANTS, "2")
        assert [answer[0] for answer in got.values()] == [b"2"] * len(TENANTS)


@pytest.mark.parametrize("url", KINDS, indirect=True)
async def test_callers_that_are_cancelled_take_no_connection_with_them(url) -> None:
    """Clients that leave while they wait do not wear the pool out."""
    async with opened(url) as client:
        for _ in range(5):
            asked = asyncio.gather(*(client.set(f"{{{number}}}", "1") for number in range(200)))
            await asyncio.sleep(0)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
        await comes_back(client)


@pytest.mark.parametrize("url", ["unix", *KINDS], indirect=True)  # in memory there is one worker
async def test_a_ring_is_heard_by_everybody(url) -> None:
    """Two workers hear the doorbell whichever of them rings, also when they listen at different nodes."""
    async with opened(url) as one, opened(url) as other:
        tasks, heard = Tasks(), [0, 0]
        bells = [RedisDoorbell(one, timeout_seconds=BOUND_SECONDS), RedisDoorbell(other)]

        def hears(who: int) -> None:
            heard[who] += 1

        async def both_have(count: int) -> bool:
            return min(heard) >= count

        try:
            for who in (0, 1):
                tasks.start(bells[who].listen(lambda who=who: hears(who)), name="listen")
            await eventually(lambda: both_have(1))
            for count in (2, 3, 4):
                await RedisDoorbell(one if count % 2 else other, timeout_seconds=BOUND_SECONDS).ring()
                await eventually(lambda count=count: both_have(count))
        finally:
            await tasks.cancel()


def locked(server: RedisServer | RedisCluster | RedisSentinel) -> str:
    """The URL of a server that wants a password from now on, with `{}` where it stands."""
    for one in parts(server):
        with one.client() as client:
            client.config_set("masterauth", PASSWORD)
            client.config_set("requirepass", PASSWORD)
    if not isinstance(server, RedisSentinel):
        return server.url.replace("://", "://:{}@")
    for sentinel in server.sentinels:
        with sentinel.client() as client:
            client.execute_command("SENTINEL", "SET", MASTER, "auth-pass", PASSWORD)
            client.execute_command("ACL", "SETUSER", "default", "resetpass", f">of {PASSWORD}")
    return f"redis+sentinel://:{{}}@{server.hosts}/{MASTER}?sentinel_password=of+{QUOTED}"


def unlocked(server: RedisServer | RedisCluster | RedisSentinel) -> None:
    """No password any more."""
    for one in parts(server):
        with one.client(password=PASSWORD) as client:
            client.config_set("requirepass", "")


async def test_a_password_opens_and_is_in_no_error_and_no_line_of_the_log(own, caplog) -> None:
    """With the right one all works; with a wrong one, and with nobody there, nobody repeats it."""
    caplog.set_level(logging.DEBUG)
    form = await asyncio.to_thread(locked, own)
    async with opened(form.format(QUOTED), BOUND_SECONDS) as client:
        assert await client.set(key("tn_a"), "1")
        await RedisDoorbell(client, timeout_seconds=BOUND_SECONDS).ring()
    assert not [line for line in caplog.messages if "did not ring" in line]
    said = [await complaint(form.format(QUOTED + "-wrong"))]
    await asyncio.to_thread(unlocked, own)
    for server in parts(own):
        server.kill()
    said.append(await complaint(form.format(QUOTED)))
    for text in [*said, caplog.text]:
        assert "hush" not in text


async def complaint(url: str) -> str:
    """All that is said of a Redis that is not to be had."""
    async with opened(url, BOUND_SECONDS) as client:
        await RedisDoorbell(client, timeout_seconds=BOUND_SECONDS).ring()
        with pytest.raises(RedisError) as raised:
            await client.set(key("tn_a"), "1")
        pipe = client.pipeline(transaction=False)
        pipe.set(key("tn_a"), "1")
        with pytest.raises(RedisError) as also:
            await pipe.execute()
        said = [line for error in (raised, also) for line in traceback.format_exception(error.value)]
        return "".join(said) + repr(client) + str(client)


@pytest.mark.parametrize(
    "form", ["redis://127.0.0.1:{}/0", "redis+cluster://127.0.0.1:{}", "redis+sentinel://127.0.0.1:{}/m"]
)
async def test_a_redis_that_is_not_there_is_a_redis_error(form) -> None:
    """Whatever its kind: callers know redis-py's errors by one name, and answer 503."""
    async with opened(form.format(free_port())) as client:
        for attempt in (client.ping, client.time, lambda: client.set("k", "v"), lambda: listened(client)):
            with pytest.raises(RedisError):
                await bounded(attempt())


async def test_what_is_closed_is_closed(own) -> None:
    """No connection is left at any server, also when one of them was away and the client had noticed."""
    servers = parts(own)
    async with opened(own.url) as client:
        assert await answers(client, *TENANTS)
        servers[0].kill()
        await asyncio.gather(*(answers(client, tenant) for tenant in TENANTS))
    if isinstance(own, RedisCluster):

        async def nobody_is_left() -> bool:
            return await asyncio.to_thread(lambda: [connections(server) for server in servers[1:]]) == [0, 0]

        await eventually(nobody_is_left)


async def listened(client: Redis) -> None:
    """As the doorbell does it."""
    await client.initialize()
    await client.pubsub().subscribe("channel")
