"""The recorder: all that was sent is kept once and in order, whatever becomes of Redis' answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from api.flow.keep_stream import END, TOO_LARGE, Kept, Recorder
from api.ports import LimiterUnavailable
from tests.contracts.helpers import bounded, eventually
from tests.support.hand import Hand

if TYPE_CHECKING:
    from collections.abc import Sequence

KEPT = Kept("tn_1", "name", b"head", 5)


class HandReplays:
    """What is kept, in a list. Of the next calls `answers_lost` are done, and `refused` are not."""

    def __init__(self) -> None:
        self.kept: list[bytes] | None = [b"head"]
        self.answers_lost = self.refused = 0
        self.hold: asyncio.Event | None = None

    async def append(
        self, tenant_id: str, name: str, head: bytes, parts: Sequence[bytes], *, after: int, **_keep: float
    ) -> bool:
        if self.hold is not None:
            await self.hold.wait()
        if self.refused:
            self.refused -= 1
            raise LimiterUnavailable
        if self.kept is None:
            return False
        if len(self.kept) == after:
            self.kept += parts
        if self.answers_lost:
            self.answers_lost -= 1
            raise LimiterUnavailable
        return True

    async def replace(self, tenant_id: str, name: str, head: bytes, part: bytes, keep: float) -> None:
        self.kept = [b"head", part]

    async def drop(self, tenant_id: str, name: str, head: bytes) -> None:
        self.kept = None


def recorder(**policy: int) -> tuple[HandReplays, Recorder]:
    hand, replays = Hand(**policy), HandReplays()
    hand.gate.replays = replays  # type: ignore[assignment]
    return replays, Recorder(hand.gate, KEPT)


@pytest.mark.parametrize(("lost", "refused"), [(0, 0), (3, 0), (0, 3)])
async def test_all_is_kept_once_and_in_order(lost: int, refused: int) -> None:
    """Answers of Redis that are lost, calls that never reach it: nothing is missing, nothing is twice."""
    replays, one = recorder()
    replays.answers_lost, replays.refused = lost, refused
    parts = [b"%d" % number for number in range(1300)]
    for part in parts:
        one.put(part)
        await asyncio.sleep(0)

    async def written() -> bool:
        return len(replays.kept or ()) > 500

    await eventually(written)
    await bounded(one.finish(b"last"))
    assert replays.kept == [b"head", *parts, b"last", END]


async def test_an_end_in_the_middle_of_a_write_loses_nothing() -> None:
    """What is on its way is waited for."""
    replays, one = recorder()
    replays.hold = asyncio.Event()
    one.put(b"a")
    await asyncio.sleep(0)
    ending = asyncio.gather(one.finish(b"z"))
    await asyncio.sleep(0)
    replays.hold.set()
    await bounded(ending)
    assert replays.kept == [b"head", b"a", b"z", END]


async def test_what_is_too_large_is_said_to_be() -> None:
    """In the place of what was written."""
    replays, one = recorder(replay_max_bytes=10)
    one.put(b"x" * 9)
    one.put(b"x" * 9)
    await bounded(one.finish(b""))
    assert replays.kept == [b"head", TOO_LARGE]


async def test_what_failed_is_forgotten_and_what_is_anothers_is_left_alone() -> None:
    """`drop`; and a recorder whose lease ran out ends without a word."""
    replays, one = recorder()
    one.put(b"a")
    await bounded(one.drop())
    assert replays.kept is None
    replays, one = recorder()
    replays.kept = None
    one.put(b"a")
    await bounded(one.finish(b"z"))
    assert replays.kept is None
