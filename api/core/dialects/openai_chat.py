"""OpenAI chat completions.

Sources: OpenAI's API reference, "Chat Completions" and "Streaming"; openai-python, `_streaming.py`. A
stream is unnamed events whose data is a `chat.completion.chunk`, and ends with `data: [DONE]`. With
`stream_options.include_usage` one more chunk with `choices: []` and `usage` comes before that.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from api.core.dialects import Piece, Prompt, Seen, Tokens
from api.core.sse import HEARTBEAT, Event, data_event
from api.core.usage import Reported, reasons_out_of_sight, thinks

if TYPE_CHECKING:
    from collections.abc import Callable

    from api.core.dialects import Failure
    from api.core.usage import Usage

NAME = "openai_chat"
DONE = b"data: [DONE]\n\n"
_LIMITS = ("max_completion_tokens", "max_tokens")
_COUNTED = frozenset({"role", "name", "content"})
_AROUND = len(b"data: \n\n")
_ID_LINE = re.compile(rb"(?:^|[\r\n])id[:\r\n]")


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int | None = 0
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None  # DeepSeek
    reasoning: str | None = None  # vLLM, OpenRouter
    function_call: _Function | None = None  # OpenAI, before tools
    tool_calls: list[_ToolCall] | None = None
    audio: Any = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class InputDetails(msgspec.Struct):
    """Of the input; responses have the same."""

    cached_tokens: Tokens | None = 0


class OutputDetails(msgspec.Struct):
    """Of the output; responses have the same."""

    reasoning_tokens: Tokens | None = 0


class _Usage(msgspec.Struct):
    prompt_tokens: Tokens = 0
    completion_tokens: Tokens = 0
    prompt_tokens_details: InputDetails | None = None
    completion_tokens_details: OutputDetails | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    model: str | None = None
    usage: _Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


def read(event: Event) -> Seen:
    """What an event of an upstream's stream means."""
    if event.data.strip() == b"[DONE]":
        return Seen(terminal=True)
    if event.name == b"error":
        return Seen(error="the provider reported an error")
    if not event.data:
        return Seen()
    return read_object(event.data)


def read_object(data: bytes) -> Seen:
    """What one JSON object means: a chunk of a stream, or a whole completion."""
    try:
        chunk = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # also fields of types OpenAI has not
        return Seen(unreadable=True)
    seen = Seen(model=chunk.model)
    for choice in chunk.choices or ():
        _read_choice(choice, seen)
    if chunk.usage is not None:
        seen.usage = _reported(chunk.usage)
        seen.usage_only = not chunk.choices
    if chunk.error is not None:
        seen.error = "the provider reported an error"
    return seen


def _read_choice(choice: _Choice, seen: Seen) -> None:
    if choice.finish_reason is not None:
        seen.finished += (choice.index,)
    delta = choice.delta or choice.message
    if delta is None:
        return
    if delta.content:
        seen.pieces.append(Piece((choice.index, "content"), delta.content))
        if choice.index == 0:
            seen.content += delta.content
    if delta.refusal:
        seen.pieces.append(Piece((choice.index, "refusal"), delta.refusal))
    reasoning = delta.reasoning_content or delta.reasoning
    if reasoning:
        seen.pieces.append(Piece((choice.index, "reasoning"), reasoning))
    if delta.audio is not None:
        seen.unreadable = True  # what it costs only the provider can say
    if delta.tool_calls or delta.function_call is not None:
        _read_calls(choice.index, delta, seen)


def _read_calls(choice: int, delta: _Delta, seen: Seen) -> None:
    calls = [(f"tool {call.index or 0}", call.function) for call in delta.tool_calls or ()]
    for channel, function in [*calls, ("function", delta.function_call)]:
        text = (function.name or "") + (function.arguments or "") if function is not None else ""
        if text:
            seen.pieces.append(Piece((choice, channel), text))


def _reported(usage: _Usage) -> Reported:
    inputs, outputs = usage.prompt_tokens_details, usage.completion_tokens_details
    return Reported(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cached_tokens=(inputs.cached_tokens or 0) if inputs else 0,
        reasoning_tokens=(outputs.reasoning_tokens or 0) if outputs else 0,
    )


def prompt_of(body: dict[str, Any]) -> Prompt:
    """The countable input of a request body.

    Source of the overhead: OpenAI cookbook, "How to count tokens with tiktoken": 3 for each message,
    1 more for a name, 3 to prime the reply.
    """
    texts: list[str] = []
    overhead = 3
    answer = body.get("response_format")
    countable = not any(body.get(name) for name in ("tools", "functions", "prediction"))
    countable = countable and (not answer or (isinstance(answer, dict) and answer.get("type") == "text"))
    for message in body["messages"]:
        overhead += 3 + (1 if message.get("name") else 0)
        texts += [text for key in ("role", "name") if isinstance(text := message.get(key), str)]
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list):
            for part in content:
                if _is_text(part):
                    texts.append(part["text"])
                else:
                    countable = False
        if any(value for name, value in message.items() if name not in _COUNTED):
            countable = False  # tool calls, reasoning that is sent back, or whatever comes next
    return Prompt(texts, overhead, countable)


def choices_of(body: dict[str, Any]) -> int:
    """How many answers are asked for; each may have as many tokens as the request allows."""
    asked = body.get("n")
    return asked if isinstance(asked, int) and asked > 0 else 1


def is_text_alone(body: dict[str, Any]) -> bool:
    """Whether no message has a part that is not text, such as an image."""
    contents = [
        content for message in body["messages"] if isinstance(content := message.get("content"), list)
    ]
    return all(_is_text(part) for content in contents for part in content) and not any(
        message.get("audio") for message in body["messages"]
    )


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)


