"""Between dialects: requests that mean the same, and clear refusals of what has no words there."""

from __future__ import annotations

from typing import Any

import pytest

from api.core.dialects import openai_chat, openai_responses
from api.core.translate import CannotTranslate
from api.core.translate.chat_on_messages import ChatOnMessages
from api.core.translate.messages_on_chat import MessagesOnChat
from api.core.translate.responses_on_chat import ResponsesOnChat

TOOL = {"type": "object", "properties": {"city": {"type": "string"}}}
PIXEL = "data:image/png;base64,AAAA"
SCHEMA = {"name": "ada", "schema": {"type": "object"}, "strict": True}


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "claude-sonnet-4-5", "messages": [{"role": "user", "content": "Hi"}], **fields}


def text(said: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": said}]


ASKED = {
    "model": "claude-sonnet-4-5",
    "max_tokens": 64_000,
    "messages": [{"role": "user", "content": text("Hi")}],
}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
FUNCTION = {"name": "weather", "description": "d", "parameters": TOOL, "strict": True}

CHATS = {
    "plain": (chat(), ASKED),
    "limits": (
        chat(max_tokens=9, max_completion_tokens=7, temperature=0.5, top_p=0.9, stop="x", stream=True),
        ASKED | {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "stop_sequences": ["x"], "stream": True},
    ),
    "without effect": (chat(user="u", n=1, logprobs=False, presence_penalty=0, store=True, seed=None), ASKED),
    "system": (
        chat(messages=[{"role": "system", "content": "S"}, {"role": "developer", "content": "D"}]),
        ASKED | {"system": text("S") + text("D"), "messages": []},
    ),
    "image": (
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}]),
        ASKED
        | {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"},
                        }
                    ],
                }
            ]
        },
    ),
    "tools": (
        chat(
            tools=[{"type": "function", "function": FUNCTION}],
            tool_choice="required",
            parallel_tool_calls=False,
            messages=[
                {"role": "assistant", "content": None, "tool_calls": [CALL, CALL | {"id": "c2"}]},
                {"role": "tool", "tool_call_id": "c1", "content": "sun"},
                {"role": "tool", "tool_call_id": "c2", "content": "rain"},
                {"role": "user", "content": "And?"},
            ],
        ),
        ASKED
        | {
            "tools": [{"name": "weather", "description": "d", "input_schema": TOOL, "strict": True}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            "messages": [
                {
                    "role": "assistant",
                    "content": [
                        {"type": "tool_use", "id": one, "name": "weather", "input": {"city": "Bonn"}}
                        for one in ("c1", "c2")
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "c1", "content": text("sun")},
                        {"type": "tool_result", "tool_use_id": "c2", "content": text("rain")},
                    ],
                },
                {"role": "user", "content": text("And?")},
            ],
        },
    ),
    "structured": (
        chat(response_format={"type": "json_schema", "json_schema": SCHEMA}, reasoning_effort="low"),
        ASKED
        | {
            "thinking": {"type": "adaptive"},
            "output_config": {
                "effort": "low",
                "format": {"type": "json_schema", "schema": {"type": "object"}},
            },
        },
    ),
}


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_is_asked_for_as_messages(name):
    """Texts, images, tools and their results, schemas, limits; what has no effect is left out."""
    asked, expected = CHATS[name]
    assert ChatOnMessages().request(asked) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"seed": 7}, "seed"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"web_search_options": {"x": 1}}, "web_search_options"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools"),
        ({"some_new_field": "x"}, "some_new_field"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "assistant", "audio": {"id": "x"}}]}, "messages.0.audio"),
    ],
)
def test_what_messages_cannot_say_is_refused(fields, param):
    """By the field's name; nothing that would change the answer is dropped in silence."""
    with pytest.raises(CannotTranslate, match="cannot be translated") as refused:
        ChatOnMessages().request(chat(**fields))
    assert refused.value.param == param


