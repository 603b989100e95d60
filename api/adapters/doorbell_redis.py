"""The doorbell: Redis pub/sub tells all workers that an account has changed. It carries no news itself.

Best effort both ways: whoever does not hear it reads the same half a second later (api.flow.watch). With
`memory://` there is one worker, which needs no bell.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

log = logging.getLogger("sluicegate.doorbell")

CHANNEL = "sg:accounts"
_QUIET_SECONDS = 5.0
_AGAIN_SECONDS = 1.0


class RedisDoorbell:
    """`client` is what api.adapters.redis_connect opens. Nodes of a cluster pass a ring on to each other."""

    def __init__(self, client: Redis, *, timeout_seconds: float = 0.25) -> None:
        self._client = client
        self._timeout_seconds = timeout_seconds

    async def ring(self) -> None:
        """Ring at all workers."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._client.publish(CHANNEL, b"")
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("the doorbell did not ring (%s): workers look by themselves", type(error).__name__)

    async def listen(self, heard: Callable[[], None]) -> None:
        """Call `heard` for each ring, and whenever listening began anew, until cancelled."""
        deaf = False
        while True:
            try:
                await self._client.initialize()  # a cluster has to be known before one of its nodes is heard
                async with self._client.pubsub() as listener:
                    await listener.subscribe(CHANNEL)
                    while True:
                        message = await listener.get_message(timeout=_QUIET_SECONDS)
                        if message is not None:  # also the subscription's own: there may have been a gap
                            deaf = False
                            heard()
            except (RedisError, OSError, TimeoutError) as error:
                if not deaf:
                    log.warning(
                        "the doorbell is not heard (%s): looking twice a second", type(error).__name__
                    )
                deaf = True
                await asyncio.sleep(_AGAIN_SECONDS)
