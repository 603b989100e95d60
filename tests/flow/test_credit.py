"""Credit: what is reserved, what the provider is asked for, where a stream stops, what is charged."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from api.core.booking import Ended, Happening
from api.core.demand import NEVER_US, Reply, Verdict
from api.core.dialects import openai_chat
from api.flow.tend import tick
from auth.principal import Limit
from tests.support.hand import DONE, FINISH, SCRIPTED, USAGE, Hand, token

if TYPE_CHECKING:
    from api.core.demand import Ask

PROMPT_TOKENS = 8


def limited(total: int, name: str = "tokens_per_day", *, credit: int | None = None, **more: Any) -> Hand:
    """A request under a limit of which there is so much; `credit` where the limiter has less of it."""
    hand = Hand(**more)
    limit = Limit("tenant", "tn_1", total, name)
    hand.caller = replace(hand.caller, limits=(*hand.caller.limits, limit))
    hand.limiter.credit = total if credit is None else credit
    return hand


def words(count: int) -> list[bytes]:
    """So many events of one token each."""
    return [token(" water")] * count


async def flowing(hand: Hand) -> asyncio.Task[None]:
    """A stream with one token delivered."""
    hand.upstream.feed(token("water"))
    running = hand.start()
    await hand.log.until('data: {"token":"water"}')
    return running


def asked(hand: Hand) -> Ask:
    """What admission asked of the limiter."""
    return hand.limiter.asks[0]


# --- what is reserved, and asked of the provider ----------------------------------------------------


async def test_the_provider_is_asked_for_no_more_than_there_is_room_for() -> None:
    """P5: what the ledger says was spent and what the prompt costs is taken off; a report is charged."""
    hand = limited(50)
    hand.ledger.spent_tokens, hand.limiter.spent_known = 12, False
    hand.upstream.feed(token("water") + FINISH + USAGE + DONE)
    await hand.start()
    assert hand.upstream.bodies[0]["max_tokens"] == 50 - 12 - PROMPT_TOKENS
    assert hand.limiter.used.tokens == 10  # the provider's word: 8 and 2


async def test_a_request_that_asks_for_less_is_not_given_more() -> None:
    """The client's own limit stands where it is the lower one, under the name that it used."""
    hand = limited(500)
    hand.order.body |= {"max_completion_tokens": 5, "n": 2}
    hand.upstream.feed(token("water") + FINISH + USAGE + DONE)
    await hand.start()
    assert hand.upstream.bodies[0]["max_completion_tokens"] == 5
    assert "max_tokens" not in hand.upstream.bodies[0]


async def test_a_stream_takes_credit_in_steps() -> None:
    """So that one does not take all there is: 256 tokens at first, a quarter of what is left at most."""
    hand = limited(1_000_000)
    hand.upstream.feed(token("water") + FINISH + USAGE + DONE)
    await hand.start()
    assert (asked(hand).least, asked(hand).most, asked(hand).share) == (1, 256, 4)


@pytest.mark.parametrize(
    ("model", "stream", "most"), [("o3-mini", True, 100_000), ("scripted", False, 16_384)]
)
async def test_what_cannot_be_stopped_is_reserved_whole(model: str, stream: bool, most: int) -> None:
    """P5: reasoning out of sight, and an answer in one piece, cannot be cut where credit ends."""
    hand = limited(1_000_000, dialect="openai_chat", stream=stream)
    hand.order.body["model"] = model
    hand.upstream.opens = asyncio.get_running_loop().create_future()
    running = hand.start()
    await hand.log.until("open")
    assert (asked(hand).most, asked(hand).share) == (most, 1)
    name = "max_completion_tokens" if stream else "max_tokens"
    assert hand.upstream.bodies[0][name] == most
    hand.left.set()
    await running


async def test_tools_are_reserved_by_their_bytes() -> None:
    """No token is shorter than a byte: a prompt that cannot be counted costs at most its bytes."""
    hand = limited(100_000)
    hand.order.body |= {"tools": [{"type": "function", "function": {"name": "x" * 5000}}], "max_tokens": 9}
    hand.order.meter.prompt = openai_chat.prompt_of(hand.order.body)
    hand.upstream.feed(token("water") + FINISH + USAGE + DONE)
    await hand.start()
    assert asked(hand).demands[-1].base > 5000


