"""Tasks: what is started is kept, waited for, and heard when it breaks."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from typing import TYPE_CHECKING

from api.tasks import Tasks

if TYPE_CHECKING:
    import pytest


async def test_a_task_that_nobody_holds_is_kept():
    """The event loop has weak references only; here a task lives until it is done."""
    tasks, go = Tasks(), asyncio.Event()
    kept = weakref.ref(tasks.start(go.wait(), name="waits"))
    await asyncio.sleep(0)
    gc.collect()
    assert kept() is not None
    assert len(tasks) == 1
    go.set()
    await tasks.join()
    assert len(tasks) == 0


async def test_join_waits_for_tasks_that_tasks_start():
    """Nothing runs any more when it returns, however it came to run."""
    tasks, done = Tasks(), []

    async def generations(left: int) -> None:
        if left:
            tasks.start(generations(left - 1), name=f"{left} left")
        await asyncio.sleep(0)
        done.append(left)

    tasks.start(generations(5), name="first")
    await tasks.join()
    assert sorted(done) == [0, 1, 2, 3, 4, 5]
    assert not tasks


async def test_join_gives_up_when_its_time_is_over():
    """What still runs goes on; it is neither cancelled nor forgotten."""
    tasks, go = Tasks(), asyncio.Event()
    task = tasks.start(go.wait(), name="slow")
    await tasks.join(timeout_seconds=0.01)
    assert not task.done()
    assert len(tasks) == 1
    go.set()
    await tasks.join(timeout_seconds=60)
    assert await task


async def test_a_failure_is_logged_with_its_name_and_cause_and_is_not_raised(
    caplog: pytest.LogCaptureFixture,
):
    """One broken task does not keep the others from being waited for."""
    tasks, done = Tasks(), []

    async def breaks() -> None:
        raise RuntimeError("what went wrong")

    async def works() -> None:
        await asyncio.sleep(0)
        done.append(True)

    tasks.start(breaks(), name="the broken one")
    tasks.start(works(), name="works")
    with caplog.at_level(logging.ERROR, "sluicegate.tasks"):
        await tasks.join()
    assert done
    (record,) = caplog.records
    assert "the broken one" in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "what went wrong"


async def test_cancel_ends_everything_and_waits_for_its_cleanup(caplog: pytest.LogCaptureFixture):
    """A cancelled task's `finally` has run when it returns; that is no failure to log."""
    tasks, cleaned = Tasks(), []

    async def holds() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    for number in range(3):
        tasks.start(holds(), name=f"holds {number}")
    await asyncio.sleep(0)
    await tasks.cancel()
    assert cleaned == [True] * 3
    assert not tasks
    assert caplog.records == []


async def test_a_task_outlives_the_cancellation_of_who_started_it():
    """The settlement of a stream does not die with the request."""
    tasks, started, go, done = Tasks(), asyncio.Event(), asyncio.Event(), []

    async def work() -> None:
        await go.wait()
        done.append(True)

    async def starter() -> None:
        tasks.start(work(), name="work")
        started.set()
        await asyncio.Event().wait()

    caller = tasks.start(starter(), name="caller")
    await started.wait()
    caller.cancel()
    go.set()
    await tasks.join()
    assert caller.cancelled()
    assert done
