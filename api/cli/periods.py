"""Periods on the command line: from a moment on, and before another."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

From = Annotated[
    str, typer.Option("--from", metavar="WHEN", help="2026-03-01, or 2026-03-01T12:00; UTC unless it says.")
]
Until = Annotated[str, typer.Option("--to", metavar="WHEN", help="The same; up to then, and without it.")]


def period(start: str, end: str) -> tuple[datetime, datetime]:
    """Both in UTC. Ends the command where that is no period."""
    moments = moment(start, "--from"), moment(end, "--to")
    if moments[0] >= moments[1]:
        raise typer.BadParameter("--to must be after --from")
    return moments


def moment(text: str, option: str) -> datetime:
    """A date, or a date and a time (ISO 8601)."""
    try:
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{option} takes a date such as 2026-03-01, or 2026-03-01T12:00") from None
