"""What goes on beside the streams: every worker shows that it lives, and one of them keeps the books.

The leader closes what dead workers left open, keeps the roll-ups, and whatever one alone may do.
Each job does a bounded round and says whether there is more; a job that fails holds up no other.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

log = logging.getLogger("sluicegate.keep")

_ROUNDS = 50
"""How many rounds a job may have before the next one's turn."""


class Job(Protocol):
    """Something that the leader does."""

    async def round(self) -> bool:
        """Do a bounded part of it. True: there is more to do at once."""
        ...


async def repeat(work: Callable[[], Awaitable[object]], what: str, *, seconds: float) -> None:
    """Do `work` again and again until cancelled; a failure is logged once, until it works again."""
    failing = False
    while True:
        try:
            await work()
            failing = False
        except Exception as error:
            if not failing:
                log.warning("%s: %s", what, type(error).__name__)
                log.debug("%s failed", what, exc_info=error)
            failing = True
        await asyncio.sleep(seconds)


async def lead(hold: Callable[[], Awaitable[bool]], jobs: Sequence[Job]) -> None:
    """Where this worker leads, or can: each job's turn. Raises what the last job that failed raised."""
    if not await hold():
        return
    failed: Exception | None = None
    for job in jobs:
        try:
            for _ in range(_ROUNDS):
                if not await job.round():
                    break
        except Exception as error:  # noqa: BLE001 - the other jobs go on; `repeat` logs it
            failed = error
    if failed is not None:
        raise failed
