"""Records of the spool: a line each, with a checksum that tells what is whole from what a crash tore.

A line is eight hex digits of CRC-32, a space, JSON. Its one key says what it is: `book`, `settle`, or
`checkpoints`.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from api.core.booking import Correction, Ended, Happening
from api.core.record import Booking, Checkpoint, UsageEvent
from api.core.usage import Certainty, Source, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_CRC_DIGITS = 8


class Records(NamedTuple):
    """What a spool holds, each kind in the order it came; `broken` lines could not be read."""

    bookings: list[Booking]
    checkpoints: dict[str, Checkpoint]
    events: list[UsageEvent]
    broken: int = 0


def of_booking(booking: Booking) -> bytes:
    """A booking that is opened."""
    return _line({"book": asdict(booking)})


def of_event(event: UsageEvent) -> bytes:
    """A booking that is settled."""
    return _line({"settle": asdict(event)})


def of_checkpoints(checkpoints: Iterable[Checkpoint]) -> bytes:
    """Running counts."""
    return _line({"checkpoints": [asdict(one) for one in checkpoints]})


def _line(record: dict[str, Any]) -> bytes:
    # Not msgspec: that refuses half characters and large numbers, and what is refused here is lost.
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), default=datetime.isoformat)
    data = text.encode("utf-8", "surrogatepass")
    return f"{zlib.crc32(data):08x} ".encode() + data + b"\n"


def read(lines: Sequence[bytes]) -> Records:
    """Records of whole lines."""
    found = Records([], {}, [])
    broken = 0
    for line in lines:
        try:
            _take(found, _record(line))
        except (ValueError, KeyError, TypeError):
            broken += 1
    return found._replace(broken=broken)


def _record(line: bytes) -> dict[str, Any]:
    data = line[_CRC_DIGITS + 1 :].rstrip(b"\n")
    if int(line[:_CRC_DIGITS], 16) != zlib.crc32(data):
        raise ValueError("a broken line")
    record: dict[str, Any] = json.loads(data.decode("utf-8", "surrogatepass"))
    return record


def _take(found: Records, record: dict[str, Any]) -> None:
    if "book" in record:
        found.bookings.append(_booking(record["book"]))
    elif "settle" in record:
        found.events.append(_event(record["settle"]))
    else:
        for one in record["checkpoints"]:
            checkpoint = Checkpoint(**one | {"at": datetime.fromisoformat(one["at"])})
            found.checkpoints[checkpoint.booking_id] = checkpoint


def _booking(values: dict[str, Any]) -> Booking:
    return Booking(**values | {"started_at": datetime.fromisoformat(values["started_at"])})


def _event(values: dict[str, Any]) -> UsageEvent:
    usage, cause = values["usage"], values["cause"]
    known = {
        "booking": _booking(values["booking"]),
        "usage": Usage(
            **usage | {"source": Source(usage["source"]), "certainty": Certainty(usage["certainty"])}
        ),
        "ended": Ended(values["ended"]),
        "cause": Correction(cause) if cause in set(Correction) else Happening(cause),
        "ended_at": datetime.fromisoformat(values["ended_at"]),
    }
    return UsageEvent(**values | known)
