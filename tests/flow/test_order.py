"""The order of things inside one request; ASGI by hand, so that nothing needs to wait for time."""

from __future__ import annotations

import asyncio
import json

import pytest

from api.core.booking import Ended, Happening
from api.core.sse import HEARTBEAT
from api.core.usage import Certainty
from api.flow.tend import tick
from api.ports import LedgerUnavailable, LimiterUnavailable, UpstreamFailed
from tests.support.hand import DONE, FINISH, USAGE, Hand, token


def line(word: str) -> str:
    """A plain token's event, as the log has it."""
    return f'data: {{"token":"{word}"}}'


async def test_no_byte_is_delivered_before_the_booking_is_durable() -> None:
    """P1: with the booking held, the answer's first bytes are there and not one of them is sent."""
    hand = Hand()
    hand.ledger.hold_booking = True
    hand.upstream.feed(token("water"))
    running = hand.start()
    await hand.log.until("open")
    for _ in range(50):
        await asyncio.sleep(0)
    assert hand.sent == []
    assert hand.ledger.booked is not None
    hand.ledger.booked.set_result(None)
    hand.upstream.feed(FINISH + USAGE + DONE)
    await running
    assert hand.log.in_order("book", "open", "booked", "start", line("water"))


async def test_the_end_waits_for_the_event_and_the_slot() -> None:
    """P4: the event is durable, then the slot is given back, and only then `[DONE]` goes out."""
    hand = Hand()
    hand.ledger.hold_settlement = True
    hand.upstream.feed(token("water") + FINISH + USAGE + DONE)
    running = hand.start()
    await hand.log.until("settle")
    assert "data: [DONE]" not in hand.log
    assert hand.limiter.taken
    assert hand.ledger.settled is not None
    hand.ledger.settled.set_result(None)
    await running
    assert hand.log.in_order("finish", "close", "settle", "settled", "release", "data: [DONE]")


async def test_a_client_that_leaves_after_the_terminal_event_was_read_has_finished() -> None:
    """Settlement is under way when the client goes: the event says finished, and the slot is free."""
    hand = Hand()
    hand.ledger.hold_settlement = True
    hand.upstream.feed(token("water") + FINISH + USAGE + DONE)
    running = hand.start()
    await hand.log.until("settle")
    hand.left.set()
    assert hand.ledger.settled is not None
    hand.ledger.settled.set_result(None)
    await running
    await hand.gate.walks.join()
    assert hand.ledger.events[0].ended is Ended.FINISHED
    assert not hand.limiter.taken


async def test_a_client_that_leaves_while_the_last_bytes_are_on_their_way_has_finished() -> None:
    """The terminal event was read, the last content is stuck in a send, the client goes: finished."""
    hand = Hand()
    hand.hold_sends = asyncio.Event()
    hand.upstream.feed(token("water") + FINISH + USAGE + DONE)
    running = hand.start()
    await hand.log.until("send held")
    hand.left.set()
    await running
    assert (hand.ledger.events[0].ended, hand.ledger.events[0].cause) == (Ended.FINISHED, Happening.TERMINAL)
    assert "data: [DONE]" not in hand.log


async def test_a_client_that_leaves_during_admission_books_nothing() -> None:
    """The slot that comes too late goes straight back; no booking, no upstream call."""
    hand = Hand()
    hand.limiter.hold = asyncio.Event()
    running = hand.start()
    await hand.log.until("acquire")
    hand.left.set()
    for _ in range(5):
        await asyncio.sleep(0)
    hand.limiter.hold.set()
    await running
    assert hand.log == ["acquire", "release"]


async def test_leaving_cancels_a_call_that_has_not_been_answered() -> None:
    """P6: the client goes before the provider has said anything; the call is cancelled, and settled once."""
    hand = Hand()
    hand.upstream.opens = asyncio.get_running_loop().create_future()
    running = hand.start()
    await hand.log.until("open")
    hand.left.set()
    await running
    assert hand.log.in_order("open cancelled", "settle", "release")
    [event] = hand.ledger.events
    assert (event.ended, event.usage.input_tokens, event.usage.output_tokens) == (Ended.LEFT, 8, 0)
    assert hand.sent == []


