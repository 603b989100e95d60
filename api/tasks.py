"""Tasks with an owner.

asyncio keeps only weak references to tasks and loses their exceptions. This does not: every task of the
product is started here, is awaited before the pools close, and says what broke it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

log = logging.getLogger("sluicegate.tasks")


class Tasks:
    """A set of running tasks."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run `work` beside the caller; it outlives the caller's cancellation."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("task %s failed", task.get_name(), exc_info=task.exception())

    async def join(self, timeout_seconds: float | None = None) -> None:
        """Wait until nothing runs any more, or for so long. What failed is logged, not raised."""
        loop = asyncio.get_running_loop()
        end = None if timeout_seconds is None else loop.time() + timeout_seconds
        while self._running and (end is None or loop.time() < end):
            await asyncio.wait(self._running, timeout=None if end is None else end - loop.time())

    async def cancel(self) -> None:
        """Cancel what runs, and wait for it."""
        for task in self._running:
            task.cancel()
        await self.join()
