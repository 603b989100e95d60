"""The framer against a reference too simple to be wrong: WHATWG's rules, on the whole of the bytes."""

from __future__ import annotations

import time
from itertools import pairwise

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.core.sse import HEARTBEAT, EventTooLarge, Framer, data_event, parse

BOM = b"\xef\xbb\xbf"
LINE_ENDS = [b"\n", b"\r", b"\r\n"]
NOT_LINE_ENDS = ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
FRAGMENTS = [
    *LINE_ENDS,
    *(first + second for first in LINE_ENDS for second in LINE_ENDS),
    *(text.encode() for text in [*NOT_LINE_ENDS, "é", "漢字", "👩\u200d🚀"]),
    *[b"data: ", b"data:", b"data", b"event: ", b"event", b"id: 1", b"retry: 9", b": ", b":", b" ", b"x"],
    *[b"\x00", b"\xff", b"\xe2\x80"],
]


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Bytes full of line ends and of what looks like them."""
    body = b"".join(draw(st.lists(st.sampled_from(FRAGMENTS), max_size=40)))
    return draw(st.sampled_from([b"", BOM])) + body


@st.composite
def split_streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream, and the pieces in which it arrives; some are empty."""
    data = draw(streams())
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return data, [data[start:stop] for start, stop in pairwise([0, *cuts, len(data)])]


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def reference(data: bytes) -> list[tuple[bytes, bytes]]:
    """(name, data) of each event that a browser dispatches with data in it; HTML Standard, 9.2.6."""
    lines = data.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    events, name, buffer = [], b"", []
    for line in lines[:-1]:  # what follows the last line end is no line yet
        if not line:
            if data_of_event := b"\n".join(buffer):
                events.append((name, data_of_event))
            name, buffer = b"", []
        field, value = line.split(b":", 1) if b":" in line else (line, b"")
        value = value[1:] if value[:1] == b" " else value
        if field == b"data":
            buffer.append(value)
        elif field == b"event":
            name = value
    return events


def framed(pieces: list[bytes]) -> list[tuple[bytes, bytes]]:
    framer = Framer(1 << 20)
    return [(event.name, event.data) for piece in pieces for event in framer.feed(piece) if event.data]


@given(split_streams())
@example((b"data: a\r\n\r\ndata: b\r\n\r\n", [b"data: a\r\n\r", b"\ndata: b\r", b"\n\r", b"\n"]))
def test_any_split_gives_the_events_of_the_standard(case):
    """However the bytes are torn (in a CRLF, in a character), the events are those of the whole."""
    data, pieces = case
    assert framed(pieces) == reference(data)


@given(streams())
def test_one_byte_at_a_time_gives_the_events_of_the_standard(data):
    """The finest split there is gives the same events too."""
    assert framed(bytewise(data)) == reference(data)


def check_raw(data: bytes, pieces: list[bytes]) -> None:
    framer = Framer(1 << 20)
    raws = [event.raw for piece in pieces for event in framer.feed(piece)]
    position = 0
    for raw in raws:
        assert data.startswith(raw, position)
        position += len(raw)
        if raw.endswith(b"\r") and data.startswith(b"\n", position):
            position += 1
    rest = data[position:]
    assert reference(rest) == []
    assert framer.pending == bool(rest)


@given(split_streams())
@example((b"data: a\r\r\n\n", [b"data: a\r\r", b"\n", b"\n"]))
def test_raw_bytes_are_those_that_came(case):
    """Nothing is lost or added, but for one LF behind a lone CR that has already ended an event."""
    check_raw(*case)


@given(streams())
@example(b"data: a\r\r\n\n\ndata: b\n\n")
def test_raw_bytes_are_those_that_came_one_by_one(data):
    """The same at the finest split there is."""
    check_raw(data, bytewise(data))


def test_a_torn_crlf_gives_the_same_events_as_a_whole_one():
    """The LF of a CRLF that arrives late neither ends the next event nor begins it."""
    framer = Framer(100)
    assert [event.data for event in framer.feed(b"data: a\r\n\r")] == [b"a"]
    assert framer.feed(b"\n") == []
    assert not framer.pending
    assert [event.raw for event in framer.feed(b"data: b\n\n")] == [b"data: b\n\n"]


@pytest.mark.parametrize("separator", NOT_LINE_ENDS)
def test_what_only_python_calls_a_line_end_is_text(separator):
    """U+2028, U+0085, the form feed and their like stay inside the data, also among other lines."""
    data = f"a{separator}{separator}b".encode()
    assert framed([b"data: " + data + b"\n\n"]) == [(b"", data)]
    assert framed([b"event: x\ndata: " + data + b"\n\n"]) == [(b"x", data)]


@pytest.mark.parametrize("end", LINE_ENDS)
def test_each_line_end_ends_a_line(end):
    """LF, CR and CRLF all do, also mixed with one another."""
    assert framed([b"data: a" + end + b"data: b" + end + end]) == [(b"", b"a\nb")]


