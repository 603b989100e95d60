"""Reservations beside bookings: what differs for a moment is a race, what goes on differing is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from api.flow.reserved import check_streams
from api.ports import LimiterUnavailable
from tests.contracts.helpers import booking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from api.core.invariants import Check


@dataclass
class One:
    booking: Any


class World:
    """Leases and bookings by tenant, as a look at them finds them; the last look's stay."""

    def __init__(self, *looks: tuple[dict[str, set[str]], dict[str, set[str]]]) -> None:
        self.looks = list(looks)
        self.waited = 0.0
        self.asked: list[str] = []

    async def live(self, tenant_id: str) -> Sequence[str]:
        self.asked.append(tenant_id)
        return list(self.looks[0][0].get(tenant_id, ()))

    async def in_flight(self, tenant_id: str) -> list[One]:
        return [One(booking(id=one)) for one in self.looks[0][1].get(tenant_id, ())]

    async def pause(self, seconds: float) -> None:
        self.waited += seconds
        if len(self.looks) > 1:
            self.looks.pop(0)


async def looked(world: Any, *tenants: str) -> Check:
    return await check_streams(world, world, tenants, pause=world.pause)


async def test_streams_that_run_hold_their_slots() -> None:
    """Nobody waits for anything then."""
    world = World(({"a": {"s1", "s2"}, "b": {"s3"}}, {"a": {"s1", "s2"}, "b": {"s3"}}))
    check = await looked(world, "a", "b", "c")
    assert (check.held, world.waited) == (True, 0)
    assert world.asked == ["a", "b", "c"]


async def test_what_differs_for_a_moment_breaks_nothing() -> None:
    """A permit comes before its booking and goes after it; other streams begin and end meanwhile."""
    world = World(
        ({"a": {"comes", "stays"}}, {"a": {"ends", "stays"}}),
        ({"a": {"comes", "new", "stays"}}, {"a": {"comes", "stays"}}),
    )
    assert (await looked(world, "a", "b")).held
    assert world.waited == 1
    assert world.asked == ["a", "b", "a"]


async def test_a_slot_without_a_stream_is_told_and_so_is_the_reverse() -> None:
    """A slot that leaked takes a stream from the tenant; a stream without one is over the cap."""
    world = World(({"a": {"leak", "s"}}, {"a": {"s"}, "b": {"free"}}))
    check = await looked(world, "a", "b")
    assert check.rows == [
        {"id": "leak", "tenant_id": "a", "fault": "holds a slot, and has no booking"},
        {"id": "free", "tenant_id": "b", "fault": "is open, and holds no slot"},
    ]
    assert world.waited == 2


async def test_without_redis_nothing_is_known_and_so_it_is_not_held() -> None:
    """Nobody looked, and nobody is told that all is well."""

    class Away(World):
        async def live(self, tenant_id: str) -> Sequence[str]:
            raise LimiterUnavailable

    check = await looked(Away(({}, {})), "a")
    assert (check.held, check.broken, check.note) == (False, 0, "Redis does not answer.")
