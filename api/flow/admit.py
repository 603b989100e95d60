"""Admission: all of the caller's limits at once, a place in the queue, or a refusal that says which limit.

A request that is counted in tokens or money gets credit: what its prompt costs, and some output; `credit`
extends it while tokens flow. A model that reasons out of sight, or an answer in one piece, cannot be stopped
in the middle: all that it may produce is reserved at once. The provider is asked for no more output than the
budgets have room for.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import msgspec

from api.core.demand import Ask, Shape, Verdict
from api.core.demands import demands_of
from api.core.ids import ENTROPY_BYTES, sortable_id
from api.core.limit_headers import limit_headers
from api.core.usage import encoding_of, most_output
from api.errors import BadRequest, Draining
from api.flow.credit import FIRST_CREDIT, Credit
from api.flow.refusals import refusal
from api.flow.stream import stoppable
from api.flow.told import told
from api.ports import LimiterUnavailable, NotPriced, Permit, Used

if TYPE_CHECKING:
    from api.core.demand import Demand, Reply
    from api.flow.gate import Gate
    from api.flow.stream import Order, Stream
    from api.flow.turns import Place

_OUTPUT_TOKENS = 4096
"""What is reserved for an answer of unknown length, of a model that we do not know."""
_MOST_ASKED = 1 << 24
"""However much a request asks for; no model has as much."""
_PART_TOKENS = 40_000
"""What an image or a file is taken to cost before anybody knows."""
_QUESTIONS = 4
"""What runs, what is spent, and the same again where Redis falls silent in between."""
_MOST_TOKENS = 16_384
"""The same, of an answer in one piece of a model that we know to have more."""


async def admit(gate: Gate, stream: Stream) -> Permit:
    """A permit. Raises LimitReached, BudgetSpent, GateFull, NotPriced, LimiterUnavailable,
    LedgerUnavailable, Draining; TimeoutError where the stream was given up while it waited.
    """  # noqa: D205 - one sentence
    now_ms = int(stream.came_at.timestamp() * 1000)
    permit_id = sortable_id("bk_", now_ms, secrets.token_bytes(ENTROPY_BYTES))
    ask = await _ask(gate, stream, permit_id)
    refused: Exception | None = None
    stream.wait_until = asyncio.get_running_loop().time() + stream.caller.terms.max_wait_seconds
    gate.waiting[permit_id] = stream
    try:
        reply = await _turn(gate, stream, ask)
        if reply.verdict is not Verdict.GRANTED:  # and so it has nothing to give back
            refused = refusal(ask.demands, reply)
    except BaseException:
        # Perhaps the answer was lost, or it has a place in the queue: that is given up at once.
        nothing = Permit(permit_id, _tenant(stream), ask.demands)
        gate.chores.start(gate.limiter.release(nothing, Used()), name="give back")
        raise
    finally:
        del gate.waiting[permit_id]
    if refused is not None:
        raise refused
    permit = Permit(permit_id, _tenant(stream), ask.demands, reply.tokens, reply.degraded)
    stream.limit_headers = limit_headers(ask.demands, reply.states)
    if reply.degraded:
        stream.limit_headers["x-sluicegate-mode"] = "degraded"
    if any(demand.each and not demand.shadow for demand in ask.demands):
        stream.credit = Credit(reply.tokens)
        _clamp(stream, ask, reply)
    return permit


async def _turn(gate: Gate, stream: Stream, ask: Ask) -> Reply:
    """Ask, and ask again when it is this stream's turn: granted, or refused."""
    place: Place | None = None
    try:
        while True:
            reply = await _asked(gate, stream, ask)
            if reply.verdict is not Verdict.WAITING:
                return reply
            place = gate.lines.join(_tenant(stream), ask.demands[reply.at].counter, reply.tokens, place)
            try:
                await place.turn(stream)
            except TimeoutError:
                if stream.cut_by is None:  # it has waited long enough
                    raise refusal(ask.demands, reply) from None
                raise
    finally:
        if place is not None:
            place.leave()


async def _asked(gate: Gate, stream: Stream, ask: Ask) -> Reply:
    """The limiter's reply, with a place of this worker taken where it grants."""
    if gate.draining:
        raise Draining
    await gate.places.take(stream)
    reply = None
    try:
        reply = await _acquire(gate, stream, ask)
    finally:
        if reply is None or reply.verdict is not Verdict.GRANTED:
            gate.places.give_back()
    return reply


