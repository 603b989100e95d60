"""The supervisor of several workers."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import uvicorn

from api.serving import _Worker


def test_a_workers_death_is_seen_while_its_answer_is_waited_for() -> None:
    """A worker hangs, is asked whether it is alive, and is killed: nobody waits for the answer any longer."""
    worker = _Worker(uvicorn.Config("api.nothing:app"), [])
    worker.start()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as thread:
        alive = thread.submit(worker.ping, 60)
        os.kill(worker.pid, signal.SIGKILL)
        assert alive.result(timeout=20) is False
    worker.kill()
    worker.join()
