"""Plain tokens: the smallest stream a browser can read.

`data: {"token": "..."}` for each piece of text, then `data: [DONE]`; an error that comes in the middle is
`data: {"error": "...", "code": "..."}`. Upstream it is an OpenAI chat request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from api.core.dialects.openai_chat import DONE
from api.core.sse import HEARTBEAT, Event, data_event

if TYPE_CHECKING:
    from api.core.dialects import Failure, Seen
    from api.core.usage import Usage

NAME = "plain"


def chat_body(prompt: str, model: str, system: str | None, max_tokens: int | None) -> dict[str, Any]:
    """The OpenAI chat request for a plain one."""
    messages = [{"role": "user", "content": prompt}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    body: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    return body


class PlainWriter:
    """The visible text of the first choice, and nothing else."""

    name = NAME

    def event(self, event: Event, seen: Seen) -> bytes:  # noqa: ARG002 - the Writer protocol
        """One token line for an event with text."""
        return data_event(msgspec.json.encode({"token": seen.content})) if seen.content else b""

    def end(self, terminal: Event | None) -> bytes:  # noqa: ARG002 - the Writer protocol
        """`data: [DONE]`."""
        return DONE

    def stopped(self, usage: Usage) -> bytes:  # noqa: ARG002 - the Writer protocol
        """`data: [DONE]`; nothing here could say that more would have come, so the flow sends an error."""
        return DONE

    def error(self, failure: Failure) -> bytes:
        """The error line."""
        return data_event(msgspec.json.encode({"error": failure.message, "code": failure.code}))

    def heartbeat(self) -> bytes:
        """A comment."""
        return HEARTBEAT
