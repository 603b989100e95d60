"""OpenAI embeddings: one JSON answer, never a stream, and no output tokens.

Source: OpenAI's API reference, "Embeddings". `input` is a text, or several, or the tokens of one or several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from api.core.dialects import Prompt, Seen, Tokens, openai_chat
from api.core.usage import Reported

if TYPE_CHECKING:
    from api.core.sse import Event

NAME = "openai_embeddings"


class _Usage(msgspec.Struct):
    prompt_tokens: Tokens = 0


class _Answer(msgspec.Struct):
    """The vectors, which are most of it, are not looked at."""

    model: str | None = None
    usage: _Usage | None = None


_decoder = msgspec.json.Decoder(_Answer)


def read(event: Event) -> Seen:
    """There are no streams of embeddings."""
    return read_object(event.data)


def read_object(data: bytes) -> Seen:
    """What an answer means."""
    try:
        found = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Seen(unreadable=True)
    usage = None if found.usage is None else Reported(found.usage.prompt_tokens, 0)
    return Seen(model=found.model, usage=usage, finished=(0,))


def prompt_of(body: dict[str, Any]) -> Prompt:
    """Its texts; tokens are counted already."""
    asked = body["input"]
    items = asked if isinstance(asked, list) else [asked]
    texts = [item for item in items if isinstance(item, str)]
    tokens = sum(len(item) if isinstance(item, list) else 1 for item in items if not isinstance(item, str))
    return Prompt(texts, tokens, countable=True)


def choices_of(body: dict[str, Any]) -> int:  # noqa: ARG001 - the Dialect protocol
    """One."""
    return 1


def is_text_alone(body: dict[str, Any]) -> bool:  # noqa: ARG001 - as above
    """It is."""
    return True


def output_limit_of(body: dict[str, Any]) -> int | None:  # noqa: ARG001 - as above
    """There is no output; one token is the least that can be reserved."""
    return 1


def limited(body: dict[str, Any], tokens: int) -> dict[str, Any]:  # noqa: ARG001 - as above
    """As it is."""
    return body


def reasons(body: dict[str, Any]) -> bool:  # noqa: ARG001 - as above
    """It does not."""
    return False


def asking_usage(body: dict[str, Any], *, continuous: bool) -> dict[str, Any]:  # noqa: ARG001 - as above
    """As it is."""
    return body


error_body = openai_chat.error_body
