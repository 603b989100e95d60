"""Credit: how much output a stream may still deliver, and the wall where there is no more.

Per chunk this costs one comparison: no token is shorter than a byte of UTF-8, so as long as the bytes fit,
the tokens do. Where they might not, the text is counted, and more credit is asked for. A rate makes the
stream wait, as it pays itself off; a budget ends it, before the first event that it has no room for.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from api.core.demand import NEVER_US, Ask, Shape, Verdict
from api.core.usage import encoding_of
from api.flow.told import told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from api.core.demand import Demand, Reply
    from api.core.dialects import Seen
    from api.flow.gate import Gate
    from api.flow.stream import Stream

FIRST_CREDIT = 256
_MOST_CREDIT = 2048
_AGAIN_SECONDS = 0.1
_MAX_WAIT_SECONDS = 1.0


class Credit:
    """Of one stream: `tokens` of output are granted; `bound` is no less than what it has used."""

    __slots__ = ("bound", "step", "tokens", "wall")

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.bound = 0
        self.step = FIRST_CREDIT
        self.wall: Demand | None = None  # the budget that ended it


async def affordable(gate: Gate, stream: Stream, credit: Credit, seen: Sequence[Seen]) -> int:
    """How many of these events, from the first one on, there is credit for; fewer than all: the wall."""
    size = sum(len(piece.text.encode("utf-8", "replace")) for one in seen for piece in one.pieces)
    if credit.bound + size <= credit.tokens:
        credit.bound += size
        return len(seen)
    used = await _used(gate, stream, seen)
    if credit.tokens - credit.step // 2 < used <= credit.tokens:
        await _extended(gate, stream, credit, 0)  # before it runs out, so that the bytes fit again
    while used > credit.tokens and await _extended(gate, stream, credit, used - credit.tokens):
        pass
    if used <= credit.tokens:
        credit.bound = used
        return len(seen)
    fits, too_many = 0, len(seen)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if await _used(gate, stream, seen[:middle]) <= credit.tokens:
            fits = middle
        else:
            too_many = middle
    return fits


async def _used(gate: Gate, stream: Stream, seen: Sequence[Seen]) -> int:
    """Exactly how much output it is, with these events."""
    meter = stream.order.meter
    tokens, texts = meter.outlook([piece for one in seen for piece in one.pieces])
    counts = await gate.tokenizer.count(texts, encoding_of(meter.model)[0])
    return tokens + sum(counts)


async def _extended(gate: Gate, stream: Stream, credit: Credit, short: int) -> bool:
    """More credit: all of the `short` tokens, or what there is. False where a budget has none.

    For a rate it waits, but only where it is short of something.
    """
    least = max(short, 1)
    while True:
        reply, demand = await _extend(gate, stream, credit, least)
        if reply.verdict is Verdict.GRANTED:
            credit.tokens += reply.tokens
            credit.step = min(_MOST_CREDIT, credit.step * 2)
            assert stream.permit is not None  # noqa: S101 - admitted
            stream.permit = replace(stream.permit, tokens=credit.tokens)
            return True
        if short <= 0:
            return False
        if reply.verdict is Verdict.UNKNOWN:
            await asyncio.sleep(_AGAIN_SECONDS)  # Redis was emptied; the next renewal tells it of this stream
        elif demand.shape is Shape.BUDGET and least == 1:
            credit.wall = demand
            return False
        elif least > 1 and (demand.shape is Shape.BUDGET or reply.wait_us >= NEVER_US):
            least = 1  # what there is
        else:
            await asyncio.sleep(min(reply.wait_us / 1_000_000, _MAX_WAIT_SECONDS))


async def _extend(gate: Gate, stream: Stream, credit: Credit, least: int) -> tuple[Reply, Demand]:
    """The limiter's answer, and the demand that it speaks of."""
    permit = stream.permit
    assert permit is not None  # noqa: S101 - admitted
    demands = tuple(demand for demand in permit.demands if demand.each)
    ask = Ask(permit.id, demands, least, max(least, credit.step), 4)
    reply = await gate.limiter.extend(permit.tenant_id, ask)
    if reply.verdict is Verdict.UNKNOWN and -1 not in reply.unknown:
        ask = await told(gate, stream, ask, reply)
        reply = await gate.limiter.extend(permit.tenant_id, ask)
    return reply, demands[reply.at]
