"""Between dialects: a client that speaks one, and a provider that speaks another.

`X_on_Y` takes a client's request in X to a provider that speaks Y, and its answer back. Chat completions are
in the middle: what has no direct way goes by them. What a dialect cannot say is refused, never left out; only
what does not change the answer is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from api.core.sse import Event


class CannotTranslate(Exception):  # noqa: N818 - reads as what happened
    """The provider's dialect has no words for a field of the request; the text is public."""

    def __init__(self, param: str, why: str = "") -> None:
        text = f"`{param}` cannot be translated for the provider of this model"
        super().__init__(f"{text}: {why}." if why else f"{text}.")
        self.param = param


class Translation(Protocol):
    """One request and its answer. Events come in the provider's dialect and go out in the client's."""

    def request(self, body: dict[str, Any]) -> dict[str, Any]:
        """The request in the provider's dialect. Raises CannotTranslate."""
        ...

    def event(self, event: Event) -> list[Event]:
        """What an event is for the client; nothing for one that cannot be read."""
        ...

    def end(self) -> list[Event]:
        """What is left to say once the provider has ended its answer, the terminal event included."""
        ...

    def whole(self, data: bytes) -> bytes:
        """An answer that was not streamed. Raises ValueError where it cannot be read."""
        ...


class Chain:
    """A translation by way of a third dialect: `near` is the client's side, `far` the provider's."""

    def __init__(self, near: Translation, far: Translation) -> None:
        self._near, self._far = near, far

    def request(self, body: dict[str, Any]) -> dict[str, Any]:
        """Both, one after the other."""
        return self._far.request(self._near.request(body))

    def event(self, event: Event) -> list[Event]:
        """What is said in between is never seen."""
        return [out for between in self._far.event(event) for out in self._near.event(between)]

    def end(self) -> list[Event]:
        """What the far side has left, then what the near one has."""
        said = [out for between in self._far.end() for out in self._near.event(between)]
        return said + self._near.end()

    def whole(self, data: bytes) -> bytes:
        """Both, one after the other."""
        return self._near.whole(self._far.whole(data))


def check_fields(body: Mapping[str, Any], known: Iterable[str], where: str = "") -> None:
    """Raises CannotTranslate for the first field that says something and is not known."""
    unknown = body.keys() - set(known)
    for name in sorted(unknown):
        if body[name] not in (None, [], {}, False):
            raise CannotTranslate(f"{where}.{name}" if where else name)


def given(**fields: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def data_url(media_type: str, data: str) -> str:
    """Bytes in base64 as a URL."""
    return f"data:{media_type};base64,{data}"


def of_data_url(url: str) -> tuple[str, str] | None:
    """Media type and base64 of such a URL; None for another one."""
    head, comma, data = url.partition(",")
    media_type, _, encoding = head.removeprefix("data:").partition(";")
    return (media_type, data) if comma and head.startswith("data:") and encoding == "base64" else None
