"""What a booking costs by other prices than those of its day: a correction for the difference, or nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from api.core.booking import Correction

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from api.core.money import Price
    from api.core.record import UsageEvent
    from api.core.usage import Usage

_TOKENS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")


class Period(NamedTuple):
    """Which bookings: those that came in from `since` on and before `until`.

    `model` is the name that was asked for, or its beginning and a `*`.
    """

    since: datetime
    until: datetime
    tenant_id: str | None = None
    model: str | None = None


class Repriced(NamedTuple):
    """What was looked at, and what came of it: `nano_dollars` is the sum of the differences.

    `unpriced` have no price by the list, and keep the cost that they have or have not.
    """

    bookings: int = 0
    corrected: int = 0
    unpriced: int = 0
    nano_dollars: int = 0

    def plus(self, corrections: Sequence[UsageEvent], *, bookings: int = 0, unpriced: int = 0) -> Repriced:
        """With these as well."""
        cost = sum(one.cost_nano_dollars or 0 for one in corrections)
        return Repriced(
            self.bookings + bookings,
            self.corrected + len(corrections),
            self.unpriced + unpriced,
            self.nano_dollars + cost,
        )


def repriced(standing: Sequence[UsageEvent], price: Price, at: datetime) -> UsageEvent | None:
    """The correction of a booking whose events are `standing`, in their order; None where none is needed.

    Its tokens are none: what was used is not in question.
    """
    first = standing[0]
    used = {name: max(0, sum(getattr(one.usage, name) for one in standing)) for name in _TOKENS}
    cost = price.of(_with_tokens(first.usage, used))
    costs = [one.cost_nano_dollars for one in standing if one.cost_nano_dollars is not None]
    if costs and sum(costs) == cost:
        return None
    return replace(
        first,
        usage=_with_tokens(first.usage, dict.fromkeys(_TOKENS, 0)),
        cause=Correction.REPRICED,
        ended_at=at,
        cost_nano_dollars=cost - sum(costs),
        price_version=price.version,
        number=standing[-1].number + 1,
    )


def _with_tokens(usage: Usage, tokens: Mapping[str, Any]) -> Usage:
    return replace(usage, **tokens)
