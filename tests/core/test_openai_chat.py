"""OpenAI's chat dialect: what a provider's events mean, and what a client gets for them."""

from __future__ import annotations

import json

import httpx2
import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core.dialects import Failure, Piece, Seen
from api.core.dialects.openai_chat import DONE, ChatWriter, read, read_object
from api.core.sse import data_event, parse
from api.core.usage import Reported


def chunk(delta: dict | None = None, *, finish: str | None = None, index: int = 0, **more: object) -> bytes:
    """A chunk as OpenAI sends them, with the fields that nobody reads."""
    choice = {"index": index, "delta": delta or {}, "logprobs": None, "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "service_tier": "default"}
    return json.dumps({**head, "model": "gpt-4o-2024-08-06", "choices": [choice], **more}).encode()


def seen(**values: object) -> Seen:
    return Seen(model="gpt-4o-2024-08-06", **values)


def meaning(event: Seen) -> tuple:
    return (
        *(event.content, event.pieces, event.usage, event.model, event.error),
        *(bool(event.finished), event.terminal, event.usage_only, event.unreadable),
    )


def call(index: int | None, **function: str) -> dict:
    return {"tool_calls": [{"index": index, "id": "call_1", "type": "function", "function": function}]}


USAGE = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}
DETAILS = {
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 5, "accepted_prediction_tokens": 0},
}
NO_DETAILS = {"prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": None}}

EVENTS = {
    "role": (chunk({"role": "assistant", "content": "", "refusal": None}), seen()),
    "text": (chunk({"content": "Hi"}), seen(content="Hi", pieces=[Piece((0, "content"), "Hi")])),
    "second choice": (chunk({"content": "Hi"}, index=1), seen(pieces=[Piece((1, "content"), "Hi")])),
    "refusal": (chunk({"refusal": "No"}), seen(pieces=[Piece((0, "refusal"), "No")])),
    "reasoning": (chunk({"reasoning_content": "Hm"}), seen(pieces=[Piece((0, "reasoning"), "Hm")])),
    "call": (chunk(call(0, name="f", arguments="")), seen(pieces=[Piece((0, "tool 0"), "f")])),
    "arguments": (chunk(call(1, arguments='{"a"')), seen(pieces=[Piece((0, "tool 1"), '{"a"')])),
    "call without index": (chunk(call(None, name="f")), seen(pieces=[Piece((0, "tool 0"), "f")])),
    "usage null": (chunk({"content": ""}, usage=None), seen()),
    "usage only": (chunk(choices=[], usage=USAGE), seen(usage=Reported(9, 12), usage_only=True)),
    "continuous usage": (
        chunk({"content": "Hi"}, usage=USAGE),
        seen(content="Hi", pieces=[Piece((0, "content"), "Hi")], usage=Reported(9, 12)),
    ),
    "details": (
        chunk(choices=[], usage=USAGE | DETAILS),
        seen(usage=Reported(9, 12, cached_tokens=4, reasoning_tokens=5), usage_only=True),
    ),
    "null details": (
        chunk(choices=[], usage=USAGE | NO_DETAILS),
        seen(usage=Reported(9, 12), usage_only=True),
    ),
    "error null": (chunk({"content": ""}, error=None), seen()),
    "unknown fields": (b'{"x": [1, {"y": null}], "choices": [{"z": 1}]}', Seen()),
}


@pytest.mark.parametrize("name", EVENTS)
def test_read_finds_what_counts_in_an_event(name):
    """Text by channel, usage, model; fields that nobody knows are passed over."""
    data, expected = EVENTS[name]
    assert meaning(read(parse(data_event(data)))) == meaning(expected)


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter"])
def test_any_finish_reason_is_the_models_end(reason):
    """Whatever the reason, the model has finished; the stream has not."""
    found = read_object(chunk({}, finish=reason))
    assert found.finished
    assert not found.terminal


def test_done_is_the_end_and_nothing_else_is():
    """`[DONE]` is terminal; an event without data is not, nor is a chunk."""
    assert read(parse(DONE)) == Seen(terminal=True)
    assert read(parse(b"data:[DONE]\n\n")).terminal
    assert read(parse(b": comment\n\n")) == Seen()
    assert not read(parse(b'data: "[DONE]"\n\n')).terminal


@pytest.mark.parametrize("error", ['{"message": "overloaded", "code": 529}', '"overloaded"', "{}", "[1]"])
def test_an_error_of_any_shape_is_an_error(error):
    """Providers differ in what they put there; that it is there is what counts."""
    assert read_object(f'{{"error": {error}}}'.encode()).error
    assert read_object(chunk({"content": ""}, finish="error", error=json.loads(error))).error


def test_a_whole_completion_reads_like_a_stream_that_is_over():
    """The answer of a request without streaming: text, calls, finish and usage from one object."""
    message = {"role": "assistant", "content": "Hi", "refusal": None, **call(0, name="f", arguments="{}")}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"object": "chat.completion", "model": "gpt-4o-2024-08-06", "choices": [choice], "usage": USAGE}
    pieces = [Piece((0, "content"), "Hi"), Piece((0, "tool 0"), "f{}")]
    found = read_object(json.dumps(body).encode())
    assert meaning(found) == meaning(seen(content="Hi", pieces=pieces, usage=Reported(9, 12), finished=(0,)))


