"""Anthropic messages.

Sources: Anthropic's API reference, "Messages" and "Streaming messages"; anthropic-python, `_streaming.py`.

A stream is named events: `message_start` with what the input used, then for each block of content
`content_block_start`, its deltas and `content_block_stop`, then `message_delta` with the reason to stop and
the cumulative output, and `message_stop`. `ping` may come at any time, `error` in the middle. There is no
`[DONE]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from api.core.dialects import Piece, Prompt, Seen, Tokens
from api.core.sse import Event, named_event
from api.core.usage import Reported, reasons_out_of_sight, thinks

if TYPE_CHECKING:
    from api.core.dialects import Failure
    from api.core.usage import Usage

NAME = "anthropic_messages"
PING = named_event("ping", b'{"type":"ping"}')
_STOP = named_event("message_stop", b'{"type":"message_stop"}')
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""Source: API reference, "Errors"."""

_SERVER_ERROR = 500
_MESSAGE_TOKENS = 4
"""What a message costs besides its text; Anthropic does not say, and its own report is what counts."""


class _OutputDetails(msgspec.Struct):
    thinking_tokens: Tokens | None = 0


class _Usage(msgspec.Struct):
    input_tokens: Tokens | None = 0
    cache_creation_input_tokens: Tokens | None = 0
    cache_read_input_tokens: Tokens | None = 0
    output_tokens: Tokens | None = 0
    output_tokens_details: _OutputDetails | None = None


class _Block(msgspec.Struct):
    """A block of content, or a delta of one."""

    type: str = ""
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    name: str | None = None
    input: Any = None
    stop_reason: str | None = None


class _Message(msgspec.Struct):
    model: str | None = None
    usage: _Usage | None = None


class _Data(msgspec.Struct):
    """An event's data, or a whole answer: a message."""

    type: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Block | None = None
    usage: _Usage | None = None
    error: Any = None
    model: str | None = None
    content: list[_Block] | None = None
    stop_reason: str | None = None


_decoder = msgspec.json.Decoder(_Data)


def read(event: Event) -> Seen:
    """What an event of an upstream's stream means."""
    if event.name == b"error":
        return Seen(error="the provider reported an error")
    if not event.data:
        return Seen()
    return read_object(event.data)


def read_object(data: bytes) -> Seen:
    """What one JSON object means: an event's data, or a whole message."""
    try:
        found = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # also fields of types that it has not
        return Seen(unreadable=True)
    seen = Seen(model=found.model, terminal=found.type == "message_stop")
    if found.type == "error" or found.error is not None:
        seen.error = "the provider reported an error"
    if found.message is not None:
        seen.model = found.message.model
        seen.begun = _reported(found.message.usage) if found.message.usage is not None else None
    for block in (found.content_block, found.delta):
        if block is not None:
            _read_block(block, found.index, seen)
    for index, block in enumerate(found.content or ()):
        _read_block(block, index, seen)
    if found.stop_reason is not None:
        seen.finished = (0,)
    if found.usage is not None:
        seen.usage = _reported(found.usage)
    return seen


def _read_block(block: _Block, index: int, seen: Seen) -> None:
    if block.stop_reason is not None:
        seen.finished = (0,)
    if block.text:
        seen.content += block.text
        seen.pieces.append(Piece((0, f"text {index}"), block.text))
    if block.thinking:
        seen.pieces.append(Piece((0, f"thinking {index}"), block.thinking))
    call = (block.name or "") + (block.partial_json or "")
    if block.input:  # in a whole answer, or a block that begins; in a stream it comes as `partial_json`
        call += msgspec.json.encode(block.input).decode()
    if call:
        seen.pieces.append(Piece((0, f"tool {index}"), call))


def _reported(usage: _Usage) -> Reported:
    """Anthropic counts what went through its cache apart from the rest of the input."""
    read_from_cache = usage.cache_read_input_tokens or 0
    inputs = (usage.input_tokens or 0) + (usage.cache_creation_input_tokens or 0) + read_from_cache
    details = usage.output_tokens_details
    thought = (details.thinking_tokens or 0) if details is not None else 0
    return Reported(inputs, usage.output_tokens or 0, read_from_cache, thought)


def prompt_of(body: dict[str, Any]) -> Prompt:
    """The text of a request. What a message costs besides is a guess until Anthropic reports it."""
    texts: list[str] = []
    plain = not body.get("tools")
    for content in [body.get("system"), *(message.get("content") for message in body["messages"])]:
        found, all_text = _texts_of(content)
        texts += found
        plain = plain and all_text
    return Prompt(texts, _MESSAGE_TOKENS * (1 + len(body["messages"])), countable=plain)


