"""The scripted model: text whose token count is known without a tokeniser, and every way to fail.

A script rides in the model's name as a query string, so that it reaches the upstream through any dialect
and any SDK: `scripted?tokens=50&pace_ms=20&silence_at=10&silence_ms=5000`. Every word of the vocabulary
is one token in o200k and in cl100k (a test holds this), so the truth is the number of words.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from api.core.dialects.openai_chat import DONE
from api.core.sse import data_event

if TYPE_CHECKING:
    from collections.abc import Iterator

MODELS = ("scripted", "gpt-4o", "gpt-4o-mini")
"""Names the scripted model answers to; those of OpenAI so that copied snippets work against the demo."""

_VOCABULARY = tuple(
    "water finds its way down the hill and through the gate when we open it and not before so "  # noqa: SIM905
    "every drop is counted at the door by one who keeps the book and no one may take more than was "
    "agreed with them".split()
)


@dataclass(frozen=True, slots=True)
class Script:
    """How to answer. Counts are tokens, times are milliseconds; `*_at` is a token's number, -1 is never."""

    tokens: int = 48
    per_chunk: int = 1  # tokens in each chunk
    pad: int = 0  # extra bytes in each chunk, in a field that no client reads
    first_ms: int = 0  # silence before the status line
    pace_ms: int = 20  # pause between chunks
    silence_at: int = -1  # before this token, ...
    silence_ms: int = 0  # ... be silent for so long
    status: int = 200  # refuse with this status
    retry_after: int = 0  # with such a header, in seconds
    error_at: int = -1  # before this token, send an error event and end
    reset_at: int = -1  # before this token, break the connection
    eof_at: int = -1  # before this token, end the body as if all were well
    usage: int = 1  # 0 reports none though it was asked for; 2 reports in each chunk (vLLM's continuous)
    done: int = 1  # 0 leaves `[DONE]` out
    max_tokens: int = 1 << 30  # what the request allows; reaching it ends with finish_reason "length"
    label: str = ""  # groups the stand-alone server's statistics


_BOUNDS = {"tokens": (0, 5_000_000), "per_chunk": (1, 100_000), "pad": (0, 1 << 20)}
_MAX_MS = 3_600_000


class UnknownModel(Exception):  # noqa: N818 - a 404, not a bug
    """No such scripted model, or a script that cannot be read; the text is public."""


def script_of(model: str) -> Script:
    """The script in a model's name. Raises UnknownModel."""
    name, _, query = model.partition("?")
    if name not in MODELS:
        raise UnknownModel(f"The model `{name}` does not exist")
    known = {field.name: field.type for field in fields(Script)}
    values: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in known:
            raise UnknownModel(f"The scripted model knows no `{key}`")
        try:
            values[key] = value if key == "label" else int(value)
        except ValueError:
            raise UnknownModel(f"`{key}` takes a whole number") from None
        least, most = _BOUNDS.get(key, (-1, _MAX_MS))
        if key != "label" and not least <= values[key] <= most:
            raise UnknownModel(f"`{key}` must be from {least} to {most}")
    return Script(**values)


def allowed(script: Script, body: dict[str, Any]) -> Script:
    """The script within the output limit of a request."""
    limits = (body.get("max_completion_tokens"), body.get("max_tokens"), script.max_tokens)
    limit = min(limit for limit in limits if isinstance(limit, int))
    if limit >= script.tokens:
        return script
    return replace(script, tokens=max(limit, 0), max_tokens=limit)


class Step(NamedTuple):
    """One write of the upstream: wait, then send. `reset` breaks the connection instead.

    `usage` is what it reports: tokens of input and of output.
    """

    wait_ms: int
    data: bytes
    tokens: int = 0
    reset: bool = False
    usage: tuple[int, int] | None = None


def text_of(script: Script, start: int = 0, stop: int | None = None) -> str:
    """The words [start, stop) of the answer, each with the space before it but for the very first."""
    stop = script.tokens if stop is None else stop
    return "".join(" " * bool(i) + _VOCABULARY[i % len(_VOCABULARY)] for i in range(start, stop))


def stream_steps(script: Script, model: str, input_tokens: int, *, include_usage: bool) -> Iterator[Step]:
    """The answer as chunks of OpenAI's stream, from the first byte of the body on."""
    base = {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 0, "model": model}
    extra: dict[str, Any] = {"pad": "x" * script.pad} if script.pad else {}
    if include_usage and script.usage:
        extra["usage"] = None

    def chunk(delta: dict[str, Any], finish: str | None = None, sent: int = 0) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        body = {**base, "choices": [choice], **extra}
        if script.usage == 2:  # noqa: PLR2004 - see Script.usage
            body["usage"] = usage_object(input_tokens, sent)
        return data_event(msgspec.json.encode(body))

    def step(data: bytes, sent: int, wait_ms: int = 0, tokens: int = 0) -> Step:
        reports = (input_tokens, sent) if script.usage == 2 else None  # noqa: PLR2004 - as above
        return Step(wait_ms, data, tokens, usage=reports)

    yield step(chunk({"role": "assistant", "content": ""}), 0)
    for start in range(0, script.tokens, script.per_chunk):
        stop = min(start + script.per_chunk, script.tokens)
        wait = script.pace_ms if start else 0
        if start <= script.silence_at < stop:
            wait += script.silence_ms
        broken = _failure_between(script, start, stop)
        if broken is not None:
            yield broken._replace(wait_ms=wait)
            return
        data = chunk({"content": text_of(script, start, stop)}, sent=stop)
        yield step(data, stop, wait, stop - start)
    yield step(chunk({}, _finish_reason(script), sent=script.tokens), script.tokens)
    if include_usage and script.usage == 1:
        body = {**base, "choices": [], "usage": usage_object(input_tokens, script.tokens)}
        yield Step(0, data_event(msgspec.json.encode(body)), usage=(input_tokens, script.tokens))
    if script.done:
        yield Step(0, DONE)


def _failure_between(script: Script, start: int, stop: int) -> Step | None:
    """The last step of a script that breaks before one of these tokens."""
    if start <= script.error_at < stop:
        error = {"message": "scripted failure", "type": "server_error", "param": None, "code": None}
        return Step(0, data_event(msgspec.json.encode({"error": error})))
    if start <= script.reset_at < stop:
        return Step(0, b"", reset=True)
    if start <= script.eof_at < stop:
        return Step(0, b"")
    return None


def _finish_reason(script: Script) -> str:
    return "length" if script.tokens >= script.max_tokens else "stop"


def whole_answer(script: Script, model: str, input_tokens: int) -> bytes:
    """The answer of a request that did not ask for a stream."""
    message = {"role": "assistant", "content": text_of(script), "refusal": None}
    body: dict[str, Any] = {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(script)}
        ],
    }
    if script.usage:
        body["usage"] = usage_object(input_tokens, script.tokens)
    return msgspec.json.encode(body)


def usage_object(input_tokens: int, output_tokens: int) -> dict[str, int]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }
