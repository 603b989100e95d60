"""`sluicegate stream`: what runs, and ending it, from the command line."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.gates import gate_process
from tests.wire import people

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_stream_is_listed_and_ended(tmp_path: Path) -> None:
    """With Redis in the serving process its lease is unknown here; it ends in an error event all the same."""
    with gate_process(tmp_path) as gate:
        tenant, key = await asyncio.to_thread(gate.tenant)
        assert await asyncio.to_thread(gate.cli, "stream", "list") == []
        stream = await people.held(gate, key)
        [listed] = await asyncio.to_thread(gate.cli, "stream", "list", "--tenant", tenant)
        assert (listed["state"], listed["tenant_id"]) == ("unknown", tenant)
        ending = await asyncio.to_thread(gate.cli, "stream", "end", listed["id"])
        assert ending == {"id": listed["id"], "ending": True}
        assert (await people.last_event(stream))["code"] == "ended_by_admin"
        [entry] = await asyncio.to_thread(gate.cli, "audit", "--action", "stream.end")
        assert (entry["target"], entry["tenant_id"]) == (listed["id"], tenant)
        gone = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "api.cli", "stream", "end", "bk_nothing"],
            env=gate.environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (gone.returncode, "No stream with the id bk_nothing" in gone.stderr) == (1, True)
