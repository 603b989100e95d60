"""Limits in the middle of a stream, and as the official SDK lives with them: rates delay, budgets end.

P5: what many greedy streams spend together ends just below the budget, on fakeredis and on a real Redis.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from api.accounts import KeyFields, TenantFields
from auth.principal import TENANT_SCOPES
from tests.support.gates import BY, InProcess, serving, settings_of
from tests.support.wire import WireClient, data_lines
from tests.wire import people
from tests.wire.people import new_key, new_tenant

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from datetime import datetime
    from pathlib import Path

    from tests.support.gates import GateProcess

MESSAGES: Any = [{"role": "user", "content": "hi"}]
PROMPT_TOKENS = 8
INPUT_PRICE, OUTPUT_PRICE = 1000, 2000  # nano-dollars for a token of the scripted model
GREEDY = "scripted?tokens=100000&pace_ms=0"


def limited(gate: GateProcess, **fields: Any) -> tuple[str, str]:
    """A tenant with those fields, and a key of it."""
    tenant = new_tenant(gate, **fields)
    return tenant, str(new_key(gate, tenant)["key"])


def sdk_of(url: str, key: str, **options: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=key, **options)


# --- the SDK's own retries --------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_the_sdk_gets_through_when_a_slot_frees(gate: GateProcess, stream: bool) -> None:
    """With the retries that it has by itself: refused first, it comes back when it was told to, and is in."""
    tenant, key = await asyncio.to_thread(limited, gate, max_streams=1)
    held = await people.held(gate, key)
    seen: list[tuple[int, float]] = []

    async def see(answer: Any) -> None:
        seen.append((answer.status_code, time.monotonic()))
        if len(seen) == 1:
            assert 1000 <= int(answer.headers["retry-after-ms"]) <= 1250
            await people.leave([held])

    http = DefaultAsyncHttpxClient(event_hooks={"response": [see]})
    async with sdk_of(gate.url, key, http_client=http) as sdk:
        asked = sdk.chat.completions.create(model=people.SHORT, messages=MESSAGES, stream=stream)
        answer: Any = await asked
        if stream:
            assert [chunk async for chunk in answer][-1].choices[0].finish_reason == "stop"
    assert [status for status, _ in seen] == [429, 200]
    assert seen[1][1] - seen[0][1] > 0.9  # it waited as it was told, and did not hammer
    assert len(await people.settled(gate, tenant, 2)) == 2


async def test_the_sdk_does_not_try_again_where_it_cannot_help(gate: GateProcess) -> None:
    """A budget that is used up: one request and RateLimitError, although the SDK may retry."""
    _, key = await asyncio.to_thread(limited, gate, limits={"tokens_per_day": PROMPT_TOKENS})
    seen: list[int] = []

    async def see(answer: Any) -> None:
        seen.append(answer.status_code)

    http = DefaultAsyncHttpxClient(event_hooks={"response": [see]})
    async with sdk_of(gate.url, key, http_client=http, max_retries=5) as sdk:
        with pytest.raises(openai.RateLimitError) as refused:
            await sdk.chat.completions.create(model=people.SHORT, messages=MESSAGES, stream=True)
    assert (seen, refused.value.code) == ([429], "insufficient_quota")


async def test_a_tenant_that_may_wait_needs_no_retry(gate: GateProcess) -> None:
    """With a queue the SDK sees no 429 at all: its requests wait for their turns, on either worker."""
    tenant, key = await asyncio.to_thread(limited, gate, max_streams=1, max_waiters=10)
    async with sdk_of(gate.url, key, max_retries=0) as sdk:

        async def one() -> int:
            model = "scripted?tokens=20&pace_ms=1"
            stream = await sdk.chat.completions.create(model=model, messages=MESSAGES, stream=True)
            return len([1 async for chunk in stream if chunk.choices[0].delta.content])

        assert await asyncio.gather(*(one() for _ in range(8))) == [20] * 8
    events = await people.settled(gate, tenant, 8)
    spans = sorted(
        (event["started_at"] + timedelta(milliseconds=event["first_token_ms"]), event["ended_at"])
        for event in events
    )
    assert all(later[0] >= earlier[1] for earlier, later in pairwise(spans))


async def test_a_rate_is_waited_for_as_a_slot_is(gate: GateProcess) -> None:
    """When all are used: without a queue that is a 429; with one it waits until nine are paid off."""
    for rate, waiters, status in ((60, 0, 429), (600, 5, 200)):
        fields = {"limits": {"tokens_per_minute": rate}, "max_waiters": waiters}
        _, key = await asyncio.to_thread(limited, gate, **fields)
        model = f"scripted?tokens={rate - PROMPT_TOKENS}&pace_ms=0&per_chunk=16"
        began = time.monotonic()
        for script, expected in ((model, 200), (people.SHORT, status)):
            answer = await asyncio.to_thread(people.chat, gate, key, script)
            assert answer.status_code == expected
    assert time.monotonic() - began > (PROMPT_TOKENS + 1) / 10


@pytest.mark.parametrize("fits", [True, False], ids=["it is its turn", "it has waited long enough"])
async def test_the_sdk_reads_on_through_heartbeats(tmp_path: Path, fits: bool) -> None:
    """Comments come while it waits for a slot: the answer is whole, or the refusal is raised as its own."""
    async with serving(settings_of(tmp_path, heartbeat_seconds=0.05)) as app:
        key = await key_of(app, 1, max_waiters=5, max_wait_seconds=60 if fits else 2)
        held = await WireClient.post(app.url, "/chat/stream", people.plain(people.HELD), key=key)
        await held.events(10)
        async with sdk_of(app.url, key, max_retries=0) as sdk:
            stream = await sdk.chat.completions.create(model=people.SHORT, messages=MESSAGES, stream=True)
            if fits:  # the status came with the first heartbeat
                held.leave()
                assert [chunk async for chunk in stream][-1].choices[0].finish_reason == "stop"
            else:
                with pytest.raises(openai.APIError, match="1 streams open") as refused:
                    assert [chunk async for chunk in stream] == []
                assert refused.value.code == "rate_limit_exceeded"
                held.leave()
        await held.close()


# --- in the middle of a stream ----------------------------------------------------------------------


async def test_tokens_per_minute_delay_a_stream_and_never_end_it(gate: GateProcess) -> None:
    """A stream over a minute's tokens comes in whole, as fast as the rate pays itself off."""
    rate, over = 6000, 60
    _, key = await asyncio.to_thread(limited, gate, limits={"tokens_per_minute": rate})
    tokens = rate - PROMPT_TOKENS + over
    body = {"prompt": "hi", "model": f"scripted?tokens={tokens}&pace_ms=0&per_chunk=20"}
    began = time.monotonic()
    client = await WireClient.post(gate.url, "/chat/stream", body, key=key)
    async with asyncio.timeout(30):
        lines = data_lines(await client.body())
    took = time.monotonic() - began
    await client.close()
    assert lines[-1] == b"[DONE]"
    words = "".join(json.loads(line)["token"] for line in lines[:-1]).split()
    assert (client.status, len(words)) == (200, tokens)
    assert took >= over / (rate / 60)


