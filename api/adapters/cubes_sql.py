"""Sums of usage as SQL: the roll-ups, and the events that wait for them, in one statement, of one moment.

An event is in exactly one of the two: the writer of the roll-ups takes it out of the queue in the same
transaction that adds it up. So an answer is exact at every moment, however far behind the writer is.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import ARRAY, Join, String, case, func, literal, literal_column, select, union_all
from sqlalchemy import tuple_ as row_of
from sqlalchemy.ext.compiler import compiles

from api.adapters.tables_sql import UtcTime, rollup_queue, usage_events, usage_rollups
from api.core.usage_query import Sums

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Select, Subquery

    from api.core.usage_query import Segment, Span, UsageQuery

    _Columns = Mapping[str, ColumnElement[Any]]

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


class Bounds(NamedTuple):
    """From where on: behind the groups of a row of the first span. And to which end user."""

    behind: tuple[str, ...] | None = None
    last_user: str | None = None


def sums_of(row: Any) -> Sums:
    """The sums at the end of a row. PostgreSQL has them as decimals, and SQLite none of no rows."""
    return Sums(*(int(value or 0) for value in row[-len(SUMS) :]))


def total(query: UsageQuery) -> Select[Any]:
    """One row: the sums of all that a query asks for."""
    query = replace(query, interval=None, group_by=())  # days are quicker to add up than end users
    return select(*_added(_parts(query, [query.whole], (), Bounds(), _one)))


def last_user(query: UsageQuery, behind: tuple[str, ...] | None, limit: int) -> Select[Any]:
    """The end user with whom a page of so many rows is full, where there are so many end users.

    For a query whose rows come in their order: with it a page costs what is on it, and not all that there is.
    """
    (segment,) = query.segments(query.whole)
    users = select(_ROLLED.end_user).where(*_filters(query, ROLLED), *_within(segment))
    if behind is not None:
        users = users.where(_ROLLED.end_user >= behind[0])  # one more: this one may have no other row
    return users.distinct().order_by(_ROLLED.end_user).offset(limit).limit(1)


def _within(segment: Segment) -> tuple[ColumnElement[bool], ...]:
    return (
        _ROLLED.cube == literal_column(f"'{segment.cube}'"),  # each has plans of its own
        _ROLLED.starts_at >= segment.starts_at,
        _ROLLED.starts_at < segment.ends_at,
    )


def grouped(
    query: UsageQuery, spans: Sequence[Span], bounds: Bounds, limit: int, dialect: str
) -> Select[Any]:
    """The number of a span among `spans`, which are neighbours, the groups in the query's order, and SUMS."""
    names = list(query.order)
    if query.interval is None:
        parts = _parts(query, spans, query.order, bounds, _one)
    else:
        names.insert(0, "span")
        if dialect == "sqlite":
            parts = _joined(query, spans, bounds)
        else:
            begins = literal([span.starts_at for span in spans], ARRAY(UtcTime()))
            parts = _parts(query, spans, query.order, bounds, lambda at: func.width_bucket(at, begins) - 1)
    keys = [parts.c[name] for name in names]
    number = literal_column("0") if query.interval is None else keys.pop(0)
    chosen = select(number, *keys, *_added(parts))
    order = [parts.c[name] for name in names]
    return chosen.group_by(*order).order_by(*order).limit(limit)


def _one(_at: Any) -> Any:
    """There is one span."""
    return literal_column("0")


def _added(parts: Subquery) -> list[ColumnElement[Any]]:
    return [func.sum(parts.c[name]).label(name) for name in SUMS]


def _parts(
    query: UsageQuery,
    spans: Sequence[Span],
    order: Sequence[str],
    bounds: Bounds,
    number: Callable[[ColumnElement[Any]], ColumnElement[Any]],
) -> Subquery:
    """The roll-ups of each segment, and the events that wait. Times are constants, so that indexes help."""
    bounded = _bounds(ROLLED, _ROLLED.starts_at, spans, order, bounds)
    rolled = [
        _rolled(query, number(_ROLLED.starts_at), order).where(*_within(segment), *bounded)
        for segment in query.merged(spans)
    ]
    waiting = _waiting(query, number(_QUEUED.started_at), order, spans, bounds)
    return union_all(*rolled, waiting).subquery("parts")


