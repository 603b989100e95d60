"""Rows as CSV (RFC 4180), for spreadsheets that take some texts for formulas."""

from __future__ import annotations

import csv
import io
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_FORMULAS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a formula begins with; the last four are the same, as wide as Chinese characters."""
_BREAKS = ("\t", "\r", "\n")


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Lines. A text that looks like a formula has an apostrophe before it; numbers are as they are."""
    text = io.StringIO()
    csv.writer(text).writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, str) and (value.lstrip().startswith(_FORMULAS) or value.startswith(_BREAKS)):
        return f"'{value}"
    return value
