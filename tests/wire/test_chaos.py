"""P2 and P3 in chaos: `scripts/chaos`, small enough for the suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scripts.proofs.chaos import Plan, lines_of, prove
from scripts.stage import Stage
from tests.support.servers import PostgresServer, running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.servers import RedisServer, ScriptedProcess

PLAN = Plan(
    seconds=8,
    clients=24,
    flooders=2,
    kills=2,
    redis_pauses=1,
    postgres_restarts=1,
    upstream_pauses=1,
    stops=1,
    longest_outage_seconds=1.5,
    lease_seconds=3,
    send_seconds=2,
    redis_timeout_seconds=5,  # the tests share two cores with the servers
    slack_seconds=5,  # the same
    seed=5,
)


async def test_the_ledger_is_what_the_upstream_sent_whatever_happens(
    own_redis: RedisServer, scripted: ScriptedProcess, tmp_path: Path
) -> None:
    """Workers are killed and stopped, Redis and PostgreSQL go and come: every event is the truth, or less."""
    with running(PostgresServer()) as postgres:
        stage = Stage(own_redis, postgres.new_database(), scripted, tmp_path, postgres)
        report = await prove(PLAN, stage, print)
    assert not report.broken, "\n".join(lines_of(report))
    happened = {"kill": 2, "redis": 1, "postgres": 1, "upstream": 1, "stop": 1}
    assert report.happened == happened, "or all this says nothing"
    assert report.findings.exact_events > PLAN.clients, "the same"