async def test_a_booking_that_cannot_be_written_stops_everything() -> None:
    """The ledger refuses while the provider is silent: the call is given up, and the client gets a 503."""
    hand = Hand()
    hand.ledger.hold_booking = True
    hand.upstream.opens = asyncio.get_running_loop().create_future()
    running = hand.start()
    await hand.log.until("open")
    assert hand.ledger.booked is not None
    hand.ledger.booked.set_exception(LedgerUnavailable("away"))
    await running
    assert hand.status == 503
    assert json.loads(hand.body)["error"]["code"] == "ledger_unavailable"
    assert not hand.limiter.taken


async def test_settlement_that_takes_too_long_does_not_hold_the_client() -> None:
    """The database is away at the end: after `settle_seconds` the stream ends, the ledger goes on trying."""
    hand = Hand(settle_seconds=0.01)
    hand.ledger.hold_settlement = True
    hand.upstream.feed(token("water") + FINISH + USAGE + DONE)
    await hand.start()
    assert hand.log[-1] == "data: [DONE]"
    assert hand.log.in_order("settle", "release", "data: [DONE]")


async def test_events_that_came_before_an_error_are_delivered_before_it() -> None:
    """One read holds a token and an error event: the token arrives, is counted, then the error."""
    hand = Hand()
    hand.upstream.feed(token("water") + b'data: {"error": {"message": "boom"}}\n\n' + token("never"))
    await hand.start()
    assert hand.log.in_order("start", line("water"))
    last = json.loads(hand.body.split(b"data: ")[-1])
    assert last["code"] == "upstream_failed"
    assert "boom" not in hand.body.decode()
    assert hand.ledger.events[0].usage.output_tokens == 1


async def test_a_request_over_the_cap_is_refused_before_anything_is_written() -> None:
    """429 with Retry-After; no booking, no upstream call, no slot."""
    hand = Hand()
    hand.limiter.taken.add("another")
    await hand.start()
    assert hand.status == 429
    assert dict(hand.sent[0]["headers"])[b"retry-after"] in {b"1", b"2"}  # it is spread
    assert hand.log[0] == "acquire"
    assert "book" not in hand.log
    assert "open" not in hand.log


async def test_a_limiter_that_does_not_answer_is_a_503_and_gives_the_slot_back() -> None:
    """Fails closed; a slot whose granting was lost on the way is given back at once."""
    hand = Hand()

    async def lost(*_: object) -> None:
        raise LimiterUnavailable("Redis: TimeoutError")

    hand.limiter.acquire = lost  # type: ignore[assignment, method-assign]
    await hand.start()
    await hand.gate.chores.join()
    assert hand.status == 503
    assert "release" in hand.log


@pytest.mark.parametrize("dialect", ["plain", "openai_chat"])
async def test_a_heartbeat_stands_between_events_and_never_inside_one(dialect: str) -> None:
    """Half an event has come when the heartbeat is due: the comment goes out whole, the event after it."""
    hand = Hand(dialect=dialect, heartbeat_seconds=0)
    first, second = token("water"), token("finds")
    hand.upstream.feed(first + second[:20])
    running = hand.start()
    await hand.log.until(line("water") if dialect == "plain" else first.decode().strip())
    await tick(hand.gate)
    await hand.gate.chores.join()
    hand.upstream.feed(second[20:] + FINISH + USAGE + DONE)
    await running
    assert hand.body.count(HEARTBEAT) == 1
    before, after = hand.body.split(HEARTBEAT)
    assert before.endswith(b"\n\n")
    assert b"finds" in after
    assert b"finds" not in before


