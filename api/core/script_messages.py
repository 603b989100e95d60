"""The scripted model's messages: as Anthropic's, written apart from the code that reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from api.core.script import Part, Script, Step, parts_of, played, tokens_of
from api.core.sse import named_event

if TYPE_CHECKING:
    from collections.abc import Iterator

_ID = "msg_scripted"
_DELTAS = {
    "text": ("text_delta", "text"),
    "refusal": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


def tools_of(body: dict[str, Any]) -> list[str]:
    """The names of the tools that a request brings, where it does not bring their results."""
    last = body["messages"][-1].get("content")
    if isinstance(last, list) and any(part.get("type") == "tool_result" for part in last):
        return []
    return [tool["name"] for tool in body.get("tools") or () if "name" in tool]


def stream_steps(script: Script, model: str, input_tokens: int, tools: list[str]) -> Iterator[Step]:
    """The answer as events, from the first byte of the body on."""
    parts = parts_of(script, tools)
    return played(script, parts, _Speaker(script, parts, model, input_tokens), input_tokens)


def _event(kind: str, **fields: Any) -> bytes:
    return named_event(kind, msgspec.json.encode({"type": kind, **fields}))


class _Speaker:
    def __init__(self, script: Script, parts: list[Part], model: str, input_tokens: int) -> None:
        self._script, self._parts, self._model, self._input_tokens = script, parts, model, input_tokens
        self._pad = {"pad": "x" * script.pad} if script.pad else {}

    def begin(self) -> bytes:
        usage = _usage(self._input_tokens, 1) if self._script.usage else None
        message = {**_message(self._model, [], None), "usage": usage}
        return _event("message_start", message=message) + _event("ping")

    def opens(self, index: int, part: Part) -> bytes:
        block = {**_block(part, index), **({"input": {}} if part.kind == "call" else {})}
        if part.kind == "reasoning":
            block |= {"thinking": "", "signature": ""}
        elif part.kind != "call":
            block["text"] = ""
        return _event("content_block_start", index=index, content_block=block)

    def says(self, index: int, part: Part, text: str, sent: int) -> bytes:  # noqa: ARG002 - as below
        kind, field = _DELTAS[part.kind]
        return _event("content_block_delta", index=index, delta={"type": kind, field: text}, **self._pad)

    def closes(self, index: int, part: Part) -> bytes:
        signed = b""
        if part.kind == "reasoning":
            delta = {"type": "signature_delta", "signature": "c2lnbmVk"}
            signed = _event("content_block_delta", index=index, delta=delta)
        return signed + _event("content_block_stop", index=index)

    def ends(self) -> Iterator[Step]:
        sent = tokens_of(self._parts)
        delta = {"stop_reason": _stop_reason(self._script, self._parts), "stop_sequence": None}
        usage = {"output_tokens": sent} if self._script.usage else None
        reports = (self._input_tokens, sent) if self._script.usage else None
        yield Step(0, _event("message_delta", delta=delta, usage=usage), usage=reports)
        if self._script.done:
            yield Step(0, _event("message_stop"))

    def fails(self) -> bytes:
        return _event("error", error={"type": "overloaded_error", "message": "scripted failure"})


def _block(part: Part, index: int) -> dict[str, Any]:
    """A whole block."""
    if part.kind == "call":
        given = msgspec.json.decode(part.text)
        return {"type": "tool_use", "id": f"toolu_{index}", "name": part.tool, "input": given}
    if part.kind == "reasoning":
        return {"type": "thinking", "thinking": part.text, "signature": "c2lnbmVk"}
    return {"type": "text", "text": part.text}


def _stop_reason(script: Script, parts: list[Part]) -> str:
    last = parts[-1].kind if parts else "text"
    if last in {"call", "refusal"}:
        return {"call": "tool_use", "refusal": "refusal"}[last]
    return "max_tokens" if script.tokens >= script.max_tokens else "end_turn"


def _usage(input_tokens: int, output_tokens: int) -> dict[str, int]:
    return {
        "input_tokens": input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output_tokens,
    }


def _message(model: str, content: list[dict[str, Any]], stop_reason: str | None) -> dict[str, Any]:
    same = {"id": _ID, "type": "message", "role": "assistant", "model": model, "content": content}
    return {**same, "stop_reason": stop_reason, "stop_sequence": None}


def whole_answer(script: Script, model: str, input_tokens: int, tools: list[str]) -> bytes:
    """The answer of a request that did not ask for a stream."""
    parts = parts_of(script, tools)
    content = [_block(part, index) for index, part in enumerate(parts)]
    message = _message(model, content, _stop_reason(script, parts))
    usage = _usage(input_tokens, tokens_of(parts)) if script.usage else None
    return msgspec.json.encode({**message, "usage": usage})
