"""Records of the spool: what goes in comes out, and a line that a crash or a disk broke costs only itself."""

from __future__ import annotations

import zlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from api.core import spool
from api.core.booking import Correction, Ended, Happening
from api.core.record import Booking, Checkpoint, UsageEvent
from api.core.usage import Certainty, Source, Usage

HARD = '\x00\n\r\x1f\x7f\x85\u2028\ud800\udc00\ufeff"\\🌊'
"""What files, lines and JSON have trouble with, half characters among it."""

TEXTS = st.one_of(st.text(max_size=20), st.text(st.sampled_from(HARD), max_size=20))
NUMBERS = st.one_of(st.integers(), st.integers(-(2**300), 2**300))
ZONES = st.builds(lambda minutes: timezone(timedelta(minutes=minutes)), st.integers(-720, 840))
TIMES = st.one_of(
    st.datetimes(timezones=st.just(UTC)),
    st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=ZONES),  # noqa: DTZ001 - given zones
)
BOOKINGS = st.builds(
    Booking,
    id=TEXTS,
    request_id=TEXTS,
    tenant_id=TEXTS,
    key_id=st.none() | TEXTS,
    token_id=st.none() | TEXTS,
    end_user=st.none() | TEXTS,
    dialect=TEXTS,
    model=TEXTS,
    upstream=TEXTS,
    worker=TEXTS,
    started_at=TIMES,
)
USAGES = st.builds(
    Usage,
    input_tokens=NUMBERS,
    output_tokens=NUMBERS,
    cached_tokens=NUMBERS,
    reasoning_tokens=NUMBERS,
    source=st.sampled_from(Source),
    certainty=st.sampled_from(Certainty),
    tokenizer=st.none() | TEXTS,
)
EVENTS = st.builds(
    UsageEvent,
    booking=BOOKINGS,
    answered_model=TEXTS,
    usage=USAGES,
    ended=st.sampled_from(Ended),
    cause=st.one_of(st.sampled_from(Happening), st.sampled_from(Correction)),
    first_token_ms=st.none() | NUMBERS,
    duration_ms=NUMBERS,
    ended_at=TIMES,
    cost_nano_dollars=st.none() | NUMBERS,
    price_version=st.none() | TEXTS,
    number=st.integers(0, 9),
)
CHECKPOINTS = st.builds(Checkpoint, booking_id=TEXTS, input_tokens=NUMBERS, output_tokens=NUMBERS, at=TIMES)
ITEMS = st.one_of(BOOKINGS, EVENTS, st.lists(CHECKPOINTS, max_size=4, unique_by=lambda one: one.booking_id))

MOMENT = datetime(2026, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)


def line_of(item: Booking | UsageEvent | list[Checkpoint]) -> bytes:
    """Its line, whichever it is."""
    if isinstance(item, Booking):
        return spool.of_booking(item)
    return spool.of_event(item) if isinstance(item, UsageEvent) else spool.of_checkpoints(item)


def booking(number: int) -> Booking:
    """A booking, and no other."""
    name = f"bk_{number}"
    return Booking(name, "req", "tn", None, "jti", "ü \n", "plain", "m", "up", "host:1", MOMENT)


def event(number: int) -> UsageEvent:
    """Its event."""
    usage = Usage(3, number, 1, 0, Source.PROVIDER, Certainty.EXACT)
    return UsageEvent(booking(number), "m", usage, Ended.CUT, Happening.DRAIN, 1, 2, MOMENT, 7, "1+2")


@given(st.lists(ITEMS, max_size=6))
def test_what_goes_in_comes_out_in_order(items: list[Booking | UsageEvent | list[Checkpoint]]) -> None:
    """Each field of each kind, whatever is in it; of a booking's running counts the last one stands."""
    found = spool.read([line_of(item) for item in items])
    assert found.bookings == [item for item in items if isinstance(item, Booking)]
    assert found.events == [item for item in items if isinstance(item, UsageEvent)]
    counts = [one for item in items if isinstance(item, list) for one in item]
    assert found.checkpoints == {one.booking_id: one for one in counts}
    assert found.broken == 0


