"""A client of OpenAI's responses on a provider that speaks chat completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from api.core.dialects.openai_responses import numbered, usage_object
from api.core.sse import Event, parse
from api.core.translate import CannotTranslate, check_fields, given
from api.core.usage import reasons_out_of_sight

if TYPE_CHECKING:
    from collections.abc import Iterator

_PASS = (
    *("model", "stream", "temperature", "top_p", "parallel_tool_calls", "user", "safety_identifier"),
    *("service_tier", "prompt_cache_key"),
)
_READ = ("input", "instructions", "max_output_tokens", "tools", "tool_choice", "text", "reasoning")
_WITHOUT_EFFECT = ("store", "metadata", "stream_options", "include", "prompt_cache_retention")
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_ECHOED: dict[str, Any] = {
    "instructions": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
}
"""Fields of a request that its response repeats, and what they are where nobody said."""

_ENCRYPTED = "reasoning.encrypted_content"  # which only OpenAI could read again


class ResponsesOnChat:
    """Items are opened and closed as the chunks' deltas change from one kind to another.

    `created` is UTC seconds: when the response says it was made.
    """

    def __init__(self, created: int = 0) -> None:
        self._created = created
        self._number = 0
        self._response: dict[str, Any] = {}
        self._output: list[dict[str, Any]] = []
        self._open: str | None = None  # the kind of the open item, or which call it is
        self._text: list[str] = []
        self._finish: str | None = None
        self._usage: dict[str, Any] | None = None
        self._echo = dict(_ECHOED)

    # --- the request ------------------------------------------------------------------------------

    def request(self, body: dict[str, Any]) -> dict[str, Any]:
        """A chat's. Raises CannotTranslate."""
        cut = ("truncation",) if body.get("truncation") == "disabled" else ()
        check_fields(body, (*_PASS, *_READ, *_WITHOUT_EFFECT, *cut))
        if set(body.get("include") or ()) - {_ENCRYPTED}:
            raise CannotTranslate("include")
        self._echo |= given(**{name: body.get(name) for name in _ECHOED})
        text, reasoning = body.get("text") or {}, body.get("reasoning") or {}
        limit = "max_completion_tokens" if reasons_out_of_sight(body["model"]) else "max_tokens"
        return given(
            **{name: body.get(name) for name in _PASS},
            **{limit: body.get("max_output_tokens")},
            messages=list(_messages(body)),
            tools=[_tool(tool) for tool in body["tools"]] if body.get("tools") else None,
            tool_choice=_tool_choice(body.get("tool_choice")) if body.get("tools") else None,
            response_format=_response_format(text.get("format")),
            verbosity=text.get("verbosity"),
            reasoning_effort=reasoning.get("effort"),
        )

    # --- the answer -------------------------------------------------------------------------------

    def event(self, event: Event) -> list[Event]:
        """Events of items."""
        if event.data.strip() == b"[DONE]":
            return []
        try:
            chunk = msgspec.json.decode(event.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return []
        return [parse(data) for data in self._events(chunk)] if isinstance(chunk, dict) else []

    def _event(self, name: str, /, **fields: Any) -> bytes:
        self._number += 1
        return numbered(name, self._number - 1, **fields)

    def _events(self, chunk: dict[str, Any]) -> Iterator[bytes]:
        if not self._response:
            self._response = self._begun(chunk.get("id"), chunk.get("model"))
            yield self._event("response.created", response=self._response)
            yield self._event("response.in_progress", response=self._response)
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) == 0:
                yield from self._deltas(choice.get("delta") or choice.get("message") or {})
                self._finish = choice.get("finish_reason") or self._finish

    def _begun(self, identity: Any, model: Any) -> dict[str, Any]:
        """A response of which nothing is there yet, with what was asked for as the API repeats it."""
        return {
            "id": str(identity or ""),
            "object": "response",
            "created_at": self._created,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "model": model or "",
            "output": [],
            "usage": None,
            **self._echo,
        }

    def _deltas(self, delta: dict[str, Any]) -> Iterator[bytes]:
        for kind, text in (
            ("reasoning_text", delta.get("reasoning_content") or delta.get("reasoning")),
            ("output_text", delta.get("content")),
            ("refusal", delta.get("refusal")),
        ):
            if text:
                yield from self._opened(kind, _item_of(kind))
                yield self._said(f"response.{kind}.delta", text)
        for position, call in enumerate(delta.get("tool_calls") or ()):
            function, number = call.get("function") or {}, call.get("index", position) or 0
            if function.get("name"):
                item = {
                    "type": "function_call",
                    "call_id": call.get("id") or f"call_{number}",
                    "arguments": "",
                }
                yield from self._opened(f"call {number}", {**item, "name": function["name"]})
            if function.get("arguments") and self._open == f"call {number}":
                yield self._said("response.function_call_arguments.delta", function["arguments"])

    def _place(self) -> dict[str, Any]:
        place = {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}
        return place if self._output[-1]["type"] == "function_call" else {**place, "content_index": 0}

    def _said(self, name: str, text: str) -> bytes:
        self._text.append(text)
        more: dict[str, Any] = {"logprobs": []} if name == "response.output_text.delta" else {}
        return self._event(name, **self._place(), delta=text, **more)

    def _opened(self, kind: str, item: dict[str, Any]) -> Iterator[bytes]:
        if self._open == kind:
            return
        yield from self._closed()
        self._open, self._text = kind, []
        identity = f"{item['type']}_{len(self._output)}"
        self._output.append({"id": identity, "status": "in_progress", **item})
        yield self._event(
            "response.output_item.added", output_index=len(self._output) - 1, item=self._output[-1]
        )
        if item["type"] != "function_call":
            yield self._event("response.content_part.added", **self._place(), part=_part_of(kind, ""))

    def _closed(self) -> Iterator[bytes]:
        if self._open is None:
            return
        kind, text, item = self._open, "".join(self._text), {**self._output[-1], "status": "completed"}
        if item["type"] == "function_call":
            item["arguments"] = text
            said = {"name": item["name"], "arguments": text}
            yield self._event("response.function_call_arguments.done", **self._place(), **said)
        else:
            part = _part_of(kind, text)
            item["content"] = [part]
            said = {"refusal": text} if kind == "refusal" else {"text": text}
            more: dict[str, Any] = {"logprobs": []} if kind == "output_text" else {}
            yield self._event(f"response.{kind}.done", **self._place(), **said, **more)
            yield self._event("response.content_part.done", **self._place(), part=part)
        self._output[-1] = item
        yield self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)
        self._open = None

    def end(self) -> list[Event]:
        """The end of the open item, and of the response with all that was in it."""
        said = list(self._closed())
        whole = self._whole()
        said.append(self._event(f"response.{whole['status']}", response=whole))
        return [parse(data) for data in said]

    def _whole(self) -> dict[str, Any]:
        reason = _INCOMPLETE.get(self._finish or "")
        return {
            **(self._response or self._begun("", "")),
            "status": "incomplete" if reason else "completed",
            "incomplete_details": {"reason": reason} if reason else None,
            "output": self._output,
            "usage": None if self._usage is None else _usage(self._usage),
        }

    def whole(self, data: bytes) -> bytes:
        """A response of a chat completion: as if it had come in one chunk."""
        found = msgspec.json.decode(data)
        if not isinstance(found, dict) or not found.get("choices"):
            raise ValueError("no completion")
        for _ in self._events(found):
            pass
        for _ in self._closed():
            pass
        return msgspec.json.encode(self._whole())


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    inputs, outputs = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    return usage_object(inputs, outputs, cached, reasoning)


