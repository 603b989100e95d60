"""Sums of usage as SQL: the roll-ups, and the events that wait for them, in one statement, of one moment.

An event is in exactly one of the two: the writer of the roll-ups takes it out of the queue in the same
transaction that adds it up. So an answer is exact at every moment, however far behind the writer is.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sqlalchemy import ARRAY, Integer, String, case, func, literal, literal_column, select, union_all
from sqlalchemy import tuple_ as row_of

from api.adapters.tables_sql import UtcTime, rollup_queue, usage_events, usage_rollups
from api.core.usage_query import Sums

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement, Select, Subquery

    from api.core.usage_query import Segment, Span, UsageQuery

SUMS = tuple(Sums.__dataclass_fields__)

_ROLLED = usage_rollups.c
_EVENT = usage_events.c
_QUEUED = rollup_queue.c

ROLLED: Mapping[str, ColumnElement[Any]] = {
    "tenant": _ROLLED.tenant_id,
    "key": _ROLLED.key_id,
    "end_user": _ROLLED.end_user,
    "model": _ROLLED.model,
    "upstream": _ROLLED.upstream,
}
EVENTS: Mapping[str, ColumnElement[Any]] = {
    "tenant": _EVENT.tenant_id,
    "key": func.coalesce(_EVENT.key_id, ""),
    "end_user": func.coalesce(_EVENT.end_user, ""),
    "model": _EVENT.model,
    "upstream": _EVENT.upstream,
}
"""What the groups are called, in the roll-ups and in the events."""

OF_EVENTS: Sequence[ColumnElement[Any]] = (
    case((_EVENT.corrects.is_(None), 1), else_=0),
    _EVENT.input_tokens,
    _EVENT.cached_tokens,
    _EVENT.output_tokens,
    _EVENT.reasoning_tokens,
    func.coalesce(_EVENT.cost_nano_dollars, 0),
)
"""What a row of the ledger adds to each of SUMS."""

_NAMES = ("span", "cube", "starts_at", "ends_at")
_KINDS: Sequence[Any] = (Integer(), String(), UtcTime(), UtcTime())


def sums_of(row: Any) -> Sums:
    """The sums at the end of a row. PostgreSQL has them as decimals, and SQLite none of no rows."""
    return Sums(*(int(value or 0) for value in row[-len(SUMS) :]))


def total(query: UsageQuery) -> Select[Any]:
    """One row: the sums of all that a query asks for."""
    parts = _of_one(query, query.whole, (), None)
    return select(*_added(parts))


def grouped(
    query: UsageQuery, spans: Sequence[Span], behind: tuple[str, ...] | None, limit: int, dialect: str
) -> Select[Any]:
    """The number of a span among `spans`, the groups in the query's order, and SUMS.

    `behind` are the groups of a row of the first span: rows come from behind it on.
    """
    if query.interval is None:
        parts = _of_one(query, spans[0], query.order, behind)
    else:
        parts = _of_many(query, spans, query.order, behind, dialect)
    names = [parts.c.span, *(parts.c[name] for name in query.order)]
    return select(*names, *_added(parts)).group_by(*names).order_by(*names).limit(limit)


def _added(parts: Subquery) -> list[ColumnElement[Any]]:
    return [func.sum(parts.c[name]).label(name) for name in SUMS]


def _of_one(query: UsageQuery, span: Span, order: Sequence[str], behind: tuple[str, ...] | None) -> Subquery:
    """A branch for each segment, with its times as constants: for those an index keeps end users in order."""
    number: ColumnElement[Any] = literal_column("0").label("span")
    rolled = [
        _rolled(query, number, order).where(
            _ROLLED.cube == segment.cube,
            _ROLLED.starts_at >= segment.starts_at,
            _ROLLED.starts_at < segment.ends_at,
        )
        for segment in query.segments(span)
    ]
    waiting = _waiting(query, number, order).where(
        _QUEUED.started_at >= span.starts_at, _QUEUED.started_at < span.ends_at
    )
    if behind is not None:
        rolled = [part.where(_is_behind(ROLLED, order, behind)) for part in rolled]
        waiting = waiting.where(_is_behind(EVENTS, order, behind))
    return union_all(*rolled, waiting).subquery("parts")


def _of_many(
    query: UsageQuery,
    spans: Sequence[Span],
    order: Sequence[str],
    behind: tuple[str, ...] | None,
    dialect: str,
) -> Subquery:
    """Segments as a table to join: the statement is the same text for any number of them."""
    segments = [(number, segment) for number, span in enumerate(spans) for segment in query.segments(span)]
    rolled_in, waiting_in = (_table(segments, dialect, name) for name in ("rolled_in", "waiting_in"))
    rolled = _rolled(query, rolled_in.c.span, order).where(
        _ROLLED.cube == rolled_in.c.cube,
        _ROLLED.starts_at >= rolled_in.c.starts_at,
        _ROLLED.starts_at < rolled_in.c.ends_at,
    )
    waiting = _waiting(query, waiting_in.c.span, order).where(
        _QUEUED.started_at >= waiting_in.c.starts_at, _QUEUED.started_at < waiting_in.c.ends_at
    )
    if behind is not None:
        rolled = rolled.where((rolled_in.c.span > 0) | _is_behind(ROLLED, order, behind))
        waiting = waiting.where((waiting_in.c.span > 0) | _is_behind(EVENTS, order, behind))
    return union_all(rolled, waiting).subquery("parts")


def _rolled(query: UsageQuery, number: ColumnElement[Any], order: Sequence[str]) -> Select[Any]:
    names = (ROLLED[name].label(name) for name in order)
    chosen = select(number, *names, *(_ROLLED[name] for name in SUMS))
    return chosen.where(*_filters(query, ROLLED))


def _waiting(query: UsageQuery, number: ColumnElement[Any], order: Sequence[str]) -> Select[Any]:
    names = (EVENTS[name].label(name) for name in order)
    amounts = (amount.label(name) for name, amount in zip(SUMS, OF_EVENTS, strict=True))
    chosen = select(number, *names, *amounts).where(
        # The times are the same: with them a partition is found.
        _EVENT.id == _QUEUED.event_id,
        _EVENT.started_at == _QUEUED.started_at,
        *_filters(query, EVENTS),
    )
    return chosen if query.tenant_id is None else chosen.where(_QUEUED.tenant_id == query.tenant_id)


def _filters(query: UsageQuery, columns: Mapping[str, ColumnElement[Any]]) -> list[ColumnElement[bool]]:
    wanted = dict(query.filters) | ({} if query.tenant_id is None else {"tenant": query.tenant_id})
    return [columns[name] == value for name, value in wanted.items()]


def _is_behind(
    columns: Mapping[str, ColumnElement[Any]], order: Sequence[str], behind: tuple[str, ...]
) -> ColumnElement[bool]:
    if len(order) == 1:
        return columns[order[0]] > behind[0]
    values = [literal(value, String) for value in behind]
    return row_of(*(columns[name] for name in order)) > row_of(*values)


def _table(segments: Sequence[tuple[int, Segment]], dialect: str, name: str) -> Subquery:
    """Rows of span, cube, starts_at and ends_at, from as many parameters whatever their number."""
    if dialect == "sqlite":
        rows = [
            (number, one.cube, *(f"{at:%Y-%m-%d %H:%M:%S.%f}" for at in one[1:])) for number, one in segments
        ]
        each = func.json_each(json.dumps(rows)).table_valued("value")
        picked: list[Any] = [func.json_extract(each.c.value, f"$[{position}]") for position in range(4)]
    else:
        columns = zip(*((number, *one) for number, one in segments), strict=True)
        arrays: list[Any] = [
            literal(list(values), ARRAY(kind)) for values, kind in zip(columns, _KINDS, strict=True)
        ]
        picked = list(func.unnest(*arrays).table_valued(*_NAMES).render_derived().c)
    return select(*(one.label(label) for one, label in zip(picked, _NAMES, strict=True))).subquery(name)
