"""The scripted model's chat completions: as OpenAI's, written apart from the code that reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from api.core.script import Part, Script, Step, parts_of, played, tokens_of
from api.core.sse import data_event

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONTINUOUS = 2  # see Script.usage
_FIELDS = {"text": "content", "refusal": "refusal", "reasoning": "reasoning_content"}


def tools_of(body: dict[str, Any]) -> list[str]:
    """The names of the tools that a request brings, where it does not bring their results."""
    if body["messages"][-1].get("role") == "tool":
        return []
    return [tool["function"]["name"] for tool in body.get("tools") or () if "function" in tool]


def stream_steps(
    script: Script,
    model: str,
    input_tokens: int,
    *,
    include_usage: bool,
    tools: list[str] | None = None,
    choices: int = 1,
    logprobs: bool = False,
) -> Iterator[Step]:
    """The answer as chunks, from the first byte of the body on."""
    parts = parts_of(script, tools or [])
    speaker = _Speaker(script, parts, model, input_tokens)
    speaker.choices, speaker.logprobs = choices, logprobs
    if include_usage and script.usage:
        speaker.extra["usage"] = None
    return played(script, parts, speaker, input_tokens)


class _Speaker:
    def __init__(self, script: Script, parts: list[Part], model: str, input_tokens: int) -> None:
        self._script, self._parts, self._input_tokens = script, parts, input_tokens
        base = {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 0}
        self._base = {**base, "model": model}
        self.choices, self.logprobs = 1, False
        self.extra: dict[str, Any] = (
            {"pad": "x" * script.pad} if script.pad else {}
        )  # "usage": it is asked for

    def _chunk(
        self, delta: dict[str, Any], sent: int, finish: str | None = None, logprobs: Any = None
    ) -> bytes:
        out = b""
        for index in range(self.choices):
            choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
            body = {**self._base, "choices": [choice], **self.extra}
            if self._script.usage == _CONTINUOUS:
                body["usage"] = usage_object(self._input_tokens, sent * self.choices)
            out += data_event(msgspec.json.encode(body))
        return out

    def begin(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""}, 0)

    def _call_index(self, index: int) -> int:
        return sum(part.kind == "call" for part in self._parts[:index])

    def opens(self, index: int, part: Part) -> bytes:
        if part.kind != "call":
            return b""
        number = self._call_index(index)
        function = {"name": part.tool, "arguments": ""}
        call = {"index": number, "id": f"call_{number}", "type": "function", "function": function}
        return self._chunk({"tool_calls": [call]}, sum(before.tokens for before in self._parts[:index]))

    def says(self, index: int, part: Part, text: str, sent: int) -> bytes:
        if part.kind == "call":
            call = {"index": self._call_index(index), "function": {"arguments": text}}
            return self._chunk({"tool_calls": [call]}, sent)
        logprobs = None
        if self.logprobs and part.kind == "text":
            token = {"token": text, "logprob": -0.25, "bytes": list(text.encode()), "top_logprobs": []}
            logprobs = {"content": [token], "refusal": None}
        return self._chunk({_FIELDS[part.kind]: text}, sent, logprobs=logprobs)

    def closes(self, index: int, part: Part) -> bytes:  # noqa: ARG002 - the Speaker protocol
        return b""

    def ends(self) -> Iterator[Step]:
        script, sent = self._script, tokens_of(self._parts)
        counts = (self._input_tokens, sent * self.choices)
        reports = counts if script.usage == _CONTINUOUS else None
        yield Step(0, self._chunk({}, sent, _finish_reason(script, self._parts)), usage=reports)
        if script.usage == 1 and "usage" in self.extra:
            body = {**self._base, "choices": [], "usage": usage_object(*counts)}
            yield Step(0, data_event(msgspec.json.encode(body)), usage=counts)
        if script.done:
            yield Step(0, b"data: [DONE]\n\n")

    def fails(self) -> bytes:
        error = {"message": "scripted failure", "type": "server_error", "param": None, "code": None}
        return data_event(msgspec.json.encode({"error": error}))


def _finish_reason(script: Script, parts: list[Part]) -> str:
    if parts and parts[-1].kind == "call":
        return "tool_calls"
    return "length" if script.tokens >= script.max_tokens else "stop"


def whole_answer(
    script: Script, model: str, input_tokens: int, tools: list[str] | None = None, choices: int = 1
) -> bytes:
    """The answer of a request that did not ask for a stream."""
    parts = parts_of(script, tools or [])
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    for part in parts:
        if part.kind != "call":
            message[_FIELDS[part.kind]] = part.text
            continue
        calls = message.setdefault("tool_calls", [])
        function = {"name": part.tool, "arguments": part.text}
        calls.append({"id": f"call_{len(calls)}", "type": "function", "function": function})
    reason = _finish_reason(script, parts)
    body: dict[str, Any] = {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": reason}
            for index in range(choices)
        ],
    }
    if script.usage:
        body["usage"] = usage_object(input_tokens, tokens_of(parts) * choices)
    return msgspec.json.encode(body)


def usage_object(input_tokens: int, output_tokens: int) -> dict[str, int]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }
