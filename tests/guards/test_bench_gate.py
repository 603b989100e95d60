"""`scripts/bench gate`, small enough for the suite: what it counts is right. No time is asserted."""

from __future__ import annotations

import pytest

from scripts.benchmarks.gate import Plan, fitted, lines_of, measure, percentile

PLAN = Plan(
    rounds=1,
    few=5,
    many=50,
    requests=64,
    many_requests=16,
    at_once=8,
    streams=10,
    pace_ms=5,
    paced_chunks=20,
    singles=10,
    open_streams=20,
    hold_seconds=1,
)


def test_it_measures_the_gate_as_shipped() -> None:
    """Every request is answered in full (else it ends), each with two calls of Redis; there is a table."""
    report = measure(PLAN, "sqlite", [], lambda _: None)
    figures = report["figures"]["sluicegate"]
    assert {len(values) for values in figures.values()} == {PLAN.rounds}
    assert 2 <= figures["redis_calls"][0] < 3  # and its ticks
    assert all(values[0] > 0 for name, values in figures.items() if name in {"paced_chunk_us", "gap_p99_ms"})
    text = "\n".join(lines_of(report))
    for word in ("CPU of a request", "CPU of a chunk, paced", "first token", "memory", "busy"):
        assert word in text


def test_costs_of_request_and_chunk_are_told_apart() -> None:
    """Two points on a line give its beginning and its slope."""
    request, chunk = fitted((10, 500 + 10 * 3.0), (510, 500 + 510 * 3.0))
    assert (request, chunk) == pytest.approx((500, 3))


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 1), (50, 51), (99, 100), (100, 100)], ids=["least", "median", "p99", "most"]
)
def test_percentiles_are_values_that_were_measured(percent: int, value: float) -> None:
    """Of the numbers from 1 to 100."""
    assert percentile([float(n) for n in range(100, 0, -1)], percent) == value
