"""Counting a text in pieces gives what counting it whole gives, held against another tokeniser.

Code points are those that this Python knows: the two differ on some that came with Unicode 17, because their
tables are of different age.
"""

# ruff: noqa: RUF001 - letters of many scripts, on purpose

from __future__ import annotations

import sys
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from api.adapters.tokenizer_toktok import ToktokTokenizer, count_tokens
from api.core.text import RunningText, safe_cut
from tests.core.oracle import ENCODINGS, oracle

KNOWN = st.characters(exclude_categories=("Cn", "Cs"))
WORDS = [
    *["the", "Gate", "OPENS", "counted", "token", "to", "ken", "iPhone", "HTTPServer", "naïve", "straße"],
    *["I", "don't", "we'LL", "they've", "o'clock"],
    *["漢字", "仮名交じり文", "ひらがな", "カタカナ", "한국어", "中文。", "，", "、", "「引用」"],
    *["Привет", "ёлка", "Всё", "مرحبا", "שלום", "नमस्ते", "ไทย", "Ελλάδα", "e\u0301", "\u0301"],
    *["😀", "👩\u200d🚀", "👍🏽", "🇩🇪", "❤️"],
    *["0", "1234567", "3.14", "1,000", "٣٤", "Ⅷ", "x²"],
    *[
        "def f(x):\n    return x\n",
        '{"a": [1, 2]}',
        "// note\r\n",
        "</p>",
        "a/b",
        "https://x.y/z?q=1",
        "```\n",
    ],
    *[".", "...", "!?", "—", "'", "’", "'s", "'S", "''", "_", "#", "<|endoftext|>"],
    *[" ", "  ", "   \t", "\n", "\n\n\n", " \n ", "\r\n", "\u00a0", "\u3000", "\u2028", "\u0085"],
]
texts = st.lists(st.sampled_from(WORDS) | st.text(KNOWN, max_size=4), max_size=30).map("".join)


@st.composite
def pieces_of_text(draw: st.DrawFn) -> list[str]:
    """A text, torn anywhere."""
    text = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=10)))
    return [text[start:stop] for start, stop in pairwise([0, *cuts, len(text)])]


def fold(running: RunningText, encoding: str) -> None:
    tail = running.tail()
    cut = safe_cut(tail)
    running.fold(cut, *count_tokens([tail[:cut]], encoding))


def counted_in_pieces(pieces: list[str], encoding: str) -> int:
    running = RunningText()
    for piece in pieces:
        running.add(piece)
        fold(running, encoding)
    return running.folded_tokens + count_tokens([running.tail()], encoding)[0]


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=300)
@given(pieces=pieces_of_text())
@example(pieces=["to", "ken", " is", "n", "'t 3", ".14 \n", "\n x"])
def test_folding_in_pieces_gives_the_count_of_the_whole(encoding, pieces):
    """Wherever the text is torn, and whenever it is folded, no token is won or lost."""
    assert counted_in_pieces(pieces, encoding) == oracle(encoding)("".join(pieces))


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=300)
@given(text=texts)
def test_both_tokenisers_agree(encoding, text):
    """The tokeniser that bills counts what an independent one counts."""
    assert count_tokens([text], encoding) == [oracle(encoding)(text)]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_both_tokenisers_agree_on_every_character(encoding):
    """Each one that this Python knows: within a word, before a mark, before a digit."""
    known = [
        chr(c) for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) not in {"Cn", "Co", "Cs"}
    ]
    assert len(known) > 140_000
    contexts = [f"a{char}b {char}:Y {char}1" for char in known]
    counts = zip(known, contexts, count_tokens(contexts, encoding), strict=True)
    assert [hex(ord(char)) for char, text, count in counts if count != oracle(encoding)(text)] == []


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(text=texts, at=st.integers(0, 200))
def test_a_safe_cut_splits_no_token(encoding, text, at):
    """Both sides of any cut that `safe_cut` names, counted by the oracle, sum to the whole."""
    cut = safe_cut(text[:at])
    count = oracle(encoding)
    assert count(text[:cut]) + count(text[cut:]) == count(text)


@given(texts, st.integers(0, 700))
def test_a_safe_cut_is_the_last_one_there_is(text, distance):
    """However far back it lies: looking in windows finds what looking at every pair of characters finds."""
    text += "~" * distance
    gaps = [i for i in range(1, len(text)) if safe_cut(text[i - 1 : i + 1])]
    assert safe_cut(text) == max(gaps, default=0)


@pytest.mark.parametrize("text", ["", "word", "...", "\n\n", "don't", "漢字", "a'b_c"])
def test_without_a_gap_there_is_no_cut(text):
    """Nothing is cut that might be one token."""
    assert safe_cut(text) == 0


PROSE = {
    "English": "Every drop is counted at the door, and no one may take more than agreed; isn't it so?\n\n",
    "Russian": "Каждая капля считается у двери, и никто не возьмёт больше, чем было условлено. ",
    "Chinese": "每一滴水都在门口计数，谁也不能多拿。水从山上流下来，穿过闸门、流向田野。",
    "Japanese": "一滴残らず門のところで数えられる。だれも約束より多くは取れない、と帳簿は言う。",
    "Korean": "모든 물방울은 문에서 세어진다. 아무도 약속한 것보다 더 가져갈 수 없다.\n",
    "code": "def count(drops: list[int]) -> int:\n    total = 0\n    return total + sum(drops)\n",
}


@pytest.mark.parametrize("language", PROSE)
def test_the_tail_of_a_long_text_stays_short(language):
    """A megabyte of ordinary text leaves a line's worth of it in memory, and an exact count."""
    text = PROSE[language] * (1_000_000 // len(PROSE[language]))
    running, longest = RunningText(), 0
    for start in range(0, len(text), 1000):
        running.add(text[start : start + 1000])
        fold(running, "o200k_base")
        longest = max(longest, len(running.tail()))
    assert longest < 200
    left = oracle("o200k_base")(running.tail())
    assert running.folded_tokens + left == oracle("o200k_base")(text)


def test_a_text_without_any_gap_is_still_counted_exactly():
    """Base64 and the like are held until the end; that costs memory, never a token."""
    pieces = ["QUJDREVGR0hJSktMTU5P"] * 500
    assert counted_in_pieces(pieces, "o200k_base") == oracle("o200k_base")("".join(pieces))


def test_half_a_character_counts_as_a_replacement_character():
    """Lone surrogates, which JSON can carry and UTF-8 cannot, do not break the count."""
    assert count_tokens(["a\ud800b", "\udc00"], "o200k_base") == count_tokens(
        ["a\ufffdb", "\ufffd"], "o200k_base"
    )


def test_a_character_torn_over_two_pieces_is_whole_again():
    """The two surrogates of an emoji that arrive one by one are that emoji."""
    assert counted_in_pieces(["so \ud83d", "\ude00"], "o200k_base") == oracle("o200k_base")("so 😀")


async def test_the_port_counts_each_text_for_itself():
    """One number for each text, in order; none for none."""
    tokenizer = ToktokTokenizer()
    assert await tokenizer.count(["token", "to", "", "two tokens"], "cl100k_base") == [1, 1, 0, 2]
    assert await tokenizer.count([], "cl100k_base") == []
