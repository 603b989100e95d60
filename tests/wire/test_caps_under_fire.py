"""P4 while workers are killed: `scripts/prove caps`, small enough for the suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scripts.proofs.caps import lines_of, prove
from scripts.proofs.crowd import Plan
from scripts.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.servers import RedisServer, ScriptedProcess

PLAN = Plan(
    workers=2,
    tenants=4,
    streams=60,
    seconds=4,
    kills=2,
    pace_ms=50,
    lease_seconds=3,
    redis_timeout_seconds=5,  # the tests share two cores with the servers
)


async def test_no_tenant_is_ever_over_its_cap_though_workers_are_killed(
    own_redis: RedisServer, new_database: Callable[[str], str], scripted: ScriptedProcess, tmp_path: Path
) -> None:
    """The upstream never sees more streams than a cap, and a lease after the last kill all slots are free."""
    stage = Stage(own_redis, new_database("postgresql"), scripted, tmp_path)
    report = await prove(PLAN, stage, print)
    assert report.kills == PLAN.kills
    assert not report.broken, "\n".join(lines_of(report))
