"""A client of a Redis Cluster that waits for a connection, and notices a node that says nothing.

redis-py's own, of release 8.1, where it is used as the other clients are used here:
- refuses whoever finds all connections taken, instead of letting them wait;
- looks for the new owner of a slot when a node is gone, not when callers give up on it, which is all that a
  machine without power does;
- fails with exceptions that are no RedisError when it does not know its way;
- runs no scripts in a pipeline, and lets one dead node fail all of it, and all that runs beside it.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from redis._parsers import AsyncCommandsParser
from redis.asyncio.cluster import ClusterNode, ClusterPipeline, PipelineCommand, RedisCluster
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

    from redis.asyncio.cluster import ClusterPubSub

_PIPELINES = 8
"""So many of the connections to a node are for pipelines."""

_SPARE = 2
"""So many times its bound a node may have for a moment, when callers who wait at another are sent to it."""

_PATIENCE = 3
"""So many calls in a row given up on by their callers, and another node is asked who has the slots now."""

_ASK_SECONDS = 1.0
"""But not more often than this: to ask means to make all connections anew."""

_inside: ContextVar[bool] = ContextVar("inside a call to a Redis Cluster", default=False)

_LOST = (RedisConnectionError, RedisTimeoutError, ClusterDownError)
_REDIRECTED = (MovedError, AskError, TryAgainError)


class Cluster(RedisCluster):
    """`connections` is the bound of connections to each node; whoever finds them taken waits."""

    def __init__(self, hosts: Iterable[tuple[str, int]], connections: int, **options: Any) -> None:
        nodes = [ClusterNode(host, port) for host, port in hosts]
        super().__init__(
            startup_nodes=nodes,
            max_connections=connections * _SPARE,
            # Redirections are learned one by one; redis-py would break off all calls to learn them at once.
            reinitialize_steps=0,
            # Slots that nobody has are no reason to refuse those whose slots somebody has.
            require_full_coverage=False,
            **options,
        )
        self.commands_parser = _Commands()
        self._places = dict(self.nodes_manager.startup_nodes)
        # For each node its own: who waits for a silent node keeps nobody from the others.
        self._calls: dict[str, asyncio.Semaphore] = defaultdict(
            partial(asyncio.Semaphore, connections - _PIPELINES)
        )
        self._pipelines: dict[str, asyncio.Semaphore] = defaultdict(partial(asyncio.Semaphore, _PIPELINES))
        self._given_up: dict[str, int] = {}
        self._suspect: str | None = None
        self._asked_at = float("-inf")

    async def initialize(
        self,
        additional_startup_nodes_info: list[tuple[str, int]] | None = None,
        last_failed_node_name: str | None = None,
    ) -> Self:
        """Learn who has which slots, unless it is known. Raises ConnectionError."""
        if not self._initialize:
            return self
        try:
            await super().initialize(additional_startup_nodes_info, last_failed_node_name or self._suspect)
        except BaseException as error:
            # The nodes that were known may all be gone, or the one that is asked first: begin elsewhere.
            for node in self.get_primaries()[:1]:
                self.nodes_manager.move_node_to_end_of_cached_nodes(node.name)
            self.nodes_manager.startup_nodes = {**self._places, **self.nodes_manager.startup_nodes}
            if isinstance(error, RedisClusterException):
                raise RedisConnectionError(str(error)) from error
            raise
        return self

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command on the node that has its keys, once there is a connection for it."""
        await self.initialize()  # redis-py would send the first commands anywhere
        try:
            return await super().execute_command(*args, **kwargs)
        except (SlotNotCoveredError, LookupError, AttributeError) as error:
            # Nobody has the slot, or what is known of the nodes was being replaced.
            self._initialize = True
            raise RedisConnectionError(f"no node for {args[0]}: {type(error).__name__}") from error

    async def _execute_command(self, target_node: ClusterNode, *args: Any, **kwargs: Any) -> Any:
        inside = _inside.set(True)
        try:
            async with self._calls[target_node.name]:
                answer = await super()._execute_command(target_node, *args, **kwargs)
        except asyncio.CancelledError:
            self._give_up(target_node)
            raise
        except (RedisConnectionError, RedisTimeoutError):
            self._suspect = target_node.name
            raise
        finally:
            _inside.reset(inside)
        self._is_there(target_node)
        return answer

    async def run_on(self, node: ClusterNode, commands: list[PipelineCommand]) -> None:
        """Run a node's part of a pipeline; what becomes of each command is its result."""
        try:
            async with self._pipelines[node.name]:
                await node.execute_pipeline(commands)
        except asyncio.CancelledError:
            self._give_up(node)
            raise
        except (RedisError, OSError) as error:
            for command in commands:
                command.result = error
        if any(isinstance(command.result, _LOST) for command in commands):
            node.update_active_connections_for_reconnect()
            await node.disconnect_free_connections()
            self._ask_elsewhere(node)
        else:
            self._is_there(node)

    def _is_there(self, node: ClusterNode) -> None:
        self._given_up.pop(node.name, None)
        if self._suspect == node.name:
            self._suspect = None

    def _give_up(self, node: ClusterNode) -> None:
        count = self._given_up.get(node.name, 0) + 1
        self._given_up[node.name] = count
        now = asyncio.get_running_loop().time()
        if count >= _PATIENCE and now >= self._asked_at + _ASK_SECONDS:
            self._asked_at = now
            self._ask_elsewhere(node)

    def _ask_elsewhere(self, node: ClusterNode) -> None:
        self._given_up.pop(node.name, None)
        self._suspect = node.name
        self.nodes_manager.move_node_to_end_of_cached_nodes(node.name)
        self._initialize = True

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> Pipeline:
        """Commands to be sent together, to each node its own. Without transactions."""
        if transaction or shard_hint:
            raise RedisClusterException("a pipeline of a Redis Cluster has no transactions")
        return Pipeline(self)  # type: ignore[abstract]

    async def publish(self, channel: Any, message: Any, **kwargs: Any) -> int:
        """Publish at any node: redis-py would insist on one, by the channel's name."""
        await self.initialize()
        try:
            return await self._publish(channel, message, **kwargs)
        except RedisConnectionError:
            await self.initialize()
            return await self._publish(channel, message, **kwargs)

    async def _publish(self, *words: Any, **kwargs: Any) -> int:
        heard: int = await self.execute_command("PUBLISH", *words, target_nodes=self._any_node(), **kwargs)
        return heard

    def _any_node(self) -> ClusterNode:
        nodes = self.get_nodes()
        if not nodes:
            raise RedisConnectionError("no node of the Redis Cluster is known")
        trusted = [node for node in nodes if node.name != self._suspect]
        return random.choice(trusted or nodes)  # noqa: S311 - no secret

    def pubsub(self, **kwargs: Any) -> ClusterPubSub:  # type: ignore[override]
        """A listener at any node: all of them pass on what is published. First `initialize()`."""
        return super().pubsub(self._any_node(), **kwargs)

    async def aclose(self) -> None:
        """Close all connections, also when what is known of the nodes is out of date."""
        if _inside.get():  # redis-py's way to forget the topology: no reason to break off everybody's calls
            self._initialize = True
            return
        self._initialize = False
        await super().aclose()