def with_an_image(hand: Hand) -> Hand:
    """The same request, with a part that nobody can count."""
    image = [{"type": "image_url", "image_url": {"url": "https://x/cat.png"}}]
    hand.order.body["messages"] = [{"role": "user", "content": image}]
    hand.order.meter.prompt = openai_chat.prompt_of(hand.order.body)
    return hand


async def test_a_token_with_an_allowance_cannot_send_an_image() -> None:
    """What it costs is not known before: 400, and nothing is reserved."""
    hand = with_an_image(limited(100_000, "tokens_in_all", dialect="openai_chat"))
    await hand.start()
    assert (hand.status, json.loads(hand.body)["error"]["param"]) == (400, "messages")
    assert "acquire" not in hand.log


async def test_an_image_under_a_budget_is_reserved_by_a_high_guess() -> None:
    """A tenant that has a budget can send images all the same; what they cost is charged in the end."""
    hand = with_an_image(limited(100_000, dialect="openai_chat"))
    hand.upstream.feed(token("water") + FINISH + USAGE + DONE)
    await hand.start()
    assert asked(hand).demands[-1].base == 40_000
    assert hand.limiter.used.tokens == 10


async def test_money_is_reserved_and_charged_by_the_models_price() -> None:
    """Per token of input and of output, in nano-dollars; the event says what it cost."""
    hand = limited(1_000_000, "nano_dollars_per_day")
    hand.upstream.feed(token("water") + FINISH + USAGE + DONE)
    await hand.start()
    demand = asked(hand).demands[-1]
    assert (demand.base, demand.each) == (SCRIPTED.of_input(PROMPT_TOKENS), SCRIPTED.of_output_token)
    cost = 8 * 1000 + 2 * 2000
    assert (hand.limiter.used.nano_dollars, hand.ledger.events[0].cost_nano_dollars) == (cost, cost)


async def test_a_model_without_a_price_is_refused_where_money_is_counted() -> None:
    """Deny by default: what nobody can price cannot be kept in a budget."""
    hand = limited(1_000_000, "nano_dollars_per_day")
    hand.order.body["model"] = "mystery"
    await hand.start()
    assert (hand.status, json.loads(hand.body)["error"]["code"]) == (403, "model_not_priced")
    assert "acquire" not in hand.log


# --- the wall ---------------------------------------------------------------------------------------


async def test_a_stream_ends_at_the_wall_as_at_max_tokens() -> None:
    """`length` for the choice, usage where it was asked for, `[DONE]`: an SDK sees an answer that was cut."""
    hand = limited(30, dialect="openai_chat", credit=30)
    hand.order.writer = openai_chat.ChatWriter(include_usage=True)
    hand.upstream.feed(b"".join(words(100)))
    await hand.start()
    lines = [line[6:] for line in hand.body.decode().split("\n") if line.startswith("data: ")]
    *chunks, end, usage = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == "[DONE]"
    assert len(chunks) == 30 - PROMPT_TOKENS
    assert end["choices"] == [{"index": 0, "delta": {}, "finish_reason": "length"}]
    assert usage["usage"] == {"prompt_tokens": 8, "completion_tokens": 22, "total_tokens": 30}
    [event] = hand.ledger.events
    assert (event.ended, event.cause, event.usage.output_tokens) == (Ended.CUT, Happening.BUDGET, 22)
    assert hand.limiter.used.tokens == 30
    assert hand.log.in_order("settled", "release", "data: [DONE]") or hand.log[-1].endswith("data: [DONE]")


@pytest.mark.parametrize(("dialect", "policy"), [("plain", {}), ("openai_chat", {"wall_is_error": True})])
async def test_the_wall_can_be_an_error_event(dialect: str, policy: dict[str, Any]) -> None:
    """Where it is set so; and for plain tokens, which have no word for a cut answer."""
    hand = limited(30, dialect=dialect, **policy)
    hand.upstream.feed(b"".join(words(100)))
    await hand.start()
    last = json.loads(hand.body.split(b"data: ")[-1])
    error = last["error"] if dialect == "openai_chat" else last
    assert error["code"] == "insufficient_quota"
    assert hand.ledger.events[0].cause is Happening.BUDGET


