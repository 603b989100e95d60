"""What goes on, once a second, for the console: over all workers of this host, as server-sent events."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse

from api.core.sse import HEARTBEAT
from api.deps import Admin, GateDep
from api.flow.numbers import all_numbers
from api.flow.relay import SSE_HEADERS
from api.ports import AccountsUnavailable
from auth.principal import NotAuthenticated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from api.core.numbers import Labels, Totals
    from api.flow.gate import Gate
    from auth.principal import Principal

router = APIRouter(prefix="/admin", tags=["admin: streams"])

_SECONDS = 1.0
_HEADERS = {name.decode(): value.decode() for name, value in SSE_HEADERS[1:]}
_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


@router.get("/live", response_class=Response, responses=_STREAM)
async def live(admin: Admin, gate: GateDep) -> Response:
    """A JSON object a second: open streams, tokens and refusals per second, how upstreams stand.

    Ends with the credential it was asked with, and when the worker drains: ask again.
    """
    return StreamingResponse(_events(gate, admin), media_type="text/event-stream", headers=_HEADERS)


async def _events(gate: Gate, admin: Principal) -> AsyncIterator[bytes]:
    yield HEARTBEAT
    before, then = await all_numbers(gate), gate.clock.monotonic()
    while not gate.draining and await _holds(gate, admin):
        await asyncio.sleep(_SECONDS)
        totals, now = await all_numbers(gate), gate.clock.monotonic()
        yield b"data: " + msgspec.json.encode(_told(before, totals, now - then)) + b"\n\n"
        before, then = totals, now


async def _holds(gate: Gate, admin: Principal) -> bool:
    if admin.expires_at is not None and gate.clock.unix() >= admin.expires_at:
        return False
    try:
        await gate.authenticator.again(admin)
    except NotAuthenticated:
        return False
    except AccountsUnavailable:  # nobody knows otherwise
        return True
    return True


def _told(before: Totals, totals: Totals, seconds: float) -> dict[str, Any]:
    values = totals.values
    refused = _by_label(values, "refusals")
    more = sum(refused.values()) - sum(_by_label(before.values, "refusals").values())
    upstreams: dict[str, dict[str, float]] = {}
    for (name, labels), value in values.items():
        if name == "upstream_standing" and value:
            upstreams.setdefault(labels[0], {})[labels[1]] = value
    return {
        "workers": values.get(("workers", ()), 0),
        "open_streams": values.get(("open_streams", ()), 0),
        "waiting_requests": values.get(("waiting_requests", ()), 0),
        "spool_bytes": values.get(("spool_bytes", ()), 0),
        "tokens_per_second": max(0.0, _produced(totals) - _produced(before)) / seconds,
        "refusals_per_second": max(0.0, more) / seconds,
        "refusals": refused,
        "upstreams": upstreams,
    }


def _by_label(values: Mapping[tuple[str, Labels], float], family: str) -> dict[str, float]:
    return {
        " ".join(filter(None, labels)): value for (name, labels), value in values.items() if name == family
    }


def _produced(totals: Totals) -> float:
    """Output tokens: on the ledger, and of streams that are open."""
    return sum(
        value
        for (name, labels), value in totals.values.items()
        if name == "live_tokens" or (name == "tokens" and labels[1] == "output")
    )