async def test_a_silent_provider_gets_its_client_a_heartbeat_before_the_first_event() -> None:
    """The status line goes out with the first heartbeat, and only once the booking is durable."""
    hand = Hand(heartbeat_seconds=0)
    hand.ledger.hold_booking = True
    hand.upstream.opens = asyncio.get_running_loop().create_future()
    running = hand.start()
    await hand.log.until("open")
    await tick(hand.gate)
    for _ in range(5):
        await asyncio.sleep(0)
    assert hand.sent == []
    assert hand.ledger.booked is not None
    hand.ledger.booked.set_result(None)
    await hand.log.until(HEARTBEAT.decode().strip())
    hand.upstream.opens.set_result(UpstreamFailed("refused", status=500))
    await running
    assert hand.status == 200
    assert json.loads(hand.body.split(b"data: ")[-1])["code"] == "upstream_failed"


async def test_a_lost_lease_cuts_the_stream() -> None:
    """Another worker has the slot: the stream ends in an error event, and its tokens are on the ledger."""
    hand = Hand()
    hand.upstream.feed(token("water"))
    running = hand.start()
    await hand.log.until(line("water"))
    hand.limiter.lost = set(hand.gate.live)
    await tick(hand.gate)
    await running
    [event] = hand.ledger.events
    assert (event.ended, event.cause, event.usage.output_tokens) == (Ended.CUT, Happening.LEASE_LOST, 1)
    assert json.loads(hand.body.split(b"data: ")[-1])["code"] == "lease_lost"


async def test_a_slot_is_not_given_back_in_the_middle_of_a_renewal() -> None:
    """A stream that ends while leases are renewed waits for that: else its slot would be registered again."""
    hand = Hand()
    hand.limiter.hold_renewal = asyncio.Event()
    hand.upstream.feed(token("water"))
    running = hand.start()
    await hand.log.until(line("water"))
    ticking = asyncio.create_task(tick(hand.gate))
    await hand.log.until("renew")
    hand.upstream.feed(FINISH + USAGE + DONE)
    await hand.log.until("settled")
    for _ in range(5):
        await asyncio.sleep(0)
    assert "release" not in hand.log
    hand.limiter.hold_renewal.set()
    await asyncio.gather(running, ticking)
    assert hand.limiter.taken == set()


async def test_a_checkpoint_tells_the_tokens_so_far() -> None:
    """A tick writes the running count of a live stream, and the next one only if it has changed."""
    hand = Hand()
    hand.upstream.feed(token("water") + token(" finds"))
    running = hand.start()
    await hand.log.until(f"{line('water')}\n\n{line(' finds')}")
    await tick(hand.gate)
    await tick(hand.gate)
    assert [(c.input_tokens, c.output_tokens) for c in hand.ledger.checkpoints] == [(8, 2)]
    hand.left.set()
    await running
    assert hand.ledger.events[0].usage.output_tokens == 2


async def test_a_client_that_does_not_read_is_broken_off() -> None:
    """A send that does not return: the stream is cut and settled, and the connection is aborted."""
    hand = Hand(send_seconds=0.01)
    hand.hold_sends = asyncio.Event()
    hand.upstream.feed(token("water"))
    running = hand.start()
    await hand.log.until("send held")
    while not hand.ledger.events:
        await tick(hand.gate)
        await asyncio.sleep(0)
    await running
    assert hand.ledger.events[0].cause is Happening.SLOW_READER
    assert hand.aborted
    assert hand.log.in_order("settle", "release", "abort")


async def test_a_drain_refuses_new_streams_and_cuts_old_ones_after_the_grace() -> None:
    """P12: with no grace at all, a live stream ends in an error event; a new one gets 503."""
    hand = Hand(drain_seconds=0)
    hand.upstream.feed(token("water"))
    running = hand.start()
    await hand.log.until(line("water"))
    await hand.gate.drained()
    await running
    assert json.loads(hand.body.split(b"data: ")[-1])["code"] == "drain"
    late = Hand()
    late.gate.draining = True
    await late.start()
    assert late.status == 503
    assert late.log[0] == "start"


async def test_a_cancelled_request_is_settled_all_the_same() -> None:
    """The server loses its patience and cancels the request's task: the walk goes on to its settlement."""
    hand = Hand()
    hand.upstream.feed(token("water"))
    running = hand.start()
    await hand.log.until(line("water"))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await hand.gate.walks.join()
    assert (hand.ledger.events[0].ended, hand.ledger.events[0].cause) == (Ended.CUT, Happening.DRAIN)
    assert not hand.limiter.taken


