"""`scripts/bench gate`, small enough for the suite: what it counts is right. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from scripts.benchmarks.gate import fitted, lines_of, percentile
from tests.support.servers import ROOT

PLAN = {
    "rounds": 1,
    "few": 5,
    "many": 50,
    "requests": 64,
    "many-requests": 16,
    "at-once": 8,
    "streams": 10,
    "pace-ms": 5,
    "paced-chunks": 20,
    "singles": 10,
    "open-streams": 20,
    "hold-seconds": 1,
}


def test_it_measures_the_gate_as_shipped() -> None:
    """Every request is answered in full (else it ends), each with two calls of Redis; there is a table."""
    options = [f"--{name}={value}" for name, value in PLAN.items()]
    command = [sys.executable, "-m", "scripts.benchmarks.gate", "--database=sqlite", "--json", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    figures = report["figures"]["sluicegate"]
    assert {len(values) for values in figures.values()} == {1}
    assert 2 <= figures["redis_calls"][0] < 3  # and its ticks
    assert min(figures["paced_chunk_us"] + figures["gap_p99_ms"]) > 0
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
