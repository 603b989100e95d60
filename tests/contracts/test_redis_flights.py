"""Calls of the limiter that fly together: nobody is forgotten, mixed up, or asked for after giving up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from api.adapters import redis_connect
from api.adapters.redis_flights import Flights
from api.core.demand import Ask, Verdict
from tests.contracts.admission import cap, key_cap, lenient, take, used, verdict
from tests.contracts.helpers import BOUND_SECONDS
from tests.contracts.wires import Proxy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from api.adapters.redis_flights import Call

WIDE = (cap(1000), key_cap(1000))


class Air:
    """Flights that land when they are told to; answers each call with its own key."""

    def __init__(self) -> None:
        self.flown: list[list[str]] = []
        self.failure: Exception | None = None
        self._landing = asyncio.Event()
        self.flights = Flights(self._fly)

    async def _fly(self, calls: Sequence[Call]) -> list[Any]:
        self.flown.append([key for key, _ in calls])
        await self._landing.wait()
        self._landing.clear()
        if self.failure is not None:
            raise self.failure
        return [key for key, _ in calls]

    def ask(self, *keys: str) -> list[asyncio.Future[Any]]:
        return [self.flights.call((key, ())) for key in keys]

    async def until(self, flights: int) -> None:
        """So many have begun."""
        async with asyncio.timeout(5):
            while len(self.flown) < flights:
                await asyncio.sleep(0)

    def land(self) -> None:
        self._landing.set()


async def test_what_is_asked_meanwhile_flies_next_and_everybody_gets_the_own_answer() -> None:
    """One alone flies at once; those who come while it is away share the next flight."""
    air = Air()
    [first] = air.ask("a")
    await air.until(1)
    others = air.ask("b", "c", "d")
    air.land()
    assert await first == "a"
    await air.until(2)
    air.land()
    assert await asyncio.gather(*others) == ["b", "c", "d"]
    assert air.flown == [["a"], ["b", "c", "d"]]
    [last] = air.ask("e")  # and after a rest it flies again
    await air.until(3)
    air.land()
    assert await last == "e"


async def test_a_flight_is_bounded() -> None:
    """A hundred at once are five flights of 24 at most, so that none takes long."""
    air = Air()
    asked = air.ask(*(str(n) for n in range(100)))
    for flight in range(1, 6):
        await air.until(flight)
        air.land()
    assert await asyncio.gather(*asked) == [str(n) for n in range(100)]
    assert [len(flight) for flight in air.flown] == [24, 24, 24, 24, 4]


async def test_who_gives_up_before_the_flight_has_asked_nothing() -> None:
    """A client that left in the queue takes no slot."""
    air = Air()
    [first] = air.ask("a")
    await air.until(1)
    gone, stays = air.ask("gone", "stays")
    gone.cancel()
    air.land()
    await air.until(2)
    air.land()
    assert (await first, await stays) == ("a", "stays")
    assert air.flown == [["a"], ["stays"]]


async def test_a_failed_flight_fails_those_who_wait_and_no_later_one() -> None:
    """Where Redis is silent a queue does not wait out its silence again and again."""
    air = Air()
    [first] = air.ask("a")
    await air.until(1)
    waiting = air.ask("b", "c")
    air.failure = OSError("away")
    air.land()
    found = await asyncio.gather(first, *waiting, return_exceptions=True)
    assert [type(one) for one in found] == [OSError] * 3
    air.failure = None
    [later] = air.ask("d")
    await air.until(2)
    air.land()
    assert await later == "d"


async def test_a_crowd_is_one_round_trip(redis_server, redis_url) -> None:
    """Twenty admissions at once ask a real Redis once, and twenty releases once more."""
    async with Proxy(lambda: asyncio.open_connection("127.0.0.1", redis_server.port)) as proxy:
        client = redis_connect.connect(f"redis://127.0.0.1:{proxy.port}/0", timeout_seconds=BOUND_SECONDS)
        try:
            limiter = lenient(client)
            await take(limiter, "first", *WIDE)
            before = proxy.round_trips
            permits = await asyncio.gather(*(take(limiter, f"p{n}", *WIDE) for n in range(20)))
            assert proxy.round_trips - before == 1
            await asyncio.gather(*(limiter.release(permit, used(1)) for permit in permits))
            assert proxy.round_trips - before == 2
            assert await limiter.live("tn_a") == ["first"]
        finally:
            await client.aclose()


async def test_a_connection_that_redis_closed_refuses_nobody(redis_url) -> None:
    """An idle connection that a server or a firewall dropped is replaced at once."""
    client, other = redis_connect.connect(redis_url), redis_connect.connect(redis_url)
    try:
        limiter = lenient(client)
        for n in range(3):
            assert await verdict(limiter, f"p{n}", *WIDE) is Verdict.GRANTED
            await other.client_kill_filter(_type="normal", skipme=True)
    finally:
        await client.aclose()
        await other.aclose()


async def test_one_call_that_fails_by_what_it_was_given_fails_alone(redis_url) -> None:
    """What is wrong with one tenant's keys is no other's matter, also in the same flight."""
    client = redis_connect.connect(redis_url)
    try:
        limiter = lenient(client)
        await client.set("sg:{tn_bad}:streams", "no set")
        asks = (limiter.acquire(tenant, Ask("p", WIDE)) for tenant in ("tn_a", "tn_bad", "tn_c"))
        good, bad, also_good = await asyncio.gather(*asks, return_exceptions=True)
        assert isinstance(bad, RuntimeError)
        assert {type(good), type(also_good)} == {type(await limiter.acquire("tn_a", Ask("q", WIDE)))}
    finally:
        await client.aclose()


@pytest.mark.parametrize("url", ["memory://"])
async def test_in_memory_nothing_flies(url) -> None:
    """`memory://` has no connection to keep, and serves all the same."""
    limiter = lenient(redis_connect.connect(url))
    assert limiter._flights is None
    assert await verdict(limiter, "p", *WIDE) is Verdict.GRANTED
