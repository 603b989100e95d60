"""What becomes of the provider's answer when the client leaves.

Either it is closed at once, and what had come is counted; or it is read on to the provider's own report: then
the event is exact, and costs what the provider goes on to produce. That is bounded in time, in tokens, and by
how many streams do it at once; slot and credit stay taken meanwhile. A stream that is kept for whoever asks
again goes on to its end, or until it is stopped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.core.booking import Happening
from api.flow.call import reads_on

if TYPE_CHECKING:
    from api.flow.gate import Gate
    from api.flow.stream import Stream


def client_left(gate: Gate, stream: Stream) -> None:
    """The client is gone: end the stream, or let it be read on. May be said more than once."""
    policy = gate.policy
    if stream.reading_on_from is not None:
        return
    kept = stream.recorder is not None
    wanted = (kept or reads_on(gate, stream.order.spec)) and stream.live and stream.answer is not None
    if not wanted or gate.draining or gate.reading_on >= policy.read_on_streams:
        stream.cut(Happening.CLIENT_LEFT)
        return
    gate.reading_on += 1
    seconds = policy.stream_seconds if kept else policy.read_on_seconds
    stream.read_on(max(stream.checkpointed_tokens, 0), seconds)


def looked_at(gate: Gate, stream: Stream, output_tokens: int) -> None:
    """So much has been produced by now: not more than was allowed since the client left."""
    start = stream.reading_on_from
    if stream.recorder is not None:
        return
    if start is not None and output_tokens - start > gate.policy.read_on_tokens:
        stream.cut(Happening.CLIENT_LEFT)


def over(gate: Gate, stream: Stream) -> None:
    """It is read no further."""
    if stream.reading_on_from is not None:
        gate.reading_on -= 1
