"""What an answer to a delivery means, and how long to wait after one that was none.

| answer | means |
| --- | --- |
| 2xx | taken |
| 400, 409, 413, 422 and every other 4xx | refused: something in the batch is at fault |
| 401, 402, 403, 404, 405, 407, 410, 415, 3xx | away: its address, the credential or the format is wrong |
| 408, 425, 429, 5xx, none at all | away |

A receiver that is away is tried for ever. An event that is refused by itself `MAX_ATTEMPTS` times is dead, if
the receiver has lately taken others: one that takes none is at fault itself.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

MAX_ATTEMPTS = 5
LATELY_SECONDS = 3600.0
MAX_WAIT_SECONDS = 3600.0
"""A receiver may ask for so much patience at most."""

_FIRST_SECONDS = 1.0
_LONGEST_SECONDS = 300.0
_FIRST_REFUSED_SECONDS = 10.0

_CONFIGURATION = frozenset({401, 402, 403, 404, 405, 407, 410, 415})
_PASSING = frozenset({408, 425, 429})


class Verdict(StrEnum):
    """What became of a batch."""

    TAKEN = "taken"
    REFUSED = "refused"
    AWAY = "away"
    MISCONFIGURED = "misconfigured"  # away, until somebody changes a setting here or there


def verdict_of(status: int | None) -> Verdict:
    """What a status says of a batch; None is no answer."""
    if status is None or status >= 500 or status in _PASSING:  # noqa: PLR2004 - as HTTP has them
        return Verdict.AWAY
    if 200 <= status < 300:  # noqa: PLR2004
        return Verdict.TAKEN
    if status < 400 or status in _CONFIGURATION:  # noqa: PLR2004
        return Verdict.MISCONFIGURED
    return Verdict.REFUSED


def pause_seconds(failures: int, retry_after_seconds: float | None, jitter: float) -> float:
    """How long to leave a receiver alone that was away so often in a row. `jitter` is from 0 to 1."""
    longest = min(_FIRST_SECONDS * (1 << min(failures - 1, 16)), _LONGEST_SECONDS)
    own = longest * (0.5 + jitter / 2)
    if retry_after_seconds is None:
        return own
    return min(max(retry_after_seconds, own), MAX_WAIT_SECONDS)


def refused_seconds(attempts: int) -> float:
    """How long until an event is sent again that was refused by itself so often; within the hour."""
    return _FIRST_REFUSED_SECONDS * (1 << 2 * (min(attempts, MAX_ATTEMPTS) - 1))


def retry_after(value: str | None, now: datetime) -> float | None:
    """The seconds that a `Retry-After` asks for (RFC 9110, 10.2.3); None where it makes no sense."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MAX_WAIT_SECONDS)
    try:
        moment = parsedate_to_datetime(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        seconds = (moment - now).total_seconds()
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), MAX_WAIT_SECONDS)
