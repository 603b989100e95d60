"""The scripted model: its token counts are true without a tokeniser, and each of its failures is one."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core.dialects.openai_chat import read, read_object
from api.core.script import (
    _VOCABULARY,
    MODELS,
    Script,
    Step,
    UnknownModel,
    allowed,
    script_of,
    text_of,
)
from api.core.script_chat import stream_steps, whole_answer
from api.core.sse import Framer
from api.core.usage import Reported
from tests.core.oracle import ENCODINGS, oracle


def play(script: Script, *, include_usage: bool = True) -> tuple[list[Step], list]:
    """The steps of a script, and what the gate's own reader makes of their bytes."""
    steps = list(stream_steps(script, "scripted", 7, include_usage=include_usage))
    framer = Framer(1 << 20)
    return steps, [read(event) for step in steps for event in framer.feed(step.data)]


def content(seen: list) -> str:
    return "".join(event.content for event in seen)


def sent(steps: list[Step]) -> int:
    return sum(step.tokens for step in steps)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_word_is_one_token(encoding):
    """With the space before it, or at the very start without: in both encodings."""
    for word in _VOCABULARY:
        assert oracle(encoding)(" " + word) == 1, word
    assert oracle(encoding)(_VOCABULARY[0]) == 1


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_text_has_as_many_tokens_as_it_was_asked_for(encoding):
    """The truth that exit tests compare the ledger with."""
    for tokens in [*range(3 * len(_VOCABULARY)), 5000]:
        assert oracle(encoding)(text_of(Script(tokens=tokens))) == tokens


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 200))
def test_parts_of_a_text_join_to_the_text(tokens, one, other):
    """However it is cut into chunks, the words and the spaces between them are the same."""
    first, second = sorted((min(one, tokens), min(other, tokens)))
    script = Script(tokens=tokens)
    parts = text_of(script, 0, first) + text_of(script, first, second) + text_of(script, second)
    assert parts == text_of(script)


@given(st.integers(0, 100), st.integers(1, 120))
def test_a_stream_says_the_text_and_counts_it(tokens, per_chunk):
    """The steps' tokens sum to the script's, their contents to the text, and the end is in order."""
    script = Script(tokens=tokens, per_chunk=per_chunk)
    steps, seen = play(script)
    assert content(seen) == text_of(script)
    assert sent(steps) == tokens
    assert [event.terminal for event in seen] == [False] * (len(seen) - 1) + [True]
    assert [event.usage for event in seen if event.usage] == [Reported(7, tokens)]
    assert sum(bool(event.finished) for event in seen) == 1


def test_a_name_alone_is_the_default_script():
    """Also under OpenAI's names, so that copied snippets work against the demo."""
    assert {script_of(name) for name in MODELS} == {Script()}
    assert "gpt-4o-mini" in MODELS


def test_a_script_rides_in_the_models_name():
    """Each field of Script can be set there, numbers as numbers."""
    for number, field in enumerate(fields(Script), start=1):
        value = f"l{number}" if field.name in {"label", "say"} else number
        assert getattr(script_of(f"scripted?{field.name}={value}"), field.name) == value
    assert script_of("gpt-4o?tokens=5&label=a+b") == Script(tokens=5, label="a b")


@pytest.mark.parametrize(
    "model",
    [
        "",
        "gpt-3",
        "scripted2",
        " scripted",
        "scripted?speed=9",
        "scripted?tokens=many",
        "scripted?tokens=",
        "scripted?tokens=1.5",
        "scripted?tokens=" + "9" * 5000,
        "?tokens=5",
    ],
)
def test_a_name_that_is_no_script_is_an_unknown_model(model):
    """The refusal is a 404 with a public text, never a failure of the gate."""
    with pytest.raises(UnknownModel):
        script_of(model)


@pytest.mark.parametrize(
    "query", ["tokens=-1", "per_chunk=0", "per_chunk=-2", "tokens=99999999999", "pad=999999999"]
)
def test_a_script_that_makes_no_sense_is_an_unknown_model(query):
    """A caller's number can neither lower the ledger, nor break the stream, nor fill the memory."""
    with pytest.raises(UnknownModel):
        script_of(f"scripted?{query}")


