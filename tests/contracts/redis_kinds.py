"""What tests do with a client of any kind of Redis, as the product does it."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, RedisError

from api.adapters.redis_connect import connect
from tests.contracts.helpers import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from redis.asyncio import Redis

    from tests.support.servers import RedisServer

CALL_SECONDS = 0.25
"""The bound that the product sets on each call."""

TENANTS = [f"tn_{number}" for number in range(30)]
"""Enough for each node of a cluster to have some."""


def key(tenant: str) -> str:
    """A tenant's key, whose braces keep all of them in one slot."""
    return f"sg:{{{tenant}}}:x"


class Script:
    """Lua that writes and reads; each makes a script that no server has seen."""

    def __init__(self, name: str) -> None:
        self.text = f"redis.call('SET', KEYS[1], ARGV[1]) return {{ARGV[1], '{name}'}}"
        self.sha = hashlib.sha1(self.text.encode()).hexdigest()

    async def one(self, client: Redis, tenant: str, value: str) -> Any:
        """The script for one tenant, loaded where it is not known."""
        try:
            return await client.evalsha(self.sha, 1, key(tenant), value)
        except NoScriptError:
            return await client.eval(self.text, 1, key(tenant), value)

    async def all(self, client: Redis, tenants: Iterable[str], value: str) -> dict[str, Any]:
        """The script for several in one pipeline: what each got, which may be an error."""
        pipe = client.pipeline(transaction=False)
        tenants = list(tenants)
        for tenant in tenants:
            pipe.evalsha(self.sha, 1, key(tenant), value)
        answers = await pipe.execute(raise_on_error=False)
        unknown = [n for n, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            again = client.pipeline(transaction=False)
            for n in unknown:
                again.eval(self.text, 1, key(tenants[n]), value)
            for n, answer in zip(unknown, await again.execute(raise_on_error=False), strict=True):
                answers[n] = answer
        return dict(zip(tenants, answers, strict=True))


@asynccontextmanager
async def opened(url: str, timeout_seconds: float = CALL_SECONDS) -> AsyncIterator[Redis]:
    """A client as the product opens it."""
    client = connect(url, timeout_seconds=timeout_seconds)
    try:
        yield client
    finally:
        await client.aclose()


async def answers(client: Redis, *tenants: str) -> bool:
    """Whether the tenants are served now, each within the product's bound."""
    try:
        async with asyncio.timeout(CALL_SECONDS):
            for tenant in tenants:
                await client.set(key(tenant), "1")
    except (RedisError, OSError):
        return False
    return True


async def comes_back(client: Redis) -> None:
    """All tenants are served again, and go on being served."""
    await eventually(lambda: answers(client, *TENANTS))
    for _ in range(3):
        assert await answers(client, *TENANTS)


def connections(server: RedisServer) -> int:
    """How many clients a server has, but for its replicas and this question."""
    with server.client() as client:
        return sum(one["cmd"] not in {"client", "replconf", "psync"} for one in client.client_list())