async def test_a_bug_in_the_gate_is_settled_and_says_nothing_of_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An exception that nobody foresaw: a 500 without its text, one event, no slot; the log has the cause."""
    hand = Hand()
    hand.upstream.feed(RuntimeError("secret detail"))
    await hand.start()
    assert hand.status == 500
    assert b"secret detail" not in hand.body
    assert hand.ledger.events[0].cause is Happening.GATE_FAILED
    assert not hand.limiter.taken
    assert "secret detail" in caplog.text


async def test_usage_is_always_asked_for() -> None:
    """The upstream is asked for usage, whatever the client asked for; other stream options pass."""
    hand = Hand(dialect="openai_chat")
    hand.order.body["stream_options"] = {"include_obfuscation": False, "include_usage": False}
    hand.upstream.feed(token("water") + FINISH + USAGE + DONE)
    await hand.start()
    assert hand.upstream.bodies[0]["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert hand.body == token("water") + FINISH + DONE


async def test_a_whole_answer_that_nobody_reads_is_given_up() -> None:
    """A large JSON answer goes out in pieces, and the connection is broken when one is not taken in time."""
    hand = Hand(stream=False, send_seconds=0.01)
    hand.upstream.feed(b'{"choices": [], "pad": "' + b"x" * 1_000_000 + b'"}')
    hand.upstream.feed(b"")
    hand.hold_sends = asyncio.Event()
    await hand.start()
    assert hand.aborted
    assert hand.ledger.events[0].ended is Ended.FINISHED
    whole = Hand(stream=False)
    whole.upstream.feed(b'{"choices": [], "pad": "' + b"x" * 1_000_000 + b'"}')
    whole.upstream.feed(b"")
    await whole.start()
    assert max(len(message.get("body", b"")) for message in whole.sent) <= 64 * 1024
    assert len(whole.body) == 1_000_026


async def test_a_count_that_fails_is_settled_with_what_is_known() -> None:
    """The tokeniser breaks: the event is written all the same, as at least, and the slot is free."""
    hand = Hand()

    async def broken(*_: object) -> list[int]:
        raise RuntimeError("no ranks")

    hand.gate.tokenizer = type("Broken", (), {"count": staticmethod(broken)})()
    hand.upstream.feed(token("water") + FINISH + DONE)
    await hand.start()
    [event] = hand.ledger.events
    assert (event.ended, event.usage.certainty) == (Ended.FINISHED, Certainty.AT_LEAST)
    assert not hand.limiter.taken
    assert hand.log[-1] == "data: [DONE]"


async def test_a_providers_odd_model_name_does_not_reach_the_ledger() -> None:
    """Control characters are left out, and what is too long is cut: no row is refused for them."""
    hand = Hand()
    name = "evil\\u0000\\u001b[31m" + "m" * 1000
    hand.upstream.feed(b'data: {"model": "%s", "choices": []}\n\n' % name.encode() + FINISH + USAGE + DONE)
    await hand.start()
    assert hand.ledger.events[0].answered_model == ("evil[31m" + "m" * 1000)[:256]


async def test_a_send_to_a_connection_that_has_gone_is_a_client_that_left() -> None:
    """Servers raise OSError, event loops RuntimeError: neither is a failure of the gate."""
    for error in (OSError("gone"), RuntimeError("the handler is closed")):
        hand = Hand()

        async def gone(_: object, error: Exception = error) -> None:
            raise error

        hand._send = gone  # type: ignore[method-assign]
        hand.upstream.feed(token("water"))
        await hand.start()
        assert [e.ended for e in hand.ledger.events] == [Ended.LEFT]


async def test_comments_of_a_provider_are_not_passed_on() -> None:
    """A comment with a blank line behind it is an empty event to openai-go (maximhq/bifrost#5874)."""
    hand = Hand(dialect="openai_chat")
    hand.upstream.feed(b": PROCESSING\n\n" + token("water") + FINISH + USAGE + DONE)
    await hand.start()
    assert hand.body == token("water") + FINISH + DONE
