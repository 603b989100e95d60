"""Redis of several servers, for tests: a cluster, and a master with a replica that sentinels watch."""

from __future__ import annotations

import itertools
import shutil
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import redis as sync_redis

from tests.contracts.helpers import until
from tests.support.servers import RedisServer, free_port

if TYPE_CHECKING:
    from collections.abc import Callable

SLOTS = 16384
_BUS = 10_000  # a cluster's nodes speak to each other on their port and so many

_NODE_TIMEOUT_MS = 500
MASTER = "the-master"


def _port_with_a_bus() -> int:
    """A port that is free, as is the one for the cluster's bus."""
    while True:
        port = free_port()
        if port + _BUS > 65535:
            port -= _BUS
        with suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + _BUS))
            return port


def _directory(path: Path) -> list[str]:
    """Options of a server in a directory of its own, where a replica keeps what its master sent."""
    path.mkdir()
    return ["--dir", str(path), "--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]


class RedisCluster:
    """Three masters, and so many replicas of the first. Each serves what it has, also without the others."""

    def __init__(self, replicas: int = 0, *options: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sg-cluster-"))
        self.nodes = [self._node(number, options) for number in range(3 + replicas)]
        self.masters, self.replicas = self.nodes[:3], self.nodes[3:]
        self.hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        self.url = f"redis+cluster://{self.hosts}"

    def _node(self, number: int, options: tuple[str, ...]) -> RedisServer:
        own = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(_NODE_TIMEOUT_MS)]
        own += _directory(self.directory / str(number))
        own += ["--cluster-require-full-coverage", "no", "--cluster-replica-validity-factor", "0"]
        return RedisServer(*own, *options, port=_port_with_a_bus())

    def start(self) -> None:
        """Returns when all nodes agree on all slots."""
        for node in self.nodes:
            node.start()
        bounds = [SLOTS * number // 3 for number in range(4)]
        for epoch, (master, (first, end)) in enumerate(
            zip(self.masters, itertools.pairwise(bounds), strict=True), 1
        ):
            with master.client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
                client.execute_command("CLUSTER", "ADDSLOTS", *range(first, end))
        with self.nodes[0].client() as client:
            for node in self.nodes[1:]:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        for node in self.nodes:
            until(lambda node=node: self._is_fine(node), f"the cluster agrees, says {node.port}")
        for replica in self.replicas:
            with replica.client() as client:
                client.execute_command("CLUSTER", "REPLICATE", self.id_of(self.masters[0]))
        until(self.is_whole, "the cluster agrees on its replicas")

    def _is_fine(self, node: RedisServer) -> bool:
        with node.client() as client:
            state = client.execute_command("CLUSTER INFO")
        fine = {"cluster_state": "ok", "cluster_slots_ok": str(SLOTS)}
        return state | fine == state and int(state["cluster_known_nodes"]) == len(self.nodes)

    def _knows_replicas(self, node: RedisServer) -> bool:
        with node.client() as client:
            ranges = client.execute_command("CLUSTER SLOTS")
        return sum(len(replicas) for _, _, _, *replicas in ranges) == len(self.replicas)

    def id_of(self, node: RedisServer) -> str:
        """The name of a node within the cluster."""
        with node.client() as client:
            return str(client.execute_command("CLUSTER MYID").decode())

    def owner(self, key: str) -> RedisServer:
        """The master that has a key's slot, as the masters that are there see it; raises if none knows."""
        for asked in self.nodes:
            with suppress(sync_redis.RedisError), asked.client(socket_timeout=1) as client:
                slot = int(client.execute_command("CLUSTER", "KEYSLOT", key))
                for first, last, (_, port, *_), *_ in client.execute_command("CLUSTER SLOTS"):
                    if first <= slot <= last:
                        return next(node for node in self.nodes if node.port == port)
        raise LookupError(key)

    def begin_move(self, key: str) -> Callable[[], None]:
        """Move a key's slot to another master, halfway: its keys are there, it is not. Call it to end."""
        source = self.owner(key)
        target = next(node for node in self.masters if node is not source)
        with source.client() as client:
            slot = int(client.execute_command("CLUSTER", "KEYSLOT", key))
        self._set_slot(target, slot, "IMPORTING", self.id_of(source))
        self._set_slot(source, slot, "MIGRATING", self.id_of(target))
        with source.client() as client:
            for name in client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000):
                client.execute_command("MIGRATE", "127.0.0.1", target.port, name, 0, 5000)

        def end() -> None:
            for node in (target, source, *(node for node in self.masters if node not in {target, source})):
                self._set_slot(node, slot, "NODE", self.id_of(target))

        return end

    def followed(self) -> RedisServer:
        """The master that has a replica."""
        replica = next(node for node in self.nodes if info(node)["role"] == "slave")
        return next(node for node in self.nodes if node.port == info(replica)["master_port"])

    def promote(self) -> RedisServer:
        """Make a replica the master of the slots it follows, as an election would, which takes 2 to 8 s."""
        there = [node for node in self.nodes if node.is_running and not node.paused]
        new = next(node for node in there if info(node)["role"] == "slave")
        with new.client() as client:
            client.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
            until(lambda: info(new)["role"] == "master", "the replica is a master")
            # It may claim the slots in the epoch of the old master, so that nobody believes it. It can only
            # begin another when somebody else has begun one.
            with next(node for node in there if node is not new).client() as other:
                other.execute_command("CLUSTER", "BUMPEPOCH")
            until(lambda: b"BUMPED" in client.execute_command("CLUSTER", "BUMPEPOCH"), "a new epoch")
        return new

    def _set_slot(self, node: RedisServer, slot: int, *words: str) -> None:
        with node.client() as client:
            client.execute_command("CLUSTER", "SETSLOT", slot, *words)

    def is_whole(self) -> bool:
        """Whether all nodes are there for each other."""
        roles = [info(node) for node in self.nodes]
        following = [role for role in roles if role["role"] == "slave" and role["master_link_status"] == "up"]
        return len(following) == len(self.replicas) and all(
            self._is_fine(node) and self._knows_replicas(node) for node in self.nodes
        )

    def mend(self) -> None:
        """Bring back nodes that were paused or killed; returns when all agree again."""
        for node in self.nodes:
            if node.is_running:
                node.resume()
            else:
                node.start()
        until(self.is_whole, "the cluster agrees again")

    def empty(self) -> None:
        for node in self.masters:
            with node.client() as client:
                client.flushall()

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


class RedisSentinel:
    """A master, a replica of it, and sentinels of which `quorum` must agree that a master is gone."""

    def __init__(self, sentinels: int = 1, *options: str, sentinel_options: tuple[str, ...] = ()) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sg-sentinel-"))
        self.master = RedisServer(*_directory(self.directory / "a"), *options)
        following = ["--replicaof", "127.0.0.1", str(self.master.port)]
        self.replica = RedisServer(*_directory(self.directory / "b"), *options, *following)
        self.quorum = sentinels // 2 + 1
        self.sentinels = [self._sentinel(number, sentinel_options) for number in range(sentinels)]
        self.hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        self.url = f"redis+sentinel://{self.hosts}/{MASTER}"

    def _sentinel(self, number: int, options: tuple[str, ...]) -> RedisServer:
        path = self.directory / f"sentinel-{number}.conf"
        path.write_text(
            f"sentinel monitor {MASTER} 127.0.0.1 {self.master.port} {self.quorum}\n"
            f"sentinel down-after-milliseconds {MASTER} 500\n"
            f"sentinel failover-timeout {MASTER} 2000\n"
        )
        return _Sentinel(path, *options)

    def start(self) -> None:
        """Returns when the sentinels know the replica, and each other."""
        self.master.start()
        self.replica.start()
        until(lambda: info(self.replica)["master_link_status"] == "up", "the replica follows")
        until(lambda: info(self.master).get("slave0", {}).get("state") == "online", "the master knows")
        for sentinel in self.sentinels:
            sentinel.start()
        for sentinel in self.sentinels:
            until(lambda sentinel=sentinel: self._is_ready(sentinel), f"sentinel {sentinel.port} knows all")

    def _is_ready(self, sentinel: RedisServer) -> bool:
        with sentinel.client() as client:
            state = client.sentinel_master(MASTER)
            replicas = client.sentinel_slaves(MASTER)
        fine = [one for one in replicas if one["master-link-status"] == "ok" and not one["is_sdown"]]
        return state["num-other-sentinels"] == len(self.sentinels) - 1 and len(fine) == 1

    def failover(self, *, pause: bool = False) -> RedisServer:
        """Kill the master, or only stop it, and return the new one once all sentinels name it."""
        if pause:
            self.master.pause()
        else:
            self.master.kill()
        self.wait_for_replica()
        return self.replica

    def wait_for_replica(self) -> None:
        """Until all sentinels that say anything name the replica as the master, and it is."""
        asked = [sentinel for sentinel in self.sentinels if not sentinel.paused]
        until(lambda: all(self._named(one) == self.replica.port for one in asked), "a new master")
        until(lambda: info(self.replica)["role"] == "master", "the replica is the master")

    def _named(self, sentinel: RedisServer) -> int:
        with sentinel.client() as client:
            return int(client.sentinel_get_master_addr_by_name(MASTER)[1])

    def empty(self) -> None:
        with self.master.client() as client:
            client.flushall()

    def stop(self) -> None:
        for server in (*self.sentinels, self.replica, self.master):
            server.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


class _Sentinel(RedisServer):
    """A sentinel: redis-server with another configuration, which it writes to."""

    def __init__(self, configuration: Path, *options: str) -> None:
        super().__init__(*options)
        self.configuration = configuration

    def command(self) -> list[str]:
        own = ["--sentinel", "--port", str(self.port), "--bind", "127.0.0.1"]
        return [str(self.configuration), *own, *self.options]


def info(server: RedisServer) -> dict[str, object]:
    """What a server says of its replication."""
    with server.client() as client:
        return dict(client.info("replication"))
