"""What one stream used so far: the provider's word where it gave it, the text it sent where it did not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from api.core.text import RunningText
from api.core.usage import Certainty, Reported, Source, Usage, encoding_of, reasons_out_of_sight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from api.core.dialects import Piece, Prompt, Seen

MAX_MODEL_CHARACTERS = 256
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""What no row can hold: a provider's word must not stop the ledger."""


def _most(one: Reported, other: Reported) -> Reported:
    """Two reports of one answer: counts only grow, and what one of them leaves out the other has."""
    return Reported(
        max(one.input_tokens, other.input_tokens),
        max(one.output_tokens, other.output_tokens),
        max(one.cached_tokens, other.cached_tokens),
        max(one.reasoning_tokens, other.reasoning_tokens),
    )


class Snapshot(NamedTuple):
    """The texts of one meter at one moment, to be counted elsewhere and folded back."""

    generation: int
    texts: list[str]


class Meter:
    """Fed with every event of a stream; holds what is needed to bill it.

    Text is kept per channel (choice, content or tool call), because tokens join across events of one
    channel and not across channels. `snapshot`, a tokeniser, and `fold` turn it into numbers.
    """

    __slots__ = (
        "_begun",
        "_channels",
        "_ended",
        "_finished_choices",
        "_generation",
        "_input_tokens",
        "_output_tokens",
        "_text_since_report",
        "_unreadable",
        "model",
        "prompt",
        "reported",
    )

    def __init__(self, model: str, prompt: Prompt) -> None:
        self.model = model  # what the provider says it answered with, once it does
        self.prompt = prompt
        self.reported: Reported | None = None
        self._begun: Reported | None = None
        self._ended = False
        self._finished_choices: set[int] = set()
        self._channels: dict[tuple[int, str], RunningText] = {}
        self._generation = 0
        self._input_tokens: int | None = None
        self._output_tokens = 0
        self._text_since_report = False
        self._unreadable = False

    def see(self, seen: Seen) -> None:
        """Take note of one upstream event."""
        for channel, text in seen.pieces:
            running = self._channels.get(channel)
            if running is None:
                running = self._channels[channel] = RunningText()
            running.add(text)
            self._text_since_report = True
        if seen.begun is not None:
            self._begun = seen.begun
        if seen.usage is not None:
            self.reported = seen.usage if self._begun is None else _most(seen.usage, self._begun)
            self._text_since_report = self._unreadable = False
        self._unreadable = self._unreadable or seen.unreadable
        if seen.model:
            self.model = _UNPRINTABLE.sub("", seen.model)[:MAX_MODEL_CHARACTERS]
        self._finished_choices.update(seen.finished)
        self._ended = self._ended or seen.terminal

    @property
    def finished(self) -> bool:
        """Whether the model said all it had to say: the terminal event, or an end of each choice."""
        choices = {choice for choice, _ in self._channels}
        return self._ended or (bool(self._finished_choices) and choices <= self._finished_choices)

    def needs_counting(self) -> bool:
        """Whether the numbers must come from the text: no report, or text that came after the last one."""
        return self.reported is None or self._text_since_report

    def snapshot(self) -> Snapshot:
        """What `fold` wants the token counts of: each channel's text up to a safe cut, and the rest.

        The first time also the prompt's texts.
        """
        texts = [] if self._input_tokens is not None else list(self.prompt.texts)
        for running in self._channels.values():
            texts += running.halves()
        return Snapshot(self._generation, texts)

    def outlook(self, pieces: Sequence[Piece]) -> tuple[int, list[str]]:
        """What the output would be with these pieces: tokens that are counted, and texts that are not yet."""
        more: dict[tuple[int, str], list[str]] = {}
        for channel, text in pieces:
            more.setdefault(channel, []).append(text)
        tails = {channel: running.tail() for channel, running in self._channels.items()}
        texts = ["".join([tails.get(channel, ""), *more.get(channel, ())]) for channel in tails | more]
        return sum(running.folded_tokens for running in self._channels.values()), texts

    def fold(self, snapshot: Snapshot, counts: list[int]) -> bool:
        """Take the counts of a snapshot. False, and nothing taken, if another fold came in between.

        Text that was seen since the snapshot is not in `output_tokens` yet.
        """
        if snapshot.generation != self._generation:
            return False
        self._generation += 1
        position = 0
        if self._input_tokens is None:
            position = len(self.prompt.texts)
            self._input_tokens = sum(counts[:position]) + self.prompt.overhead_tokens
        output = 0
        for running in self._channels.values():
            if position >= len(counts):  # a channel that opened while the others were counted
                break
            running.fold(len(snapshot.texts[position]), counts[position])
            output += running.folded_tokens + counts[position + 1]
            position += 2
        self._output_tokens = output
        return True

    def usage(self) -> Usage:
        """What the ledger is told: the report, or what the last `fold` knew.

        A report that came before the end (vLLM's continuous usage) makes an early stop exact.
        """
        if self.reported is not None and not self.needs_counting():
            unsure = Certainty.AT_LEAST if self._unreadable else Certainty.EXACT
            return Usage.of_report(self.reported, unsure)
        encoding, known = encoding_of(self.model)
        begun = self._begun or Reported(0, 0)
        exact = (
            known
            and self.finished
            and self.prompt.countable
            and not self._unreadable
            and not reasons_out_of_sight(self.model)
        )
        return Usage(
            input_tokens=begun.input_tokens or self._input_tokens or 0,
            output_tokens=max(self._output_tokens, begun.output_tokens),
            cached_tokens=begun.cached_tokens,
            reasoning_tokens=0,
            source=Source.COUNTED,
            certainty=Certainty.EXACT if exact else Certainty.AT_LEAST,
            tokenizer=encoding if known else f"{encoding}:assumed",
        )
