"""The meter: a report where there is one, an exact count where there is none, and which of the two it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.adapters.tokenizer_toktok import count_tokens
from api.core.dialects import Piece, Prompt, Seen
from api.core.dialects.openai_chat import read, read_object
from api.core.meter import Meter
from api.core.sse import parse
from api.core.usage import Certainty, Reported, Source, Usage
from tests.core.oracle import oracle

PROMPT = Prompt(["user", "Why is the sky blue?"], overhead_tokens=6, countable=True)
PROMPT_TOKENS = 1 + 6 + 6
CONTENT = (0, "content")
FINISH = read_object(b'{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}')
DONE = read(parse(b"data: [DONE]\n\n"))


def text(piece: str, channel: tuple[int, str] = CONTENT) -> Seen:
    return Seen(pieces=[Piece(channel, piece)])


def meter_of(*events: Seen, model: str = "gpt-4o", prompt: Prompt = PROMPT) -> Meter:
    meter = Meter(model, prompt)
    for event in events:
        meter.see(event)
    return meter


def fold(meter: Meter, encoding: str = "o200k_base") -> Usage:
    snapshot = meter.snapshot()
    assert meter.fold(snapshot, count_tokens(snapshot.texts, encoding))
    return meter.usage()


def test_the_prompt_of_these_tests_is_what_they_think():
    """The oracle counts the prompt as the constant above does."""
    count = oracle("o200k_base")
    assert sum(map(count, PROMPT.texts)) + PROMPT.overhead_tokens == PROMPT_TOKENS


def test_the_providers_report_is_the_usage():
    """Its numbers stand as they are, reasoning and cache included; no text need be counted."""
    meter = meter_of(text("Hello"), FINISH, Seen(usage=Reported(10, 20, 3, 7)), DONE)
    assert not meter.needs_counting()
    assert meter.usage() == Usage(10, 20, 3, 7, Source.PROVIDER, Certainty.EXACT)


def test_the_last_report_counts():
    """Reports of one stream are cumulative; a later one replaces an earlier one."""
    meter = meter_of(Seen(usage=Reported(10, 1)), Seen(usage=Reported(10, 2)), Seen(usage=Reported(10, 3)))
    assert meter.usage().output_tokens == 3


def test_an_early_stop_under_continuous_usage_is_exact():
    """A report that comes with the last text that came (vLLM) says it all, although nothing finished."""
    chunk = text("Hello")
    chunk.usage = Reported(10, 5)
    meter = meter_of(Seen(usage=Reported(10, 0)), chunk)
    assert not meter.needs_counting()
    assert meter.usage() == Usage(10, 5, 0, 0, Source.PROVIDER, Certainty.EXACT)


@pytest.mark.parametrize("end", [[], [FINISH], [FINISH, DONE]])
def test_text_behind_the_last_report_is_counted(end):
    """A report that came too early to know of all text is not the bill, even if the model finished."""
    meter = meter_of(Seen(usage=Reported(13, 0)), text("Hello"), *end)
    assert meter.needs_counting()
    usage = fold(meter)
    assert (usage.source, usage.input_tokens, usage.output_tokens) == (Source.COUNTED, PROMPT_TOKENS, 1)


def test_without_a_report_the_text_is_counted():
    """The oracle's count of what was sent and received, exact because the model finished."""
    meter = meter_of(text("Hel"), text("lo"), text(" world, token"), FINISH)
    assert meter.needs_counting()
    expected = oracle("o200k_base")("Hello world, token")
    assert fold(meter) == Usage(
        PROMPT_TOKENS, expected, 0, 0, Source.COUNTED, Certainty.EXACT, tokenizer="o200k_base"
    )


CHANNELS = [(0, "content"), (1, "content"), (0, "refusal"), (0, "reasoning"), (0, "tool 0"), (0, "tool 1")]


@pytest.mark.parametrize("other", CHANNELS[1:])
def test_channels_are_texts_of_their_own(other):
    """The texts "to" and "ken" are one token on one channel, and two tokens on two."""
    assert fold(meter_of(text("to"), text("ken"))).output_tokens == 1
    assert fold(meter_of(text("to"), text("ken", other))).output_tokens == 2


def test_text_that_arrives_while_others_count_is_in_the_next_fold():
    """It is neither lost nor counted twice, also where it continues a token or opens a channel."""
    meter = meter_of(text("to"))
    snapshot = meter.snapshot()
    meter.see(text("ken"))
    meter.see(text("more", (0, "refusal")))
    assert meter.fold(snapshot, count_tokens(snapshot.texts, "o200k_base"))
    assert meter.usage().output_tokens == 1
    assert fold(meter).output_tokens == 2


def test_a_stale_fold_is_refused():
    """Of two counts that run at once only the first is taken; the texts of the other have moved on."""
    meter = meter_of(text("one two three"))
    first, second = meter.snapshot(), meter.snapshot()
    assert meter.fold(first, count_tokens(first.texts, "o200k_base"))
    before = meter.usage()
    assert not meter.fold(second, [1000] * len(second.texts))
    assert meter.usage() == before


