"""Token counts by toktok-rs: o200k and cl100k ranks are compiled into its wheel, so nothing is fetched.

It releases the GIL while it counts, so a thread keeps the event loop free (docs/adr/0002).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import toktok

if TYPE_CHECKING:
    from collections.abc import Sequence


class ToktokTokenizer:
    """Counts in the loop's default thread pool."""

    async def count(self, texts: Sequence[str], encoding: str) -> list[int]:
        """Tokens of each text. Lone surrogates, which no UTF-8 has, count as U+FFFD."""
        if not texts:
            return []
        return await asyncio.to_thread(count_tokens, texts, encoding)


def count_tokens(texts: Sequence[str], encoding: str) -> list[int]:
    """Tokens of each text; blocks for about 4 us a KB."""
    try:
        return list(toktok.batch_count(list(texts), encoding))
    except UnicodeEncodeError:
        clean = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
        return list(toktok.batch_count(clean, encoding))
