"""`scripts/simulate_scale` and `scripts/prove streams`, small enough for the suite. No time is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from scripts.scale import Load, RedisCosts, needs
from tests.support.servers import ROOT

FIGURES = {
    "request_us": 1000.0,
    "paced_chunk_us": 50.0,
    "open_us_per_second": 100.0,
    "memory_mb_per_1000": 40.0,
    "database_us": 50.0,
    "database_stream_us_per_second": 10.0,
}


def run(*words: str) -> dict[str, Any]:
    """A command of ours, in a process of its own."""
    command = [sys.executable, "-m", *words, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_what_streams_need_is_what_they_cost() -> None:
    """1,000 streams of 10 s are 100 requests a second; every part is the sum of its costs."""
    found = needs(FIGURES, RedisCosts(1, 200.0, 20.0), Load(1000, 10, 20, 1))
    assert found == pytest.approx(
        {
            "streams": 1000,
            "requests_per_second": 100,
            "gate_cores": 0.1 + 1.1,
            "workers": 2,
            "gate_gigabytes": 0.04,
            "redis_cores": 0.02 + 0.02,
            "redis_shards": 1,
            "ledger_cores": 0.005 + 0.01,
            "ledger_rows_per_second": 1200,
        }
    )


def test_the_simulation_runs_the_limiters_own_scripts() -> None:
    """On a real Redis, full of leases: its CPU is measured, and the figures in the documentation are read."""
    found = run("scripts.scale", "--leases", "100", "400", "--streams", "10000", "20000")
    assert [one["leases"] for one in found["redis"]] == [100, 400]
    assert all(one["request_us"] > 0 and one["renewal_us"] > 0 for one in found["redis"])
    few, many = found["needs"]
    assert many["gate_cores"] == pytest.approx(2 * few["gate_cores"])


def test_many_streams_are_open_at_once_and_none_fails() -> None:
    """Two workers, a few hundred streams: each ends in full, and all were open at the same moment."""
    words = ("--streams", "200", "--workers", "2", "--chunks", "8", "--pace-ms", "500", "--stagger-ms", "5")
    found = run("scripts.proofs.streams", *words)
    assert found["failed"] == 0
    assert sum(found["open_by_worker"]) == 200
    assert found["chunks"] >= 200 * 8
