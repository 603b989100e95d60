"""`sluicegate reconcile`: what a killed gate left open is closed without any gate."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from tests.support.gates import gate_process, run_cli
from tests.wire import people

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUICK = {"LEASE_SECONDS": "3", "TICK_SECONDS": "0.2"}


async def test_it_closes_what_a_killed_gate_left_open(
    tmp_path: Path, new_database: Callable[[str], str]
) -> None:
    """From the last checkpoint, lost and at least."""
    with gate_process(tmp_path, DATABASE_URL=new_database("postgresql"), **QUICK) as gate:
        tenant, key = gate.tenant()
        client = await people.held(gate, key)
        path = f"/admin/streams?tenant={tenant}"

        def checkpointed() -> bool:
            return [one["output_tokens"] for one in gate.http("GET", path, gate.admin).json()] == [10]

        await people.until(checkpointed)
        gate.stop(signal.SIGKILL)
        await people.leave([client])
        first = run_cli(gate.environment, tmp_path, "reconcile", "--wait-seconds", "1")
        assert first == {"spools": 0, "leads": True, "closed": 1, "open": 0}
        [event] = run_cli(gate.environment, tmp_path, "usage", "--tenant", tenant, "--events")
        assert (event["ended"], event["source"], event["certainty"]) == ("lost", "checkpoint", "at_least")
        assert (event["input_tokens"], event["output_tokens"]) == (8, 10)


async def test_beside_a_gate_that_runs_it_leaves_the_books_to_it(
    tmp_path: Path, new_database: Callable[[str], str]
) -> None:
    """It says so, and closes nothing: the stream goes on."""
    with gate_process(tmp_path, DATABASE_URL=new_database("sqlite"), **QUICK) as gate:
        tenant, key = gate.tenant()
        client = await people.held(gate, key)
        done = run_cli(gate.environment, tmp_path, "reconcile", "--wait-seconds", "1")
        assert (done["leads"], done["closed"], done["open"]) == (False, 0, 1)
        await people.leave([client])
        assert [e["ended"] for e in await people.settled(gate, tenant, 1)] == ["left"]
