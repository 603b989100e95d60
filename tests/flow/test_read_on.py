"""What becomes of the provider's answer when the client leaves: closed at once, or read on to its report."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from api.core.booking import Ended, Happening
from api.core.dialects import openai_chat
from api.core.sse import Framer
from api.core.usage import Certainty, Source
from api.flow.tend import tick
from tests.support.gates import serving, settings_of
from tests.support.hand import DONE, FINISH, USAGE, Hand, token
from tests.support.wire import WireClient

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.servers import ScriptedProcess


def reading_on(**policy: Any) -> Hand:
    """A gate that reads on."""
    return Hand(reads_on=True, **policy)


async def left_after_one_token(hand: Hand) -> asyncio.Task[None]:
    """A stream whose client has left in the middle."""
    walking = hand.start()
    hand.upstream.feed(token("water"))
    await hand.log.until('data: {"token":"water"}')
    hand.left.set()
    while not hand.gate.live or not next(iter(hand.gate.live.values())).client_left:
        await asyncio.sleep(0)
    return walking


async def test_it_is_read_to_the_providers_report_and_nothing_more_is_sent() -> None:
    """The event is exact and says that the client left; the slot is held until the provider has ended."""
    hand = reading_on()
    walking = await left_after_one_token(hand)
    assert hand.gate.reading_on == 1
    assert hand.limiter.taken
    sent = len(hand.sent)
    for data in (token(" finds"), FINISH, USAGE, DONE):
        hand.upstream.feed(data)
    await walking
    [event] = hand.ledger.events
    assert (event.ended, event.cause) == (Ended.LEFT, Happening.CLIENT_LEFT)
    assert (event.usage.output_tokens, event.usage.source, event.usage.certainty) == (
        2,
        Source.PROVIDER,
        Certainty.EXACT,
    )
    assert len(hand.sent) == sent
    assert hand.log.in_order("finish", "close", "settle")
    assert (hand.gate.reading_on, hand.limiter.taken) == (0, set())


async def test_without_the_setting_it_is_closed_at_once() -> None:
    """P6: `cancel` is the default."""
    hand = Hand()
    walking = hand.start()
    hand.upstream.feed(token("water"))
    await hand.log.until('data: {"token":"water"}')
    hand.left.set()
    await walking
    [event] = hand.ledger.events
    assert (event.usage.output_tokens, event.usage.certainty) == (1, Certainty.AT_LEAST)


async def test_before_the_provider_has_answered_it_is_closed() -> None:
    """Nothing has come that would have to be paid for; who knows when something does."""
    hand = reading_on()
    hand.upstream.opens = asyncio.get_running_loop().create_future()
    walking = hand.start()
    await hand.log.until("open")
    hand.left.set()
    await walking
    assert "open cancelled" in hand.log


async def test_it_is_read_on_for_so_long_and_no_longer() -> None:
    """The provider falls silent: the connection is closed, and what had come is counted."""
    hand = reading_on(read_on_seconds=0.05)
    walking = await left_after_one_token(hand)
    hand.upstream.feed(token(" finds"))
    await walking
    [event] = hand.ledger.events
    assert (event.ended, event.usage.output_tokens, event.usage.certainty) == (
        Ended.LEFT,
        2,
        Certainty.AT_LEAST,
    )
    assert hand.gate.reading_on == 0


async def test_it_is_read_on_for_so_many_tokens_and_no_more() -> None:
    """Counted with the checkpoints: the first tick that sees more of them closes the connection."""
    hand = reading_on(read_on_tokens=3)
    walking = await left_after_one_token(hand)
    for _ in range(2):
        hand.upstream.feed(token(" water"))
    while not hand.upstream.bytes.empty():
        await asyncio.sleep(0)
    await tick(hand.gate)
    assert not walking.done()
    for _ in range(3):
        hand.upstream.feed(token(" water"))
    while not hand.upstream.bytes.empty():
        await asyncio.sleep(0)
    await tick(hand.gate)
    await walking
    assert hand.ledger.events[0].usage.output_tokens == 6
    assert hand.ledger.checkpoints[-1].output_tokens >= 3, "a killed worker would have lost it"


async def test_so_many_are_read_on_at_once_and_no_more() -> None:
    """The next one that leaves is closed at once."""
    hand = reading_on(read_on_streams=1)
    hand.gate.reading_on = 1
    walking = hand.start()
    hand.upstream.feed(token("water"))
    await hand.log.until('data: {"token":"water"}')
    hand.left.set()
    await walking
    assert hand.gate.reading_on == 1


async def test_a_shutdown_does_not_wait_for_what_nobody_reads() -> None:
    """SIGTERM: what is read on is closed with the grace, and settled."""
    hand = reading_on(drain_seconds=0.05)
    walking = await left_after_one_token(hand)
    hand.gate.begin_drain()
    await walking
    assert hand.ledger.events[0].cause is Happening.CLIENT_LEFT
    await hand.gate.chores.join()


@pytest.mark.parametrize("include_usage", [False, True])
def test_usage_in_every_chunk_is_not_for_a_client_that_did_not_ask(include_usage) -> None:
    """With usage asked for at the end it is null before; else it is not there. The rest stays as it was."""
    writer = openai_chat.ChatWriter(include_usage=include_usage, hides_usage=True)
    chunk = {
        "id": "c1",
        "choices": [{"index": 0, "delta": {"content": "水"}}],
        "usage": {"prompt_tokens": 8, "completion_tokens": 1},
        "x": [1],
    }
    [event] = Framer(1 << 20).feed(b"data: " + msgspec.json.encode(chunk) + b"\n\n")
    [out] = Framer(1 << 20).feed(writer.event(event, openai_chat.read(event)))
    del chunk["usage"]
    assert msgspec.json.decode(out.data) == (chunk | {"usage": None} if include_usage else chunk)


@pytest.mark.parametrize("continuous", [True, False])
async def test_with_continuous_usage_an_early_stop_is_exact(
    tmp_path: Path, scripted: ScriptedProcess, continuous: bool
) -> None:
    """With vLLM's `continuous_usage_stats` what had come when the client left is the provider's word."""
    settings = settings_of(tmp_path, openai_base_url=f"{scripted.url}/v1", continuous_usage=continuous)
    async with serving(settings) as app:
        model = "scripted?tokens=1000&silence_at=40&silence_ms=60000&pace_ms=0"
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": True}
        client = await WireClient.post(app.url, "/v1/chat/completions", body, key=app.key)
        chunks = [msgspec.json.decode(event.data) for event in await client.events(41)]
        assert not any(chunk.get("usage") for chunk in chunks)
        client.leave()
        await app.settled()
        [event] = await app.events()
        assert event.usage.output_tokens == 40
        found = (event.usage.source, event.usage.certainty)
        wanted = (Source.PROVIDER, Certainty.EXACT) if continuous else (Source.COUNTED, Certainty.AT_LEAST)
        assert found == wanted
