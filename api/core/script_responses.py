"""The scripted model's responses: as OpenAI's, written apart from the code that reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from api.core.script import Part, Script, Step, parts_of, played, tokens_of
from api.core.sse import named_event

if TYPE_CHECKING:
    from collections.abc import Iterator

_ID = "resp_scripted"


def tools_of(body: dict[str, Any]) -> list[str]:
    """The names of the tools that a request brings, where it does not bring their results."""
    asked = body.get("input")
    if isinstance(asked, list) and asked and asked[-1].get("type") == "function_call_output":
        return []
    return [tool["name"] for tool in body.get("tools") or () if tool.get("type") == "function"]


def stream_steps(script: Script, model: str, input_tokens: int, tools: list[str]) -> Iterator[Step]:
    """The answer as events, from the first byte of the body on."""
    parts = parts_of(script, tools)
    return played(script, parts, _Speaker(script, parts, model, input_tokens), input_tokens)


class _Speaker:
    def __init__(self, script: Script, parts: list[Part], model: str, input_tokens: int) -> None:
        self._script, self._parts, self._model, self._input_tokens = script, parts, model, input_tokens
        self._number = 0

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return named_event(kind, msgspec.json.encode(data))

    def begin(self) -> bytes:
        response = _response(self._model, "in_progress", [])
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def opens(self, index: int, part: Part) -> bytes:
        item = {**_item(part, index), "status": "in_progress"}
        if part.kind == "call":
            return self._event(
                "response.output_item.added", output_index=index, item=item | {"arguments": ""}
            )
        place = {"item_id": item["id"], "output_index": index}
        if part.kind == "reasoning":
            summary = {"type": "summary_text", "text": ""}
            return self._event(
                "response.output_item.added", output_index=index, item=item | {"summary": []}
            ) + self._event("response.reasoning_summary_part.added", **place, summary_index=0, part=summary)
        empty = _content(part, "")
        return self._event(
            "response.output_item.added", output_index=index, item=item | {"content": []}
        ) + self._event("response.content_part.added", **place, content_index=0, part=empty)

    def says(self, index: int, part: Part, text: str, sent: int) -> bytes:  # noqa: ARG002 - as below
        place = {"item_id": _id(part, index), "output_index": index}
        pad = {"obfuscation": "x" * self._script.pad} if self._script.pad else {}
        if part.kind == "call":
            return self._event("response.function_call_arguments.delta", **place, delta=text)
        if part.kind == "reasoning":
            kind = "response.reasoning_summary_text.delta"
            return self._event(kind, **place, summary_index=0, delta=text)
        more = {"content_index": 0, "delta": text, **pad}
        if part.kind == "refusal":
            return self._event("response.refusal.delta", **place, **more)
        return self._event("response.output_text.delta", **place, **more, logprobs=[])

    def closes(self, index: int, part: Part) -> bytes:
        item = _item(part, index)
        place = {"item_id": item["id"], "output_index": index}
        done = b""
        if part.kind == "call":
            done = self._event(
                "response.function_call_arguments.done", **place, name=part.tool, arguments=part.text
            )
        elif part.kind == "reasoning":
            summary = {"type": "summary_text", "text": part.text}
            done = self._event(
                "response.reasoning_summary_text.done", **place, summary_index=0, text=part.text
            ) + self._event("response.reasoning_summary_part.done", **place, summary_index=0, part=summary)
        else:
            field = {"refusal": part.text} if part.kind == "refusal" else {"text": part.text, "logprobs": []}
            kind = "response.refusal.done" if part.kind == "refusal" else "response.output_text.done"
            done = self._event(kind, **place, content_index=0, **field) + self._event(
                "response.content_part.done", **place, content_index=0, part=_content(part, part.text)
            )
        return done + self._event("response.output_item.done", output_index=index, item=item)

    def ends(self) -> Iterator[Step]:
        if not self._script.done:
            return
        reports = (self._input_tokens, tokens_of(self._parts)) if self._script.usage else None
        response = _whole(self._script, self._parts, self._model, self._input_tokens)
        yield Step(0, self._event(f"response.{response['status']}", response=response), usage=reports)

    def fails(self) -> bytes:
        return self._event("error", code="server_error", message="scripted failure", param=None)


def _content(part: Part, text: str) -> dict[str, Any]:
    if part.kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


_IDS = {"call": "fc", "reasoning": "rs"}


def _id(part: Part, index: int) -> str:
    return f"{_IDS.get(part.kind, 'msg')}_{index}"


def _item(part: Part, index: int) -> dict[str, Any]:
    """A whole item."""
    if part.kind == "reasoning":
        summary = [{"type": "summary_text", "text": part.text}]
        return {"id": _id(part, index), "type": "reasoning", "summary": summary}
    same = {"id": _id(part, index), "status": "completed"}
    if part.kind == "call":
        call = {"type": "function_call", "call_id": f"call_{index}"}
        return {**same, **call, "name": part.tool, "arguments": part.text}
    return {**same, "type": "message", "role": "assistant", "content": [_content(part, part.text)]}


def _response(model: str, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": _ID,
        "object": "response",
        "created_at": 0,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": model,
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": None,
    }


def _whole(script: Script, parts: list[Part], model: str, input_tokens: int) -> dict[str, Any]:
    output = [_item(part, index) for index, part in enumerate(parts)]
    cut_short = script.tokens >= script.max_tokens
    response = _response(model, "incomplete" if cut_short else "completed", output)
    if cut_short:
        response["incomplete_details"] = {"reason": "max_output_tokens"}
    if script.usage:
        sent = tokens_of(parts)
        thought = sum(part.tokens for part in parts if part.kind == "reasoning")
        response["usage"] = {
            "input_tokens": input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": sent,
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": input_tokens + sent,
        }
    return response


def whole_answer(script: Script, model: str, input_tokens: int, tools: list[str]) -> bytes:
    """The answer of a request that did not ask for a stream."""
    return msgspec.json.encode(_whole(script, parts_of(script, tools), model, input_tokens))