def test_every_ending_and_every_hard_text_comes_out() -> None:
    """Each of them, and not only those that chance brings."""
    ones = [replace(event(1), answered_model=text) for text in (HARD, *HARD)]
    ones += [replace(event(1), cause=cause) for cause in (*Happening, *Correction)]
    ones += [replace(event(1), ended=ended) for ended in Ended]
    ones += [replace(event(1), usage=replace(event(1).usage, source=source)) for source in Source]
    ones += [replace(event(1), cost_nano_dollars=cost) for cost in (None, 0, -1, 2**64, -(2**100))]
    found = spool.read([spool.of_event(one) for one in ones]).events
    assert found == ones
    assert [type(one.cause) for one in found] == [type(one.cause) for one in ones]


@given(EVENTS)
def test_enums_and_times_come_out_as_what_they_were(one: UsageEvent) -> None:
    """Not as texts that only look alike: the ledger's rows are made of them."""
    [found] = spool.read([spool.of_event(one)]).events
    said = [found.ended, found.cause, found.usage.source, found.usage.certainty]
    assert [type(value) for value in said] == [Ended, type(one.cause), Source, Certainty]
    assert found.ended_at.utcoffset() == one.ended_at.utcoffset()


@given(ITEMS)
def test_a_record_is_one_line(item: Booking | UsageEvent | list[Checkpoint]) -> None:
    """Whatever is in its texts: the file is cut into lines before anybody looks at them."""
    line = line_of(item)
    assert line.splitlines(keepends=True) == [line]
    assert line.endswith(b"\n")


def test_a_torn_line_costs_only_itself() -> None:
    """Cut at any byte it is told from a whole one; those before and behind it come out."""
    first, torn, last = spool.of_event(event(1)), spool.of_event(event(2)), spool.of_event(event(3))
    for length in range(len(torn) - 1):
        found = spool.read([first, torn[:length], last])
        assert (found.events, found.broken) == ([event(1), event(3)], 1), length
    assert spool.read([torn[:-1]]).events == [event(2)], "only its end of line is missing"


def test_a_line_with_a_flipped_bit_costs_only_itself() -> None:
    """Any bit of its data: it is counted as broken, and never read as something else."""
    line = spool.of_event(event(2))
    first, last = spool.of_booking(booking(1)), spool.of_checkpoints([Checkpoint("bk_3", 4, 5, MOMENT)])
    for position in range(len(line) - 1):
        for bit in range(8):
            flipped = bytearray(line)
            flipped[position] ^= 1 << bit
            lines = b"".join([first, flipped, last]).splitlines(keepends=True)
            found = spool.read(lines)
            assert found.bookings == [booking(1)]
            assert found.checkpoints == {"bk_3": Checkpoint("bk_3", 4, 5, MOMENT)}
            if found.events:  # the checksum's letter in the other case, or what parts it from the data
                assert position < 9, position
                assert (found.events, found.broken) == ([event(2)], 0)
            else:
                assert found.broken >= 1


def test_what_is_no_record_is_broken_and_nothing_worse() -> None:
    """Empty, binary, of somebody else, or a right checksum over a wrong content: no exception comes out."""
    wrong = [
        b"{}",
        b"[]",
        b"null",
        b'{"book": {}}',
        b'{"settle": 3}',
        b'{"checkpoints": [{"at": "x"}]}',
        b"\xff",
    ]
    lines = [f"{zlib.crc32(data):08x} ".encode() + data + b"\n" for data in wrong]
    lines += [b"\n", b"", b"hello\n", b"\x00" * 40 + b"\n", b"zzzzzzzz {}\n"]
    found = spool.read([spool.of_booking(booking(1)), *lines, spool.of_event(event(2))])
    assert found == spool.Records([booking(1)], {}, [event(2)], broken=len(lines))
