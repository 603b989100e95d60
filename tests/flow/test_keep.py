"""What goes on beside the streams: a job that fails holds up no other, and only the leader does any."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from api.flow.keep import lead, repeat
from api.tasks import Tasks
from tests.contracts.helpers import eventually

if TYPE_CHECKING:
    from collections.abc import Callable


class Job:
    """One that does so many rounds, and then fails where it is to."""

    def __init__(self, rounds: int, fault: Exception | None = None) -> None:
        self.left = rounds
        self.fault = fault
        self.done = 0

    async def round(self) -> bool:
        self.done += 1
        self.left -= 1
        if self.left < 0 and self.fault is not None:
            raise self.fault
        return self.left > 0


def holds(answer: bool) -> Callable[[], asyncio.Future[bool]]:
    """Whether this worker leads."""

    def hold() -> asyncio.Future[bool]:
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        future.set_result(answer)
        return future

    return hold


async def test_only_the_leader_does_the_jobs() -> None:
    """Each until there is no more to do; whoever does not lead does none."""
    jobs = [Job(1), Job(7)]
    await lead(holds(False), jobs)
    assert [job.done for job in jobs] == [0, 0]
    await lead(holds(True), jobs)
    assert [job.done for job in jobs] == [1, 7]


async def test_a_job_that_fails_holds_up_no_other() -> None:
    """Those behind it have their turn, and it is told that there was a failure."""
    broken, other = Job(0, OSError("away")), Job(2)
    with pytest.raises(OSError, match="away"):
        await lead(holds(True), [broken, other])
    assert (broken.done, other.done) == (1, 2)


async def test_a_job_without_an_end_lets_the_others_have_their_turn() -> None:
    """It goes on the next time; and the lease is renewed in between."""
    endless, other = Job(1_000_000), Job(1)
    await lead(holds(True), [endless, other])
    assert 0 < endless.done < 1000
    assert other.done == 1


async def test_what_fails_is_repeated_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Until it works again; the next failure is news once more. Its text is not said: it may hold data."""
    caplog.set_level(logging.INFO)
    outcomes = [OSError("secret"), OSError("secret"), None, OSError("secret"), None]
    tasks = Tasks()

    async def work() -> None:
        if outcomes and (fault := outcomes.pop(0)) is not None:
            raise fault

    async def all_done() -> bool:
        return not outcomes

    tasks.start(repeat(work, "it waits", seconds=0), name="repeat")
    await eventually(all_done)
    await tasks.cancel()
    assert [line.getMessage() for line in caplog.records] == ["it waits: OSError"] * 2
