"""Price lists of both shapes are read exactly, rounded up, and refused where they say nonsense."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.core.money import Price
from api.core.price_file import MAX_MODELS, parse_prices, read_prices

LITELLM = """{
    "sample_spec": {
        "input_cost_per_token": 0.0, "litellm_provider": "one of https://...", "mode": "one of: chat, ..."
    },
    "1024-x-1024/dall-e-2": {"input_cost_per_pixel": 1.9e-08, "litellm_provider": "openai"},
    "whisper-1": {"input_cost_per_second": 0.0001, "mode": "audio_transcription"},
    "gpt-4o-mini": {
        "cache_read_input_token_cost": 7.5e-08, "cache_read_input_token_cost_priority": 1.25e-07,
        "input_cost_per_token": 1.5e-07, "input_cost_per_token_batches": 7.5e-08,
        "litellm_provider": "openai", "max_tokens": 16384, "mode": "chat",
        "output_cost_per_token": 6e-07, "supports_vision": true
    },
    "perplexity/sonar-deep-research": {
        "input_cost_per_token": 2e-06, "litellm_provider": "perplexity",
        "output_cost_per_reasoning_token": 3e-06, "output_cost_per_token": 8e-06
    },
    "gemini-2.5-pro": {
        "input_cost_per_token": 1.25e-06, "input_cost_per_token_above_200k_tokens": 2.5e-06,
        "litellm_provider": "vertex_ai", "output_cost_per_token": 1e-05
    },
    "text-embedding-3-small": {
        "input_cost_per_token": 2e-08, "litellm_provider": "openai", "mode": "embedding",
        "output_cost_per_token": null
    },
    "odd": {"input_cost_per_token": 2e-08, "litellm_provider": "x", "mode": "chat"},
    "bedrock/*/6-month/m": {"input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06}
}"""


def test_litellms_list_is_read() -> None:
    """Dollars per token; entries without them are left out and counted, dearer long prompts are counted."""
    found = parse_prices(LITELLM)
    assert found.prices == {
        "gpt-4o-mini": Price(150_000_000, 75_000_000, 600_000_000, 600_000_000),
        "perplexity/sonar-deep-research": Price(2 * 10**9, 2 * 10**9, 8 * 10**9, 3 * 10**9),
        "gemini-2.5-pro": Price(1_250_000_000, 1_250_000_000, 10**10, 10**10),
        "text-embedding-3-small": Price(20_000_000, 20_000_000, 0, 0),
    }
    assert (found.left_out, found.tiered) == (4, 1)
    assert read_prices(json.loads(LITELLM)) == found  # as it comes over HTTP, with floats


def test_our_own_list_is_read() -> None:
    """Cached input costs as much as input, and reasoning as much as output, where nobody says."""
    all_four = '{"input": 0.1, "cached_input": 0, "output": 1e-9, "reasoning": "9"}'
    found = parse_prices('{"a": {"input": "2", "output": 4}, "b*": ' + all_four + "}")
    assert found.prices == {
        "a": Price(2 * 10**9, 2 * 10**9, 4 * 10**9, 4 * 10**9),
        "b*": Price(10**8, 0, 1, 9 * 10**9),
    }
    assert (found.left_out, found.tiered) == (0, 0)


@pytest.mark.parametrize(
    ("said", "nano"),
    [
        ("0.15", 150_000_000),
        ("3", 3_000_000_000),
        ("0", 0),
        ("-0.0", 0),
        ("1e-9", 1),
        ("0.0000000015", 2),
        ("1e-12", 1),
        ("1e-999999", 1),
        ("1.00000000000000000000000000000000000000000000000001", 10**9 + 1),
        ("0.30000000000000004", 300_000_001),
        ("1000000", 10**15),
    ],
)
def test_amounts_are_read_exactly_and_rounded_up(said: str, nano: int) -> None:
    """As strings and as numbers, to the last digit: what is not free costs something."""
    for amount in (said, f'"{said}"'):
        [price] = parse_prices(f'{{"m": {{"input": {amount}, "output": 0}}}}').prices.values()
        assert price.input == nano


@given(digits=st.integers(0, 10**18), places=st.integers(0, 30))
def test_no_amount_is_rounded_down_or_twice(digits: int, places: int) -> None:
    """In both shapes: the first whole number of nano-dollars that is not less, of what was written."""
    amount, exact = f"{digits}e-{places}", Fraction(digits, 10**places)
    own = f'{{"m": {{"input": {amount}, "output": 0}}}}'
    litellm = f'{{"m": {{"input_cost_per_token": {amount}, "output_cost_per_token": 0}}}}'
    for text, nano in ((own, exact * 10**9), (litellm, exact * 10**15)):
        if nano <= 10**15:
            [price] = parse_prices(text).prices.values()
            assert 0 <= price.input - nano < 1


WRONG = {
    "null": None,
    "a list": [],
    "nothing": {},
    "no amounts": {"m": {}},
    "a word": {"m": "free"},
    "half": {"m": {"input": "1"}},
    "another field": {"m": {"input": "1", "output": "1", "outptu": "1"}},
    "a star inside": {"m*x": {"input": "1", "output": "1"}},
    "no name": {"": {"input": "1", "output": "1"}},
    "a long name": {"m" * 257: {"input": "1", "output": "1"}},
    "a NUL": {"a\0b": {"input": "1", "output": "1"}},
    "half a surrogate": {"\ud800": {"input": "1", "output": "1"}},
    "a terminal's code": {"\x1b[2J": {"input": "1", "output": "1"}},
    "too many": {f"m{n}": {"input": "1", "output": "1"} for n in range(MAX_MODELS + 1)},
    "LiteLLM's without tokens": {"m": {"litellm_provider": "x", "input_cost_per_pixel": 1}},
    "LiteLLM's sample alone": {"sample_spec": {"input_cost_per_token": 1, "output_cost_per_token": 1}},
    "LiteLLM's of another type": {"sample_spec": {}, "m": 7},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_price_list_is_refused(name: str) -> None:
    """ValueError, in words that can be printed anywhere."""
    with pytest.raises(ValueError, match=r".") as refused:
        read_prices(WRONG[name])
    said = str(refused.value)
    assert said.isprintable()
    assert len(said) < 200
    said.encode()


AMOUNTS: list[Any] = [
    *("", "x", "-1", "-1e-30", "NaN", "sNaN", "Infinity", "1000001", "1,5", "1e999999999999999999999"),
    *(True, False, None, [], {}, -1, 1e300, float("nan"), float("inf"), 10**5000, Decimal("NaN")),
]


@pytest.mark.parametrize(
    "amount", AMOUNTS, ids=lambda amount: repr(amount)[:20] if amount != 10**5000 else "1e5000"
)
def test_an_absurd_amount_names_the_model_and_the_field(amount: Any) -> None:
    """In both shapes; it could have been a slip of units, so the error says which unit is meant."""
    with pytest.raises(
        ValueError, match=r"^gpt-x: `output` must be dollars per million tokens, from 0 to 1000000$"
    ):
        read_prices({"fine": {"input": "1", "output": "1"}, "gpt-x": {"input": "1", "output": amount}})
    if amount is None:  # LiteLLM's way to say that there is none
        return
    row = {"litellm_provider": "x", "input_cost_per_token": 1e-6, "output_cost_per_token": amount}
    with pytest.raises(
        ValueError, match=r"^gpt-x: `output_cost_per_token` must be dollars per token, from 0 to 1$"
    ):
        read_prices({"gpt-x": row})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "prices",
        '{"m": {"input": 1, "output": NaN}}',
        '{"m": {"input": 1, "output": 1e99999999999999999999}}',
        '{"m": {"input": 1, "output": ' + "9" * 5000 + "}}",
        '{"m": ' * 100_000,
        "[" * 100_000,
    ],
    ids=range(8),
)
def test_a_text_that_is_no_json_is_refused(text: str) -> None:
    """Also where Python's parser would fail in a way of its own."""
    with pytest.raises(ValueError, match=r"JSON|number|nested|must be"):
        parse_prices(text)