async def test_an_event_that_does_not_fit_is_neither_delivered_nor_charged() -> None:
    """Three tokens are left and five come at once: none of them."""
    hand = limited(PROMPT_TOKENS + 3, dialect="openai_chat")
    hand.upstream.feed(token("water finds its way down"))
    await hand.start()
    assert b"finds" not in hand.body
    assert hand.limiter.used.tokens == PROMPT_TOKENS
    assert b'"finish_reason":"length"' in hand.body


async def test_credit_is_extended_while_tokens_flow() -> None:
    """A long answer takes several steps, and none of its tokens is lost."""
    hand = limited(100_000)
    for _ in range(5):
        hand.upstream.feed(b"".join(words(300)))
    hand.upstream.feed(FINISH + DONE)
    await hand.start()
    assert hand.log.count("extend") >= 2
    assert hand.body.count(b"water") == 1500
    assert hand.ledger.events[0].ended is Ended.FINISHED


async def test_a_rate_makes_a_stream_wait_and_not_end() -> None:
    """Tokens per minute pay themselves off: the stream goes on when there is room again."""
    hand = limited(1_000, "tokens_per_minute", credit=None)
    hand.limiter.credit = None
    extend = hand.limiter.extend
    refusals = [Reply(Verdict.REFUSED, wait_us=1000)] * 3

    async def refusing(tenant_id: str, ask: Ask) -> Reply:
        return refusals.pop() if refusals else await extend(tenant_id, ask)

    hand.limiter.extend = refusing  # type: ignore[method-assign]
    hand.upstream.feed(b"".join(words(300)) + FINISH + DONE)
    await hand.start()
    assert not refusals
    assert hand.ledger.events[0].ended is Ended.FINISHED
    assert hand.body.count(b"water") == 300


async def test_a_client_that_leaves_while_its_stream_waits_for_a_rate_is_seen() -> None:
    """The wait ends at once, and what was delivered is charged."""
    hand = limited(1_000, "tokens_per_minute")
    hand.limiter.credit = None

    async def refusing(tenant_id: str, ask: Ask) -> Reply:
        hand.log.append("refused")
        return Reply(Verdict.REFUSED, wait_us=NEVER_US - 1)

    hand.limiter.extend = refusing  # type: ignore[method-assign]
    hand.upstream.feed(b"".join(words(300)))
    running = hand.start()
    await hand.log.until("refused")
    hand.left.set()
    await running
    assert hand.ledger.events[0].cause is Happening.CLIENT_LEFT


# --- what is charged --------------------------------------------------------------------------------


async def test_a_stream_that_was_stopped_early_is_charged_for_what_came() -> None:
    """ADR 6: every token that arrived was counted, and the budget says what the ledger says."""
    hand = limited(500)
    running = await flowing(hand)
    hand.left.set()
    await running
    await hand.gate.walks.join()
    assert hand.ledger.events[0].usage.output_tokens == 1
    assert hand.limiter.used.tokens == PROMPT_TOKENS + 1


async def test_what_reasons_out_of_sight_keeps_its_reservation() -> None:
    """ADR 6: nobody knows what was produced before it was stopped; an exact report alone refunds it."""
    hand = limited(500)
    hand.order.body["model"] = "o3-mini"
    hand.order.meter.model = "o3-mini"
    running = await flowing(hand)
    hand.left.set()
    await running
    await hand.gate.walks.join()
    assert hand.limiter.used.tokens == 500


async def test_a_refused_call_is_charged_nothing() -> None:
    """The provider never began: all that was reserved goes back."""
    from api.ports import UpstreamFailed

    hand = limited(500)
    hand.upstream.opens = asyncio.get_running_loop().create_future()
    hand.upstream.opens.set_result(UpstreamFailed("no", status=500))
    await hand.start()
    assert hand.limiter.used.tokens == 0


async def test_a_renewal_says_what_was_used_so_far() -> None:
    """So that a worker that dies has not reserved for nothing: what it used counts, the rest is free."""
    hand = limited(500)
    running = await flowing(hand)
    await tick(hand.gate)
    await tick(hand.gate)
    assert hand.limiter.renewed[-1][0].used.tokens == PROMPT_TOKENS + 1
    hand.left.set()
    await running
