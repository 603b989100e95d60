"""openai-python against a gate: what an application gets, as JSON. Runs under any major."""

import asyncio
import json
import sys

import openai

MESSAGES = [{"role": "user", "content": "hi"}]
PARAMETERS = {
    "type": "object",
    "properties": {"words": {"type": "string"}},
    "required": ["words"],
    "additionalProperties": False,
}
FUNCTION = {"name": "weather", "parameters": PARAMETERS}
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
QUICK = "scripted?pace_ms=0&"


async def chat_whole(sdk):
    answer = await sdk.chat.completions.create(model=QUICK + "tokens=5", messages=MESSAGES)
    choice = answer.choices[0]
    return [choice.message.content, choice.finish_reason, answer.usage.completion_tokens]


async def chat_stream(sdk):
    options = {"include_usage": True}
    stream = await sdk.chat.completions.create(
        model=QUICK + "tokens=5", messages=MESSAGES, stream=True, stream_options=options
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    return [text, chunks[-1].usage.completion_tokens, len(chunks[-1].choices)]


async def chat_tools(sdk):
    calls = {}
    stream = await sdk.chat.completions.create(
        model=QUICK + "tokens=0&calls=2",
        messages=MESSAGES,
        stream=True,
        tools=[{"type": "function", "function": FUNCTION}],
    )
    finish = None
    async for chunk in stream:
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or ():
                name, arguments = calls.get(call.index, ("", ""))
                calls[call.index] = (
                    name + (call.function.name or ""),
                    arguments + (call.function.arguments or ""),
                )
    return [[[name, json.loads(arguments)] for _, (name, arguments) in sorted(calls.items())], finish]


async def chat_structured(sdk):
    form = {"type": "json_schema", "json_schema": {"name": "ada", "schema": SCHEMA, "strict": True}}
    answer = await sdk.chat.completions.create(
        model=QUICK + 'say={"name": "Ada"}', messages=MESSAGES, response_format=form
    )
    return json.loads(answer.choices[0].message.content)


async def chat_error(sdk):
    words = 0
    try:
        async for chunk in await sdk.chat.completions.create(
            model=QUICK + "tokens=20&error_at=5", messages=MESSAGES, stream=True
        ):
            words += sum(bool(choice.delta.content) for choice in chunk.choices)
    except openai.APIError as error:
        return [words, error.code]
    return "not raised"


async def chat_silences(sdk):
    model = "scripted?tokens=4&pace_ms=120&silence_at=2&silence_ms=400"
    stream = await sdk.chat.completions.create(model=model, messages=MESSAGES, stream=True)
    return "".join([choice.delta.content or "" async for chunk in stream for choice in chunk.choices])


async def chat_abort(sdk):
    model = "scripted?tokens=1000&pace_ms=5&label=abort"
    stream = await sdk.chat.completions.create(model=model, messages=MESSAGES, stream=True)
    words = 0
    async for chunk in stream:
        words += any(choice.delta.content for choice in chunk.choices)
        if words == 3:
            break
    await stream.close()
    return words


async def chat_busy(sdk):
    """The tenant has one stream: the second waits out the 429's Retry-After."""
    held = await sdk.chat.completions.create(
        model="scripted?tokens=20&pace_ms=30", messages=MESSAGES, stream=True
    )
    first = await held.__anext__()
    again = asyncio.create_task(
        sdk.with_options(max_retries=5).chat.completions.create(model=QUICK + "tokens=2", messages=MESSAGES)
    )
    rest = [chunk async for chunk in held]
    answer = await again
    return [bool(first), bool(rest), answer.choices[0].message.content]


async def no_such_model(sdk):
    try:
        await sdk.chat.completions.create(model="none", messages=MESSAGES)
    except openai.NotFoundError as error:
        return [error.status_code, error.code]
    return "not raised"


async def responses_whole(sdk):
    answer = await sdk.responses.create(model=QUICK + "tokens=5", input="hi")
    return [answer.output_text, answer.status, answer.usage.output_tokens]


async def responses_stream(sdk):
    stream = await sdk.responses.create(model=QUICK + "tokens=3", input="hi", stream=True)
    events = [event async for event in stream]
    numbers = [event.sequence_number for event in events]
    return [[event.type for event in events], numbers == sorted(numbers), events[-1].response.output_text]


async def responses_tools(sdk):
    answer = await sdk.responses.create(
        model=QUICK + "tokens=0&calls=2", input="hi", tools=[{"type": "function", "strict": True, **FUNCTION}]
    )
    return [[item.name, json.loads(item.arguments)] for item in answer.output]


async def responses_error(sdk):
    try:
        async for _ in await sdk.responses.create(
            model=QUICK + "tokens=20&error_at=5", input="hi", stream=True
        ):
            pass
    except openai.APIError as error:
        return error.code
    return "not raised"


SCENARIOS = [
    *(chat_whole, chat_stream, chat_tools, chat_structured, chat_error, chat_silences, chat_busy),
    *(no_such_model, responses_whole, responses_stream, responses_tools, responses_error, chat_abort),
]


async def main(url, key):
    found = {"major": int(openai.__version__.split(".")[0])}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=30) as sdk:
        for scenario in SCENARIOS:
            try:
                found[scenario.__name__] = await scenario(sdk)
            except Exception as error:  # what it is the test says
                found[scenario.__name__] = repr(error)
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
