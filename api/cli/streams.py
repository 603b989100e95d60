"""`sluicegate stream`: what runs on all workers, and ending it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.adapters.clock_system import SystemClock
from api.adapters.limiter_redis import RedisLimiter
from api.adapters.redis_connect import connect
from api.cli.shared import Json, fail, run, show, table
from api.core.demand import Terms
from api.flow.overview import described
from api.ports import LimiterUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from api.cli.shared import Office
    from api.settings import Settings

app = typer.Typer(help="Streams that run, on all workers.", no_args_is_help=True)


class _NoRedis:
    """With `memory://` only the serving process knows whose lease holds."""

    async def live(self, _tenant_id: str) -> list[str]:
        raise LimiterUnavailable


@asynccontextmanager
async def leases(settings: Settings) -> AsyncIterator[RedisLimiter | _NoRedis]:
    """Whoever knows which streams' leases hold."""
    if settings.redis_url.startswith("memory://"):
        yield _NoRedis()
        return
    redis = connect(settings.redis_url, timeout_seconds=settings.redis_timeout_seconds)
    try:
        yield RedisLimiter(redis, Terms(1, 1, 1), timeout_seconds=settings.redis_timeout_seconds)
    finally:
        await redis.aclose()


@app.command("list", epilog="Example: sluicegate stream list --tenant TENANT_ID")
def list_streams(
    tenant: Annotated[str | None, typer.Option(help="Of this tenant alone.")] = None,
    as_json: Json = False,
) -> None:
    """The streams that run, oldest first, as their last checkpoints have them."""

    async def work(office: Office) -> list[dict[str, Any]]:
        found = await office.ledger.in_flight(tenant)
        async with leases(office.settings) as held:
            return await described(held, SystemClock(), found)

    rows = run(work)
    shown = ("id", "state", "tenant_id", "key_id", "model", "age_seconds", "output_tokens", "worker")
    text = table([name.replace("_", " ") for name in shown], [[row[name] for name in shown] for row in rows])
    show(rows, as_json, text or "No streams run.")


@app.command("end", epilog="Example: sluicegate stream end bk_01a2...")
def end(stream_id: str, as_json: Json = False) -> None:
    """End a stream: its worker cuts it within a second, and what it used is on the ledger."""

    async def work(office: Office) -> bool:
        found = await office.ledger.in_flight(booking_id=stream_id)
        if found:
            tenant_id = found[0].booking.tenant_id
            await office.accounts.note("end", "stream", stream_id, by=office.by, tenant_id=tenant_id)
        return bool(found)

    if not run(work, changes=True):
        fail(f"No stream with the id {stream_id} runs. See: sluicegate stream list")
    show({"id": stream_id, "ending": True}, as_json, f"Its worker ends {stream_id} within a second.")
