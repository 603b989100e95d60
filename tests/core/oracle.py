"""An independent tokeniser to hold ours against: bpe-openai, which is another implementation, in Rust."""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ENCODINGS = ["o200k_base", "cl100k_base"]


@cache
def oracle(encoding: str) -> Callable[[str], int]:
    """Counts the tokens of a text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of importlib.resources, when it is imported
        from bpe_openai import _bindings
    count: Callable[[str], int] = _bindings.tokenizer_for_encoding(encoding).count
    return count
