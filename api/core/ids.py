"""Ids that sort by the time they were made, so that a B-tree is filled from one end."""

from __future__ import annotations

ENTROPY_BYTES = 10


def sortable_id(prefix: str, unix_ms: int, entropy: bytes) -> str:
    """`prefix` + 12 hex digits of milliseconds + 20 of entropy (80 bits: no clash within a millisecond)."""
    if len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"{ENTROPY_BYTES} bytes of entropy are needed")
    return first_id(prefix, unix_ms) + entropy.hex()


def first_id(prefix: str, unix_ms: int) -> str:
    """What all ids of a millisecond begin with, and so what sorts before them."""
    return f"{prefix}{unix_ms:012x}"
