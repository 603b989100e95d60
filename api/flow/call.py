"""The call: open the upstream. Until it has said 200 a failure is still a plain JSON error."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from api.flow.gate import Gate
    from api.flow.stream import Stream


async def call(gate: Gate, stream: Stream) -> None:
    """Set `stream.answer`. Raises UpstreamFailed. Cancelling it closes the connection (P6)."""
    body = stream.order.body
    if stream.order.writer is not None:
        # Always ask for usage; a client that did not ask for it does not get to see it.
        options = body.get("stream_options") or {}
        wanted = {"include_usage": True}
        if gate.policy.continuous_usage:  # then an early stop is known exactly
            wanted["continuous_usage_stats"] = True
        body = {**body, "stream_options": {**options, **wanted}}
    stream.called = True
    stream.answer = await gate.upstream.open(body)
