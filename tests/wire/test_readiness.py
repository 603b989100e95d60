"""What /readyz says of Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2
import pytest

from tests.support.gates import serving, settings_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.servers import RedisServer


@pytest.mark.parametrize(
    ("mode", "status", "word"), [("share", 200, "degraded"), ("closed", 503, "unavailable")]
)
async def test_readiness_is_whether_somebody_can_be_admitted(
    tmp_path: Path, own_redis: RedisServer, mode: str, status: int, word: str
) -> None:
    """A worker that goes on without Redis is not taken out of the load balancer; one that cannot is."""
    settings = settings_of(tmp_path, redis_url=own_redis.url, redis_away=mode, redis_timeout_seconds=0.25)
    async with serving(settings) as app, httpx2.AsyncClient(trust_env=False, base_url=app.url) as http:
        assert (await http.get("/readyz")).json()["limiter"] == "ok"
        own_redis.kill()
        while not app.gate.limiter.degraded:
            await app.gate.limiter.renew([], {})
        answer = await http.get("/readyz")
        assert (answer.status_code, answer.json()["limiter"]) == (status, word)
