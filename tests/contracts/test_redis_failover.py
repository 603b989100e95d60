"""A new master, a moved slot, a node that says nothing: clients find their way, without a restart."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from redis.asyncio.cluster import ClusterNode
from redis.exceptions import RedisError

from api.adapters.doorbell_redis import RedisDoorbell
from api.tasks import Tasks
from tests.contracts.helpers import BOUND_SECONDS, bounded, eventually
from tests.contracts.redis_kinds import CALL_SECONDS, TENANTS, Script, answers, comes_back, key, opened
from tests.support.redis_servers import RedisCluster, RedisSentinel
from tests.support.servers import free_port, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import RedisServer


@pytest.fixture(scope="module")
def started() -> Iterator[RedisCluster]:
    """Three masters; the first has a replica."""
    with running(RedisCluster(replicas=1)) as server:
        server.start()
        yield server


@pytest.fixture
def cluster(started: RedisCluster) -> Iterator[RedisCluster]:
    """A cluster whose nodes a test may take away."""
    yield started
    started.mend()


@pytest.fixture
def watched() -> Iterator[RedisSentinel]:
    """A master, a replica, and three sentinels of which two must agree."""
    with running(RedisSentinel(3)) as server:
        server.start()
        yield server


def tenants_of(cluster: RedisCluster, node: RedisServer) -> list[str]:
    """The tenants whose slot a node has."""
    return [tenant for tenant in TENANTS if cluster.owner(key(tenant)) is node]


@pytest.mark.parametrize("pause", [False, True], ids=["killed", "silent"])
async def test_the_master_that_sentinels_promote_is_found(watched, pause) -> None:
    """Also when the old one is silent, as a machine without power is, and the first sentinel with it."""
    script = Script("failover")
    async with opened(watched.url) as client:
        assert await answers(client, *TENANTS)
        if pause:
            watched.sentinels[0].pause()
        new = await asyncio.to_thread(watched.failover, pause=pause)
        await comes_back(client)
        assert (await script.one(client, "tn_a", "to the new one"))[0] == b"to the new one"
        with new.client() as asked:
            assert asked.get(key("tn_a")) == b"to the new one"


async def test_a_master_that_became_a_replica_is_left(watched) -> None:
    """A failover by command: the old one lives and takes no writes, so its connections are given up."""
    async with opened(watched.url) as client:
        assert await answers(client, *TENANTS)
        with watched.sentinels[0].client() as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", "the-master")
        await asyncio.to_thread(watched.wait_for_replica)
        await comes_back(client)


@pytest.mark.parametrize("pause", [False, True], ids=["killed", "silent"])
async def test_the_replica_that_a_cluster_promotes_is_found(cluster, pause) -> None:
    """Tenants of other nodes are served all the while, alone and in pipelines that hold all; then all are."""
    script = Script("promoted")
    node = await asyncio.to_thread(cluster.followed)
    theirs = await asyncio.to_thread(tenants_of, cluster, node)
    others = [tenant for tenant in TENANTS if tenant not in theirs]
    assert theirs
    assert others
    async with opened(cluster.url) as client:
        await comes_back(client)
        if pause:
            node.pause()
        else:
            node.kill()

        async def others_are_served() -> bool:
            return await answers(client, *others)

        async def theirs_are_served() -> bool:
            return all(await asyncio.gather(*(answers(client, tenant) for tenant in theirs)))

        assert not await theirs_are_served()
        await eventually(others_are_served)
        await asyncio.to_thread(cluster.promote)
        await eventually(theirs_are_served)
        await comes_back(client)
        got = await script.all(client, TENANTS, "2")
        assert [answer[0] for answer in got.values()] == [b"2"] * len(TENANTS)


async def test_a_dead_node_fails_its_own_part_of_a_pipeline(cluster) -> None:
    """What goes to other nodes is done and answered; errors stand where the dead node's answers would."""
    node = cluster.masters[1]
    theirs = await asyncio.to_thread(tenants_of, cluster, node)
    script = Script("apart")
    async with opened(cluster.url) as client:
        await script.all(client, TENANTS, "1")
        node.kill()
        for value in ("2", "3"):
            got = await bounded(script.all(client, TENANTS, value))
            failed = [tenant for tenant, answer in got.items() if isinstance(answer, Exception)]
            assert failed == theirs
            assert {got[tenant][0] for tenant in TENANTS if tenant not in theirs} == {value.encode()}


