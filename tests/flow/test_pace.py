"""Refusals at a pace: the first at once, a flood's later and later, and nobody else's."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from api.core.demand import Reply, Verdict
from api.flow.pace import Pace
from auth.principal import Limit
from tests.support.hand import Hand


class Clock:
    """Stands still until it is turned."""

    at = 100.0

    def monotonic(self) -> float:
        return self.at


def test_few_refusals_are_answered_at_once() -> None:
    """Somebody who is refused now and then, or forty times in a moment, never waits for it."""
    pace = Pace(Clock())  # type: ignore[arg-type]
    assert {pace.delay_seconds("tn_a") for _ in range(40)} == {0.0}


def test_a_flood_is_answered_twenty_times_a_second_and_then_spread() -> None:
    """Each refusal beyond the first ones is due a twentieth of a second after the one before.

    Those for whom that would be too long do not come back together.
    """
    pace = Pace(Clock())  # type: ignore[arg-type]
    delays = [round(pace.delay_seconds("tn_a"), 6) for _ in range(200)][40:]
    assert delays[:3] == [0.05, 0.1, 0.15]
    assert delays[:39] == sorted(delays[:39])
    assert all(1.0 <= delay <= 3.0 for delay in delays[39:])
    assert len(set(delays[39:])) > 100


def test_others_are_not_slowed_and_a_pause_makes_good() -> None:
    """One tenant's flood is its own; after four seconds it is as if nothing had been."""
    clock = Clock()
    pace = Pace(clock)  # type: ignore[arg-type]
    for _ in range(500):
        pace.delay_seconds("tn_a")
    assert pace.delay_seconds("tn_b") == 0
    clock.at += 4.1
    assert pace.delay_seconds("tn_a") == 0


def test_tenants_that_were_refused_long_ago_are_forgotten() -> None:
    """Memory is bounded, however many tenants there are."""
    pace = Pace(Clock())  # type: ignore[arg-type]
    for number in range(20_000):
        pace.delay_seconds(f"tn_{number}")
    assert len(pace._due) == 10_000


async def test_whoever_waits_for_a_refusal_may_leave() -> None:
    """It ends at once, with nothing sent, and nothing left."""
    hand = Hand()
    hand.limiter.replies = [Reply(Verdict.REFUSED, wait_us=1_000_000)]
    for _ in range(500):
        hand.gate.pace.delay_seconds("tn_1")
    running = hand.start()
    await hand.log.until("acquire")
    hand.left.set()
    await running
    assert hand.sent == []


async def test_a_refusal_costs_one_question() -> None:
    """What was refused has nothing to give back: Redis is not asked again."""
    hand = Hand()
    hand.caller = replace(hand.caller, limits=(Limit("tenant", "tn_1", 0),))
    await hand.start()
    await asyncio.gather(*(asyncio.sleep(0) for _ in range(3)))
    assert (hand.status, hand.log.count("acquire"), hand.log.count("release")) == (429, 1, 0)