class Pipeline(ClusterPipeline):
    """Runs scripts too. A node that is away fails its own commands, and nobody else's."""

    cluster_client: Cluster

    def evalsha(self, sha: str, numkeys: int, *keys_and_args: Any) -> Self:
        """Run a script that the node has; NoScriptError is its result where the node has not."""
        self.execute_command("EVALSHA", sha, numkeys, *keys_and_args)
        return self

    async def execute(self, raise_on_error: bool = True, allow_redirections: bool = True) -> list[Any]:
        """The results in order, or the first error; without `raise_on_error` errors are results."""
        queue = cast("Any", self._execution_strategy)
        commands: list[PipelineCommand] = queue._command_queue  # noqa: SLF001
        queue._command_queue = []  # noqa: SLF001
        await self._run(commands)
        if lost := [command for command in commands if isinstance(command.result, _LOST)]:
            await self._run(lost)  # once more, as the pools do
        if allow_redirections:
            moved = [command for command in commands if isinstance(command.result, _REDIRECTED)]
            await asyncio.gather(*(self._follow(command) for command in moved))
        results = [command.result for command in commands]
        if raise_on_error:
            for result in results:
                if isinstance(result, Exception):
                    raise result
        return results

    async def _run(self, commands: list[PipelineCommand]) -> None:
        cluster = self.cluster_client
        await cluster.initialize()
        parts: dict[str, tuple[ClusterNode, list[PipelineCommand]]] = {}
        for command in commands:
            slot = await cluster._determine_slot(*command.args)  # noqa: SLF001
            try:
                node = cluster.nodes_manager.get_node_from_slot(slot)
            except (SlotNotCoveredError, LookupError):
                command.result = RedisConnectionError("no node has the slot")
                cluster._initialize = True  # noqa: SLF001
                continue
            parts.setdefault(node.name, (node, []))[1].append(command)
        await asyncio.gather(*(cluster.run_on(node, part) for node, part in parts.values()))

    async def _follow(self, command: PipelineCommand) -> None:
        try:
            command.result = await self.cluster_client.execute_command(*command.args)
        except RedisError as error:
            command.result = error


class _Commands(AsyncCommandsParser):
    """What Redis says of its commands is asked once, not whenever the topology is."""

    async def initialize(self, node: ClusterNode | None = None) -> None:
        if node is not None:
            self.node = node
        if node is None or not self.commands:
            await super().initialize(node)