def output_limit_of(body: dict[str, Any]) -> int | None:
    """How many output tokens a request allows for each choice, where it says so."""
    limits = [body[name] for name in _LIMITS if isinstance(body.get(name), int)]
    return max(min(limits), 1) if limits else None


def limited(body: dict[str, Any], tokens: int) -> dict[str, Any]:
    """The request, with no more output allowed than `tokens` for each choice.

    The newer name where the request or the model wants it; older servers know `max_tokens` alone.
    """
    newer = body.get("max_completion_tokens") is not None or reasons_out_of_sight(body["model"])
    rest = {name: value for name, value in body.items() if name not in _LIMITS}
    asked = output_limit_of(body)
    return rest | {_LIMITS[0 if newer else 1]: tokens if asked is None else min(asked, tokens)}


def reasons(body: dict[str, Any]) -> bool:
    """Whether the model bills reasoning that it never streams, or streams a summary of."""
    effort, model = body.get("reasoning_effort"), body["model"]
    return reasons_out_of_sight(model) or thinks(model, asked=None if effort is None else effort != "none")


def asking_usage(body: dict[str, Any], *, continuous: bool) -> dict[str, Any]:
    """Ask for usage always; a client that did not ask for it does not get to see it.

    `continuous` is vLLM's, in each chunk: then an early stop is known exactly.
    """
    wanted = {"include_usage": True, **({"continuous_usage_stats": True} if continuous else {})}
    return {**body, "stream_options": {**(body.get("stream_options") or {}), **wanted}}


def models_where(body: bytes, allowed: Callable[[str], bool]) -> bytes:
    """A list of models, without those that are not allowed. What cannot be read passes as it is."""
    try:
        listed = msgspec.json.decode(body)
        kept = [model for model in listed["data"] if allowed(model["id"])]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return body
    return body if len(kept) == len(listed["data"]) else msgspec.json.encode({**listed, "data": kept})


def error_object(failure: Failure) -> dict[str, Any]:
    """OpenAI's error object."""
    return {
        "message": failure.message,
        "type": failure.type,
        "param": failure.param,
        "code": failure.code,
    }


def error_body(failure: Failure, request_id: str) -> bytes:  # noqa: ARG001 - Anthropic's has it in the body
    """The JSON of an error answer."""
    return msgspec.json.encode({"error": error_object(failure)})


class ChatWriter:
    """Bytes pass through as they are, but for usage that the client did not ask for.

    `hides_usage`: the provider was asked for usage in every chunk, and the client does not know of it.
    """

    name = NAME

    def __init__(self, *, include_usage: bool, hides_usage: bool = False) -> None:
        self._include_usage = include_usage
        self._hides_usage = hides_usage
        self._last: Event | None = None
        self._open: set[int] = set()

    def event(self, event: Event, seen: Seen) -> bytes:
        """The upstream's own bytes."""
        self._last = event
        for piece in seen.pieces:
            self._open.add(piece.channel[0])
        self._open.difference_update(seen.finished)
        if seen.usage_only and not self._include_usage:
            return b""
        if self._hides_usage and seen.usage is not None and not seen.usage_only:
            return self._without_usage(event)
        raw = event.raw
        one_line = len(raw) == len(event.data) + _AROUND and raw.startswith(b"data: ")
        if one_line or _ID_LINE.search(raw) is None:
            return raw
        # After an `id:` openai-python fails at the next blank line (theopenco/llmgateway #2334): data alone.
        return b"".join(b"data: " + line + b"\n" for line in event.data.split(b"\n")) + b"\n"

    def _without_usage(self, event: Event) -> bytes:
        """A chunk as it is without continuous usage: null where usage comes at the end, else not there."""
        chunk = msgspec.json.decode(event.data)
        del chunk["usage"]
        return data_event(msgspec.json.encode({**chunk, "usage": None} if self._include_usage else chunk))

    def end(self, terminal: Event | None) -> bytes:
        """`data: [DONE]`, the upstream's own bytes where it sent one."""
        return DONE if terminal is None else terminal.raw

    def stopped(self, usage: Usage) -> bytes:
        """As a model ends that came to its `max_tokens`: each open choice with `length`, usage, `[DONE]`."""
        chunk = self._chunk()
        ends = [{"index": i, "delta": {}, "finish_reason": "length"} for i in sorted(self._open or {0})]
        chunks = [{**chunk, "choices": ends}]
        if self._include_usage:
            counts = {
                "prompt_tokens": usage.input_tokens,
                "completion_tokens": usage.output_tokens,
                "total_tokens": usage.input_tokens + usage.output_tokens,
            }
            chunks.append({**chunk, "choices": [], "usage": counts})
        return b"".join(data_event(msgspec.json.encode(one)) for one in chunks) + DONE

    def _chunk(self) -> dict[str, Any]:
        """What all chunks of this answer have in common."""
        common = {"id": "", "object": "chat.completion.chunk", "created": 0, "model": ""}
        try:
            last = msgspec.json.decode(self._last.data) if self._last is not None else {}
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            last = {}
        return common | {name: last[name] for name in common if isinstance(last, dict) and name in last}

    def error(self, failure: Failure) -> bytes:
        """A chunk that SDKs raise on and hand-written parsers stop at (OpenRouter's form)."""
        return data_event(
            msgspec.json.encode(
                {
                    "id": "",
                    "object": "chat.completion.chunk",
                    "created": 0,
                    "model": "",
                    "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
                    "error": error_object(failure),
                }
            )
        )

    def heartbeat(self) -> bytes:
        """A comment."""
        return HEARTBEAT
