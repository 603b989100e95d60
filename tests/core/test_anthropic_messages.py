"""Anthropic's dialect: what a provider's events mean, and what a client gets for them."""

from __future__ import annotations

import json

import pytest

from api.core.dialects import Failure, Piece, Prompt, Seen
from api.core.dialects.anthropic_messages import (
    PING,
    MessagesWriter,
    error_body,
    is_text_alone,
    limited,
    prompt_of,
    read,
    read_object,
    reasons,
)
from api.core.sse import Framer, named_event, parse
from api.core.usage import Certainty, Reported, Source, Usage


def event(kind: str, **fields: object) -> bytes:
    return named_event(kind, json.dumps({"type": kind, **fields}).encode())


USAGE = {
    "input_tokens": 20,
    "cache_creation_input_tokens": 3,
    "cache_read_input_tokens": 4,
    "output_tokens": 1,
}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": []}
DETAILS = {"output_tokens": 40, "output_tokens_details": {"thinking_tokens": 9}}

EVENTS = {
    "start": (
        event("message_start", message=MESSAGE | {"usage": USAGE}),
        Seen(model="claude-x", begun=Reported(27, 1, cached_tokens=4)),
    ),
    "start without usage": (event("message_start", message=MESSAGE), Seen(model="claude-x")),
    "ping": (PING, Seen()),
    "block": (event("content_block_start", index=0, content_block={"type": "text", "text": ""}), Seen()),
    "text": (
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hi"}),
        Seen(content="Hi", pieces=[Piece((0, "text 0"), "Hi")]),
    ),
    "thinking": (
        event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "Hm"}),
        Seen(pieces=[Piece((0, "thinking 0"), "Hm")]),
    ),
    "tool": (
        event(
            "content_block_start",
            index=2,
            content_block={"type": "tool_use", "id": "t", "name": "f", "input": {}},
        ),
        Seen(pieces=[Piece((0, "tool 2"), "f")]),
    ),
    "arguments": (
        event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": '{"a"'}),
        Seen(pieces=[Piece((0, "tool 2"), '{"a"')]),
    ),
    "signature": (
        event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "xx"}),
        Seen(),
    ),
    "stop": (event("content_block_stop", index=0), Seen()),
    "delta": (
        event("message_delta", delta={"stop_reason": "end_turn"}, usage=DETAILS),
        Seen(usage=Reported(0, 40, reasoning_tokens=9), finished=(0,)),
    ),
    "end": (event("message_stop"), Seen(terminal=True)),
    "unknown": (event("content_block_odd", what={"is": ["this"]}), Seen()),
    "no data": (b"event: ping\n\n", Seen()),
}


@pytest.mark.parametrize("name", EVENTS)
def test_read_finds_what_counts_in_an_event(name):
    """Text by block, usage, model, the reason to stop; what nobody knows is passed over."""
    data, expected = EVENTS[name]
    assert read(parse(data)) == expected


@pytest.mark.parametrize(
    "data", [b"{", b'{"index": "a"}', b"[]", b'{"delta": {"text": 1}}', b'{"model": "\xff"}']
)
def test_what_cannot_be_read_is_not_known(data):
    """It is passed on, and makes the count uncertain."""
    assert read(parse(b"event: x\ndata: " + data + b"\n\n")) == Seen(unreadable=True)


def test_an_error_event_is_an_error():
    """By its name or by its type."""
    assert read(parse(event("error", error={"type": "overloaded_error", "message": "secret host"}))).error
    assert read(parse(b'data: {"type": "error", "error": {}}\n\n')).error


