"""What workers count: histograms, and sums over workers of which some are dead."""

from __future__ import annotations

import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from api.adapters.numbers_files import NumbersFiles
from api.core.numbers import FRESH_SECONDS, METRICS, Numbers, merged

BOUNDS = METRICS["chunk_gap_seconds"].bounds


@given(st.lists(st.floats(0, 1000)))
def test_each_observation_is_in_the_first_bucket_that_holds_it(seconds):
    """A bucket's bound belongs to it, as Prometheus has it (`le`); the last one has no bound."""
    numbers = Numbers()
    for one in seconds:
        numbers.chunk_gaps.observe(one)
    for place, bound in enumerate(BOUNDS):
        assert sum(numbers.chunk_gaps.counts[: place + 1]) == sum(one <= bound for one in seconds)
    assert sum(numbers.chunk_gaps.counts) == len(seconds)


def test_counters_of_the_dead_stay_and_their_gauges_go():
    """A sum that fell would look like a restart; a stream of a dead worker is not open."""
    snapshots = []
    for name, at in (("dead", 0.0), ("live", 100.0)):
        numbers = Numbers()
        numbers.add("refusals", "max_streams", "tenant", by=2)
        numbers.histogram("loop_lag_seconds").observe(0.3)
        snapshots.append(numbers.snapshot(name, at, [("open_streams", (), 5)]))
    totals = merged(snapshots, 100.0 + FRESH_SECONDS / 2)
    assert totals.values == {("refusals", ("max_streams", "tenant")): 4, ("open_streams", ()): 5}
    assert sum(totals.histograms["loop_lag_seconds", ()].counts) == 2


def test_what_another_version_counts_is_left_out():
    """Two versions may share a host: a family that is not known, or has other buckets, is not added."""
    numbers = Numbers()
    numbers.chunk_gaps.observe(1)
    snapshot = numbers.snapshot("w", 0, [("of_tomorrow", (), 1)])
    snapshot.histograms[0][2].append(7)
    assert merged([snapshot], 0) == ({}, {})


def test_workers_find_each_other_and_nobody_else(tmp_path):
    """Those of one server; what a server that is gone has left is removed, and a broken file says nothing."""
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    left = tmp_path / gone.stdout.decode().strip()
    left.mkdir()
    one, two = (NumbersFiles(tmp_path, os.getpid(), name) for name in ("host:1", "host/2"))
    elsewhere = NumbersFiles(tmp_path, os.getppid(), "host:3")
    assert not left.exists()
    for files, name in ((one, "1"), (two, "2"), (elsewhere, "3")):
        files.write(Numbers().snapshot(name, 0))
    (tmp_path / str(os.getpid()) / "broken.json").write_text("{")
    assert [found.worker for found in one.others()] == ["2"]
    assert elsewhere.others() == []
