"""anthropic-python against a gate: what an application gets, as JSON. Runs under any major."""

import asyncio
import json
import sys

import anthropic

ASKED = {"max_tokens": 2000, "messages": [{"role": "user", "content": "hi"}]}
TOOL = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"words": {"type": "string"}}, "required": ["words"]},
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}
QUICK = "scripted?pace_ms=0&"


async def whole(sdk):
    message = await sdk.messages.create(model=QUICK + "tokens=5", **ASKED)
    return [message.content[0].text, message.stop_reason, message.usage.output_tokens]


async def stream(sdk):
    async with sdk.messages.stream(model=QUICK + "tokens=3", **ASKED) as events:
        kinds = [event.type async for event in events]
        message = await events.get_final_message()
    return [kinds, message.content[0].text, message.stop_reason, message.usage.output_tokens]


async def tools(sdk):
    async with sdk.messages.stream(model=QUICK + "tokens=0&calls=2", tools=[TOOL], **ASKED) as events:
        message = await events.get_final_message()
    return [[[block.name, block.input] for block in message.content], message.stop_reason]


async def structured(sdk):
    message = await sdk.messages.create(
        model=QUICK + 'say={"name": "Ada"}',
        extra_body={"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        **ASKED,
    )
    return json.loads(message.content[0].text)


async def error(sdk):
    words = 0
    try:
        async with sdk.messages.stream(model=QUICK + "tokens=20&error_at=5", **ASKED) as events:
            async for _ in events.text_stream:
                words += 1
    except anthropic.APIError as raised:
        return [words, raised.body["error"]["type"], raised.body["error"]["code"]]
    return "not raised"


async def silences(sdk):
    model = "scripted?tokens=4&pace_ms=120&silence_at=2&silence_ms=400"
    async with sdk.messages.stream(model=model, **ASKED) as events:
        return "".join([text async for text in events.text_stream])


async def abort(sdk):
    words = 0
    async with sdk.messages.stream(model="scripted?tokens=1000&pace_ms=5&label=abort", **ASKED) as events:
        async for _ in events.text_stream:
            words += 1
            if words == 3:
                break
    return words


async def busy(sdk):
    """The tenant has one stream: the second waits out the 429's Retry-After."""
    async with sdk.messages.stream(model="scripted?tokens=20&pace_ms=30", **ASKED) as events:
        first = await events.__anext__()
        again = asyncio.create_task(
            sdk.with_options(max_retries=5).messages.create(model=QUICK + "tokens=2", **ASKED)
        )
        rest = [event async for event in events]
    return [bool(first), bool(rest), (await again).content[0].text]


async def no_such_model(sdk):
    try:
        await sdk.messages.create(model="none", **ASKED)
    except anthropic.NotFoundError as raised:
        return [raised.status_code, raised.body["error"]["type"]]
    return "not raised"


async def wrong_key(sdk):
    try:
        await sdk.with_options(api_key="sk-wrong").messages.create(model=QUICK, **ASKED)
    except anthropic.AuthenticationError as raised:
        return [raised.body["error"]["type"], raised.request_id == raised.body["request_id"]]
    return "not raised"


SCENARIOS = [whole, stream, tools, structured, error, silences, busy, no_such_model, wrong_key, abort]


async def main(url, key):
    found = {"major": int(anthropic.__version__.split(".")[0])}
    async with anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0, timeout=30) as sdk:
        for scenario in SCENARIOS:
            try:
                found[scenario.__name__] = await scenario(sdk)
            except Exception as raised:  # what it is the test says
                found[scenario.__name__] = repr(raised)
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
