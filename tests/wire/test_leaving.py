"""P2 for clients that leave after megabytes: `scripts/prove leaving`, small enough for the suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scripts.proofs.leaving import Plan, lines_of, prove
from scripts.stage import Stage

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.servers import PostgresServer, RedisServer, ScriptedProcess

PLAN = Plan(clients=5, megabytes=1.0, pace_ms=0, most_ms=float("inf"), yardstick_seconds=0.1)
"""How long the loop may stand still is for the proof, which has the machine for itself."""


async def test_every_client_that_leaves_after_a_megabyte_is_counted(
    own_redis: RedisServer, postgres_server: PostgresServer, scripted: ScriptedProcess, tmp_path: Path
) -> None:
    """Each has its event, `at_least`, with as many tokens as another tokeniser counts in what came."""
    stage = Stage(own_redis, postgres_server.new_database(), scripted, tmp_path, postgres_server)
    report = await prove(PLAN, stage, print)
    assert not report.broken, "\n".join(lines_of(report))
    assert [event["certainty"] for event in report.events] == ["at_least"] * PLAN.clients
    assert all(event["ledger"] >= report.tokens_each for event in report.events)
    assert report.leaving["samples"], "the probe has run"
