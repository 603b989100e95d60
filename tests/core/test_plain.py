"""The plain dialect: exact bytes, because people parse them by hand."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core.dialects import Failure, Piece, Seen
from api.core.dialects.openai_chat import read
from api.core.dialects.plain import PlainWriter, chat_body
from api.core.sse import Framer, parse

WRITER = PlainWriter()
EVENT = parse(b"data: {}\n\n")


def test_a_token_is_one_line_with_a_token_field():
    """`data: {"token": "..."}`, whatever the provider's event looked like."""
    event = parse(b'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}}], "model": "m"}\r\n\r\n')
    assert WRITER.event(event, read(event)) == b'data: {"token":"Hi"}\n\n'


@pytest.mark.parametrize(
    "seen",
    [
        Seen(),
        Seen(finished=(0,)),
        Seen(pieces=[Piece((0, "reasoning"), "Hm")]),
        Seen(pieces=[Piece((1, "content"), "second choice")]),
    ],
)
def test_an_event_without_visible_text_is_nothing(seen):
    """Roles, reasoning, usage and other choices do not reach a plain client."""
    assert WRITER.event(EVENT, seen) == b""


@given(st.text(min_size=1))
def test_any_text_is_one_event(text):
    """Line ends and the like in a token never tear its line."""
    written = WRITER.event(EVENT, Seen(content=text))
    (event,) = Framer(1 << 20).feed(written)
    assert written.count(b"\n") == 2
    assert json.loads(event.data) == {"token": text}


def test_the_end_is_done_in_our_own_words():
    """The terminal event is the same bytes whatever the provider sent."""
    assert WRITER.end(None) == WRITER.end(parse(b"data:[DONE]\r\n\r\n")) == b"data: [DONE]\n\n"


def test_an_error_is_one_line_with_its_text_and_code():
    """`data: {"error": "...", "code": "..."}`: a hand-written parser needs no more."""
    failure = Failure(
        504, "server_error", "deadline", "The stream took too long.", headers={"retry-after": "1"}
    )
    assert WRITER.error(failure) == b'data: {"error":"The stream took too long.","code":"deadline"}\n\n'


@pytest.mark.parametrize(
    ("system", "max_tokens", "expected"),
    [
        (None, None, {"messages": [{"role": "user", "content": "Hi"}]}),
        ("", None, {"messages": [{"role": "user", "content": "Hi"}]}),
        (
            "Be brief",
            5,
            {
                "messages": [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}],
                "max_tokens": 5,
            },
        ),
    ],
)
def test_a_plain_request_is_a_streamed_chat_request(system, max_tokens, expected):
    """The system text comes first, and nothing is sent that was not asked for."""
    assert chat_body("Hi", "m", system, max_tokens) == {"model": "m", "stream": True, **expected}