def _texts_of(content: Any) -> tuple[list[str], bool]:
    """The texts of a content, and whether it is nothing else."""
    if isinstance(content, str):
        return [content], True
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if _is_text(part)], all(_is_text(part) for part in parts)


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def choices_of(body: dict[str, Any]) -> int:  # noqa: ARG001 - the Dialect protocol
    """One."""
    return 1


_HEAVY = ("image", "document", "container_upload")


def is_text_alone(body: dict[str, Any]) -> bool:
    """Whether no message, nor what a tool has found, has an image or a document in it."""
    found = [message.get("content") for message in body["messages"]]
    for content in found:
        if isinstance(content, list):
            parts = [part for part in content if isinstance(part, dict)]
            if any(part.get("type") in _HEAVY for part in parts):
                return False
            found += [part.get("content") for part in parts]
    return True


def output_limit_of(body: dict[str, Any]) -> int | None:
    """`max_tokens`, which every request has."""
    limit = body.get("max_tokens")
    return max(limit, 1) if isinstance(limit, int) else None


def limited(body: dict[str, Any], tokens: int) -> dict[str, Any]:
    """The request, with no more output allowed than `tokens`; thinking has to fit into that."""
    asked = output_limit_of(body)
    most = tokens if asked is None else min(asked, tokens)
    thinking = body.get("thinking")
    if isinstance(thinking, dict) and isinstance(thinking.get("budget_tokens"), int):
        least = 1024  # the least that the API takes, and it must be below `max_tokens`
        fits = {**thinking, "budget_tokens": min(thinking["budget_tokens"], most - 1)}
        body = {**body, "thinking": fits if most > least else {"type": "disabled"}}
    return {**body, "max_tokens": most}


def reasons(body: dict[str, Any]) -> bool:
    """Whether the model bills reasoning that it never streams, or streams a summary of."""
    thinking, model = body.get("thinking"), body["model"]
    asked = thinking.get("type") != "disabled" if isinstance(thinking, dict) else None
    return reasons_out_of_sight(model) or thinks(model, asked=asked)


def asking_usage(body: dict[str, Any], *, continuous: bool) -> dict[str, Any]:  # noqa: ARG001 - as above
    """As it is: Anthropic always reports."""
    return body


def error_object(failure: Failure) -> dict[str, Any]:
    """Anthropic's error object, and the gate's own code for it."""
    kind = _ERROR_TYPES.get(failure.status)
    if kind is None:
        kind = "api_error" if failure.status >= _SERVER_ERROR else "invalid_request_error"
    return {"type": kind, "message": failure.message, "code": failure.code}


def error_body(failure: Failure, request_id: str) -> bytes:
    """The JSON of an error answer."""
    return msgspec.json.encode({"type": "error", "error": error_object(failure), "request_id": request_id})


class MessagesWriter:
    """Bytes pass through as they are. Of what has begun only the open block is remembered."""

    name = NAME

    def __init__(self) -> None:
        self._begun = False
        self._open: int | None = None

    def event(self, event: Event, seen: Seen) -> bytes:  # noqa: ARG002 - the Writer protocol
        """The upstream's own bytes."""
        if event.name == b"message_start":
            self._begun = True
        elif event.name == b"content_block_start":
            self._open = _index_of(event)
        elif event.name == b"content_block_stop":
            self._open = None
        return event.raw

    def end(self, terminal: Event | None) -> bytes:
        """`message_stop`, the upstream's own bytes where it sent one."""
        return _STOP if terminal is None else terminal.raw

    def stopped(self, usage: Usage) -> bytes:
        """As a model ends that came to its `max_tokens`."""
        out = b"" if self._begun else message_start("", "", usage.input_tokens)
        if self._open is not None:
            out += named_data("content_block_stop", index=self._open)
        return out + message_delta("max_tokens", usage.output_tokens) + _STOP

    def error(self, failure: Failure) -> bytes:
        """`event: error`."""
        return named_data("error", error=error_object(failure))

    def heartbeat(self) -> bytes:
        """A `ping`, as Anthropic sends them: clients that watch for events do not see comments."""
        return PING


def _index_of(event: Event) -> int | None:
    try:
        return _decoder.decode(event.data).index
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def named_data(name: str, /, **fields: Any) -> bytes:
    """An event whose data says its own name."""
    return named_event(name, msgspec.json.encode({"type": name, **fields}))


def message_start(message_id: str, model: str, input_tokens: int) -> bytes:
    """The event that begins a message."""
    return named_data(
        "message_start",
        message={
            "id": message_id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": input_tokens, "output_tokens": 0},
        },
    )


def message_delta(stop_reason: str, output_tokens: int, **usage: int) -> bytes:
    """The event that says why a message stops, and what it used."""
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    return named_data("message_delta", delta=delta, usage={**usage, "output_tokens": output_tokens})
