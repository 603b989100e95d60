"""OpenAI's responses: what a provider's events mean, and what a client gets for them."""

from __future__ import annotations

import json

import pytest

from api.core.dialects import Failure, Piece, Prompt, Seen
from api.core.dialects.openai_responses import (
    ResponsesWriter,
    is_text_alone,
    limited,
    prompt_of,
    read,
    read_object,
)
from api.core.script import script_of
from api.core.script_responses import stream_steps
from api.core.sse import HEARTBEAT, Framer, named_event, parse
from api.core.usage import Certainty, Reported, Source, Usage


def event(kind: str, **fields: object) -> bytes:
    data = {"type": kind, "sequence_number": 3, **fields}
    return named_event(kind, json.dumps(data).encode())


USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 12,
    "output_tokens_details": {"reasoning_tokens": 5},
}
WHOLE = {"id": "resp_1", "object": "response", "model": "gpt-x", "status": "completed", "usage": USAGE}
PLACE = {"item_id": "msg_1", "output_index": 1, "content_index": 0}

EVENTS = {
    "created": (event("response.created", response=WHOLE | {"usage": None}), Seen(model="gpt-x")),
    "text": (
        event("response.output_text.delta", **PLACE, delta="Hi"),
        Seen(content="Hi", pieces=[Piece((0, "text 1 0"), "Hi")]),
    ),
    "refusal": (
        event("response.refusal.delta", **PLACE, delta="No"),
        Seen(pieces=[Piece((0, "refusal 1 0"), "No")]),
    ),
    "summary": (
        event("response.reasoning_summary_text.delta", output_index=0, summary_index=0, delta="Hm"),
        Seen(pieces=[Piece((0, "summary 0 0"), "Hm")]),
    ),
    "call": (
        event("response.output_item.added", output_index=2, item={"type": "function_call", "name": "f"}),
        Seen(pieces=[Piece((0, "call 2 0"), "f")]),
    ),
    "arguments": (
        event("response.function_call_arguments.delta", output_index=2, delta='{"a"'),
        Seen(pieces=[Piece((0, "call 2 0"), '{"a"')]),
    ),
    "item": (event("response.output_item.added", output_index=1, item={"type": "message"}), Seen()),
    "text done": (event("response.output_text.done", **PLACE, text="Hi"), Seen()),
    "item done": (
        event("response.output_item.done", output_index=2, item={"type": "function_call", "name": "f"}),
        Seen(),
    ),
    "unknown": (event("response.odd.delta", delta={"x": 1}), Seen()),
    "completed": (
        event("response.completed", response=WHOLE),
        Seen(model="gpt-x", usage=Reported(9, 12, 4, 5), terminal=True),
    ),
    "incomplete": (
        event("response.incomplete", response=WHOLE | {"status": "incomplete"}),
        Seen(model="gpt-x", usage=Reported(9, 12, 4, 5), terminal=True),
    ),
    "done": (b"data: [DONE]\n\n", Seen()),
}


@pytest.mark.parametrize("name", EVENTS)
def test_read_finds_what_counts_in_an_event(name):
    """Text by item and part, usage, model, the end; each text once, although its event repeats it."""
    data, expected = EVENTS[name]
    assert read(parse(data)) == expected


def test_a_failed_response_is_an_error_that_was_paid_for():
    """Its usage is read, so that it reaches the ledger."""
    failed = WHOLE | {"status": "failed", "error": {"code": "server_error", "message": "secret host"}}
    seen = read(parse(event("response.failed", response=failed)))
    assert seen.error
    assert seen.usage == Reported(9, 12, 4, 5)
    assert read(parse(event("error", code="x", message="y"))).error


@pytest.mark.parametrize("data", [b"{", b'{"type": 1}', b"[]", b'{"type": "a", "output_index": "b"}'])
def test_what_cannot_be_read_is_not_known(data):
    """It is passed on, and makes the count uncertain."""
    assert read(parse(b"event: x\ndata: " + data + b"\n\n")) == Seen(unreadable=True)


def test_a_whole_response_is_read_alike():
    """Text, refusals, summaries and calls of all items, and the usage."""
    output = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Hi"}, {"refusal": "No"}]},
        {"type": "function_call", "name": "f", "arguments": "{}"},
    ]
    seen = read_object(json.dumps(WHOLE | {"output": output}).encode())
    assert [piece.text for piece in seen.pieces] == ["Hm", "Hi", "No", "f{}"]
    assert (seen.usage, seen.model, seen.error) == (Reported(9, 12, 4, 5), "gpt-x", None)


