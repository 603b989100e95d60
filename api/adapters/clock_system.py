"""The machine's clocks."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class SystemClock:
    """The one place that asks the machine for the time."""

    def now(self) -> datetime:
        """UTC, with a time zone."""
        return datetime.now(UTC)

    def unix(self) -> float:
        """UTC seconds since 1970."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never jump. On Linux the same for all processes since boot."""
        return time.monotonic()