def test_the_prompt_is_counted_once():
    """Later snapshots do not carry it: it may be megabytes."""
    meter = meter_of(text("a"))
    fold(meter)
    meter.see(text("b"))
    assert not set(PROMPT.texts) & set(meter.snapshot().texts)
    assert fold(meter).input_tokens == PROMPT_TOKENS


actions = st.one_of(
    st.tuples(
        st.sampled_from(CHANNELS), st.sampled_from(["to", "ken", " is", "n't", ".", "\n", "漢", " 12", "34"])
    ),
    st.sampled_from(["snapshot", "fold"]),
)


@given(st.lists(actions, max_size=40))
def test_any_order_of_seeing_and_folding_gives_the_count_of_each_channel(steps):
    """However counting and receiving interleave, the end is the sum of the whole texts' counts."""
    meter, waiting = Meter("gpt-4o", PROMPT), []
    whole = dict.fromkeys(CHANNELS, "")
    for step in steps:
        if step == "snapshot":
            waiting.append(meter.snapshot())
        elif step == "fold":
            if waiting:
                snapshot = waiting.pop()
                meter.fold(snapshot, count_tokens(snapshot.texts, "o200k_base"))
        else:
            channel, piece = step
            whole[channel] += piece
            meter.see(text(piece, channel))
    count = oracle("o200k_base")
    assert fold(meter).output_tokens == sum(map(count, whole.values()))


UNCOUNTABLE = Prompt(["user"], overhead_tokens=6, countable=False)


@pytest.mark.parametrize(
    ("model", "events", "prompt", "certainty"),
    [
        ("gpt-4o", [FINISH], PROMPT, Certainty.EXACT),
        ("gpt-4o", [DONE], PROMPT, Certainty.EXACT),
        ("gpt-4o", [], PROMPT, Certainty.AT_LEAST),  # stopped: more may have been produced
        ("gpt-4o", [FINISH], UNCOUNTABLE, Certainty.AT_LEAST),  # an image, a tool's schema
        ("llama3", [FINISH], PROMPT, Certainty.AT_LEAST),  # another tokeniser, for all we know
        ("llama3", [], UNCOUNTABLE, Certainty.AT_LEAST),
    ],
)
def test_a_count_is_exact_only_where_everything_is_known(model, events, prompt, certainty):
    """A known encoding, a finished answer and a countable prompt; whatever is missing makes it "at least"."""
    assert fold(meter_of(text("Hello"), *events, model=model, prompt=prompt)).certainty is certainty


def test_an_event_that_could_not_be_read_makes_a_count_at_least():
    """What it cost is not known, unless a report that came behind it says so."""
    unreadable, report = Seen(unreadable=True), Seen(usage=Reported(10, 5))
    assert fold(meter_of(text("Hello"), unreadable, FINISH)).certainty is Certainty.AT_LEAST
    assert fold(meter_of(report, unreadable)).certainty is Certainty.AT_LEAST
    assert meter_of(unreadable, FINISH, report).usage().certainty is Certainty.EXACT


@pytest.mark.parametrize("model", ["o1", "o3-mini", "o4-mini", "gpt-5", "gpt-5-nano"])
def test_a_reasoning_models_count_is_never_exact(model):
    """Its reasoning is billed and never streamed, so what was received is not all there was."""
    meter = meter_of(text("Hello"), FINISH, DONE, model=model)
    assert fold(meter).certainty is Certainty.AT_LEAST


def test_one_finished_choice_of_two_is_not_the_end():
    """With n=2, a stream that stops when one choice has finished may have had more to come."""
    chunk = b'{"choices": [{"index": %d, "delta": {"content": "Hi"}}]}'
    both = [read_object(chunk % 0), read_object(chunk % 1)]
    assert not meter_of(*both, FINISH).finished
    assert fold(meter_of(*both, FINISH)).certainty is Certainty.AT_LEAST
    assert fold(meter_of(*both, FINISH, DONE)).certainty is Certainty.EXACT


@pytest.mark.parametrize(
    ("model", "tokenizer"),
    [("gpt-4o", "o200k_base"), ("gpt-4-0613", "cl100k_base"), ("claude", "o200k_base:assumed")],
)
def test_a_count_names_its_encoding_and_says_when_it_is_assumed(model, tokenizer):
    """The ledger tells a count by the model's own encoding from one by a stand-in."""
    assert fold(meter_of(text("Hello"), model=model)).tokenizer == tokenizer


def test_the_model_that_answered_decides():
    """An alias that was asked for gives way to the name that the provider answers with."""
    meter = meter_of(Seen(model="gpt-4-0613"), text("Hello"), model="our-best-model")
    assert meter.model == "gpt-4-0613"
    assert fold(meter, "cl100k_base").tokenizer == "cl100k_base"


def test_nothing_seen_is_nothing_produced():
    """A stream that ended before its first token costs its prompt alone, and at least that."""
    usage = fold(meter_of())
    assert (usage.input_tokens, usage.output_tokens) == (PROMPT_TOKENS, 0)
    assert usage.certainty is Certainty.AT_LEAST