async def _acquire(gate: Gate, stream: Stream, ask: Ask) -> Reply:
    for _ in range(_QUESTIONS):
        reply = await gate.limiter.acquire(_tenant(stream), ask)
        if reply.verdict is not Verdict.UNKNOWN:
            return reply
        ask = await told(gate, stream, ask, reply)
    raise LimiterUnavailable("it was told all that the ledger knows, and asks again")


async def _ask(gate: Gate, stream: Stream, permit_id: str) -> Ask:
    caller, body = stream.caller, stream.order.body
    price = stream.price = gate.prices.of(body["model"], _tenant(stream), stream.came_at)
    names = {limit.name for limit in caller.limits if not limit.shadow}
    if price is None and any(name.startswith("nano_dollars") for name in names):
        raise NotPriced(body["model"])
    limits = [limit for limit in caller.limits if price or not limit.name.startswith("nano_dollars")]
    if all(limit.name in {"max_streams", "requests_per_minute"} for limit in limits):
        demands = demands_of(limits, now=stream.came_at, time_zone=caller.terms.time_zone)
        return Ask(permit_id, demands, max_waiters=caller.terms.max_waiters)
    stream.input_tokens = await _input_tokens(gate, stream, guess="tokens_in_all" not in names)
    demands = demands_of(
        limits,
        now=stream.came_at,
        time_zone=caller.terms.time_zone,
        input_tokens=stream.input_tokens,
        price=price,
    )
    dialect = stream.order.dialect
    choices, asked = dialect.choices_of(body), dialect.output_limit_of(body)
    if stoppable(stream.order):
        most, share = min(FIRST_CREDIT, (asked or FIRST_CREDIT) * choices), 4
    else:
        most, share = min(asked or _whole(stream.order), _MOST_ASKED) * choices, 1
        minute = [demand.amount - demand.base for demand in demands if _is_rate_of_tokens(demand)]
        most = min(most, *minute) if minute else most  # more at once than a minute has it never gets
    return Ask(
        permit_id,
        demands,
        choices,
        max(most, choices),
        share,
        whole=share == 1,
        max_waiters=caller.terms.max_waiters,
    )


def _is_rate_of_tokens(demand: Demand) -> bool:
    return demand.shape is Shape.RATE and demand.each > 0 and not demand.shadow


def _whole(order: Order) -> int:
    """What is reserved for an answer that cannot be stopped, where the request does not say."""
    known = most_output(order.model) or _OUTPUT_TOKENS
    return known if order.reasons else min(known, _MOST_TOKENS)


def _clamp(stream: Stream, ask: Ask, reply: Reply) -> None:
    """Ask the provider for no more than there is room for."""
    body, model, dialect = stream.order.body, stream.order.model, stream.order.dialect
    choices = dialect.choices_of(body)
    if not stoppable(stream.order):
        stream.order.body = dialect.limited(body, reply.tokens // choices)
        return
    if not any(demand.shape is Shape.BUDGET and not demand.shadow for demand in ask.demands):
        return
    room, known = reply.allowed // choices, most_output(model)
    # A provider refuses a limit that its model does not have; where it is not known, credit alone stops it.
    if dialect.output_limit_of(body) is not None or room < (known or _OUTPUT_TOKENS):
        stream.order.body = dialect.limited(body, room)
    elif known is not None:
        stream.order.body = dialect.limited(body, min(room, known))


async def _input_tokens(gate: Gate, stream: Stream, *, guess: bool) -> int:
    """What the prompt costs, or more. Raises BadRequest where nobody knows before, and no guess will do."""
    body, prompt = stream.order.body, stream.order.meter.prompt
    if prompt.countable:
        counts = await gate.tokenizer.count(prompt.texts, encoding_of(stream.order.model)[0])
        return sum(counts) + prompt.overhead_tokens
    size = len(msgspec.json.encode(body))  # tools, too, are text: no token is shorter than a byte
    if stream.order.dialect.is_text_alone(body):
        return size
    if not guess:
        raise BadRequest("A token with an allowance can send text alone, no images or files.", "messages")
    return max(size, _PART_TOKENS)


def _tenant(stream: Stream) -> str:
    assert stream.caller.tenant_id is not None  # noqa: S101 - the route's dependency has seen to it
    return stream.caller.tenant_id
