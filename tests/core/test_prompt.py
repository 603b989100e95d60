"""The input tokens of a request, by the rule of OpenAI's cookbook ("How to count tokens with tiktoken")."""

from __future__ import annotations

import pytest

from api.core.dialects import Prompt
from api.core.dialects.openai_chat import prompt_of
from tests.core.oracle import oracle

COOKBOOK = [
    {
        "role": "system",
        "content": "You are a helpful, pattern-following assistant that translates corporate jargon "
        "into plain English.",
    },
    {"role": "system", "name": "example_user", "content": "New synergies will help drive top-line growth."},
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Things working well together will increase revenue.",
    },
    {
        "role": "system",
        "name": "example_user",
        "content": "Let's circle back when we have more bandwidth to touch base on opportunities for "
        "increased leverage.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Let's talk later when we're less busy about how to do better.",
    },
    {
        "role": "user",
        "content": "This late pivot means we don't have time to boil the ocean for the client deliverable.",
    },
]


@pytest.mark.parametrize(("encoding", "tokens"), [("cl100k_base", 129), ("o200k_base", 124)])
def test_the_cookbooks_own_example(encoding, tokens):
    """129 tokens for gpt-4 and 124 for gpt-4o: what OpenAI's API reports, says the cookbook."""
    prompt = prompt_of({"messages": COOKBOOK})
    assert prompt.countable
    assert sum(map(oracle(encoding), prompt.texts)) + prompt.overhead_tokens == tokens


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([{"role": "user", "content": "Hi"}], Prompt(["user", "Hi"], 3 + 3, countable=True)),
        (
            [{"role": "user", "name": "ann", "content": "Hi"}],
            Prompt(["user", "ann", "Hi"], 3 + 3 + 1, countable=True),
        ),
        (
            [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}],
            Prompt(["system", "Be brief", "user", "Hi"], 3 + 3 + 3, countable=True),
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            Prompt(["user", "a", "b"], 3 + 3, countable=True),
        ),
        ([{"role": "user", "content": ""}], Prompt(["user", ""], 3 + 3, countable=True)),
        ([{"role": "assistant", "content": None}], Prompt(["assistant"], 3 + 3, countable=True)),
    ],
)
def test_texts_and_overhead(messages, prompt):
    """Three tokens a message, one a name, three for the reply; the texts are what is sent."""
    assert prompt_of({"messages": messages}) == prompt


HI = [{"role": "user", "content": "Hi"}]
IMAGE = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": HI, "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": HI, "functions": [{"name": "f"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, IMAGE]}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
        {
            "messages": HI,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        },
    ],
    ids=["tools", "functions", "image", "audio", "no text", "calls", "response schema"],
)
def test_what_is_not_text_makes_a_prompt_uncountable(body):
    """An image, a tool's schema or an answer's schema costs tokens that no text shows."""
    assert not prompt_of(body).countable


@pytest.mark.parametrize("more", [{"tools": []}, {"tools": None}, {"response_format": {"type": "text"}}])
def test_empty_extras_change_nothing(more):
    """An SDK that sends an empty list still gets an exact count."""
    assert prompt_of({"messages": HI, **more}).countable
