"""Server-sent events, framed from bytes.

Source: HTML Living Standard, 9.2.6 "Interpreting an event stream". A line ends in LF, CR or CRLF and in
nothing else: U+2028, U+0085 and the form feed are text. A blank line ends an event. Everything is linear
in the bytes fed, and bounded: an event that grows over `max_event_bytes` raises EventTooLarge.
"""

from __future__ import annotations

import re
from typing import NamedTuple

HEARTBEAT = b": keep-alive\n"
"""One newline only: `: x\\n\\n` makes openai-go before 3.43 abort (maximhq/bifrost#5874)."""

_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventTooLarge(ValueError):  # noqa: N818 - reads as what happened
    """The other side sent an event over the bound."""


class Event(NamedTuple):
    """One event: its bytes as they came, blank line included, and what they mean."""

    raw: bytes
    name: bytes
    data: bytes


class Framer:
    """Bytes in, whole events out. `pending` is True in the middle of an event."""

    __slots__ = ("_after_cr", "_begun", "_buffer", "_max_event_bytes", "_scanned", "_too_large")

    def __init__(self, max_event_bytes: int) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._after_cr = False
        self._begun = False
        self._too_large = False
        self._max_event_bytes = max_event_bytes

    @property
    def pending(self) -> bool:
        """Whether bytes of an unfinished event are held back."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[Event]:
        """Events completed by `data`, in order.

        Raises EventTooLarge; events that were whole before the large one are handed out first, and the next
        call raises.
        """
        if self._after_cr and data:
            self._after_cr = False
            if data[:1] == b"\n":
                data = data[1:]  # the LF of a CRLF that was torn apart; the CR has already ended the event
        buffer = self._buffer
        if not (buffer or self._too_large or b"\r" in data) and len(data) <= self._max_event_bytes:
            return self._feed_plain(data)
        buffer += data
        events: list[Event] = []
        start = 0
        for match in _BLANK_LINE.finditer(buffer, max(0, self._scanned - 3)):
            if self._too_large or match.end() - start > self._max_event_bytes:
                self._too_large = True
                break
            events.append(parse(bytes(buffer[start : match.end()]), at_start=not self._begun))
            self._begun = True
            start = match.end()
        if start:
            self._after_cr = buffer[-1:] == b"\r" and start == len(buffer)
            del buffer[:start]
        self._scanned = len(buffer)
        self._too_large = self._too_large or len(buffer) > self._max_event_bytes
        if self._too_large and not events:
            raise EventTooLarge(f"an event of more than {self._max_event_bytes} bytes")
        return events

    def end(self) -> list[Event]:
        """The body is over: a last event without its blank line still counts, not all servers are careful."""
        return self.feed(b"\n\n" if self.pending else b"")

    def _feed_plain(self, data: bytes) -> list[Event]:
        """As nearly all reads are: lines end in LF alone, and the first of them begins an event."""
        *whole, rest = data.split(b"\n\n")
        events = [parse(raw + b"\n\n", at_start=not self._begun) for raw in whole[:1]]
        events += [parse(raw + b"\n\n") for raw in whole[1:]]
        self._begun = self._begun or bool(whole)
        self._buffer += rest
        self._scanned = len(rest)
        return events


def parse(raw: bytes, *, at_start: bool = False) -> Event:
    """The meaning of one event's bytes. `data` is b"" where the event has no data line.

    A byte order mark counts for nothing at the start of a stream, and for a character elsewhere.
    """
    if raw.startswith(b"data: "):
        line = raw.rstrip(b"\r\n")
        if b"\n" not in line and b"\r" not in line:
            return Event(raw, b"", line[6:])
    if raw.startswith(b"event: ") and b"\r" not in raw:
        head, _, rest = raw.partition(b"\n")
        line = rest.rstrip(b"\n")
        if line.startswith(b"data: ") and b"\n" not in line:
            return Event(raw, head[7:], line[6:])
    name = b""
    data: list[bytes] = []
    for line in _LINE_END.split(raw.removeprefix(b"\xef\xbb\xbf") if at_start else raw):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return Event(raw, name, b"\n".join(data))


def data_event(payload: bytes) -> bytes:
    """An event with one data line; `payload` must hold no line end (JSON never does)."""
    return b"data: " + payload + b"\n\n"


def named_event(name: str, payload: bytes) -> bytes:
    """The same, with a name."""
    return b"event: " + name.encode() + b"\n" + data_event(payload)