def _item_of(kind: str) -> dict[str, Any]:
    if kind == "reasoning_text":
        return {"type": "reasoning", "summary": [], "content": []}
    return {"type": "message", "role": "assistant", "content": []}


def _part_of(kind: str, text: str) -> dict[str, Any]:
    if kind == "refusal":
        return {"type": "refusal", "refusal": text}
    more: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return {"type": kind, "text": text, **more}


def _messages(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if body.get("instructions"):
        yield {"role": "system", "content": body["instructions"]}
    asked = body["input"]
    calls: list[dict[str, Any]] = []
    for number, item in enumerate([{"role": "user", "content": asked}] if isinstance(asked, str) else asked):
        kind, where = item.get("type", "message"), f"input.{number}"
        if kind == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            calls.append({"id": item["call_id"], "type": "function", "function": function})
            continue
        if calls:
            yield {"role": "assistant", "content": None, "tool_calls": calls}
            calls = []
        if kind == "message":
            yield {"role": item["role"], "content": _content(item.get("content"), where)}
        elif kind == "function_call_output":
            output = _content(item.get("output"), where)
            yield {"role": "tool", "tool_call_id": item["call_id"], "content": output}
        elif kind != "reasoning":  # which is for the provider alone that wrote it
            raise CannotTranslate(where, f"an item of type `{kind}`")
    if calls:
        yield {"role": "assistant", "content": None, "tool_calls": calls}


def _content(content: Any, where: str) -> Any:
    if content is None or isinstance(content, str):
        return content or ""
    parts = [_part(part, f"{where}.content") for part in content]
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _part(part: dict[str, Any], where: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind in {"input_text", "output_text", "text"}:
        return {"type": "text", "text": part["text"]}
    if kind == "refusal":
        return {"type": "refusal", "refusal": part["refusal"]}
    if kind == "input_image" and part.get("image_url"):
        return {"type": "image_url", "image_url": given(url=part["image_url"], detail=part.get("detail"))}
    if kind == "input_file" and part.get("file_data"):
        return {"type": "file", "file": given(file_data=part["file_data"], filename=part.get("filename"))}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part["input_audio"]}
    raise CannotTranslate(where, f"a part of type `{kind}`")


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise CannotTranslate("tools", f"a tool of type `{tool.get('type')}`")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": given(**{name: tool.get(name) for name in names})}


def _tool_choice(choice: Any) -> Any:
    if choice is None or isinstance(choice, str):
        return choice
    if choice.get("type") != "function":
        raise CannotTranslate("tool_choice")
    return {"type": "function", "function": {"name": choice["name"]}}


def _response_format(form: dict[str, Any] | None) -> dict[str, Any] | None:
    if not form or form.get("type") == "text":
        return None
    if form.get("type") == "json_schema":
        names = ("name", "description", "schema", "strict")
        schema = given(**{name: form.get(name) for name in names})
        return {"type": "json_schema", "json_schema": schema}
    return form
