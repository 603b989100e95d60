"""The ports of telemetry: where workers tell each other what they have counted, and OpenTelemetry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from api.core.numbers import Snapshot
    from api.core.record import UsageEvent


class Traces(Protocol):
    """OpenTelemetry, where it is on. A span is its own; nobody else looks into one."""

    def begin(
        self, asked: Mapping[str, str], operation: str, model: str, at: datetime
    ) -> tuple[Any, dict[str, str]]:
        """A span under the caller's, if it sent one, and the headers that tell the provider of it."""
        ...

    def end(self, span: Any, event: UsageEvent, *, first_token: bool) -> None:
        """What is known of it in the end."""
        ...


class NumbersShelf(Protocol):
    """Where the workers of a host tell each other what they have counted."""

    def write(self, snapshot: Snapshot) -> None:
        """Replace this worker's. Blocks; raises OSError."""
        ...

    def others(self) -> list[Snapshot]:
        """What the other workers last said. Blocks."""
        ...
