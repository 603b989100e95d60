"""What a request used, and how well we know it. Units: tokens, as the provider bills them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Source(StrEnum):
    """Where the numbers come from."""

    PROVIDER = "provider"  # the provider's own report
    COUNTED = "counted"  # our exact tokenisation of what was sent and received
    CHECKPOINT = "checkpoint"  # the last running count of a worker that died


class Certainty(StrEnum):
    """EXACT may refund a reservation; AT_LEAST never does.

    A stream that was stopped before the provider reported is AT_LEAST: every token that arrived is in
    the count, but the provider may have produced more that never reached us.
    """

    EXACT = "exact"
    AT_LEAST = "at_least"


@dataclass(frozen=True, slots=True)
class Reported:
    """A provider's usage report. `output_tokens` contains `reasoning_tokens`; input contains cached."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """The numbers of one usage event.

    `tokenizer` names the encoding of a counted usage, with `:assumed` behind it where the model is
    unknown to us; None for a provider's report.
    """

    input_tokens: int
    output_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    source: Source
    certainty: Certainty
    tokenizer: str | None = None

    @classmethod
    def of_report(cls, reported: Reported, certainty: Certainty = Certainty.EXACT) -> Usage:
        """The usage a provider reported."""
        return cls(
            reported.input_tokens,
            reported.output_tokens,
            reported.cached_tokens,
            reported.reasoning_tokens,
            Source.PROVIDER,
            certainty,
        )


NOTHING = Usage(0, 0, 0, 0, Source.COUNTED, Certainty.EXACT)


# Longest prefix wins. Source: tiktoken/model.py, MODEL_PREFIX_TO_ENCODING and MODEL_TO_ENCODING.
_ENCODING_BY_PREFIX = {
    "gpt-4": "cl100k_base",
    "gpt-35-turbo": "cl100k_base",
    "gpt-3.5": "cl100k_base",
    "text-embedding-": "cl100k_base",
    "gpt-4o": "o200k_base",
    "gpt-4.1": "o200k_base",
    "gpt-4.5": "o200k_base",
    "gpt-5": "o200k_base",
    "chatgpt-4o": "o200k_base",
    "o1": "o200k_base",
    "o3": "o200k_base",
    "o4": "o200k_base",
    "gpt-oss": "o200k_base",
    "ft:gpt-4o": "o200k_base",
    "ft:gpt-4.1": "o200k_base",
    "ft:gpt-4": "cl100k_base",
    "ft:gpt-3.5": "cl100k_base",
    "scripted": "o200k_base",
}


_REASONING = ("o1", "o3", "o4", "gpt-5", "gpt-oss")


# Longest prefix wins. Sources: OpenAI's model pages, "max output tokens"; Anthropic's "Models overview".
_OUTPUT_BY_PREFIX = {
    "gpt-3.5": 4_096,
    "gpt-4": 8_192,
    "gpt-4-turbo": 4_096,
    "gpt-4-1106": 4_096,
    "gpt-4-0125": 4_096,
    "gpt-4o": 16_384,
    "gpt-4o-2024-05-13": 4_096,
    "gpt-4.1": 32_768,
    "gpt-5": 128_000,
    "o1": 100_000,
    "o3": 100_000,
    "o4": 100_000,
    "claude-": 64_000,
    "claude-3-": 4_096,
    "claude-3-5": 8_192,
    "claude-3-7": 64_000,
    "claude-opus-4": 32_000,
    "scripted": 1 << 20,
}


def most_output(model: str) -> int | None:
    """How long an answer of a model can be; None where we do not know it."""
    best = max((p for p in _OUTPUT_BY_PREFIX if model.startswith(p)), key=len, default=None)
    return None if best is None else _OUTPUT_BY_PREFIX[best]


def reasons_out_of_sight(model: str) -> bool:
    """Whether a model bills reasoning that it never streams: no count of its text is all there was."""
    return model.startswith(_REASONING)


_THINKS_WHEN_ASKED = re.compile(r"claude-(?:[23]|instant|(?:opus|sonnet|haiku)-4)")


def thinks(model: str, *, asked: bool | None) -> bool:
    """Whether a Claude model thinks: what is streamed of that is a summary, what is billed is all.

    Up to the fourth generation it does when it is asked to, and later unless it is not to.
    """
    if not model.startswith("claude-"):
        return False
    return _THINKS_WHEN_ASKED.match(model) is None if asked is None else asked


def encoding_of(model: str) -> tuple[str, bool]:
    """(encoding, known): the BPE encoding of a model's text; o200k_base and False if it is unknown."""
    best = max((p for p in _ENCODING_BY_PREFIX if model.startswith(p)), key=len, default=None)
    if best is None:
        return "o200k_base", False
    return _ENCODING_BY_PREFIX[best], True
