"""The benchmarks run; what they measure is for people to read, and nothing here asserts a time."""

from __future__ import annotations

from scripts.benchmarks.auth import measure


async def test_warm_authentication_asks_nobody() -> None:
    """A credential that was seen before costs no look-up, whatever its kind; each has a row."""
    rows = await measure(rounds=1, count=40)
    warm = {name: row["lookups"] for name, row in rows.items() if name.endswith("warm")}
    assert len(warm) == 4
    assert set(warm.values()) == {0}
    assert all(row["median_us"] >= 0 for row in rows.values())
