"""A client of Anthropic's messages on a provider that speaks OpenAI's chat completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from api.core.dialects.anthropic_messages import message_delta, message_start, named_data
from api.core.sse import Event, parse
from api.core.translate import CannotTranslate, check_fields, data_url, given
from api.core.usage import reasons_out_of_sight

if TYPE_CHECKING:
    from collections.abc import Iterator

_PASS = ("model", "stream", "temperature", "top_p")
_READ = (
    *("messages", "max_tokens", "system", "stop_sequences", "tools", "tool_choice", "thinking"),
    "output_config",
)
_WITHOUT_EFFECT = ("metadata", "service_tier", "cache_control", "context_management", "inference_geo")
_STOP = {"length": "max_tokens", "tool_calls": "tool_use", "function_call": "tool_use"}
_STOP |= {"content_filter": "refusal"}
_EFFORTS = {"max": "xhigh"}
_SOME, _MUCH = 4096, 16384
"""From so many tokens of thinking on, the effort is `medium`, and `high`."""


class MessagesOnChat:
    """Blocks are opened and closed as the chunks' deltas change from one kind to another."""

    def __init__(self) -> None:
        self._begun = False
        self._blocks = 0
        self._open: str | None = None  # the kind of the open block, or which call it is
        self._calls: dict[int, int] = {}  # the number of a call, and its block
        self._stop_reason: str | None = None
        self._usage: dict[str, Any] = {}

    # --- the request ------------------------------------------------------------------------------

    def request(self, body: dict[str, Any]) -> dict[str, Any]:
        """OpenAI's. Raises CannotTranslate."""
        check_fields(body, (*_PASS, *_READ, *_WITHOUT_EFFECT))
        reasons = reasons_out_of_sight(body["model"])
        choice = body.get("tool_choice") or {}
        one_at_a_time = choice.get("disable_parallel_tool_use") is True
        return given(
            **{name: body.get(name) for name in _PASS},
            **{"max_completion_tokens" if reasons else "max_tokens": body["max_tokens"]},
            messages=[*_system(body.get("system")), *_messages(body["messages"])],
            stop=body.get("stop_sequences") or None,
            tools=[_tool(tool) for tool in body["tools"]] if body.get("tools") else None,
            tool_choice=_tool_choice(choice),
            parallel_tool_calls=False if one_at_a_time else None,
            reasoning_effort=_effort(body) if reasons else None,
            response_format=_response_format(body.get("output_config") or {}),
        )

    # --- the answer -------------------------------------------------------------------------------

    def event(self, event: Event) -> list[Event]:
        """Events of blocks."""
        try:
            chunk = msgspec.json.decode(event.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return []
        return [parse(data) for data in self._events(chunk)] if isinstance(chunk, dict) else []

    def _events(self, chunk: dict[str, Any]) -> Iterator[bytes]:
        if not self._begun:
            self._begun = True
            yield message_start(_message_id(chunk), chunk.get("model") or "", 0)
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) == 0:
                yield from self._deltas(choice.get("delta") or {})
                if choice.get("finish_reason"):
                    self._stop_reason = _STOP.get(choice["finish_reason"], "end_turn")

    def _deltas(self, delta: dict[str, Any]) -> Iterator[bytes]:
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            yield from self._opened("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            yield self._said("thinking_delta", thinking=thought)
        if text := delta.get("content") or delta.get("refusal"):
            yield from self._opened("text", {"type": "text", "text": ""})
            yield self._said("text_delta", text=text)
        for call in delta.get("tool_calls") or ():
            number, function = call.get("index") or 0, call.get("function") or {}
            if number not in self._calls:
                self._calls[number] = self._blocks
                block: dict[str, Any] = {
                    "type": "tool_use",
                    "id": call.get("id") or f"toolu_{number}",
                    "input": {},
                }
                yield from self._opened(f"call {number}", {**block, "name": function.get("name") or ""})
            if function.get("arguments"):
                delta_of = {"type": "input_json_delta", "partial_json": function["arguments"]}
                yield named_data("content_block_delta", index=self._calls[number], delta=delta_of)

    def _opened(self, kind: str, block: dict[str, Any]) -> Iterator[bytes]:
        if self._open == kind:
            return
        yield from self._closed()
        self._open = kind
        yield named_data("content_block_start", index=self._blocks, content_block=block)
        self._blocks += 1

    def _closed(self) -> Iterator[bytes]:
        if self._open is not None:
            yield named_data("content_block_stop", index=self._blocks - 1)
            self._open = None

    def _said(self, kind: str, **text: str) -> bytes:
        return named_data("content_block_delta", index=self._blocks - 1, delta={"type": kind, **text})

    def end(self) -> list[Event]:
        """The end of the open block and of the message, with its usage."""
        usage = _usage(self._usage)
        said = list(self._closed())
        said.append(message_delta(self._stop_reason or "end_turn", usage.pop("output_tokens"), **usage))
        said.append(named_data("message_stop"))
        return [parse(data) for data in said]

    def whole(self, data: bytes) -> bytes:
        """A message of a chat completion."""
        found = msgspec.json.decode(data)
        if not isinstance(found, dict) or not found.get("choices"):
            raise ValueError("no completion")
        choice = found["choices"][0]
        message = choice.get("message") or {}
        content: list[dict[str, Any]] = []
        if thought := message.get("reasoning_content") or message.get("reasoning"):
            content.append({"type": "thinking", "thinking": thought, "signature": ""})
        if text := message.get("content") or message.get("refusal"):
            content.append({"type": "text", "text": text})
        for call in message.get("tool_calls") or ():
            arguments = msgspec.json.decode(call["function"].get("arguments") or "{}")
            same = {"type": "tool_use", "id": call["id"], "name": call["function"]["name"]}
            content.append({**same, "input": arguments})
        return msgspec.json.encode(
            {
                "id": _message_id(found),
                "type": "message",
                "role": "assistant",
                "model": found.get("model") or "",
                "content": content,
                "stop_reason": _STOP.get(choice.get("finish_reason"), "end_turn"),
                "stop_sequence": None,
                "usage": _usage(found.get("usage") or {}),
            }
        )


def _message_id(answer: dict[str, Any]) -> str:
    return str(answer.get("id") or "msg")


def _usage(usage: dict[str, Any]) -> dict[str, int]:
    """Anthropic counts what came from a cache apart from the rest of the input."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "input_tokens": (usage.get("prompt_tokens") or 0) - cached,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.get("completion_tokens") or 0,
    }


def _system(system: Any) -> list[dict[str, Any]]:
    texts = [system] if isinstance(system, str) else [part["text"] for part in system or ()]
    return [{"role": "system", "content": "\n\n".join(texts)}] if any(texts) else []


def _messages(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, message in enumerate(messages):
        where, content = f"messages.{number}", message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        if message.get("role") == "assistant":
            yield _assistant(parts, where)
            continue
        for part in parts:
            if part.get("type") == "tool_result":
                yield {"role": "tool", "tool_call_id": part["tool_use_id"], "content": _result(part, where)}
        rest = [_part(part, where) for part in parts if part.get("type") != "tool_result"]
        if rest:
            plain = all(part["type"] == "text" for part in rest) and len(rest) == 1
            yield {"role": message["role"], "content": rest[0]["text"] if plain else rest}


def _assistant(parts: list[dict[str, Any]], where: str) -> dict[str, Any]:
    text, calls = "", []
    for part in parts:
        if part.get("type") == "text":
            text += part["text"]
        elif part.get("type") == "tool_use":
            arguments = msgspec.json.encode(part.get("input") or {}).decode()
            function = {"name": part["name"], "arguments": arguments}
            calls.append({"id": part["id"], "type": "function", "function": function})
        elif part.get("type") not in {"thinking", "redacted_thinking"}:  # which no other provider can check
            raise CannotTranslate(f"{where}.content", f"a block of type `{part.get('type')}`")
    return given(role="assistant", content=text or None, tool_calls=calls or None) | (
        {} if text or calls else {"content": ""}
    )


def _result(part: dict[str, Any], where: str) -> str:
    content = part.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if any(inner.get("type") != "text" for inner in content):
        raise CannotTranslate(f"{where}.content", "the result of a tool that is not text")
    return "\n".join(inner["text"] for inner in content)


def _part(part: dict[str, Any], where: str) -> dict[str, Any]:
    kind, source = part.get("type"), part.get("source") or {}
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    form = source.get("type")
    if kind == "image" and form in {"base64", "url"}:
        url = source["url"] if form == "url" else data_url(source["media_type"], source["data"])
        return {"type": "image_url", "image_url": {"url": url}}
    if kind == "document" and form == "text":
        return {"type": "text", "text": source["data"]}
    if kind == "document" and form == "base64":
        file = {"file_data": data_url(source["media_type"], source["data"])}
        return {"type": "file", "file": {**file, "filename": part.get("title") or "document.pdf"}}
    raise CannotTranslate(f"{where}.content", f"a block of type `{kind}`")


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type", "custom") != "custom" or "input_schema" not in tool:
        raise CannotTranslate("tools", f"a tool of type `{tool.get('type')}`")
    function = given(
        name=tool["name"],
        description=tool.get("description"),
        parameters=tool["input_schema"],
        strict=tool.get("strict"),
    )
    return {"type": "function", "function": function}


def _tool_choice(choice: dict[str, Any]) -> Any:
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice["name"]}}
    return {"auto": "auto", "any": "required", "none": "none"}.get(kind or "")


def _effort(body: dict[str, Any]) -> str | None:
    effort = (body.get("output_config") or {}).get("effort")
    if effort is not None:
        return str(_EFFORTS.get(effort, effort))
    budget = (body.get("thinking") or {}).get("budget_tokens")
    if budget is None:
        return None
    return "low" if budget < _SOME else "medium" if budget < _MUCH else "high"


def _response_format(config: dict[str, Any]) -> dict[str, Any] | None:
    form = config.get("format")
    if not form:
        return None
    schema = {"name": "answer", "schema": form.get("schema") or {}, "strict": True}
    return {"type": "json_schema", "json_schema": schema}
