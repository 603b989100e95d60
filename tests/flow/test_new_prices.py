"""New prices reach a worker by the feed of changes; a stream keeps the price that it was admitted with."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from api.core.booking import Happening
from api.core.money import Prices, PriceVersion
from api.flow.watch import Watch
from api.ports import AccountsUnavailable
from tests.support.hand import DONE, FINISH, PRICES, SCRIPTED, USAGE, Hand, token

if TYPE_CHECKING:
    from datetime import datetime

AMOUNT = 7 * 10**9


def dearer(since: datetime) -> Prices:
    """A list in which the scripted model costs more from then on."""
    return Prices([PriceVersion(2, "scripted*", since, *[AMOUNT] * 4)])


async def test_new_prices_are_read_when_the_feed_tells_of_them() -> None:
    """And not before: a list is not read for the sake of a request, nor for other changes."""
    hand = Hand()
    watch = Watch(hand.gate)
    hand.price_book.prices = dearer(hand.gate.clock.now())
    hand.authenticator.change("key", "k9")
    await watch.look()
    assert hand.gate.prices is PRICES
    hand.authenticator.change("price", "2 models")
    await watch.look()
    assert hand.gate.prices is hand.price_book.prices


async def test_where_the_list_cannot_be_read_the_old_one_holds() -> None:
    """Until the next look that succeeds, also without another change; streams are cut all the same."""
    hand = Hand()
    watch = Watch(hand.gate)
    hand.upstream.feed(token("water"))
    running = hand.start()
    await hand.log.until('data: {"token":"water"}')
    hand.price_book.prices = dearer(hand.gate.clock.now())
    hand.price_book.fault = AccountsUnavailable()
    hand.authenticator.revoked = True
    hand.authenticator.change("price", "m")
    hand.authenticator.change("key", "k1")
    with pytest.raises(AccountsUnavailable):
        await watch.look()
    await running
    assert hand.ledger.events[0].cause is Happening.REVOKED
    assert hand.gate.prices is PRICES
    hand.price_book.fault = None
    await watch.look()
    assert hand.gate.prices is hand.price_book.prices


async def test_a_stream_keeps_the_price_it_was_admitted_with() -> None:
    """Its event names that version and costs as much; the next one's names the new."""
    hand = Hand()
    hand.upstream.feed(token("water"))
    running = hand.start()
    await hand.log.until('data: {"token":"water"}')
    hand.price_book.prices = dearer(hand.gate.clock.now())
    await hand.gate.read_prices()
    for part in (USAGE, FINISH, DONE):
        hand.upstream.feed(part)
    await running
    [event] = hand.ledger.events
    assert (event.price_version, event.cost_nano_dollars) == ("1", SCRIPTED.of(event.usage))
    again = Hand()
    again.gate.prices = hand.gate.prices
    for part in (token("water"), USAGE, FINISH, DONE):
        again.upstream.feed(part)
    await again.start()
    [event] = again.ledger.events
    assert event.price_version == "2"
    assert event.cost_nano_dollars == replace(SCRIPTED, input=AMOUNT, output=AMOUNT).of(event.usage)


async def test_of_two_readings_the_later_one_stays() -> None:
    """One at a time: a slow reading that began earlier does not bring back an older list."""
    hand, older, newer = Hand(), Prices([]), Prices([])
    lists, began, go_on = [older, newer], asyncio.Event(), asyncio.Event()

    async def load() -> Prices:
        found = lists.pop(0)
        if found is older:
            began.set()
            await go_on.wait()
        return found

    hand.price_book.load = load  # type: ignore[method-assign]
    slow = asyncio.create_task(hand.gate.read_prices())
    await began.wait()
    quick = asyncio.create_task(hand.gate.read_prices())
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(slow, quick)
    assert hand.gate.prices is newer
