"""The port to streams that are kept for whoever asks for one again (`Idempotency-Key`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Replays(Protocol):
    """Streams that are kept for whoever asks for one again. Raises LimiterUnavailable.

    A `head` names what is kept and who owns it; only its owner can add to it. `name` is within the tenant.
    """

    async def claim(self, tenant_id: str, name: str, head: bytes, keep_seconds: float) -> bytes | None:
        """None where it is the caller's now, else the head that stands there."""
        ...

    async def append(
        self,
        tenant_id: str,
        name: str,
        head: bytes,
        parts: Sequence[bytes],
        *,
        after: int,
        keep_seconds: float,
    ) -> bool:
        """Add some, a thousand at most, behind the first `after` elements; keep it for so long from now.

        The same again, by who had no answer, adds nothing. False where it is not the caller's any more.
        """
        ...

    async def replace(self, tenant_id: str, name: str, head: bytes, part: bytes, keep_seconds: float) -> None:
        """Put this in the place of all that was there."""
        ...

    async def drop(self, tenant_id: str, name: str, head: bytes) -> None:
        """Forget it."""
        ...

    async def read(self, tenant_id: str, name: str, after: int) -> list[bytes] | None:
        """Some of what stands behind the first `after` elements; None where nothing of that name is kept."""
        ...
