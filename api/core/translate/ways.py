"""Which dialect a provider is asked in, and how what it says gets back to the client."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from api.core.dialects import anthropic_messages, openai_chat, openai_embeddings, openai_responses
from api.core.translate import Chain
from api.core.translate.chat_on_messages import ChatOnMessages
from api.core.translate.messages_on_chat import MessagesOnChat
from api.core.translate.responses_on_chat import ResponsesOnChat

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from api.core.dialects import Dialect, Failure, Seen, Writer
    from api.core.sse import Event
    from api.core.translate import Translation
    from api.core.usage import Usage

DIALECTS: dict[str, Dialect] = {
    dialect.NAME: dialect
    for dialect in (openai_chat, openai_responses, openai_embeddings, anthropic_messages)
}

_WAYS: dict[tuple[str, str], Callable[[int], Translation]] = {
    (openai_chat.NAME, anthropic_messages.NAME): ChatOnMessages,
    (anthropic_messages.NAME, openai_chat.NAME): lambda _created: MessagesOnChat(),
    (openai_responses.NAME, openai_chat.NAME): ResponsesOnChat,
    (openai_responses.NAME, anthropic_messages.NAME): lambda created: Chain(
        ResponsesOnChat(created), ChatOnMessages(created)
    ),
}


ODD = (KeyError, IndexError, TypeError, AttributeError, ValueError)
"""What translating raises where something has not the shape that its dialect gives it."""


class Untranslatable(Exception):  # noqa: N818 - reads as what happened
    """The provider sent something that has not the shape of its dialect."""


class Way(NamedTuple):
    """What the provider is asked in; `translation` None where that is the client's own."""

    dialect: Dialect
    translation: Translation | None = None


def way(wanted: Dialect, spoken: Collection[str], created: int) -> Way | None:
    """The client's own dialect where it is spoken, else a translation; None if there is none."""
    if wanted.NAME in spoken:
        return Way(wanted)
    for (near, far), make in _WAYS.items():
        if near == wanted.NAME and far in spoken:
            return Way(DIALECTS[far], make(created))
    return None


class TranslatingWriter:
    """A client's writer behind a translation: what it sees is as if the provider spoke its dialect."""

    def __init__(self, writer: Writer, translation: Translation, dialect: Dialect) -> None:
        self.name = writer.name
        self._writer, self._translation, self._dialect = writer, translation, dialect

    def event(self, event: Event, seen: Seen) -> bytes:  # noqa: ARG002 - the Writer protocol
        """What the client gets for it."""
        try:
            return self._written(self._translation.event(event))
        except ODD as error:
            raise Untranslatable from error

    def _written(self, events: list[Event]) -> bytes:
        out = b""
        for event in events:
            seen = self._dialect.read(event)
            out += self._writer.end(event) if seen.terminal else self._writer.event(event, seen)
        return out

    def end(self, terminal: Event | None) -> bytes:  # noqa: ARG002 - the same
        """All that is left to say."""
        try:
            return self._written(self._translation.end())
        except ODD as error:
            raise Untranslatable from error

    def stopped(self, usage: Usage) -> bytes:
        """The client's writer knows what it has written."""
        return self._writer.stopped(usage)

    def error(self, failure: Failure) -> bytes:
        """The same."""
        return self._writer.error(failure)

    def heartbeat(self) -> bytes:
        """The same."""
        return self._writer.heartbeat()
