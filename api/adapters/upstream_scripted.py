"""The scripted model in this process: what serves when no provider is configured, and in fast tests."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from api.core import script as scripted
from api.core import script_chat, script_messages, script_responses
from api.core.dialects import anthropic_messages, openai_chat, openai_embeddings, openai_responses
from api.ports import CALLERS_FAULT, UpstreamFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from api.core.dialects import Dialect
    from api.ports import Tokenizer


_DIALECTS: dict[str, Dialect] = {
    dialect.NAME: dialect
    for dialect in (openai_chat, openai_responses, openai_embeddings, anthropic_messages)
}


class ScriptedUpstream:
    """Answers as the script in the model's name says. `live` and `opened` are for tests to look at."""

    def __init__(self, tokenizer: Tokenizer, name: str = "scripted") -> None:
        self.name = name
        self._tokenizer = tokenizer
        self.live = 0
        self.opened = 0

    async def open(
        self, body: dict[str, Any], dialect: str = openai_chat.NAME, **_options: Any
    ) -> ScriptedAnswer:
        """Start an answer; headers, keys and patience are for others."""
        self.opened += 1
        self.live += 1
        try:
            inputs, steps = await self._steps(body, dialect)
            return ScriptedAnswer(self, steps, inputs)
        except BaseException:
            self.live -= 1
            raise

    async def _steps(self, body: dict[str, Any], dialect: str) -> tuple[int, Iterator[scripted.Step]]:
        """How many tokens the prompt has, and the answer to it."""
        try:
            script = scripted.allowed(scripted.script_of(body["model"]), body)
        except scripted.UnknownModel as error:
            unknown = {"message": str(error), "type": "invalid_request_error", "code": "model_not_found"}
            raise UpstreamFailed("unknown model", status=404, body=unknown) from None
        await asyncio.sleep(script.first_ms / 1000)
        if script.status != 200:  # noqa: PLR2004 - HTTP
            retry_after = str(script.retry_after) if script.retry_after else None
            blame: dict[str, Any] = {"message": "scripted refusal", "type": "server_error", "code": None}
            shown = blame if script.status in CALLERS_FAULT else None
            raise UpstreamFailed(
                "scripted refusal", status=script.status, body=shown, retry_after=retry_after
            )
        prompt = _DIALECTS[dialect].prompt_of(body)
        inputs = sum(await self._tokenizer.count(prompt.texts, "o200k_base")) + prompt.overhead_tokens
        if body.get("stream"):
            return inputs, _streamed(script, body, dialect, inputs)
        whole, tokens = _whole(script, body, dialect, inputs)
        reports = (inputs, tokens) if script.usage else None
        return inputs, iter([scripted.Step(0, whole, tokens, usage=reports)])

    async def prepare(self, dialect: str) -> None:
        """Nothing to prepare."""

    async def models(self) -> bytes:
        """The names it answers to."""
        return msgspec.json.encode(
            {
                "object": "list",
                "data": [
                    {"id": name, "object": "model", "created": 0, "owned_by": "sluicegate"}
                    for name in scripted.MODELS
                ],
            }
        )

    async def close(self) -> None:
        """Nothing to close."""


def _streamed(
    script: scripted.Script, body: dict[str, Any], dialect: str, inputs: int
) -> Iterator[scripted.Step]:
    model = body["model"]
    if dialect == anthropic_messages.NAME:
        return script_messages.stream_steps(script, model, inputs, script_messages.tools_of(body))
    if dialect == openai_responses.NAME:
        return script_responses.stream_steps(script, model, inputs, script_responses.tools_of(body))
    options = body.get("stream_options") or {}
    if options.get("continuous_usage_stats") and script.usage:
        script = replace(script, usage=2)
    return script_chat.stream_steps(
        script,
        model,
        inputs,
        include_usage=bool(options.get("include_usage")),
        tools=script_chat.tools_of(body),
        choices=openai_chat.choices_of(body),
        logprobs=bool(body.get("logprobs")),
    )


def _whole(script: scripted.Script, body: dict[str, Any], dialect: str, inputs: int) -> tuple[bytes, int]:
    """The answer in one piece, and how many tokens it has."""
    model = body["model"]
    if dialect == openai_embeddings.NAME:
        return scripted.embeddings(body, inputs), 0
    if dialect == openai_chat.NAME:
        tools, choices = script_chat.tools_of(body), openai_chat.choices_of(body)
        whole = script_chat.whole_answer(script, model, inputs, tools, choices)
        return whole, scripted.tokens_of(scripted.parts_of(script, tools)) * choices
    speaking = script_messages if dialect == anthropic_messages.NAME else script_responses
    tools = speaking.tools_of(body)
    whole = speaking.whole_answer(script, model, inputs, tools)
    return whole, scripted.tokens_of(scripted.parts_of(script, tools))


class ScriptedAnswer:
    """A script being played."""

    def __init__(self, upstream: ScriptedUpstream, steps: Iterator[scripted.Step], input_tokens: int) -> None:
        self._upstream = upstream
        self.steps = steps
        self.input_tokens = input_tokens
        self._closed = False

    async def read(self) -> bytes:
        """The next step's bytes, after its pause."""
        step = next(self.steps, None)
        if step is None:
            return b""
        await asyncio.sleep(step.wait_ms / 1000)
        if step.reset:
            raise UpstreamFailed("The provider broke off its answer.")
        return step.data

    async def finish(self) -> None:
        """Nothing follows the terminal event."""

    async def close(self) -> None:
        """Stop playing."""
        if not self._closed:
            self._closed = True
            self._upstream.live -= 1
