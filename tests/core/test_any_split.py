"""However the bytes of a stream are torn apart, each dialect reads, counts and writes the same."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core import script_chat, script_messages, script_responses
from api.core.dialects import anthropic_messages, openai_chat, openai_responses
from api.core.dialects.plain import PlainWriter
from api.core.meter import Meter
from api.core.script import script_of
from api.core.sse import Framer

if TYPE_CHECKING:
    from api.core.dialects import Dialect, Writer

SCRIPT = "scripted?tokens=6&think=2&calls=2&pace_ms=0&say=" + "ü\u2028%0D%0A\u65e5\U0001f600".replace(
    "\u2028", "%E2%80%A8"
)
TOOLS = ["weather", "time"]


def chat() -> bytes:
    steps = script_chat.stream_steps(script_of(SCRIPT), "m", 7, include_usage=True, tools=TOOLS, choices=2)
    return b"".join(step.data for step in steps)


def of(speaking: Any) -> bytes:
    return b"".join(step.data for step in speaking.stream_steps(script_of(SCRIPT), "m", 7, TOOLS))


STREAMS: dict[str, tuple[Dialect, type | Any, bytes]] = {
    "openai_chat": (openai_chat, lambda: openai_chat.ChatWriter(include_usage=True), chat()),
    "plain": (openai_chat, PlainWriter, chat()),
    "openai_responses": (openai_responses, openai_responses.ResponsesWriter, of(script_responses)),
    "anthropic_messages": (anthropic_messages, anthropic_messages.MessagesWriter, of(script_messages)),
}


def relayed(dialect: Dialect, writer: Writer, pieces: list[bytes]) -> tuple[list[Any], bytes, Any, Any]:
    """What is seen, written and counted of a stream that comes in these pieces."""
    framer, meter, seen, out = Framer(1 << 20), Meter("m", dialect.prompt_of(BODY)), [], b""
    for piece in pieces:
        for event in framer.feed(piece):
            found = dialect.read(event)
            if not event.data:
                continue
            seen.append(found)
            meter.see(found)
            out += writer.end(event) if found.terminal else writer.event(event, found)
    return seen, out, meter.usage(), meter.snapshot().texts


BODY = {"model": "m", "messages": [], "input": []}


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@given(cuts=st.lists(st.integers(0, 6000), max_size=40))
def test_any_split_is_the_same_stream(name, line_end, cuts):
    """In the middle of a character, of a CRLF or of an event: same events, same counts, same output."""
    dialect, writer, stream = STREAMS[name]
    stream = stream.replace(b"\n", line_end)
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    pieces = [stream[start:stop] for start, stop in itertools.pairwise(places)]
    whole, torn = (relayed(dialect, writer(), parts) for parts in ([stream], pieces))
    assert torn[0] == whole[0]
    assert b"".join(torn[1].split()) == b"".join(whole[1].split())
    assert torn[2:] == whole[2:]


@pytest.mark.parametrize("name", STREAMS)
def test_byte_by_byte_is_the_same_stream(name):
    """One byte at a time, and the output is byte for byte what a whole stream gives."""
    dialect, writer, stream = STREAMS[name]
    whole = relayed(dialect, writer(), [stream])
    assert relayed(dialect, writer(), [stream[i : i + 1] for i in range(len(stream))]) == whole
    assert whole[0][-1].terminal
    assert sum(bool(one.terminal) for one in whole[0]) == 1
