"""A stream that is kept for whoever asks for it again with the same `Idempotency-Key`.

What its client is sent goes into Redis too, from a task of its own: a slow Redis holds no stream up. The
client may leave; the stream goes on to its end, for the next one who asks. What failed is forgotten, so that
asking again is asking anew.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from api.ports import LimiterUnavailable

if TYPE_CHECKING:
    from api.flow.gate import Gate

END, TOO_LARGE = b"\0end", b"\0large"
"""What no stream sends: the last element of one that has ended, or has become too large to be kept."""

_PAUSE_SECONDS = 0.05
_AT_ONCE = 500  # elements in one call
_LAST_SECONDS = 2.0


class Kept(NamedTuple):
    """Where a stream is kept: its tenant, its name there, its head, and for how long once it has ended."""

    tenant_id: str
    name: str
    head: bytes
    minutes: int


class Recorder:
    """Of one stream. `put` costs nothing but memory, and of that no more than is kept."""

    def __init__(self, gate: Gate, kept: Kept) -> None:
        self._gate, self._kept = gate, kept
        self._parts: list[bytes] = []
        self._batch: list[bytes] = []  # is being written; to be said again until there is an answer
        self._size = 0
        self._written = 1  # elements that are there; the head is the first
        self._over = False  # it is too large
        self._lost = False  # it is somebody else's
        self._stopped = asyncio.Event()
        self._task = gate.chores.start(self._run(), name="replay")

    def put(self, data: bytes) -> None:
        """What the client is sent."""
        self._size += len(data)
        self._over = self._over or self._size > self._gate.policy.replay_max_bytes
        if self._over:
            self._parts.clear()
        else:
            self._parts.append(data)

    async def _run(self) -> None:
        """Write what has come, and renew the lease, until it is called off."""
        lease, renewed = self._gate.policy.lease_seconds, 0.0
        loop = asyncio.get_running_loop()
        while not (self._lost or self._stopped.is_set()):
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_SECONDS):
                    await self._stopped.wait()
            if self._parts or self._batch or loop.time() - renewed > lease / 5:
                with suppress(LimiterUnavailable):  # and again, as long as the lease holds
                    await self._write(lease)
                    renewed = loop.time()

    async def _write(self, keep_seconds: float) -> None:
        """Add the first that wait. Raises LimiterUnavailable: then the same are to be said again."""
        kept, replays = self._kept, self._gate.replays
        if self._over:
            await replays.replace(kept.tenant_id, kept.name, kept.head, TOO_LARGE, 60.0 * kept.minutes)
            self._parts, self._batch = [], []
            return
        if not self._batch:
            self._batch = self._parts[:_AT_ONCE]
            del self._parts[: len(self._batch)]
        self._lost = not await replays.append(
            kept.tenant_id, kept.name, kept.head, self._batch, after=self._written, keep_seconds=keep_seconds
        )
        self._written += len(self._batch)
        self._batch = []

    async def finish(self, last: bytes) -> None:
        """It has ended well, with these bytes: keep it for the tenant's minutes."""
        if last:
            self.put(last)
        self._parts += [END]
        await self._stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                while (self._parts or self._batch) and not self._lost:
                    try:
                        await self._write(60.0 * self._kept.minutes)
                    except LimiterUnavailable:
                        await asyncio.sleep(_PAUSE_SECONDS)

    async def drop(self) -> None:
        """It has failed: whoever asks again asks anew."""
        await self._stop()
        kept = self._kept
        with suppress(LimiterUnavailable, TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await self._gate.replays.drop(kept.tenant_id, kept.name, kept.head)

    async def _stop(self) -> None:
        """What is being written is written; nothing is begun any more."""
        self._stopped.set()
        await asyncio.wait([self._task])
