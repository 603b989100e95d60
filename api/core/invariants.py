"""What must hold of the ledger: how a check is told, and those that are seen in one booking's events.

A booking's events are its own, number 0, and the corrections of that, numbered from 1 on. After each of them
the costs so far are what the tokens so far cost by the price that the last of them names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from api.core.money import Price
from api.core.usage import Certainty, Source, Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from api.core.money import Markup, PriceVersion

SHOWN = 20
"""So many rows of a broken invariant are shown, and all are counted."""

LABELS = (
    "request_id",
    "tenant_id",
    "key_id",
    "token_id",
    "end_user",
    "dialect",
    "model",
    "upstream",
    "started_at",
)
"""What an event and its corrections have in common."""

TOKENS = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
EVENT_FIELDS = ("id", "corrects", *LABELS, *TOKENS, "cost_nano_dollars", "price_version")
"""What these checks look at."""


@dataclass
class Check:
    """An invariant, and what breaks it. `note` says what was not looked at, or what else is to be known.

    `unknown`: it could not be looked at, though it should have been; that is not held either.
    """

    name: str
    says: str
    broken: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""
    unknown: bool = False

    @property
    def held(self) -> bool:
        """Whether nothing was found that breaks it."""
        return not self.broken and not self.unknown

    def found(self, fault: str, *, times: int = 1, **row: Any) -> None:
        """Something breaks it."""
        self.broken += times
        if len(self.rows) < SHOWN:
            self.rows.append({**row, "fault": fault})

    def add(self, note: str) -> None:
        """One more thing to know."""
        self.note = f"{self.note} {note}".strip()

    def told(self) -> dict[str, Any]:
        """For a program."""
        return {
            "name": self.name,
            "held": self.held,
            "broken": self.broken,
            "rows": self.rows,
            "note": self.note,
        }


class PriceList(NamedTuple):
    """All prices and markups, by version."""

    prices: Mapping[int, PriceVersion]
    markups: Mapping[int, Markup]

    def named(self, name: str, model: str, tenant_id: str) -> Price | str:
        """The price of that name for a model and a tenant, or what is wrong with the name."""
        version, plus, markup = name.partition("+")
        row = self.prices.get(_number(version))
        if row is None:
            return f"there is no price {version}"
        wild = row.model.endswith("*") and model.startswith(row.model[:-1])
        if row.model != model and not wild:
            return f"price {version} is one of {row.model}"
        price = Price(row.input, row.cached_input, row.output, row.reasoning, version=name)
        if not plus:
            return price
        added = self.markups.get(_number(markup))
        if added is None:
            return f"there is no markup {markup}"
        if added.tenant_id != tenant_id:
            return f"markup {markup} is tenant {added.tenant_id}'s"
        return Price(
            row.input, row.cached_input, row.output, row.reasoning, markup=added.basis_points, version=name
        )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else -1


class Group:
    """The rows of one booking, as the ledger gives them: `own` are those of number 0."""

    def __init__(self, booking_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self.booking_id = booking_id
        self.own: list[Mapping[str, Any]] = []
        self.corrections: list[tuple[int, Mapping[str, Any]]] = []
        self.misnamed: list[Mapping[str, Any]] = []
        for row in rows:
            if row["corrects"] is None:
                (self.misnamed if "-" in row["id"] else self.own).append(row)
                continue
            start, _, number = row["id"].rpartition("-")
            if start == booking_id and _number(number) > 0:
                self.corrections.append((int(number), row))
            else:
                self.misnamed.append(row)
        self.corrections.sort(key=lambda one: one[0])

    @property
    def ordered(self) -> list[Mapping[str, Any]]:
        """All that are what they say they are."""
        return [*self.own, *(row for _, row in self.corrections)]


def single_faults(group: Group) -> Iterator[tuple[str, str]]:
    """Ids, and why they are not the only event of their booking."""
    if len(group.own) > 1:
        yield group.booking_id, f"{len(group.own)} events of one booking"


def correction_faults(group: Group) -> Iterator[tuple[str, str]]:
    """Ids of corrections, and what is wrong with each."""
    for row in group.misnamed:
        yield row["id"], f"an id that fits neither an event nor a correction of {group.booking_id}"
    if not group.own:
        for _, row in group.corrections:
            yield row["id"], "corrects a booking that has no event"
        return
    for expected, (number, row) in enumerate(group.corrections, start=1):
        if number != expected:
            yield row["id"], f"number {number} where {expected} comes next"
            return
    own = group.own[0]
    for _, row in group.corrections:
        others = [name for name in LABELS if row[name] != own[name]]
        if others:
            yield row["id"], f"other labels than its event: {', '.join(others)}"


def cost_faults(group: Group, prices: PriceList) -> Iterator[tuple[str, str]]:
    """Ids of events after which the booking's cost is not what its tokens cost, by the price they name."""
    tokens = dict.fromkeys(TOKENS, 0)
    cost = 0
    for row in group.ordered if group.own else ():  # differences of nothing have no cost of their own
        for name in TOKENS:
            tokens[name] += row[name]
        cost += row["cost_nano_dollars"] or 0
        if row["price_version"] is None:
            continue
        price = prices.named(row["price_version"], row["model"], row["tenant_id"])
        if isinstance(price, str):
            yield row["id"], price
        elif cost != (right := price.of(_used(tokens))):
            yield row["id"], f"costs {cost} nano-dollars; by price {price.version} it is {right}"


def _used(tokens: Mapping[str, int]) -> Usage:
    inputs, outputs, cached, reasoning = (max(0, tokens[name]) for name in TOKENS)
    return Usage(inputs, outputs, cached, reasoning, Source.PROVIDER, Certainty.EXACT)


def by_booking(rows: Sequence[Mapping[str, Any]]) -> Iterator[Group]:
    """Rows in the order of their ids, in which a booking's stand together."""
    start = 0
    for position in range(1, len(rows) + 1):
        if position == len(rows) or booking_of(rows[position]) != booking_of(rows[start]):
            yield Group(booking_of(rows[start]), rows[start:position])
            start = position


def booking_of(row: Mapping[str, Any]) -> str:
    """The booking that an event is of."""
    return str(row["corrects"] or row["id"])
