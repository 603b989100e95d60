"""P11: openai-python works by base_url alone."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.gates import GateProcess
    from tests.support.servers import ScriptedProcess

MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
def label() -> str:
    """A label of this test in the upstream's statistics."""
    return uuid.uuid4().hex


@pytest.fixture
def tenant(gate: GateProcess) -> tuple[str, str]:
    """A tenant that may have one stream at a time, and its key."""
    return gate.tenant(max_streams=1)


@pytest.fixture
async def client(gate: GateProcess, tenant: tuple[str, str]) -> AsyncIterator[AsyncOpenAI]:
    """The SDK, without retries of its own."""
    async with AsyncOpenAI(base_url=f"{gate.url}/v1", api_key=tenant[1], max_retries=0) as sdk:
        yield sdk


async def events_of(gate: GateProcess, tenant: tuple[str, str]) -> list[dict[str, Any]]:
    """The tenant's events on the ledger."""
    answer = await asyncio.to_thread(gate.http, "GET", "/v1/usage/events", tenant[1])
    return list(answer.json()["data"])


async def test_a_stream_arrives_whole(
    client: AsyncOpenAI, gate: GateProcess, tenant: tuple[str, str]
) -> None:
    """All text arrives, no chunk carries usage that was not asked for, and the ledger has the numbers."""
    stream = await client.chat.completions.create(
        model="scripted?tokens=30&pace_ms=0", messages=MESSAGES, stream=True
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert len(text.split()) == 30
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    [event] = await events_of(gate, tenant)
    assert (event["ended"], event["source"], event["output_tokens"]) == ("finished", "provider", 30)


async def test_usage_that_is_asked_for_arrives(client: AsyncOpenAI) -> None:
    """With `include_usage` the last chunk has no choices and the numbers."""
    stream = await client.chat.completions.create(
        model="scripted?tokens=30&pace_ms=0",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
    )
    last = [chunk async for chunk in stream][-1]
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (8, 30)


async def test_an_answer_without_streaming(
    client: AsyncOpenAI, gate: GateProcess, tenant: tuple[str, str]
) -> None:
    """`stream=False` gives one completion, and one event."""
    answer = await client.chat.completions.create(model="scripted?tokens=12", messages=MESSAGES)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    [event] = await events_of(gate, tenant)
    assert (event["ended"], event["input_tokens"], event["output_tokens"]) == ("finished", 8, 12)


async def test_models_are_listed(client: AsyncOpenAI) -> None:
    """`models.list()` gives the upstream's models."""
    assert "scripted" in [model.id async for model in client.models.list()]


async def test_an_unknown_model_is_not_found(
    client: AsyncOpenAI, gate: GateProcess, tenant: tuple[str, str]
) -> None:
    """The provider's 404 arrives as OpenAI's, and costs nothing."""
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="no-such-model", messages=MESSAGES, stream=True)
    assert caught.value.code == "model_not_found"
    [event] = await events_of(gate, tenant)
    assert (event["ended"], event["input_tokens"], event["output_tokens"]) == ("failed", 0, 0)


async def test_an_error_in_the_middle_is_raised(client: AsyncOpenAI) -> None:
    """The SDK raises when the provider breaks off in the middle of a stream."""
    stream = await client.chat.completions.create(
        model="scripted?tokens=30&pace_ms=0&eof_at=10", messages=MESSAGES, stream=True
    )
    words = []
    with pytest.raises(openai.APIError):
        async for chunk in stream:
            words += [choice.delta.content for choice in chunk.choices if choice.delta.content]
    assert len(words) == 10


async def test_a_foreign_key_is_an_authentication_error(gate: GateProcess) -> None:
    """A key that nobody issued raises AuthenticationError."""
    async with AsyncOpenAI(base_url=f"{gate.url}/v1", api_key="sk-wrong", max_retries=0) as sdk:
        with pytest.raises(openai.AuthenticationError) as caught:
            await sdk.models.list()
    assert caught.value.code == "invalid_api_key"


async def test_breaking_out_of_the_loop_closes_the_upstream(
    client: AsyncOpenAI, gate: GateProcess, tenant: tuple[str, str], scripted: ScriptedProcess, label: str
) -> None:
    """Closing the SDK's stream early closes the provider's, and the tokens that came are on the ledger."""
    stream = await client.chat.completions.create(
        model=f"scripted?label={label}&tokens=50&pace_ms=0&silence_at=10&silence_ms=60000",
        messages=MESSAGES,
        stream=True,
    )
    seen = 0
    async for chunk in stream:
        seen += bool(chunk.choices[0].delta.content)
        if seen == 10:
            break
    await stream.close()
    await asyncio.to_thread(scripted.stats, label, live=0)
    while not (events := await events_of(gate, tenant)):
        pass  # the worker settles after it has closed the upstream
    assert [(e["ended"], e["output_tokens"]) for e in events] == [("left", 10)]


async def test_a_sequential_client_at_cap_one_never_sees_a_429(client: AsyncOpenAI) -> None:
    """A finished stream's slot is free before its `[DONE]` is out: the next request always gets it."""
    for _ in range(50):
        stream = await client.chat.completions.create(
            model="scripted?tokens=3&pace_ms=0", messages=MESSAGES, stream=True
        )
        async for _chunk in stream:
            pass


async def test_the_sdk_gets_through_when_the_slot_frees(gate: GateProcess, tenant: tuple[str, str]) -> None:
    """A second stream over the cap is refused with Retry-After, and the SDK's own retries get it through."""
    async with AsyncOpenAI(base_url=f"{gate.url}/v1", api_key=tenant[1], max_retries=5) as sdk:

        async def one(tokens: int) -> int:
            model = f"scripted?tokens={tokens}&pace_ms=1"
            stream = await sdk.chat.completions.create(model=model, messages=MESSAGES, stream=True)
            return len([1 async for chunk in stream if chunk.choices[0].delta.content])

        assert await asyncio.gather(one(100), one(101)) == [100, 101]


async def test_two_hundred_at_once_against_a_cap_of_seven(
    gate: GateProcess, scripted: ScriptedProcess, label: str
) -> None:
    """P4 over two workers: the upstream never sees more than seven; a refusal is a 429 with Retry-After."""
    tenant, key = await asyncio.to_thread(gate.tenant, 7)
    async with AsyncOpenAI(base_url=f"{gate.url}/v1", api_key=key, max_retries=0) as sdk:

        async def one() -> openai.RateLimitError | None:
            try:
                stream = await sdk.chat.completions.create(
                    model=f"scripted?label={label}&tokens=20&pace_ms=50", messages=MESSAGES, stream=True
                )
                async for _ in stream:
                    pass
            except openai.RateLimitError as refused:
                return refused
            return None

        results = await asyncio.gather(*(one() for _ in range(200)))
    refused = [error for error in results if error is not None]
    assert 7 <= 200 - len(refused) < 200
    for error in refused:
        assert int(error.response.headers["retry-after"]) >= 1
        assert error.code == "rate_limit_exceeded"
        assert set(error.response.json()["error"]) == {"message", "type", "param", "code"}
    stats = await asyncio.to_thread(scripted.stats, label, live=0)
    assert stats["peak"] == 7
    usage = await asyncio.to_thread(gate.cli, "usage", "--tenant", tenant)
    assert usage["events"] == stats["opened"] == 200 - len(refused)
    assert usage["output_tokens"] == 20 * usage["events"] == stats["tokens_sent"]