@pytest.mark.parametrize(
    ("raw", "name", "data"),
    [
        (b"data: x\n\n", b"", b"x"),
        (b"data:x\n\n", b"", b"x"),
        (b"data:  x \n\n", b"", b" x "),  # one space goes, no more
        (b"data: a:b\n\n", b"", b"a:b"),
        (b"data\n\n", b"", b""),
        (b"data: a\ndata\ndata: b\n\n", b"", b"a\n\nb"),
        (b"event: error\ndata: {}\n\n", b"error", b"{}"),
        (b"event: a\nevent: b\ndata: x\n\n", b"b", b"x"),
        (b"data: x\nid: 7\nretry: 10\n\n", b"", b"x"),
        (b"Data: x\n data: y\n\n", b"", b""),
        (b": keep-alive\n\n", b"", b""),
        (b"event: ping\n\n", b"ping", b""),
        (b": note\ndata: x\n\n", b"", b"x"),
        (b"event: a \ndata:  x \n\n", b"a ", b" x "),
    ],
)
def test_parse_reads_fields_as_the_standard_says(raw, name, data):
    """One event's bytes give its name and its data lines joined by LF; they are kept as they came."""
    assert parse(raw) == (raw, name, data)


@given(st.binary(max_size=30))
def test_parse_takes_any_bytes(junk):
    """Bytes from a stranger never raise."""
    assert parse(junk).raw == junk


def test_a_byte_order_mark_counts_at_the_start_of_the_stream_alone():
    """Further in it is part of a field's name, which nobody knows: the line says nothing."""
    assert framed([BOM + b"data: a\n\n" + BOM + b"data: b\n\ndata: c\n\n"]) == [(b"", b"a"), (b"", b"c")]


def test_pending_tells_whether_an_event_is_half_there():
    """A heartbeat may only go out between events; this is how one knows."""
    framer = Framer(100)
    seen = [(framer.feed(piece), framer.pending)[1] for piece in (b"", b"data: a", b"\n", b"\n", b"data")]
    assert seen == [False, True, True, False, True]


def overfed(pieces: list[bytes], bound: int) -> list[bytes]:
    """The data of the events until the framer refuses; it has to."""
    framer, events = Framer(bound), []
    try:
        for piece in [*pieces, b""]:
            events += framer.feed(piece)
    except EventTooLarge:
        return [event.data for event in events]
    raise AssertionError("an event over the bound was let through")


@pytest.mark.parametrize("size", [1, 7, 99, 1000])
def test_an_event_over_the_bound_is_refused_however_it_arrives(size):
    """In bits, or in one piece with its own end behind it: over the bound is over the bound."""
    data = b"data: " + b"x" * 200 + b"\n\n"
    overfed([data[i : i + size] for i in range(0, len(data), size)], bound=100)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_what_came_before_an_event_over_the_bound_is_not_lost(size):
    """Events that were whole are handed out, and so counted (P3), before the refusal."""
    data = b"data: a\n\n" + b"data: " + b"x" * 200
    assert overfed([data[i : i + size] for i in range(0, len(data), size)], bound=100) == [b"a"]


def test_the_bound_is_on_an_event_and_not_on_the_stream():
    """A stream may be as long as it likes."""
    event = data_event(b"x" * 80)
    assert len(framed([event * 1000])) == 1000
    framer = Framer(100)
    assert sum(len(framer.feed(event)) for _ in range(1000)) == 1000


@pytest.mark.parametrize("bit", [b"x" * 16, b"data: bits\n"], ids=["within a line", "line by line"])
def test_work_is_linear_in_the_bytes(bit):
    """A bit of an event costs the same however much of the event is there already."""

    def cpu_seconds(first: bytes, bit: bytes) -> float:
        framer = Framer(1 << 30)
        framer.feed(first)
        before = time.process_time()
        for _ in range(3000):
            framer.feed(bit)
        return time.process_time() - before

    whole_events = min(cpu_seconds(b"", data_event(b"x")) for _ in range(3))
    bits_of_one = min(cpu_seconds(b"data: " + b"x" * (4 << 20), bit) for _ in range(3))
    assert bits_of_one < 20 * whole_events


@given(st.dictionaries(st.text(), st.text() | st.sampled_from(["\r\n\r\n", "\u2028", "\x85"])))
def test_json_survives_the_frame(value):
    """Whatever stands in JSON comes out as one event with the same bytes."""
    payload = msgspec.json.encode(value)
    assert framed([data_event(payload)]) == [(b"", payload)]


def test_a_heartbeat_between_events_changes_nothing():
    """It is a comment of one line, and no event of its own (openai-go takes a blank line for one)."""
    assert HEARTBEAT.startswith(b":")
    assert HEARTBEAT.count(b"\n") == 1
    framer = Framer(100)
    assert framer.feed(HEARTBEAT) == []
    assert [event.data for event in framer.feed(b"data: a\n\n" + HEARTBEAT + b"data: b\n\n")] == [b"a", b"b"]
