"""A cut that comes when all of the answer is there."""

from __future__ import annotations

import asyncio

import pytest

from api.core.booking import Happening
from tests.support.hand import DONE, FINISH, USAGE, Hand, token


@pytest.mark.parametrize("stream", [True, False])
async def test_client_and_ledger_are_told_the_same_of_a_cut_in_the_last_moment(stream: bool) -> None:
    """The end is there as it is cut, and nothing is waited for any more: an error, and no `[DONE]`."""
    hand = Hand(stream=stream)
    hand.upstream.feed(token("water") if stream else b" ")
    running = hand.start()
    await hand.log.until("open")
    await until_read(hand)
    hand.upstream.feed(FINISH + USAGE + DONE if stream else b"")
    [live] = hand.gate.live.values()
    live.cut(Happening.DEADLINE)
    await running
    assert hand.ledger.events[0].cause is Happening.DEADLINE
    assert b"deadline" in hand.body
    assert DONE not in hand.body


async def until_read(hand: Hand) -> None:
    """All that the provider has said is read."""
    while not hand.upstream.bytes.empty():
        await asyncio.sleep(0)
    await asyncio.sleep(0)