async def test_slots_that_move_are_followed(redis_cluster) -> None:
    """MOVED and ASK: calls and pipelines are answered before, halfway and after, from the first try."""
    moving, script = TENANTS[3], Script("moving")
    async with opened(redis_cluster.url, BOUND_SECONDS) as client:
        for halves in range(3):
            await client.set(key(moving), f"round {halves}")
            end = await asyncio.to_thread(redis_cluster.begin_move, key(moving))
            assert await client.get(key(moving)) == f"round {halves}".encode()
            got = await script.all(client, TENANTS, "halfway")
            assert {answer[0] for answer in got.values()} == {b"halfway"}
            await asyncio.to_thread(end)
            got = await script.all(client, TENANTS, "moved")
            assert {answer[0] for answer in got.values()} == {b"moved"}
            assert await client.get(key(moving)) == b"moved"


async def test_a_slot_that_nobody_has_breaks_off_no_other_call(redis_cluster) -> None:
    """CLUSTERDOWN is an error of that slot's tenant; a call of another, at the same node, goes on."""
    node = redis_cluster.masters[0]
    lost, other, *_ = await asyncio.to_thread(tenants_of, redis_cluster, node)
    tasks = Tasks()
    async with opened(redis_cluster.url, BOUND_SECONDS) as client:
        await client.ping()
        with node.client() as asked:
            slot = asked.execute_command("CLUSTER", "KEYSLOT", key(lost))
            waiting = tasks.start(client.blpop([f"sg:{{{other}}}:list"], 0), name="wait")

            async def waits() -> bool:
                return any(one["cmd"] == "blpop" for one in asked.client_list())

            try:
                await eventually(waits)
                asked.execute_command("CLUSTER", "DELSLOTS", slot)
                with pytest.raises(RedisError):
                    await bounded(client.set(key(lost), "1"))
                asked.rpush(f"sg:{{{other}}}:list", "still here")
                assert (await bounded(waiting))[1] == b"still here"
            finally:
                asked.execute_command("CLUSTER", "ADDSLOTS", slot)
                await tasks.cancel()
        await eventually(lambda: answers(client, lost, other))


async def test_when_no_known_node_is_left_those_of_the_url_are_asked(redis_cluster) -> None:
    """As when all nodes were replaced at once, behind names that stayed."""
    async with opened(redis_cluster.url, BOUND_SECONDS) as client:
        assert await answers(client, *TENANTS)
        gone = ClusterNode("127.0.0.1", free_port(), **client.connection_kwargs)
        client.nodes_manager.startup_nodes = {gone.name: gone}
        client._initialize = True
        with pytest.raises(RedisError):
            await client.set(key("tn_a"), "1")
        await comes_back(client)


async def test_the_doorbell_rings_on_when_the_node_it_listens_at_is_gone(cluster, monkeypatch) -> None:
    """Another node passes the rings on; the gap itself counts as a ring."""
    monkeypatch.setattr("api.adapters.doorbell_redis._AGAIN_SECONDS", 0.05)
    heard, tasks = [0], Tasks()
    async with opened(cluster.url) as client:
        bell = RedisDoorbell(client, timeout_seconds=CALL_SECONDS)

        def hears() -> None:
            heard[0] += 1

        def listener() -> RedisServer:
            for node in cluster.nodes:
                with node.client() as asked:
                    if asked.pubsub_numsub("sg:accounts")[0][1]:
                        return node
            raise LookupError

        async def heard_again(before: int) -> bool:
            await bell.ring()
            return heard[0] > before

        try:
            tasks.start(bell.listen(hears), name="listen")
            await eventually(lambda: heard_again(0))
            node = await asyncio.to_thread(listener)
            before = heard[0]
            node.kill()
            await eventually(lambda: heard_again(before + 1))
        finally:
            await tasks.cancel()