def test_a_whole_message_is_read_alike():
    """Text, thinking and calls of all blocks, and the usage; what went through the cache is input."""
    content = [
        {"type": "thinking", "thinking": "Hm", "signature": "x"},
        {"type": "text", "text": "Hi"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
    ]
    whole = MESSAGE | {"content": content, "stop_reason": "tool_use", "usage": USAGE | {"output_tokens": 7}}
    assert read_object(json.dumps(whole).encode()) == Seen(
        content="Hi",
        pieces=[Piece((0, "thinking 0"), "Hm"), Piece((0, "text 1"), "Hi"), Piece((0, "tool 2"), 'f{"a":1}')],
        usage=Reported(27, 7, cached_tokens=4),
        model="claude-x",
        finished=(0,),
    )


def test_bytes_pass_as_they_are():
    """Every event, and the end, in the provider's own bytes, with CRLF or an id."""
    writer = MessagesWriter()
    for raw, _ in EVENTS.values():
        for data in (raw, raw.replace(b"\n", b"\r\n"), b"id: 7\n" + raw):
            assert writer.event(parse(data), read(parse(data))) == data
    end = parse(b'event:message_stop\r\ndata:{"type":"message_stop"}\r\n\r\n')
    assert writer.end(end) == end.raw
    assert read(parse(writer.end(None))).terminal


def names(data: bytes) -> list[str]:
    return [one.name.decode() for one in Framer(1 << 20).feed(data)]


@pytest.mark.parametrize("in_a_block", [False, True])
def test_a_stop_for_want_of_budget_is_an_end_like_any_other(in_a_block):
    """The open block is closed, and the message stops as at its `max_tokens`."""
    writer = MessagesWriter()
    sent = ["start", "block", "text"] if in_a_block else ["start"]
    for name in sent:
        one = parse(EVENTS[name][0])
        writer.event(one, read(one))
    out = writer.stopped(Usage(27, 5, 0, 0, Source.COUNTED, Certainty.AT_LEAST))
    assert names(out) == ["content_block_stop"] * in_a_block + ["message_delta", "message_stop"]
    assert b'"stop_reason":"max_tokens"' in out
    assert b'"output_tokens":5' in out


def test_a_stop_before_anything_begins_the_message():
    """`message_start` is never missing."""
    out = MessagesWriter().stopped(Usage(27, 0, 0, 0, Source.COUNTED, Certainty.AT_LEAST))
    assert names(out) == ["message_start", "message_delta", "message_stop"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (409, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_errors_have_anthropics_shape(status, kind):
    """As an answer with the request's id, and as an event; the gate's own code is there besides."""
    failure = Failure(status, "x", "some_code", "What was wrong.")
    error = {"type": kind, "message": "What was wrong.", "code": "some_code"}
    assert json.loads(error_body(failure, "req_1")) == {
        "type": "error",
        "error": error,
        "request_id": "req_1",
    }
    [sent] = Framer(1 << 20).feed(MessagesWriter().error(failure))
    assert (sent.name, json.loads(sent.data)) == (b"error", {"type": "error", "error": error})


def test_a_heartbeat_is_a_ping():
    """An event of Anthropic's own, which its clients see and skip."""
    assert MessagesWriter().heartbeat() == b'event: ping\ndata: {"type":"ping"}\n\n'


TOOL_RESULT = [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": {}}]}]


@pytest.mark.parametrize(
    ("body", "prompt", "text_alone"),
    [
        ({"messages": [{"role": "user", "content": "Hi"}]}, Prompt(["Hi"], 8, countable=True), True),
        (
            {"system": "S", "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
            Prompt(["S", "Hi"], 8, countable=True),
            True,
        ),
        (
            {"messages": [{"role": "user", "content": "Hi"}], "tools": [{"name": "f"}]},
            Prompt(["Hi"], 8, countable=False),
            True,
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            Prompt([], 8, countable=False),
            False,
        ),
        ({"messages": [{"role": "user", "content": TOOL_RESULT}]}, Prompt([], 8, countable=False), False),
    ],
)
def test_what_of_a_request_can_be_counted(body, prompt, text_alone):
    """Texts are; tools and images are not, and of those an image is no text at all."""
    assert prompt_of(body) == prompt
    assert is_text_alone(body) is text_alone


def test_a_limit_is_lowered_and_thinking_with_it():
    """`budget_tokens` must stay below `max_tokens`; where there is no room for thinking it is left out."""
    thinking = {"type": "enabled", "budget_tokens": 10_000}
    assert limited({"max_tokens": 100}, 50) == {"max_tokens": 50}
    assert limited({"max_tokens": 100}, 500) == {"max_tokens": 100}
    assert limited({"max_tokens": 20_000, "thinking": thinking}, 5000) == {
        "max_tokens": 5000,
        "thinking": {"type": "enabled", "budget_tokens": 4999},
    }
    assert limited({"max_tokens": 20_000, "thinking": thinking}, 500)["thinking"] == {"type": "disabled"}


@pytest.mark.parametrize(
    ("model", "thinking", "expected"),
    [
        ("claude-sonnet-4-5", None, False),
        ("claude-3-5-haiku", None, False),
        ("claude-opus-5", None, True),
        ("claude-opus-5", {"type": "disabled"}, False),
        ("claude-sonnet-4-5", {"type": "enabled", "budget_tokens": 2000}, True),
        ("claude-sonnet-4-5", {"type": "adaptive"}, True),
        ("scripted", None, False),
        ("o3", {"type": "disabled"}, True),
    ],
)
def test_thinking_is_billed_unseen(model, thinking, expected):
    """What is streamed of it is a summary: such an answer cannot be stopped where credit ends."""
    assert reasons({"model": model} | ({"thinking": thinking} if thinking else {})) is expected
