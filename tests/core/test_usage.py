"""Which encoding a model's text has, and what a report becomes."""

from __future__ import annotations

import pytest

from api.core.usage import _ENCODING_BY_PREFIX, NOTHING, Certainty, Reported, Source, Usage, encoding_of
from tests.core.oracle import ENCODINGS


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4", "cl100k_base"),
        ("gpt-4-0613", "cl100k_base"),
        ("gpt-4-turbo-2024-04-09", "cl100k_base"),
        ("gpt-4o", "o200k_base"),
        ("gpt-4o-mini-2024-07-18", "o200k_base"),
        ("gpt-4.1-nano", "o200k_base"),
        ("gpt-3.5-turbo-0125", "cl100k_base"),
        ("gpt-35-turbo", "cl100k_base"),
        ("gpt-5-mini", "o200k_base"),
        ("o3-mini", "o200k_base"),
        ("chatgpt-4o-latest", "o200k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("ft:gpt-4:acme::1", "cl100k_base"),
        ("ft:gpt-4o-mini-2024-07-18:acme::1", "o200k_base"),
        ("ft:gpt-3.5-turbo:acme::1", "cl100k_base"),
        ("scripted?tokens=5", "o200k_base"),
    ],
)
def test_the_longest_prefix_wins(model, encoding):
    """gpt-4o is no gpt-4, although its name begins so."""
    assert encoding_of(model) == (encoding, True)


@pytest.mark.parametrize(
    "model", ["", "claude-sonnet-4-5", "llama3:8b", "my-gpt-4", "GPT-4", "mistral-large"]
)
def test_an_unknown_model_is_assumed_to_be_a_new_one_and_said_to_be_unknown(model):
    """The count then says that its encoding is a guess."""
    assert encoding_of(model) == ("o200k_base", False)


def test_order_of_the_table_does_not_matter():
    """Each prefix, taken as a model's name, gets the encoding of its own row."""
    for prefix, encoding in _ENCODING_BY_PREFIX.items():
        assert encoding_of(prefix) == (encoding, True)


def test_every_encoding_of_the_table_exists():
    """A typing error in the table would be an exception in the middle of a stream."""
    assert set(_ENCODING_BY_PREFIX.values()) <= set(ENCODINGS)


def test_a_report_becomes_an_exact_usage_of_the_provider():
    """No number is lost on the way, and no encoding is claimed."""
    usage = Usage.of_report(Reported(10, 20, cached_tokens=3, reasoning_tokens=7))
    assert usage == Usage(10, 20, 3, 7, Source.PROVIDER, Certainty.EXACT, None)


def test_nothing_is_exactly_nothing():
    """A request that never reached a provider costs nothing, for certain."""
    assert (NOTHING.input_tokens, NOTHING.output_tokens, NOTHING.certainty) == (0, 0, Certainty.EXACT)
