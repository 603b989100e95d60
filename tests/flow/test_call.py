"""The call: who is asked, who is passed over, and what never is."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from api.adapters.tokenizer_toktok import ToktokTokenizer
from api.adapters.upstream_scripted import ScriptedUpstream
from api.core.booking import Ended
from api.core.breaker import FAILURES, Standing
from api.core.catalog import Catalog, ModelSpec, Target, UpstreamSpec
from api.core.script import Step
from api.flow.providers import Providers
from api.ports import UpstreamFailed
from tests.contracts.helpers import bounded, eventually
from tests.support.gates import serving, settings_of
from tests.support.hand import DONE, FINISH, USAGE, Hand, HandUpstream, token

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = token("water") + FINISH + USAGE + DONE
ERROR = b'data: {"error": {"message": "secret host"}}\n\n'


class Two:
    """A request that two upstreams can answer, `first` before `second`; the test plays both."""

    def __init__(self, *, dialect: str = "openai_chat", stream: bool = True, **spec: Any) -> None:
        self.hand = Hand(dialect=dialect, stream=stream)
        self.first, self.second = HandUpstream(self.hand.log), HandUpstream(self.hand.log)
        upstreams = {"first": self.first, "second": self.second}
        specs = [(UpstreamSpec(name, "scripted"), "") for name in upstreams]
        self.providers = Providers(specs, lambda one, _secret: upstreams[one.name])
        self.hand.gate.providers = self.providers
        targets = (Target("first"), Target("second", "other", order=1))
        self.hand.order.spec = ModelSpec("scripted", targets, **spec)

    def opens(self, upstream: HandUpstream, error: Exception | None = None) -> None:
        """What its status line says."""
        upstream.opens = asyncio.get_running_loop().create_future()
        upstream.opens.set_result(error)

    async def answer(self) -> None:
        await bounded(self.hand.start())

    @property
    def event(self) -> Any:
        [event] = self.hand.ledger.events
        return event

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.hand.sent[0]["headers"])


@pytest.mark.parametrize(
    "error",
    [
        UpstreamFailed("not reached"),
        UpstreamFailed("timed out", timed_out=True),
        UpstreamFailed("full", status=429, retry_after="7"),
        UpstreamFailed("broken", status=500),
        UpstreamFailed("away", status=503),
        UpstreamFailed("our key", status=401),
    ],
)
async def test_who_fails_for_its_own_reasons_is_passed_over(error) -> None:
    """The next one answers; the client and the ledger are told which, and it is asked by its own name."""
    two = Two()
    two.opens(two.first, error)
    two.second.feed(WHOLE)
    await two.answer()
    assert two.hand.body.endswith(DONE)
    assert two.headers[b"x-sluicegate-upstream"] == b"second"
    assert two.event.booking.upstream == "second"
    assert (two.event.ended, two.event.usage.output_tokens) == (Ended.FINISHED, 2)
    assert [body["model"] for body in two.second.bodies] == ["other"]
    assert [body["model"] for body in two.first.bodies] == ["scripted"]


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_what_is_wrong_with_the_request_is_wrong_everywhere(status) -> None:
    """Nobody else is asked, and the client sees the blame."""
    two = Two()
    two.opens(two.first, UpstreamFailed("no", status=status, body={"message": "no", "code": "bad"}))
    await two.answer()
    assert two.hand.status == status
    assert two.second.bodies == []
    assert two.event.ended is Ended.FAILED


@pytest.mark.parametrize("begins", [ERROR, b"", UpstreamFailed("broke off"), b": a comment\n\n" + ERROR])
async def test_an_answer_that_fails_before_its_first_event_is_nobodys(begins) -> None:
    """An error event first, an end, a break: nothing of it reaches the client, and the next one answers."""
    two = Two()
    two.first.feed(begins)
    if not isinstance(begins, Exception):
        two.first.feed(b"")
    two.second.feed(WHOLE)
    await two.answer()
    assert two.hand.body.endswith(DONE)
    assert b"secret host" not in two.hand.body
    assert two.event.usage.output_tokens == 2  # as the second one reports
    assert two.hand.log.count("close") == 2  # the first one's connection too


async def test_after_the_first_event_an_answer_is_nobody_elses() -> None:
    """It breaks off with an error event, and the second is never asked."""
    two = Two()
    two.first.feed(token("water"))
    two.first.feed(UpstreamFailed("broke off"))
    await two.answer()
    assert json.loads(two.hand.body.split(b"data: ")[-1])["error"]["code"] == "upstream_failed"
    assert two.second.bodies == []
    assert two.event.booking.upstream == "first"


async def test_who_says_nothing_for_too_long_is_passed_over() -> None:
    """`first_token_seconds`, from when it is asked to its first event; its connection is closed."""
    two = Two(first_token_seconds=0.05)
    two.second.feed(WHOLE)
    await two.answer()
    assert two.hand.body.endswith(DONE)
    assert two.event.booking.upstream == "second"
    assert two.hand.log.in_order("open", "close", "open")


async def test_the_last_one_is_held_to_its_time_too() -> None:
    """When nobody begins in time the client is told so: 504, and nothing was used."""
    two = Two(first_token_seconds=0.05)
    await two.answer()
    assert two.hand.status == 504
    assert two.event.ended is Ended.FAILED
    assert two.event.usage.output_tokens == 0


@pytest.mark.parametrize("ends", ["answered", "failed", "left"])
async def test_connections_are_closed_when_nobody_reads_from_them(ends) -> None:
    """An upstream whose entry is gone is closed after what it answers, however that ends."""
    two = Two()
    provider = two.providers.get("first")
    if ends == "failed":
        two.opens(two.first, UpstreamFailed("broken", status=500))
        two.opens(two.second, UpstreamFailed("broken", status=500))
    running = two.hand.start()
    await two.hand.log.until("open")
    if ends == "answered":
        two.first.feed(WHOLE)
    elif ends == "left":
        two.hand.left.set()
    await bounded(running)
    await eventually(lambda: asyncio.sleep(0, not provider.live))


async def test_a_client_that_leaves_while_the_next_one_is_asked_is_seen() -> None:
    """P6 holds at each of them."""
    two = Two()
    two.opens(two.first, UpstreamFailed("broken", status=500))
    running = two.hand.start()
    await two.hand.log.until("open")

    async def both_asked() -> bool:
        return len(two.second.bodies) == 1

    await eventually(both_asked)
    two.hand.left.set()
    await bounded(running)
    assert two.event.ended is Ended.LEFT
    assert two.hand.log[-1] != "open"


async def test_all_fail_and_the_client_gets_the_last_reason() -> None:
    """One refusal, with Retry-After where the provider is busy."""
    two = Two()
    two.opens(two.first, UpstreamFailed("broken", status=500))
    two.opens(two.second, UpstreamFailed("full", status=429, retry_after="7"))
    await two.answer()
    assert two.hand.status == 429
    assert two.headers[b"retry-after"] == b"7"
    assert len(two.hand.ledger.events) == 1


async def test_rounds_are_made_as_often_as_the_model_says() -> None:
    """`retries`: everybody is asked again, after a pause."""
    two = Two(retries=1)
    two.opens(two.first, UpstreamFailed("broken", status=500))
    two.opens(two.second, UpstreamFailed("broken", status=500))
    await two.answer()
    assert (len(two.first.bodies), len(two.second.bodies)) == (2, 2)
    assert two.hand.status == 502


async def test_the_clients_patience_bounds_it() -> None:
    """Nobody else is asked for a client that no longer waits."""
    two = Two(retries=5)
    two.hand.order.patience_seconds = 0.0
    two.opens(two.first, UpstreamFailed("broken", status=500))
    await two.answer()
    assert two.second.bodies == []
    assert two.hand.status == 502


async def test_who_fails_again_and_again_is_asked_last() -> None:
    """The breaker opens: the other one is asked first, and this one only where that fails too."""
    two = Two()
    for _ in range(FAILURES):
        two.providers.get("first").breaker.failed(two.hand.gate.clock.monotonic(), 0.0)
    assert two.providers.standings(two.hand.gate.clock.monotonic())["first"] is Standing.OPEN
    two.second.feed(WHOLE)
    await two.answer()
    assert two.first.bodies == []
    assert two.event.booking.upstream == "second"


async def test_an_answer_without_a_stream_is_passed_on_too() -> None:
    """One JSON answer: the same rules."""
    two = Two(stream=False)
    two.opens(two.first, UpstreamFailed("broken", status=500))
    two.second.feed(b'{"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "usage": null}')
    two.second.feed(b"")
    await two.answer()
    assert two.hand.status == 200
    assert two.event.booking.upstream == "second"


class Flaky(ScriptedUpstream):
    """Every tenth request fails, in one of several ways."""

    asked = 0

    async def open(self, body: dict[str, Any], *dialect: str, **options: Any) -> Any:
        self.asked += 1
        if self.asked % 10 == 0:
            raise [UpstreamFailed("x", status=500), UpstreamFailed("x"), UpstreamFailed("x", status=429)][
                self.asked // 10 % 3
            ]
        answer = await super().open(body, *dialect, **options)
        if self.asked % 10 == 5:  # and another tenth says an error first
            answer.steps = iter([Step(0, ERROR)])
        return answer


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_failing_calls_are_no_failed_requests(path: str, tmp_path: Path) -> None:
    """A fifth of the calls to one upstream fail: of 300 requests none does, and all are on the ledger."""
    async with serving(settings_of(tmp_path)) as app:
        upstreams = {"flaky": Flaky(ToktokTokenizer()), "steady": ScriptedUpstream(ToktokTokenizer())}
        specs = [(UpstreamSpec(name, "scripted"), "") for name in upstreams]
        providers = Providers(specs, lambda spec, _secret: upstreams[spec.name])
        targets = (Target("flaky"), Target("steady", order=1))
        providers.catalog = Catalog(models=[ModelSpec("scripted*", targets)])
        app.gate.providers = providers
        asked = {"model": "scripted?tokens=3&pace_ms=0", "max_tokens": 9, "stream": True}
        asked["messages"] = [{"role": "user", "content": "hi"}]
        limits, served = asyncio.Semaphore(10), []

        async def ask(client: httpx2.AsyncClient) -> None:
            async with limits:
                answer = await client.post(path, json=asked, headers={"authorization": f"Bearer {app.key}"})
                served.append((answer.status_code, b"upstream_failed" in answer.content))

        async with httpx2.AsyncClient(base_url=app.url, trust_env=False, timeout=30) as client:
            await asyncio.gather(*(ask(client) for _ in range(300)))
        assert set(served) == {(200, False)}
        await app.settled()
        events = await app.events()
        assert len(events) == 300
        assert {event.ended for event in events} == {Ended.FINISHED}
        assert {event.usage.output_tokens for event in events} == {3}
        assert {event.booking.upstream for event in events} == {"flaky", "steady"}