def test_bytes_pass_as_they_are():
    """Every event and the end; a `[DONE]`, which does not belong there, is left out."""
    writer = ResponsesWriter()
    for name, (raw, _) in EVENTS.items():
        assert writer.event(parse(raw), read(parse(raw))) == (b"" if name == "done" else raw)
    assert writer.end(parse(EVENTS["completed"][0])) == EVENTS["completed"][0]
    assert writer.heartbeat() == HEARTBEAT


@pytest.mark.parametrize("parts", [0, 1, 2, 3, 4, 5, 6, 40])
def test_a_stop_for_want_of_budget_closes_what_is_open(parts):
    """Wherever it comes: numbers go on, text, part and item are done, and the response is incomplete."""
    model = "scripted?tokens=6&think=2&pace_ms=0"
    steps = list(stream_steps(script_of(model), model, 7, []))
    events = [one for step in steps for one in Framer(1 << 20).feed(step.data)]
    whole = [one for one in events if not read(one).terminal][: parts + 5]
    writer = ResponsesWriter()
    for one in whole:
        writer.event(one, read(one))
    ended = Framer(1 << 20).feed(writer.stopped(Usage(7, 3, 0, 0, Source.COUNTED, Certainty.AT_LEAST)))
    numbers = [json.loads(one.data)["sequence_number"] for one in [*whole, *ended]]
    assert numbers == list(range(len(numbers)))
    last = json.loads(ended[-1].data)
    assert (ended[-1].name, last["response"]["status"]) == (b"response.incomplete", "incomplete")
    assert last["response"]["id"] == "resp_scripted"
    assert last["response"]["usage"]["output_tokens"] == 3
    said = "".join(read(one).content for one in whole)
    texts = [
        part["text"]
        for item in last["response"]["output"]
        for part in item.get("content", [])
        if "text" in part
    ]
    assert "".join(texts) == said
    opened = {one.name for one in whole}
    if b"response.output_text.delta" in opened and b"response.output_text.done" not in opened:
        assert [one.name.decode() for one in ended] == [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]


def test_an_error_is_an_event_that_sdks_raise_for():
    """OpenAI's flat fields, and the `error` that its SDKs look for; the number goes on."""
    writer = ResponsesWriter()
    writer.event(parse(EVENTS["text"][0]), read(parse(EVENTS["text"][0])))
    [sent] = Framer(1 << 20).feed(writer.error(Failure(504, "server_error", "deadline", "Too long.")))
    data = json.loads(sent.data)
    assert (sent.name, data["type"], data["sequence_number"]) == (b"error", "error", 4)
    assert (data["code"], data["message"]) == ("deadline", "Too long.")
    assert data["error"] == {
        "message": "Too long.",
        "type": "server_error",
        "param": None,
        "code": "deadline",
    }


@pytest.mark.parametrize(
    ("body", "prompt", "text_alone"),
    [
        ({"input": "Hi"}, Prompt(["user", "Hi"], 6, countable=True), True),
        (
            {"input": [{"role": "user", "content": "Hi"}], "instructions": "Be brief"},
            Prompt(["Be brief", "user", "Hi"], 9, countable=True),
            True,
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]},
            Prompt(["user", "Hi"], 6, countable=True),
            True,
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            Prompt(["user"], 6, countable=False),
            False,
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]},
            Prompt([], 6, countable=False),
            True,
        ),
        ({"input": "Hi", "tools": [{"type": "function"}]}, Prompt(["user", "Hi"], 6, countable=False), True),
        ({"input": "Hi", "prompt": {"id": "p"}}, Prompt(["user", "Hi"], 6, countable=False), False),
    ],
)
def test_what_of_a_request_can_be_counted(body, prompt, text_alone):
    """Texts are; tools, files and what the provider keeps are not."""
    assert prompt_of(body) == prompt
    assert is_text_alone(body) is text_alone


def test_a_limit_is_lowered_to_what_the_api_takes():
    """Below 16 OpenAI refuses it; there credit alone ends the stream."""
    assert limited({"max_output_tokens": 100}, 50) == {"max_output_tokens": 50}
    assert limited({}, 50) == {"max_output_tokens": 50}
    assert limited({}, 3) == {"max_output_tokens": 16}