@pytest.mark.parametrize(
    "name_and_delta",
    [
        ("function call", {"function_call": {"name": "f", "arguments": "{}"}}),
        ("reasoning", {"reasoning": "Hm"}),
    ],
    ids=lambda case: case[0],
)
def test_text_in_fields_of_other_ages_is_counted_too(name_and_delta):
    """`function_call` (before tools) and `reasoning` (vLLM, OpenRouter) carry text that costs tokens."""
    _, delta = name_and_delta
    assert "".join(piece.text for piece in read_object(chunk(delta)).pieces) in {"f{}", "Hm"}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"[]",
        b"null",
        b"7",
        b'"text"',
        b"{",
        b'{"choices": 7}',
        b'{"choices": [7]}',
        b'{"choices": [{"delta": "text"}]}',
        b'{"choices": [{"delta": {"content": 7}}]}',
        b'{"choices": [{"index": "0"}]}',
        b'{"usage": 7}',
        b'{"usage": {"prompt_tokens": "9"}}',
        b'{"model": 7}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_chunk_is_unreadable(data):
    """Garbage and wrong types mean nothing but this: what they cost is not known."""
    assert read_object(data) == Seen(unreadable=True)


def test_broken_utf8_in_a_text_is_unreadable():
    """A provider that tears a character apart does not break the stream."""
    assert read_object(b'{"choices": [{"delta": {"content": "\xff"}}]}') == Seen(unreadable=True)


@pytest.mark.parametrize("field", ["pad", "error", "choices"])
def test_deep_nesting_is_unreadable(field):
    """A provider cannot exhaust the gate's stack."""
    deep = b"[" * 100_000 + b"]" * 100_000
    assert read_object(b'{"%s": %s}' % (field.encode(), deep)) == Seen(unreadable=True)


@pytest.mark.parametrize("tokens", [-1, 2**63, 10**30])
def test_a_number_that_no_ledger_can_hold_is_no_report(tokens):
    """A provider's nonsense neither lowers a sum nor stops the ledger's writer."""
    assert read_object(json.dumps({"usage": USAGE | {"completion_tokens": tokens}}).encode()).usage is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "delta", "usage", "error", "index", "content"]), inner)
    ),
    max_leaves=12,
)


@given(json_values | st.binary())
def test_read_never_raises(value):
    """Whatever a provider sends, reading it gives a Seen."""
    data = value if isinstance(value, bytes) else msgspec.json.encode(value)
    assert isinstance(read(parse(data_event(data))), Seen)


# --- writing ------------------------------------------------------------------------------------------

FAILURE = Failure(503, "server_error", "drain", "The gateway is restarting.")


@pytest.mark.parametrize("include_usage", [True, False])
@pytest.mark.parametrize("name", [name for name in EVENTS if not EVENTS[name][1].usage_only])
def test_bytes_pass_as_they_are(name, include_usage):
    """Whatever is in an event, also what the gate does not know, the client gets it byte for byte."""
    raw = b": note\r\nevent: x\r\ndata: " + EVENTS[name][0] + b"\r\n\r\n"
    event = parse(raw)
    assert ChatWriter(include_usage=include_usage).event(event, read(event)) == raw


@pytest.mark.parametrize("include_usage", [True, False])
def test_a_usage_chunk_passes_only_to_who_asked_for_it(include_usage):
    """The gate always asks the provider; a client that did not would trip over `choices: []`."""
    event = parse(data_event(EVENTS["usage only"][0]))
    passed = ChatWriter(include_usage=include_usage).event(event, read(event))
    assert passed == (event.raw if include_usage else b"")


def test_the_end_is_the_providers_own_or_ours():
    """`[DONE]` is there in any case."""
    writer = ChatWriter(include_usage=False)
    assert writer.end(None) == b"data: [DONE]\n\n"
    assert writer.end(parse(b"data:[DONE]\r\n\r\n")) == b"data:[DONE]\r\n\r\n"


def test_the_error_event_has_openrouters_shape():
    """A top-level error for SDKs, and a finish_reason for parsers that look at choices alone."""
    event = parse(ChatWriter(include_usage=False).error(FAILURE))
    assert json.loads(event.data) == {
        "id": "",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "",
        "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
        "error": {
            "message": "The gateway is restarting.",
            "type": "server_error",
            "param": None,
            "code": "drain",
        },
    }


def test_openai_python_raises_on_the_error_event():
    """The official SDK yields what came before, and then raises with our message and code."""
    writer = ChatWriter(include_usage=False)
    stream = data_event(chunk({"content": "Hi"})) + writer.error(FAILURE)

    def answer(_request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=stream)

    with (
        httpx2.Client(transport=httpx2.MockTransport(answer)) as http,
        openai.OpenAI(api_key="x", base_url="http://gate/v1", http_client=http, max_retries=0) as client,
    ):
        chunks = client.chat.completions.create(model="gpt-4o", messages=[], stream=True)
        assert next(chunks).choices[0].delta.content == "Hi"
        with pytest.raises(openai.APIError, match="The gateway is restarting") as raised:
            next(chunks)
        assert raised.value.code == "drain"