def _joined(query: UsageQuery, spans: Sequence[Span], bounds: Bounds) -> Subquery:
    """For SQLite, which cannot tell the number of a span: segments and spans are tables to begin with."""
    numbered = list(enumerate(spans))
    segments = _table([(number, *one) for number, span in numbered for one in query.segments(span)], "some")
    of_segment = (
        (_ROLLED.cube == segments.c.cube)
        & (_ROLLED.starts_at >= segments.c.starts_at)
        & (_ROLLED.starts_at < segments.c.ends_at)
    )
    rolled = _rolled(query, segments.c.span, query.order).where(
        *_bounds(ROLLED, _ROLLED.starts_at, spans, query.order, bounds)
    )
    waits = _table([(number, "", *span) for number, span in numbered], "waits")
    of_span = (_QUEUED.started_at >= waits.c.starts_at) & (_QUEUED.started_at < waits.c.ends_at)
    is_queued = (_EVENT.id == _QUEUED.event_id) & (_EVENT.started_at == _QUEUED.started_at)
    waiting = _waiting(query, waits.c.span, query.order, spans, bounds)
    return union_all(
        rolled.select_from(_Then(segments, usage_rollups, of_segment)),
        waiting.select_from(_Then(_Then(waits, rollup_queue, of_span), usage_events, is_queued)),
    ).subquery("parts")


class _Then(Join):
    """For each row of the one the rows of the other: SQLite's own guess can be a hundred times slower."""

    inherit_cache = True


@compiles(_Then)
def _then(join: _Then, compiler: Any, **options: Any) -> str:
    left, right = (compiler.process(side, **options | {"asfrom": True}) for side in (join.left, join.right))
    return f"{left} CROSS JOIN {right} ON {compiler.process(join.onclause, **options | {'asfrom': False})}"


def _table(rows: Sequence[tuple[int, str, datetime, datetime]], name: str) -> Subquery:
    texts = [(number, cube, *(f"{at:%Y-%m-%d %H:%M:%S.%f}" for at in times)) for number, cube, *times in rows]
    each = func.json_each(json.dumps(texts)).table_valued("value")
    names = ("span", "cube", "starts_at", "ends_at")
    picked = (
        func.json_extract(each.c.value, f"$[{position}]").label(label) for position, label in enumerate(names)
    )
    return select(*picked).subquery(name)


def _rolled(query: UsageQuery, number: ColumnElement[Any], order: Sequence[str]) -> Select[Any]:
    names = (ROLLED[name].label(name) for name in order)
    chosen = select(number.label("span"), *names, *(_ROLLED[name] for name in SUMS))
    return chosen.where(*_filters(query, ROLLED))


def _waiting(
    query: UsageQuery, number: ColumnElement[Any], order: Sequence[str], spans: Sequence[Span], bounds: Bounds
) -> Select[Any]:
    names = (EVENTS[name].label(name) for name in order)
    amounts = (amount.label(name) for name, amount in zip(SUMS, OF_EVENTS, strict=True))
    chosen = select(number.label("span"), *names, *amounts).where(
        _QUEUED.started_at >= spans[0].starts_at,
        _QUEUED.started_at < spans[-1].ends_at,
        # The times are the same: with them a partition is found.
        _EVENT.id == _QUEUED.event_id,
        _EVENT.started_at == _QUEUED.started_at,
        *_filters(query, EVENTS),
        *_bounds(EVENTS, _QUEUED.started_at, spans, order, bounds),
    )
    return chosen if query.tenant_id is None else chosen.where(_QUEUED.tenant_id == query.tenant_id)


def _filters(query: UsageQuery, columns: _Columns) -> list[ColumnElement[bool]]:
    wanted = dict(query.filters) | ({} if query.tenant_id is None else {"tenant": query.tenant_id})
    return [columns[name] == value for name, value in wanted.items()]


def _bounds(
    columns: _Columns, at: ColumnElement[Any], spans: Sequence[Span], order: Sequence[str], bounds: Bounds
) -> list[ColumnElement[bool]]:
    behind, last = bounds
    found: list[ColumnElement[bool]] = [] if last is None else [columns["end_user"] <= last]
    if behind is None:
        return found
    if len(order) == 1:
        later = columns[order[0]] > behind[0]
    else:
        values = [literal(value, String) for value in behind]
        later = row_of(*(columns[name] for name in order)) > row_of(*values)
        if len(spans) == 1:  # what follows from it, for an index
            found.append(columns[order[0]] >= behind[0])
    return [*found, later if len(spans) == 1 else later | (at >= spans[0].ends_at)]