@pytest.mark.parametrize("usage", [True, False])
async def test_the_sdk_sees_the_end_of_a_budget_as_length(gate: GateProcess, usage: bool) -> None:
    """Of three that share one: `finish_reason` is "length", and usage is there where it was asked for."""
    tenant, key = await asyncio.to_thread(limited, gate, limits={"tokens_per_day": 300})
    options = {"stream_options": {"include_usage": True}} if usage else {}
    async with sdk_of(gate.url, key) as sdk:

        async def one() -> tuple[int, int]:
            stream = await sdk.chat.completions.create(
                model="scripted?tokens=100000&pace_ms=10", messages=MESSAGES, stream=True, **options
            )
            chunks = [chunk async for chunk in stream]
            choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
            assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["length"]
            words = len("".join(choice.delta.content or "" for choice in choices).split())
            counts = [chunk.usage for chunk in chunks if chunk.usage is not None]
            assert [(c.prompt_tokens, c.completion_tokens) for c in counts] == [
                (PROMPT_TOKENS, words)
            ] * usage
            return PROMPT_TOKENS, words

        found = await asyncio.gather(*(one() for _ in range(3)))
    events = await people.settled(gate, tenant, 3)
    assert sorted(found) == sorted((event["input_tokens"], event["output_tokens"]) for event in events)
    assert 290 < sum(map(sum, found)) <= 300
    # The last one may have come to the limit that the provider was told of; the others have not.
    assert [event["cause"] for event in events].count("budget") >= 2


# --- many at once -----------------------------------------------------------------------------------


@dataclass
class Side:
    """A gate, and a tenant with a budget of 10,000 tokens, or of what 10,000 tokens of output cost."""

    url: str
    key: str
    settled: Callable[[int], Awaitable[list[dict[str, Any]]]]


def budget_of(unit: str) -> tuple[dict[str, int], int]:
    """The limit, and its amount."""
    amount = 10_000 * (1 if unit == "tokens" else OUTPUT_PRICE)
    return {f"{unit}_per_day": amount}, amount


