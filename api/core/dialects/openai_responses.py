"""OpenAI responses.

Sources: OpenAI's API reference, "Responses" and "Streaming events"; openai-python, `types/responses/`.

A stream is named events whose data repeats the name as `type` and counts up a `sequence_number`. It ends with
`response.completed`, `response.incomplete` or `response.failed`, which carries the whole response and its
usage. There is no `[DONE]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from api.core.dialects import Piece, Prompt, Seen, Tokens, openai_chat
from api.core.sse import HEARTBEAT, Event, named_event
from api.core.usage import Reported

if TYPE_CHECKING:
    from api.core.dialects import Failure
    from api.core.usage import Usage

NAME = "openai_responses"
ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
_MESSAGE_TOKENS = 3  # as in a chat
_LIMIT = "max_output_tokens"

_TEXT, _CALL = "response.output_text.delta", "response.function_call_arguments.delta"
_CHANNELS = {
    _TEXT: "text",
    "response.refusal.delta": "refusal",
    "response.reasoning_text.delta": "reasoning",
    "response.reasoning_summary_text.delta": "summary",
    _CALL: "call",
    "response.custom_tool_call_input.delta": "call",
    "response.mcp_call_arguments.delta": "call",
    "response.code_interpreter_call_code.delta": "code",
    "response.output_audio_transcript.delta": "audio",
}
"""Events whose `delta` is text that the model wrote, and what it is part of."""


class _Usage(msgspec.Struct):
    input_tokens: Tokens = 0
    output_tokens: Tokens = 0
    input_tokens_details: openai_chat.InputDetails | None = None
    output_tokens_details: openai_chat.OutputDetails | None = None


class _Part(msgspec.Struct):
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct):
    type: str = ""
    name: str | None = None
    arguments: str | None = None
    input: Any = None
    content: list[_Part] | None = None
    summary: list[_Part] | None = None


class _Response(msgspec.Struct):
    """A whole response, or what an event says of one."""

    model: str | None = None
    status: str | None = None
    usage: _Usage | None = None
    output: list[_Item] | None = None
    error: Any = None


class _Data(msgspec.Struct):
    type: str = ""
    output_index: int = 0
    content_index: int | None = 0
    delta: Any = None
    item: _Item | None = None
    response: _Response | None = None


_events = msgspec.json.Decoder(_Data)
_responses = msgspec.json.Decoder(_Response)


def read(event: Event) -> Seen:
    """What an event of an upstream's stream means."""
    if not event.data or event.data.strip() == b"[DONE]":  # which some servers send all the same
        return Seen()
    try:
        found = _events.decode(event.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # also fields of types that it has not
        return Seen(unreadable=True)
    kind = found.type or event.name.decode("utf-8", "replace")
    if kind == "error":
        return Seen(error="the provider reported an error")
    seen = Seen()
    channel = _CHANNELS.get(kind)
    if channel is not None and isinstance(found.delta, str) and found.delta:
        place = (0, f"{channel} {found.output_index} {found.content_index or 0}")
        seen.pieces.append(Piece(place, found.delta))
        if kind == _TEXT:
            seen.content = found.delta
    elif kind == "response.output_item.added" and found.item is not None and found.item.name:
        seen.pieces.append(Piece((0, f"call {found.output_index} 0"), found.item.name))
    elif found.response is not None:
        _read_response(found.response, seen, whole=False)
        seen.terminal = kind in ENDS
    return seen


def read_object(data: bytes) -> Seen:
    """What a whole response means."""
    try:
        found = _responses.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Seen(unreadable=True)
    seen = Seen()
    _read_response(found, seen, whole=True)
    return seen


def _read_response(found: _Response, seen: Seen, *, whole: bool) -> None:
    """A response; its text is looked at where it did not come in deltas before."""
    seen.model = found.model
    if found.usage is not None:
        seen.usage = _reported(found.usage)
    if found.status == "failed" or found.error is not None:
        seen.error = "the provider reported an error"
    for index, item in enumerate(found.output or () if whole else ()):
        for number, part in enumerate([*(item.content or ()), *(item.summary or ())]):
            if text := part.text or part.refusal:
                seen.pieces.append(Piece((0, f"{item.type} {index} {number}"), text))
        call = (
            (item.name or "") + (item.arguments or "") + (item.input if isinstance(item.input, str) else "")
        )
        if call:
            seen.pieces.append(Piece((0, f"call {index} 0"), call))


def _reported(usage: _Usage) -> Reported:
    inputs, outputs = usage.input_tokens_details, usage.output_tokens_details
    return Reported(
        usage.input_tokens,
        usage.output_tokens,
        (inputs.cached_tokens or 0) if inputs else 0,
        (outputs.reasoning_tokens or 0) if outputs else 0,
    )


_STATEFUL = ("previous_response_id", "conversation", "prompt")
_COUNTED = frozenset({"type", "role", "content", "id", "status"})


def prompt_of(body: dict[str, Any]) -> Prompt:
    """The countable input of a request: as a chat of the same messages."""
    texts: list[str] = [body["instructions"]] if isinstance(body.get("instructions"), str) else []
    structured = (body.get("text") or {}).get("format", {}) if isinstance(body.get("text"), dict) else {}
    form = structured.get("type", "text") if isinstance(structured, dict) else "text"
    countable = form == "text" and not any(body.get(name) for name in ("tools", *_STATEFUL))
    asked = body.get("input") or []
    items = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    for item in items:
        texts += [item["role"]] if isinstance(item.get("role"), str) else []
        content = item.get("content")
        parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content or []
        texts += [part["text"] for part in parts if _is_text(part)]
        countable = countable and all(map(_is_text, parts)) and item.keys() <= _COUNTED
    overhead = _MESSAGE_TOKENS * (1 + len(items) + bool(body.get("instructions")))
    return Prompt(texts, overhead, countable)


def _is_text(part: Any) -> bool:
    kinds = {"input_text", "output_text"}
    return isinstance(part, dict) and part.get("type") in kinds and isinstance(part.get("text"), str)


def choices_of(body: dict[str, Any]) -> int:  # noqa: ARG001 - the Dialect protocol
    """One."""
    return 1


_HEAVY = frozenset({"input_image", "input_file", "input_audio", "computer_screenshot", "item_reference"})


def is_text_alone(body: dict[str, Any]) -> bool:
    """Whether the input has no image or file in it, and refers to nothing that the provider keeps."""
    if any(body.get(name) for name in _STATEFUL):
        return False
    found = body.get("input") or []
    items = [] if isinstance(found, str) else list(found)
    for item in items:
        if item.get("type") in _HEAVY:
            return False
        for inner in (item.get("content"), item.get("output")):
            if isinstance(inner, list | dict):
                parts = inner if isinstance(inner, list) else [inner]
                items += [part for part in parts if isinstance(part, dict)]
    return True


def output_limit_of(body: dict[str, Any]) -> int | None:
    """How many output tokens a request allows, where it says so."""
    limit = body.get(_LIMIT)
    return max(limit, 1) if isinstance(limit, int) else None


_LEAST_LIMIT = 16
"""What the API takes for `max_output_tokens`; the wall still ends a stream before."""


def limited(body: dict[str, Any], tokens: int) -> dict[str, Any]:
    """The request, with no more output allowed than `tokens`."""
    asked = output_limit_of(body)
    return {**body, _LIMIT: max(tokens if asked is None else min(asked, tokens), _LEAST_LIMIT)}


def reasons(body: dict[str, Any]) -> bool:
    """Whether the model bills reasoning that it never streams, or streams a summary of."""
    reasoning = body.get("reasoning")
    effort = reasoning.get("effort") if isinstance(reasoning, dict) else None
    return openai_chat.reasons({"model": body["model"], "reasoning_effort": effort})


def asking_usage(body: dict[str, Any], *, continuous: bool) -> dict[str, Any]:  # noqa: ARG001 - as above
    """As it is: a response always reports."""
    return body


error_body = openai_chat.error_body


class ResponsesWriter:
    """Bytes pass through as they are. What is open is remembered, for an end that the gate has to write."""

    name = NAME

    def __init__(self) -> None:
        self._last: Event | None = None
        self._begun: Event | None = None
        self._items: dict[int, dict[str, Any]] = {}
        self._open: dict[tuple[int, int], list[str]] = {}

    def event(self, event: Event, seen: Seen) -> bytes:
        """The upstream's own bytes."""
        if event.data.strip() == b"[DONE]":
            return b""
        self._last = event
        if seen.content:
            self._open.setdefault(_place(seen.pieces[0].channel[1]), []).append(seen.content)
        elif event.name == b"response.created":
            self._begun = event
        elif event.name in {b"response.output_item.added", b"response.output_item.done"}:
            data = _decoded(event)
            index = data.get("output_index", 0)
            self._items[index] = data.get("item") or {}
            if event.name.endswith(b"done"):
                self._open = {place: texts for place, texts in self._open.items() if place[0] != index}
        return event.raw

    def end(self, terminal: Event | None) -> bytes:
        """The upstream's own end; where it sent none, there is nothing to be said instead."""
        return b"" if terminal is None else terminal.raw

    def stopped(self, usage: Usage) -> bytes:
        """As a model ends that came to its `max_output_tokens`: what is open is closed, then `incomplete`."""
        number = _decoded(self._last).get("sequence_number", -1) if self._last else -1
        events: list[tuple[str, dict[str, Any]]] = []
        for (index, content_index), texts in sorted(self._open.items()):
            item, text = self._items.get(index, {}), "".join(texts)
            part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
            place = {"item_id": item.get("id", ""), "output_index": index, "content_index": content_index}
            events.append(("response.output_text.done", {**place, "text": text, "logprobs": []}))
            events.append(("response.content_part.done", {**place, "part": part}))
            item = {**item, "content": [*(item.get("content") or []), part], "status": "incomplete"}
            self._items[index] = item
            events.append(("response.output_item.done", {"output_index": index, "item": item}))
        events.append(("response.incomplete", {"response": self._incomplete(usage)}))
        return b"".join(
            numbered(name, place, **fields) for place, (name, fields) in enumerate(events, number + 1)
        )

    def _incomplete(self, usage: Usage) -> dict[str, Any]:
        begun = _decoded(self._begun).get("response", {}) if self._begun else {}
        return {
            **begun,
            "object": "response",
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": [item for _, item in sorted(self._items.items())],
            "usage": usage_object(usage.input_tokens, usage.output_tokens),
        }

    def error(self, failure: Failure) -> bytes:
        """An `error` event, as OpenAI's; SDKs raise for the `error` in it."""
        number = _decoded(self._last).get("sequence_number", -1) if self._last else -1
        said = openai_chat.error_object(failure)
        flat = {"code": failure.code, "message": failure.message, "param": failure.param}
        return numbered("error", number + 1, **flat, error=said)

    def heartbeat(self) -> bytes:
        """A comment."""
        return HEARTBEAT


def _place(channel: str) -> tuple[int, int]:
    _, index, content_index = channel.split(" ")
    return int(index), int(content_index)


def _decoded(event: Event) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(event.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def numbered(name: str, number: int, /, **fields: Any) -> bytes:
    """An event of a response's stream."""
    return named_event(name, msgspec.json.encode({"type": name, "sequence_number": number, **fields}))


def usage_object(
    input_tokens: int, output_tokens: int, cached: int = 0, reasoning: int = 0
) -> dict[str, Any]:
    """OpenAI's usage object of a response."""
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": input_tokens + output_tokens,
    }
