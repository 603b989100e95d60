"""From limits to demands: where each is counted, and what a request asks of it.

Days and months are those of the tenant's time zone, and a request belongs to the one in which it came.
Tokens are input and output together.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple
from zoneinfo import ZoneInfo

from api.core.demand import STREAMS, Demand, Shape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from api.core.money import Price
    from auth.principal import Limit

_KEPT_LONGER_SECONDS = 86400
"""A budget's counter outlives its period by a day, for streams that began in it."""
_ALLOWANCE_SECONDS = 7200
"""An allowance is forgotten so long after its last use: longer than a bought token lives."""
_COUNTERS = {"max_streams": STREAMS}
_DECEMBER = 12


class Period(NamedTuple):
    """A day or a month of a time zone. Times are UTC: only there does Python compare instants."""

    label: str
    starts_at: datetime
    ends_at: datetime


def period_of(name: str, now: datetime, time_zone: str) -> Period | None:
    """The period that a limit of that name counts now, where it has one."""
    zone = ZoneInfo(time_zone)
    day = now.astimezone(zone).date()
    if name.endswith("_per_day"):
        return Period(day.isoformat(), midnight(day, zone), midnight(day + timedelta(days=1), zone))
    if name.endswith("_per_month"):
        first = day.replace(day=1)
        year, month = (day.year + 1, 1) if day.month == _DECEMBER else (day.year, day.month + 1)
        after = midnight(first.replace(year=year, month=month), zone)
        return Period(f"{first:%Y-%m}", midnight(first, zone), after)
    return None


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """When a day of a time zone begins, in UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


def demands_of(
    limits: Iterable[Limit],
    *,
    now: datetime,
    time_zone: str,
    input_tokens: int = 0,
    price: Price | None = None,
) -> tuple[Demand, ...]:
    """What a request asks of each limit. `price` must be there where a limit counts money."""
    return tuple(_demand(limit, now, time_zone, input_tokens, price) for limit in limits)


def _demand(limit: Limit, now: datetime, time_zone: str, input_tokens: int, price: Price | None) -> Demand:
    kind, owner, amount, name, shadow = limit
    period = period_of(name, now, time_zone)
    counter = _COUNTERS.get(name, name) + (f":{period.label}" if period else "") + _suffix(kind, owner)
    plain = Demand(Shape.CAP, counter, amount, shadow=shadow, of=kind, name=name)
    if name == "max_streams":
        return plain
    if name == "requests_per_minute":
        return plain._replace(shape=Shape.RATE, base=1)
    base, each = input_tokens, 1
    if name.startswith("nano_dollars") and price is not None:
        base, each = price.of_input(input_tokens), max(price.of_output_token, 1)
    if name == "tokens_per_minute":
        return plain._replace(shape=Shape.RATE, base=base, each=each)
    left = _ALLOWANCE_SECONDS
    if period is not None:
        left = int((period.ends_at - now).total_seconds()) + 1 + _KEPT_LONGER_SECONDS
    return plain._replace(shape=Shape.BUDGET, base=base, each=each, keep_seconds=left)


def _suffix(kind: str, owner: str) -> str:
    """Whose it is. An end user may have any name: a hash of it is what is kept."""
    if kind == "tenant":
        return ""
    if kind == "user":
        owner = hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f":{kind}:{owner}"


def seconds_left(demand: Demand) -> int | None:
    """How long a budget's period goes on; None where it has none."""
    left = demand.keep_seconds - _KEPT_LONGER_SECONDS
    return left if demand.shape is Shape.BUDGET and left > 0 else None
