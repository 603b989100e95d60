"""CSV that every reader takes apart the same, and no spreadsheet runs."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core.csv_text import csv_text

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(rows=st.lists(st.lists(TEXTS | st.integers(), min_size=1, max_size=4), max_size=5))
def test_rows_come_out_as_they_went_in(rows) -> None:
    """Commas, quotes and line ends in texts are the texts' own; but for the apostrophe before a formula."""
    found = list(csv.reader(io.StringIO(csv_text(rows), newline="")))
    for row, read in zip([row for row in rows if row != [""]], [r for r in found if r != [""]], strict=True):
        for value, text in zip(row, read, strict=True):
            assert text in {str(value), f"'{value}"}


@given(text=TEXTS)
def test_no_text_begins_as_a_formula_does(text) -> None:
    """Whatever white space is before it, and however wide the sign is."""
    [[cell, _]] = csv.reader(io.StringIO(csv_text([[text, 1]]), newline=""))
    assert not cell.strip().startswith(("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"))
    assert cell in {text, f"'{text}"}


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", " =1", "\uff1d1", "\tx"])
def test_a_formula_has_an_apostrophe_before_it(text) -> None:
    """So it is shown, and not run."""
    [[cell, rest]] = csv.reader(io.StringIO(csv_text([[text, "x"]]), newline=""))
    assert (cell, rest) == (f"'{text}", "x")


def test_numbers_and_times_are_as_they_are() -> None:
    """Differences are less than nothing, and still numbers; nothing is an empty cell."""
    at = datetime(2026, 11, 1, 0, 15, tzinfo=UTC)
    assert csv_text([[-5, None, at, 2**62]]) == "-5,,2026-11-01T00:15:00+00:00,4611686018427387904\r\n"
