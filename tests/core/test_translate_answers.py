"""Between dialects: answers that say the same, whole or streamed, however their bytes are torn apart."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core import script_chat, script_messages
from api.core.dialects import anthropic_messages, openai_chat, openai_embeddings, openai_responses
from api.core.dialects.openai_chat import ChatWriter
from api.core.script import script_of
from api.core.sse import Framer
from api.core.translate import CannotTranslate
from api.core.translate.ways import ODD, TranslatingWriter, Untranslatable, way

MODEL = "scripted?tokens=5&think=2&calls=2&pace_ms=0"
TOOLS = ["weather", "time"]


def of_chat() -> bytes:
    steps = script_chat.stream_steps(script_of(MODEL), "m", 7, include_usage=True, tools=TOOLS)
    return b"".join(step.data for step in steps)


def of_messages() -> bytes:
    return b"".join(step.data for step in script_messages.stream_steps(script_of(MODEL), "m", 7, TOOLS))


WRITERS = {
    "openai_chat": lambda: ChatWriter(include_usage=True),
    "openai_responses": openai_responses.ResponsesWriter,
    "anthropic_messages": anthropic_messages.MessagesWriter,
}
STREAMS = {"openai_chat": of_chat(), "anthropic_messages": of_messages()}
ACROSS = [
    (openai_chat, anthropic_messages),
    (anthropic_messages, openai_chat),
    (openai_responses, openai_chat),
    (openai_responses, anthropic_messages),
]


def translated(near: Any, far: Any, pieces: list[bytes]) -> bytes:
    """What the client gets for a provider's stream."""
    found = way(near, [far.NAME], 0)
    writer = TranslatingWriter(WRITERS[near.NAME](), found.translation, near)
    framer, out = Framer(1 << 20), b""
    for piece in pieces:
        for event in framer.feed(piece):
            seen = far.read(event)
            out += writer.end(event) if seen.terminal else writer.event(event, seen)
    return out


def said(dialect: Any, stream: bytes) -> tuple[str, str, Any]:
    """The text, all that was written, and the last usage of a stream."""
    seen = [dialect.read(event) for event in Framer(1 << 20).feed(stream)]
    written: dict[Any, str] = {}
    for one in seen:
        for piece in one.pieces:
            written[piece.channel] = written.get(piece.channel, "") + piece.text
    [usage] = [one.usage for one in seen if one.usage][-1:]
    assert seen[-1].terminal
    return "".join(one.content for one in seen), "|".join(written.values()), usage.output_tokens


@pytest.mark.parametrize(("near", "far"), ACROSS, ids=lambda dialect: dialect.NAME)
def test_an_answer_says_the_same_across(near, far):
    """Text, reasoning, calls with their arguments, usage and the end; in the client's own dialect."""
    source = STREAMS[far.NAME]
    assert said(near, translated(near, far, [source])) == said(far, source)


@pytest.mark.parametrize(("near", "far"), ACROSS, ids=lambda dialect: dialect.NAME)
@given(cuts=st.lists(st.integers(0, 6000), max_size=30))
def test_any_split_is_translated_the_same(near, far, cuts):
    """However the provider's bytes are torn apart."""
    source = STREAMS[far.NAME]
    places = sorted({min(cut, len(source)) for cut in cuts} | {0, len(source)})
    pieces = [source[a:b] for a, b in itertools.pairwise(places)]
    assert translated(near, far, pieces) == translated(near, far, [source])


@pytest.mark.parametrize(("near", "far"), ACROSS, ids=lambda dialect: dialect.NAME)
def test_a_whole_answer_says_the_same_across(near, far):
    """Without streaming too."""
    speaking = script_chat if far is openai_chat else script_messages
    whole = speaking.whole_answer(script_of(MODEL), "m", 7, TOOLS)
    ours = near.read_object(way(near, [far.NAME], 0).translation.whole(whole))
    theirs = far.read_object(whole)
    texts = [sorted("".join(piece.text for piece in one.pieces).replace(" ", "")) for one in (ours, theirs)]
    assert texts[0] == texts[1]
    assert ours.usage.output_tokens == theirs.usage.output_tokens
    assert not ours.unreadable


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "content", "role", "function", "index", "delta", "source", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(("near", "far"), ACROSS, ids=lambda dialect: dialect.NAME)
@given(body=JSON)
def test_an_odd_request_is_refused_and_never_breaks(near, far, body):
    """Whatever a caller puts where messages belong: translated, or refused with one of a few exceptions."""
    with_it = {
        "model": "m",
        "max_tokens": 1,
        "messages": [{"role": "user", "content": body}],
        "tools": [body],
    }
    if near is openai_responses:
        with_it = {"model": "m", "input": [{"role": "user", "content": body}, body], "tools": [body]}
    try:
        assert isinstance(way(near, [far.NAME], 0).translation.request(with_it), dict)
    except (CannotTranslate, *ODD):
        pass


@pytest.mark.parametrize(("near", "far"), ACROSS, ids=lambda dialect: dialect.NAME)
@given(data=JSON)
def test_an_odd_event_is_an_error_that_has_a_name(near, far, data):
    """What a provider says out of shape is passed over, or said to be untranslatable."""
    found = way(near, [far.NAME], 0)
    writer = TranslatingWriter(WRITERS[near.NAME](), found.translation, near)
    for kind in ("message_start", "content_block_start", "content_block_delta", "message_delta"):
        body = {"type": kind, "delta": data, "message": data, "content_block": data, "choices": [data]}
        [event] = Framer(1 << 20).feed(b"data: " + json.dumps(body).encode() + b"\n\n")
        try:
            writer.event(event, far.read(event))
        except Untranslatable:
            break


def test_there_is_no_way_where_there_is_none():
    """Embeddings of a provider that has none."""
    assert way(openai_embeddings, ["anthropic_messages"], 0) is None
    assert way(openai_chat, ["openai_chat", "anthropic_messages"], 0).translation is None
