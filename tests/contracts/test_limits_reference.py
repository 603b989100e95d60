"""The Lua is the `Book`, and the `Book` is right: any history of admission, step by step, in both.

What `World` compares after each step is every reply and every counter; see `histories`.
"""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from tests.contracts.histories import ANY, STEADY, World, permits_of

_SETTINGS = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@settings(_SETTINGS, max_examples=150)
@given(permits=permits_of(), steps=STEADY)
async def test_any_history_is_the_same_in_both_and_keeps_every_limit(client, permits, steps) -> None:
    """While time goes on and Redis keeps what it has; at the end each permit was charged exactly once."""
    world = World(client, dict(permits))
    await world.start(known=True)
    for step in steps:
        await world.take(step)
    await world.finish()


@settings(_SETTINGS, max_examples=150)
@given(permits=permits_of(), steps=ANY)
async def test_so_is_one_with_a_clock_that_jumps_and_a_redis_that_forgets(client, permits, steps) -> None:
    """Nothing is held for ever, no cap is exceeded, and no budget grants what it does not have."""
    world = World(client, dict(permits))
    await world.start(known=False)
    for step in steps:
        await world.take(step)
    await world.finish()
