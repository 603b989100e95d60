"""The tokenizer's contract: exact, beside the event loop, and never surprised by a text."""

from __future__ import annotations

import pytest

from api.adapters.tokenizer_toktok import ToktokTokenizer
from tests.contracts.helpers import LoopTurns, bounded

ENCODINGS = ("o200k_base", "cl100k_base")
SENTENCE = "water finds its way down the hill and through the gate "


@pytest.fixture
def tokenizer() -> ToktokTokenizer:
    """The one that the product uses."""
    return ToktokTokenizer()


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_it_counts_each_text(tokenizer, encoding) -> None:
    """One count for each text, in order; the numbers are those of tiktoken's documentation."""
    texts = ["", "tiktoken is great!", "", "antidisestablishmentarianism", SENTENCE.strip()]
    counts = await tokenizer.count(texts, encoding)
    assert counts == [0, 6, 0, 6, 11]


async def test_nothing_costs_nothing(tokenizer) -> None:
    """No texts, no counts; an empty text is a text of no tokens."""
    assert await tokenizer.count([], "o200k_base") == []
    assert await tokenizer.count([""], "o200k_base") == [0]


async def test_the_loop_turns_while_5_mb_are_counted(tokenizer) -> None:
    """P10: one tenant's long text does not hold up another tenant's stream."""
    text = SENTENCE * (5 * 2**20 // len(SENTENCE))
    await tokenizer.count([""], "o200k_base")
    async with LoopTurns() as turns:
        (count,) = await bounded(tokenizer.count([text], "o200k_base"))
    assert count > 1_000_000
    assert turns.count > 500


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("\ud800", "\ufffd"),
        ("a\udfffb", "a\ufffdb"),
        ("\udc00\ud800 x", "\ufffd\ufffd x"),
        ("\ud83c\udf0a", "\U0001f30a"),
        ("end \ud83c", "end \ufffd"),
    ],
)
async def test_a_lone_surrogate_counts_as_a_replacement(tokenizer, encoding, text, same) -> None:
    """JSON can hold half a character; it is counted as U+FFFD, and its neighbours as what they are."""
    mixed = await tokenizer.count(["plain text", text, "more"], encoding)
    assert mixed == await tokenizer.count(["plain text", same, "more"], encoding)


@pytest.mark.parametrize("text", ["<|endoftext|>", "a<|im_start|>b", "\0\x7f\x80", "\u2028" * 9, "🧑‍🚀" * 9])
async def test_no_text_is_special(tokenizer, text) -> None:
    """What looks like a control token is text that somebody wrote, and it is counted as such."""
    (count,) = await tokenizer.count([text], "o200k_base")
    assert count > 1


async def test_an_encoding_nobody_has_is_an_error(tokenizer) -> None:
    """A wrong name must not count by some other encoding without a word."""
    with pytest.raises((KeyError, ValueError), match="p51k_base"):
        await tokenizer.count(["x"], "p51k_base")
