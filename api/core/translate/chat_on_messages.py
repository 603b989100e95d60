"""A client of OpenAI's chat completions on a provider that speaks Anthropic's messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from api.core.sse import Event, data_event, parse
from api.core.translate import CannotTranslate, check_fields, given, of_data_url
from api.core.usage import most_output

if TYPE_CHECKING:
    from collections.abc import Iterator

_PASS = ("model", "stream", "temperature", "top_p")
_READ = (
    *("messages", "max_tokens", "max_completion_tokens", "stop", "tools", "tool_choice"),
    *("parallel_tool_calls", "response_format", "reasoning_effort"),
)
_WITHOUT_EFFECT = (
    *("user", "safety_identifier", "metadata", "store", "service_tier", "stream_options"),
    *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
)
_NOTHING = (
    *(("n", 1), ("top_logprobs", 0), ("presence_penalty", 0), ("frequency_penalty", 0)),
    ("logprobs", None),
)
"""What says no more than its absence."""

_DEFAULT_TOKENS = 4096
"""Anthropic wants a limit; what all of its models can do, where the model is not known."""

_EFFORTS = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
    "max": "max",
}
_FINISH = {"max_tokens": "length", "model_context_window_exceeded": "length", "tool_use": "tool_calls"}
_FINISH |= {"refusal": "content_filter"}


class ChatOnMessages:
    """`created` is UTC seconds: what chunks say of when they were made."""

    def __init__(self, created: int = 0) -> None:
        self._base = {"id": "", "object": "chat.completion.chunk", "created": created, "model": ""}
        self._calls: dict[int, int] = {}  # the block of a call, and its number among the calls
        self._usage: dict[str, int] = {}

    # --- the request ------------------------------------------------------------------------------

    def request(self, body: dict[str, Any]) -> dict[str, Any]:
        """Anthropic's. Raises CannotTranslate."""
        said = {name: value for name, value in body.items() if (name, value) not in _NOTHING}
        modalities = ("modalities",) if body.get("modalities") == ["text"] else ()
        check_fields(said, (*_PASS, *_READ, *_WITHOUT_EFFECT, *modalities))
        limits = [
            body[name] for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None
        ]
        system, messages = _messages(body["messages"])
        stop = body.get("stop")
        return given(
            **{name: body.get(name) for name in _PASS},
            max_tokens=min(limits) if limits else most_output(body["model"]) or _DEFAULT_TOKENS,
            system=system or None,
            messages=messages,
            stop_sequences=[stop] if isinstance(stop, str) else stop,
            tools=[_tool(tool) for tool in body["tools"]] if body.get("tools") else None,
            tool_choice=_tool_choice(body),
            **_reasoning(body.get("reasoning_effort")),
            output_config=_output_config(body) or None,
        )

    # --- the answer -------------------------------------------------------------------------------

    def event(self, event: Event) -> list[Event]:
        """Chunks."""
        try:
            data = msgspec.json.decode(event.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return []
        return list(self._chunks(data)) if isinstance(data, dict) else []

    def _chunks(self, data: dict[str, Any]) -> Iterator[Event]:
        kind, block, delta = data.get("type"), data.get("content_block") or {}, data.get("delta") or {}
        if kind == "message_start":
            message = data["message"]
            self._base |= {"id": message.get("id", ""), "model": message.get("model", "")}
            self._note(message.get("usage"))
            yield self._chunk({"role": "assistant", "content": ""})
        elif kind == "content_block_start" and block.get("type") == "tool_use":
            number = self._calls[data["index"]] = len(self._calls)
            function = {"name": block["name"], "arguments": ""}
            call = {"index": number, "id": block["id"], "type": "function", "function": function}
            yield self._chunk({"tool_calls": [call]})
        elif kind == "content_block_start" and block.get("text"):
            yield self._chunk({"content": block["text"]})
        elif kind == "content_block_delta":
            if found := self._delta(data.get("index", 0), delta):
                yield self._chunk(found)
        elif kind == "message_delta":
            self._note(data.get("usage"))
            if delta.get("stop_reason"):
                yield self._chunk({}, _FINISH.get(delta["stop_reason"], "stop"))

    def _delta(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        if delta.get("text"):
            return {"content": delta["text"]}
        if delta.get("thinking"):
            return {"reasoning_content": delta["thinking"]}
        if delta.get("partial_json") and index in self._calls:
            call = {"index": self._calls[index], "function": {"arguments": delta["partial_json"]}}
            return {"tool_calls": [call]}
        return {}

    def _note(self, usage: dict[str, Any] | None) -> None:
        """Counts only grow; an event has those that changed."""
        for name, count in (usage or {}).items():
            if isinstance(count, int):
                self._usage[name] = max(count, self._usage.get(name, 0))

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> Event:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event({**self._base, "choices": [choice]})

    def end(self) -> list[Event]:
        """The usage, and `[DONE]`."""
        said = [_event({**self._base, "choices": [], "usage": _usage(self._usage)})] if self._usage else []
        return [*said, parse(b"data: [DONE]\n\n")]

    def whole(self, data: bytes) -> bytes:
        """A chat completion of a message."""
        found = msgspec.json.decode(data)
        if not isinstance(found, dict) or not isinstance(found.get("content"), list):
            raise ValueError("no message")  # noqa: TRY004 - a wrong answer is a wrong value
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        for block in found["content"]:
            if block.get("type") == "text":
                message["content"] = (message["content"] or "") + block["text"]
            elif block.get("type") == "thinking":
                message["reasoning_content"] = message.get("reasoning_content", "") + block["thinking"]
            elif block.get("type") == "tool_use":
                arguments = msgspec.json.encode(block["input"]).decode()
                function = {"name": block["name"], "arguments": arguments}
                call = {"id": block["id"], "type": "function", "function": function}
                message.setdefault("tool_calls", []).append(call)
        finish = _FINISH.get(found.get("stop_reason") or "", "stop")
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        head = {"id": found.get("id", ""), "object": "chat.completion", "created": self._base["created"]}
        usage = {"usage": _usage(found["usage"])} if found.get("usage") else {}
        return msgspec.json.encode({**head, "model": found.get("model", ""), "choices": [choice], **usage})


def _event(body: dict[str, Any]) -> Event:
    return parse(data_event(msgspec.json.encode(body)))


def _usage(counts: dict[str, Any]) -> dict[str, Any]:
    cached = counts.get("cache_read_input_tokens") or 0
    inputs = (counts.get("input_tokens") or 0) + (counts.get("cache_creation_input_tokens") or 0) + cached
    output = counts.get("output_tokens") or 0
    return {
        "prompt_tokens": inputs,
        "completion_tokens": output,
        "total_tokens": inputs + output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _messages(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """System texts, and messages; results of tools that follow one another are one message of the user's."""
    system: list[dict[str, Any]] = []
    out: list[dict[str, Any]] = []
    results: list[dict[str, Any]] | None = None
    for number, message in enumerate(messages):
        where, role = f"messages.{number}", message.get("role")
        check_fields(message, ("role", "content", "name", "tool_calls", "tool_call_id", "refusal"), where)
        if role == "tool":
            if results is None:
                results = []
                out.append({"role": "user", "content": results})
            content = _parts(message.get("content"), where)
            results.append(
                {"type": "tool_result", "tool_use_id": message.get("tool_call_id", ""), "content": content}
            )
            continue
        results = None
        content = _parts(message.get("content"), where)
        if role in {"system", "developer"}:
            system += content
        elif role == "assistant":
            out.append(
                {
                    "role": role,
                    "content": content + [_call(c, where) for c in message.get("tool_calls") or ()],
                }
            )
        else:
            out.append({"role": "user", "content": content})
    return system, out


def _parts(content: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [_part(part, f"{where}.content") for part in content or ()]


def _part(part: dict[str, Any], where: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind in {"text", "refusal"}:
        return {"type": "text", "text": part[kind]}
    if kind == "image_url":
        url = part["image_url"]["url"]
        found = of_data_url(url)
        if found is None:
            return {"type": "image", "source": {"type": "url", "url": url}}
        return {"type": "image", "source": {"type": "base64", "media_type": found[0], "data": found[1]}}
    if kind == "file" and (found := of_data_url(part["file"].get("file_data") or "")) is not None:
        source = {"type": "base64", "media_type": found[0], "data": found[1]}
        return given(type="document", source=source, title=part["file"].get("filename"))
    raise CannotTranslate(where, f"a part of type `{kind}`")


def _call(call: dict[str, Any], where: str) -> dict[str, Any]:
    if call.get("type", "function") != "function":
        raise CannotTranslate(f"{where}.tool_calls", "only functions can be called")
    try:
        arguments = msgspec.json.decode(call["function"].get("arguments") or "{}")
    except (msgspec.DecodeError, RecursionError):
        raise CannotTranslate(f"{where}.tool_calls", "arguments that are not JSON") from None
    return {"type": "tool_use", "id": call["id"], "name": call["function"]["name"], "input": arguments}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise CannotTranslate("tools", f"a tool of type `{tool.get('type')}`")
    function = tool["function"]
    return given(
        name=function["name"],
        description=function.get("description"),
        input_schema=function.get("parameters") or {"type": "object", "properties": {}},
        strict=function.get("strict"),
    )


def _tool_choice(body: dict[str, Any]) -> dict[str, Any] | None:
    choice, parallel = body.get("tool_choice"), body.get("parallel_tool_calls")
    if not body.get("tools"):
        return None
    if isinstance(choice, dict):
        if choice.get("type") != "function":
            raise CannotTranslate("tool_choice")
        found = {"type": "tool", "name": choice["function"]["name"]}
    elif choice in {None, "auto", "none", "required"}:
        found = {"type": {"required": "any", "none": "none"}.get(choice or "", "auto")}
    else:
        raise CannotTranslate("tool_choice")
    if parallel is False and found["type"] != "none":
        return {**found, "disable_parallel_tool_use": True}
    return found if choice is not None else None


def _reasoning(effort: Any) -> dict[str, Any]:
    if effort is None:
        return {}
    if effort == "none":
        return {"thinking": {"type": "disabled"}}
    if effort not in _EFFORTS:
        raise CannotTranslate("reasoning_effort")
    return {"thinking": {"type": "adaptive"}}


def _output_config(body: dict[str, Any]) -> dict[str, Any]:
    effort, form = body.get("reasoning_effort"), body.get("response_format")
    config = {"effort": _EFFORTS[effort]} if effort in _EFFORTS else {}
    if not form or form.get("type") == "text":
        return config
    if form.get("type") != "json_schema":
        raise CannotTranslate("response_format", "JSON needs a schema there")
    return {**config, "format": {"type": "json_schema", "schema": form["json_schema"].get("schema") or {}}}
