"""Admission: one slot of the tenant, or a refusal that says which limit. Fails closed, within 250 ms."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from api.core.ids import ENTROPY_BYTES, sortable_id
from api.errors import Draining
from api.ports import LimiterUnavailable, Permit

if TYPE_CHECKING:
    from api.flow.gate import Gate
    from auth.principal import Principal


async def admit(gate: Gate, caller: Principal) -> Permit:
    """A permit. Raises StreamsExhausted, LimiterUnavailable, Draining."""
    if gate.draining:
        raise Draining
    assert caller.tenant_id is not None  # noqa: S101 - the route's dependency has seen to it
    now_ms = int(gate.clock.unix() * 1000)
    permit_id = sortable_id("sl_", now_ms, secrets.token_bytes(ENTROPY_BYTES))
    try:
        return await gate.limiter.acquire(caller.tenant_id, permit_id, caller.max_streams)
    except LimiterUnavailable:
        # The slot may have been taken and the answer lost: give it back rather than wait for its lease.
        gate.chores.start(gate.limiter.release(Permit(permit_id, caller.tenant_id)), name="give back")
        raise