@pytest.mark.parametrize(
    ("body", "tokens", "reason"),
    [
        ({}, 48, "stop"),
        ({"max_tokens": None}, 48, "stop"),
        ({"max_tokens": 100}, 48, "stop"),
        ({"max_tokens": 5}, 5, "length"),
        ({"max_completion_tokens": 5}, 5, "length"),
        ({"max_tokens": 9, "max_completion_tokens": 5}, 5, "length"),
        ({"max_tokens": 0}, 0, "length"),
    ],
)
def test_a_request_limits_the_answer(body, tokens, reason):
    """The tightest limit counts, and the answer says that it was cut short."""
    script = allowed(Script(), body)
    assert script.tokens == tokens
    steps, seen = play(script)
    assert sent(steps) == tokens
    assert sum(bool(event.finished) for event in seen) == 1
    assert any(f'"finish_reason":"{reason}"'.encode() in step.data for step in steps)
    answer = json.loads(whole_answer(script, "scripted", 7))
    assert answer["choices"][0]["finish_reason"] == reason
    assert answer["usage"]["completion_tokens"] == tokens


FAILURES = ["error_at", "reset_at", "eof_at"]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("at", [0, 1, 5, 47])
def test_a_failure_comes_before_its_token_and_ends_the_stream(failure, at):
    """What was sent until then is counted; no finish, no usage and no end come behind it."""
    script = Script(**{failure: at})
    steps, seen = play(script)
    assert sent(steps) == at
    assert content(seen) == text_of(script, 0, at)
    assert not any(event.finished or event.terminal or event.usage for event in seen)
    assert [step.reset for step in steps] == [False] * (len(steps) - 1) + [failure == "reset_at"]
    assert [bool(event.error) for event in seen if event.error] == [True] * (failure == "error_at")


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_behind_the_last_token_never_comes(failure):
    """A script that is over before it would fail does not fail."""
    steps, seen = play(Script(tokens=5, **{failure: 5}))
    assert sent(steps) == 5
    assert seen[-1].terminal


def test_a_failure_inside_a_chunk_takes_the_chunk_with_it():
    """Tokens of a chunk that is not sent are not counted as sent."""
    steps, _ = play(Script(tokens=30, per_chunk=10, reset_at=15))
    assert sent(steps) == 10


@pytest.mark.parametrize(
    ("usage", "include_usage", "reports"),
    [
        (1, True, [Reported(7, 3)]),
        (1, False, []),
        (0, True, []),
        (2, True, [Reported(7, sent) for sent in (0, 1, 2, 3, 3)]),
    ],
)
def test_usage_is_reported_as_the_script_says(usage, include_usage, reports):
    """At the end if asked for, never, or in each chunk, as vLLM's continuous usage is."""
    _, seen = play(Script(tokens=3, usage=usage), include_usage=include_usage)
    assert [event.usage for event in seen if event.usage] == reports


def test_pauses_and_silences():
    """Before each chunk but the first comes the pause; before its token comes the silence, on top."""
    steps, _ = play(Script(tokens=3, pace_ms=20, silence_at=1, silence_ms=500))
    assert [step.wait_ms for step in steps if step.tokens] == [0, 520, 20]


def test_done_can_be_left_out():
    """As some servers do; the finish reason is then the last that is heard."""
    _, seen = play(Script(tokens=1, done=0), include_usage=False)
    assert seen[-1].finished
    assert not any(event.terminal for event in seen)


def test_padding_makes_chunks_larger_and_changes_nothing_else():
    """Slow readers are tested with it; it is no token."""
    (plain, _), (padded, seen) = play(Script(tokens=2)), play(Script(tokens=2, pad=1000))
    assert all(len(b.data) > len(a.data) + 1000 for a, b in zip(plain, padded, strict=True) if a.tokens)
    assert content(seen) == text_of(Script(tokens=2))


@pytest.mark.parametrize("usage", [0, 1])
def test_a_whole_answer_says_and_counts_the_same(usage):
    """A request without streaming gets the same text and the same numbers."""
    found = read_object(whole_answer(Script(tokens=9, usage=usage), "scripted", 7))
    assert found.content == text_of(Script(tokens=9))
    assert found.usage == (Reported(7, 9) if usage else None)
    assert found.finished
