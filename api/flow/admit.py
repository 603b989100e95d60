"""Admission: a slot under each of the caller's caps, or a refusal that says which. Fails closed, in 250 ms.

A bought token may carry an allowance: then as many tokens are reserved as the request could use, and the
provider is asked for no more output than that.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from api.core.dialects.openai_chat import choices_of, is_text_alone, limited, output_limit_of
from api.core.ids import ENTROPY_BYTES, sortable_id
from api.core.usage import encoding_of
from api.errors import BadRequest, Draining
from api.ports import Allowance, LimiterUnavailable, Permit

if TYPE_CHECKING:
    from api.flow.gate import Gate
    from api.flow.stream import Stream


_OUTPUT_TOKENS = 4096
"""What is reserved for an answer whose length the request does not limit."""


async def admit(gate: Gate, stream: Stream) -> Permit:
    """A permit. Raises StreamsExhausted, AllowanceSpent, LimiterUnavailable, LedgerUnavailable, Draining."""
    if gate.draining:
        raise Draining
    if stream.caller.allowance is None:
        return await _acquire(gate, stream, None)
    allowance, inputs = await _allowance(gate, stream, stream.caller.allowance)
    permit = await _acquire(gate, stream, allowance)
    choices = choices_of(stream.order.body)
    stream.order.body = limited(stream.order.body, (permit.granted_tokens - inputs) // choices)
    return permit


async def _acquire(gate: Gate, stream: Stream, allowance: Allowance | None) -> Permit:
    caller = stream.caller
    assert caller.tenant_id is not None  # noqa: S101 - the route's dependency has seen to it
    now_ms = int(gate.clock.unix() * 1000)
    permit_id = sortable_id("sl_", now_ms, secrets.token_bytes(ENTROPY_BYTES))
    try:
        permit = await gate.limiter.acquire(caller.tenant_id, permit_id, caller.caps, allowance)
        if permit is None and allowance is not None:
            spent = await gate.ledger.spent(caller.tenant_id, allowance.token_id)
            known = replace(allowance, spent=spent)
            permit = await gate.limiter.acquire(caller.tenant_id, permit_id, caller.caps, known)
    except LimiterUnavailable:
        # The slot may have been taken and the answer lost: give it back rather than wait for its lease.
        of = allowance.token_id if allowance else None
        lost = Permit(permit_id, caller.tenant_id, caller.caps, of)
        gate.chores.start(gate.limiter.release(lost), name="give back")
        raise
    assert permit is not None  # noqa: S101 - it was said what is spent
    return permit


async def _allowance(gate: Gate, stream: Stream, total: int) -> tuple[Allowance, int]:
    """What to reserve, and how much of it is for the prompt."""
    assert stream.caller.token_id is not None  # noqa: S101 - only a token has an allowance
    inputs, choices = await _input_tokens(gate, stream), choices_of(stream.order.body)
    asked = output_limit_of(stream.order.body) or _OUTPUT_TOKENS
    least = inputs + choices
    most = max(inputs + asked * choices, least)
    return Allowance(stream.caller.token_id, total, least, most), inputs


async def _input_tokens(gate: Gate, stream: Stream) -> int:
    """What the prompt costs, or more. Raises BadRequest where nobody knows before."""
    body, prompt = stream.order.body, stream.order.meter.prompt
    if prompt.countable:
        counts = await gate.tokenizer.count(prompt.texts, encoding_of(body["model"])[0])
        return sum(counts) + prompt.overhead_tokens
    if not is_text_alone(body):
        raise BadRequest("A token with an allowance can send text alone, no images or files.", "messages")
    return len(msgspec.json.encode(body))  # tools, too, are text: no token is shorter than a byte
