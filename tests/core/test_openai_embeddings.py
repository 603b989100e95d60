"""Embeddings: input is all they cost."""

from __future__ import annotations

import json

import pytest

from api.core.dialects import Prompt, Seen
from api.core.dialects.openai_embeddings import prompt_of, read_object
from api.core.usage import Reported


@pytest.mark.parametrize(
    ("asked", "prompt"),
    [
        ("Hi", Prompt(["Hi"], 0, countable=True)),
        (["Hi", "there"], Prompt(["Hi", "there"], 0, countable=True)),
        ([1, 2, 3], Prompt([], 3, countable=True)),
        ([[1, 2], [3]], Prompt([], 3, countable=True)),
    ],
)
def test_input_is_counted_in_each_of_its_forms(asked, prompt):
    """Texts by the tokeniser, tokens as they are."""
    assert prompt_of({"input": asked}) == prompt


def test_an_answer_is_read():
    """Model and usage; the vectors are not looked at, and what cannot be read is not known."""
    answer = {"data": [{"embedding": [0.1]}], "model": "m", "usage": {"prompt_tokens": 5, "total_tokens": 5}}
    assert read_object(json.dumps(answer).encode()) == Seen(model="m", usage=Reported(5, 0), finished=(0,))
    assert read_object(b"{") == Seen(unreadable=True)
