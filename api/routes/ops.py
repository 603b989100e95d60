"""For operators and load balancers: is it alive, can it admit. Open, and says nothing about tenants."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse

from api.deps import GateDep
from api.flow.relay import SSE_HEADERS
from api.ports import LedgerUnavailable, LimiterUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

router = APIRouter(tags=["operations"])

_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
_UNBUFFERED = {name.decode(): value.decode() for name, value in SSE_HEADERS[1:]}


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/streamz", response_class=Response, responses=_STREAM)
async def streamz() -> Response:
    """Three events, 0.2 s apart: whoever sits in front must not hold them back. `sluicegate doctor` looks."""
    return StreamingResponse(_three(), media_type="text/event-stream", headers=_UNBUFFERED)


async def _three() -> AsyncIterator[bytes]:
    for number in range(3):
        if number:
            await asyncio.sleep(0.2)
        yield b"data: %d\n\n" % number


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses={503: {"description": "Some part is not ready; the body says which."}})
async def readyz(gate: GateDep, response: Response) -> dict[str, str]:
    """Whether new streams can be admitted, and which part is in the way."""
    limiter, ledger = await _state(gate.limiter.ping()), await _state(gate.ledger.ping())
    parts = {
        "ledger": "degraded" if ledger == "ok" and gate.ledger.away else ledger,
        "limiter": "degraded" if limiter == "ok" and gate.limiter.degraded else limiter,
        "gate": "draining" if gate.draining else "ok",
    }
    if not set(parts.values()) <= {"ok", "degraded"}:
        response.status_code = 503
        response.headers["retry-after"] = "1"
    # An upstream that fails is no reason to take the worker out: the others of its models are asked.
    standings = gate.providers.standings(gate.clock.monotonic())
    return parts | {f"upstream {name}": str(standing) for name, standing in standings.items()}


async def _state(ping: Awaitable[None]) -> str:
    try:
        await ping
    except (LedgerUnavailable, LimiterUnavailable):
        return "unavailable"
    return "ok"
