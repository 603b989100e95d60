"""What a chaos run looks for it finds: each promise is broken by something."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from scripts.proofs import chaos_check as chaos
from scripts.proofs.chaos_check import Audit, Heard, Kill, Truth, entries_of

KILL = Kill("host:7:", at=100.0, unix=1000.0)
MARKS = [(90.0, 1), (99.5, 10)]
HEARD = Heard("a", "finishes", "plain", 200, 10, finished=True, failed=False, usage=1, marks=MARKS)
TRUTH = Truth(opened=1, live=0, refused=0, tokens_sent=10, input_tokens=8, reported=(8, 10))
ROW: dict[str, Any] = {
    "model": "scripted?tokens=10&label=a&pace_ms=20",
    "worker": "host:8:ab",
    "tenant_id": "tn_a",
    "input_tokens": 8,
    "output_tokens": 10,
    "source": "provider",
    "certainty": "exact",
    "ended": "finished",
    "cause": "terminal",
    "corrects": None,
    "ended_at": datetime.fromtimestamp(1012, UTC),
}
LOST = {"ended": "lost", "cause": "worker_lost", "certainty": "at_least", "worker": "host:7:ab"}
LEFT = {"ended": "left", "cause": "client_left", "certainty": "at_least", "source": "counted"}
BROKE = HEARD._replace(finished=False)


def broken(heard: Heard | None, truth: Truth | None, *rows: dict[str, Any]) -> set[str]:
    """The promises that these break."""
    entries = entries_of([ROW | row for row in rows])
    audit = Audit([KILL], slack_seconds=0.5)
    known = {"a": heard} if heard else {}, {"a": truth} if truth else {}, entries
    return {name for name, found in audit.look(*known).promises.items() if found}


@pytest.mark.parametrize(
    ("heard", "truth", "rows"),
    [
        (HEARD, TRUTH, [{}]),
        (HEARD._replace(usage=0), TRUTH._replace(reported=None), [{"source": "counted"}]),
        (BROKE, TRUTH._replace(tokens_sent=12, reported=None), [LEFT | {"output_tokens": 11}]),
        (
            BROKE._replace(usage=2),
            TRUTH._replace(tokens_sent=12, reported=(8, 12)),
            [LEFT | {"certainty": "exact", "source": "provider"}],
        ),
        (BROKE, TRUTH._replace(tokens_sent=12), [LOST | {"output_tokens": 1}]),
        (
            HEARD,
            TRUTH,
            [LOST | {"output_tokens": 4}, {"output_tokens": 6, "input_tokens": 0, "corrects": "bk"}],
        ),
        (BROKE._replace(status=503, tokens=0), TRUTH._replace(reported=None), []),
        (BROKE._replace(status=429, tokens=0), None, []),
        (BROKE._replace(status=0, tokens=0), None, [LEFT | {"output_tokens": 0}]),
    ],
)
def test_nothing_is_found_where_nothing_is_wrong(heard, truth, rows) -> None:
    """However a stream ends, what it ought to look like is not complained of."""
    assert broken(heard, truth, *rows) == set()


@pytest.mark.parametrize(
    ("promise", "heard", "truth", "rows"),
    [
        (chaos.ONE_EVENT, HEARD, TRUTH, []),
        (chaos.ONE_EVENT, HEARD, TRUTH, [{}, {"output_tokens": 0, "input_tokens": 0}]),
        (chaos.ONE_EVENT, HEARD, TRUTH._replace(opened=2), [{}]),
        (chaos.NO_OTHERS, BROKE._replace(status=0), None, [LEFT]),
        (chaos.NO_OTHERS, BROKE._replace(status=429), None, [LEFT | {"output_tokens": 0}]),
        (chaos.EXACT, HEARD, TRUTH._replace(reported=(8, 11)), [{}]),
        (chaos.EXACT, HEARD, TRUTH._replace(reported=(9, 10)), [{}]),
        (chaos.EXACT, HEARD, TRUTH._replace(tokens_sent=11, reported=None), [{"source": "counted"}]),
        (
            chaos.EXACT,
            BROKE._replace(usage=2),
            TRUTH,
            [LEFT | {"certainty": "exact", "source": "provider", "output_tokens": 9}],
        ),
        (chaos.AT_LEAST, BROKE, TRUTH, [LEFT | {"output_tokens": 11}]),
        (chaos.AT_LEAST, BROKE, TRUTH, [LEFT | {"output_tokens": 9}]),
        (chaos.LOST, BROKE, TRUTH, [LOST | {"output_tokens": 0}]),
        (chaos.ONLY_KILLED, BROKE, TRUTH, [LOST | {"worker": "host:8:ab"}]),
        (chaos.FINISHED, HEARD, TRUTH, [LEFT | {"output_tokens": 10}]),
        (chaos.CLOSED, HEARD, TRUTH._replace(live=1), [{}]),
    ],
)
def test_whatever_is_wrong_is_found(promise, heard, truth, rows) -> None:
    """A missing, a second, an invented event; a token too much or too few; a loss that is too old."""
    assert broken(heard, truth, *rows) == {promise}
