"""What a worker counts of itself, and what all workers of a host have counted: plain numbers, no library.

A stream adds to them in well under a microsecond; `routes/metrics.py` shows them to Prometheus, and
`METRICS` is the whole list, with bounded labels: no tenant, no key, no model of a caller's choice.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Labels = tuple[str, ...]

FRESH_SECONDS = 10.0
"""A gauge of a worker that has said nothing for so long is not true any more; what it counted still is."""

_MS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)
_SHORT = (*_MS, 1.0, 2.5, 5.0)
_LONG = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_WHOLE = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metric(NamedTuple):
    """A family: what it is, its labels, and the upper bounds of a histogram's buckets."""

    kind: str  # counter, gauge or histogram
    help: str
    labels: Labels = ()
    bounds: tuple[float, ...] = ()


METRICS: dict[str, Metric] = {
    # per stream
    "first_token_seconds": Metric(
        "histogram", "From the coming of a request to the first token of its answer.", ("upstream",), _LONG
    ),
    "token_seconds": Metric(
        "histogram", "Time for each output token after the first, of a whole answer.", ("upstream",), _SHORT
    ),
    "chunk_gap_seconds": Metric("histogram", "Between two sends of one stream to its client.", (), _LONG),
    "stream_seconds": Metric(
        "histogram", "From the coming of a request to its settlement.", ("upstream", "ended"), _WHOLE
    ),
    "admission_wait_seconds": Metric(
        "histogram", "From the coming of a request to its admission, or refusal.", ("outcome",), _SHORT
    ),
    "refusals": Metric("counter", "Requests that were not admitted, and why.", ("limit", "of")),
    "bookings_ended": Metric(
        "counter", "Bookings that became events, by how they ended.", ("ended", "cause")
    ),
    "tokens": Metric("counter", "Tokens on the ledger.", ("upstream", "direction")),
    "upstream_failures": Metric(
        "counter", "Answers that an upstream did not give, or broke off.", ("upstream", "when")
    ),
    # per worker
    "open_streams": Metric("gauge", "Streams that are admitted and not settled."),
    "live_tokens": Metric("gauge", "Output tokens so far, of streams that are open."),
    "waiting_requests": Metric("gauge", "Requests that wait to be admitted."),
    "upstream_streams": Metric("gauge", "Answers of an upstream that are being read.", ("upstream",)),
    "upstream_standing": Metric(
        "gauge", "Workers for whom the breaker stands so: closed, open, half_open.", ("upstream", "standing")
    ),
    "spool_bytes": Metric("gauge", "Bytes of the ledger that wait on disk for the database."),
    "ledger_away": Metric("gauge", "Workers whose database is away."),
    "limiter_degraded": Metric("gauge", "Workers that keep to their share, because Redis is away."),
    "workers": Metric("gauge", "Workers of this host that live."),
    "reaper_closed": Metric("counter", "Bookings that were closed for workers that died."),
    "loop_lag_seconds": Metric("histogram", "How late the event loop was for a tick.", (), _SHORT),
}
"""By name, without `sluicegate_`."""


class Histogram:
    """Counts by upper bound; the last count is of what lies over all of them."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


class Snapshot(msgspec.Struct):
    """Everything that a worker has counted up to a moment (UTC seconds)."""

    worker: str
    at: float
    values: list[tuple[str, Labels, float]]
    histograms: list[tuple[str, Labels, list[int], float]]


class Numbers:
    """One worker's. Names and labels are those of METRICS."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, Labels], float] = {}
        self._histograms: dict[tuple[str, Labels], Histogram] = {}
        self.chunk_gaps = self.histogram("chunk_gap_seconds")  # found once: it is asked at each chunk

    def add(self, name: str, *labels: str, by: float = 1) -> None:
        """Count."""
        key = (name, labels)
        self._values[key] = self._values.get(key, 0) + by

    def histogram(self, name: str, *labels: str) -> Histogram:
        """The one of these labels."""
        found = self._histograms.get((name, labels))
        if found is None:
            found = self._histograms[name, labels] = Histogram(METRICS[name].bounds)
        return found

    def snapshot(self, worker: str, at: float, gauges: Iterable[tuple[str, Labels, float]] = ()) -> Snapshot:
        """All of it, with gauges as they are now."""
        counted = [(name, labels, value) for (name, labels), value in self._values.items()]
        seen = [(name, labels, list(h.counts), h.total) for (name, labels), h in self._histograms.items()]
        return Snapshot(worker, at, [*counted, *gauges], seen)


class Totals(NamedTuple):
    """Over all workers."""

    values: Mapping[tuple[str, Labels], float]
    histograms: Mapping[tuple[str, Labels], Histogram]


def merged(snapshots: Iterable[Snapshot], now: float) -> Totals:
    """The sums; gauges are of those alone who have spoken lately."""
    values: dict[tuple[str, Labels], float] = {}
    histograms: dict[tuple[str, Labels], Histogram] = {}
    for snapshot in snapshots:
        fresh = now - snapshot.at < FRESH_SECONDS
        for name, labels, value in snapshot.values:
            if name in METRICS and (fresh or METRICS[name].kind != "gauge"):
                values[name, labels] = values.get((name, labels), 0) + value
        for name, labels, counts, total in snapshot.histograms:
            if name in METRICS and len(counts) == len(METRICS[name].bounds) + 1:
                into = histograms.setdefault((name, labels), Histogram(METRICS[name].bounds))
                into.counts = [a + b for a, b in zip(into.counts, counts, strict=True)]
                into.total += total
    return Totals(values, histograms)