@asynccontextmanager
async def in_memory(tmp_path: Path, limits: dict[str, int]) -> AsyncIterator[Side]:
    """The app in this loop, on fakeredis and SQLite, with the scripted model built in."""
    async with serving(settings_of(tmp_path)) as app:
        key = await key_of(app, limits=limits)

        async def settled(count: int) -> list[dict[str, Any]]:
            await people.until_settled(app, count)  # a slow disk may take it after the stream's end
            return [event.flat() for event in await app.events()]

        yield Side(app.url, key, settled)


async def key_of(app: InProcess, max_streams: int = 50, **fields: Any) -> str:
    """A key of a new tenant with those fields, whom `events` then tells of."""
    given = TenantFields("greedy", max_streams, **fields)
    app.tenant = (await app.gate.accounts.create_tenant(given, by=BY)).id
    names = KeyFields("greedy", tuple(sorted(TENANT_SCOPES)))
    return (await app.gate.accounts.keys(None).issue(app.tenant, names, by=BY))[1]


@pytest.mark.parametrize("unit", ["tokens", "nano_dollars"])
@pytest.mark.parametrize("redis", ["fakeredis", "redis"])
async def test_fifty_greedy_streams_end_just_below_the_budget(
    request: pytest.FixtureRequest, tmp_path: Path, unit: str, redis: str
) -> None:
    """P5: the ledger's sum is never over, and not 1% under; each stream ends in order, with one event."""
    limits, amount = budget_of(unit)
    if redis == "fakeredis":
        async with in_memory(tmp_path, limits) as side:
            await _greedy(side, unit, amount)
        return
    gate: GateProcess = request.getfixturevalue("gate")
    tenant, key = await asyncio.to_thread(limited, gate, limits=limits)

    async def settled(count: int) -> list[dict[str, Any]]:
        return await people.settled(gate, tenant, count)

    await _greedy(Side(gate.url, key, settled), unit, amount)


async def _greedy(side: Side, unit: str, amount: int) -> None:
    body = {"model": GREEDY, "messages": MESSAGES, "stream": True}

    async def one() -> int:
        client = await WireClient.post(side.url, "/v1/chat/completions", body, key=side.key)
        async with asyncio.timeout(60):
            raw = await client.body()
        await client.close()
        assert client.complete
        if client.status != 200:
            assert (client.status, json.loads(raw)["error"]["code"]) == (429, "insufficient_quota")
            return 0
        *chunks, done = data_lines(raw)
        choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
        assert (done, choices[-1]["finish_reason"]) == (b"[DONE]", "length")
        assert sum(choice["finish_reason"] is not None for choice in choices) == 1
        return 1

    began = sum(await asyncio.gather(*(one() for _ in range(50))))
    events = await side.settled(began)
    assert len(events) == began >= 10
    tokens = [(event["input_tokens"], event["output_tokens"]) for event in events]
    spent = sum(i + o for i, o in tokens)
    if unit == "nano_dollars":
        spent = sum(i * INPUT_PRICE + o * OUTPUT_PRICE for i, o in tokens)
        assert spent == sum(event["cost_nano_dollars"] for event in events)
    assert 0.99 * amount < spent <= amount


class Calendar:
    """A clock that shows the tenth of a month, at noon, or some days after."""

    def __init__(self, clock: Any) -> None:
        self._clock, self.days = clock, 0
        now = clock.now()
        self._ahead = now.replace(day=10, hour=12, minute=0) - now
        self.monotonic = clock.monotonic

    def now(self) -> datetime:
        return self._clock.now() + self._ahead + timedelta(days=self.days)  # type: ignore[no-any-return]

    def unix(self) -> float:
        return self.now().timestamp()


async def test_a_budget_is_whole_again_when_its_period_is_over(tmp_path: Path) -> None:
    """Used up today; tomorrow is a new day, with what is left of the month; and then comes the next month."""
    async with serving(settings_of(tmp_path)) as app:
        key = await key_of(app, limits={"tokens_per_day": 20, "tokens_per_month": 30})
        app.gate.clock = calendar = Calendar(app.gate.clock)

        async def asked() -> tuple[int, int]:
            body = {"model": GREEDY, "messages": MESSAGES, "stream": True}
            client = await WireClient.post(app.url, "/v1/chat/completions", body, key=key)
            await client.body()
            await client.close()
            await app.settled()
            totals = await app.gate.ledger.totals(app.tenant)
            return client.status, totals.input_tokens + totals.output_tokens

        found = []
        for calendar.days in (0, 0, 1, 2, 31):
            found.append(await asked())
        assert found == [(200, 20), (429, 20), (200, 30), (429, 30), (200, 50)]