def messages(**fields: Any) -> dict[str, Any]:
    return {"model": "llama", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}], **fields}


PLAIN = {"model": "llama", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": text("sun")}
USE = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Bonn"}}
MESSAGES = {
    "plain": (messages(metadata={"user_id": "u"}, context_management={"edits": [1]}), PLAIN),
    "system": (
        messages(system=[{"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}}, *text("B")]),
        PLAIN | {"messages": [{"role": "system", "content": "A\n\nB"}, *PLAIN["messages"]]},
    ),
    "reasoning model": (
        messages(model="o3", thinking={"type": "enabled", "budget_tokens": 5000}),
        {
            "model": "o3",
            "max_completion_tokens": 9,
            "messages": PLAIN["messages"],
            "reasoning_effort": "medium",
        },
    ),
    "tools": (
        messages(
            tools=[{"name": "weather", "input_schema": TOOL}],
            tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
            messages=[
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "x"}, *text("So"), USE]},
                {"role": "user", "content": [RESULT, *text("And?")]},
            ],
        ),
        PLAIN
        | {
            "tools": [{"type": "function", "function": {"name": "weather", "parameters": TOOL}}],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
            "parallel_tool_calls": False,
            "messages": [
                {
                    "role": "assistant",
                    "content": "So",
                    "tool_calls": [
                        {
                            "id": "t1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city":"Bonn"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "t1", "content": "sun"},
                {"role": "user", "content": "And?"},
            ],
        },
    ),
    "structured": (
        messages(output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}}),
        PLAIN
        | {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
            }
        },
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_are_asked_for_as_a_chat(name):
    """Texts, tools and their results, schemas; thinking where there is a word for it."""
    asked, expected = MESSAGES[name]
    assert MessagesOnChat().request(asked) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_k": 5}, "top_k"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"messages": [{"role": "user", "content": [{"type": "search_result"}]}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [RESULT | {"content": [{"type": "image"}]}]}]},
            "messages.0.content",
        ),
    ],
)
def test_what_a_chat_cannot_say_is_refused(fields, param):
    """By the field's name."""
    with pytest.raises(CannotTranslate) as refused:
        MessagesOnChat().request(messages(**fields))
    assert refused.value.param == param


def test_responses_are_asked_for_as_a_chat():
    """Instructions, items of all kinds, tools and schemas."""
    asked = {
        "model": "llama",
        "instructions": "S",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "reasoning", "summary": []},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
        ],
        "max_output_tokens": 9,
        "tools": [{"type": "function", "name": "f", "parameters": TOOL, "strict": True}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", **SCHEMA}, "verbosity": "low"},
        "store": True,
        "include": ["reasoning.encrypted_content"],
    }
    function = {"name": "f", "arguments": "{}"}
    assert ResponsesOnChat().request(asked) == {
        "model": "llama",
        "max_tokens": 9,
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": f"c{n}", "type": "function", "function": function} for n in (1, 2)],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "1"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": TOOL, "strict": True}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": SCHEMA},
        "verbosity": "low",
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"max_tool_calls": 3}, "max_tool_calls"),
    ],
)
def test_what_a_response_alone_can_say_is_refused(fields, param):
    """By the field's name."""
    with pytest.raises(CannotTranslate) as refused:
        ResponsesOnChat().request({"model": "m", "input": "Hi", **fields})
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("model", "effort", "expected"),
    [
        ("gpt-4o", None, False),
        ("o3", None, True),
        ("claude-sonnet-4-5", None, False),
        ("claude-sonnet-4-5", "low", True),
        ("claude-opus-5", None, True),
        ("claude-opus-5", "none", False),
    ],
)
def test_thinking_is_known_in_openais_words_too(model, effort, expected):
    """A chat, or a response, that reaches a Claude model which thinks cannot be stopped where credit ends."""
    assert openai_chat.reasons({"model": model, "reasoning_effort": effort}) is expected
    assert openai_responses.reasons({"model": model, "reasoning": {"effort": effort}}) is expected
