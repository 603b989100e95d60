"""A translated stream has the shape of a native one: the same events with the same fields of the same types.

The shapes are recorded here, from the scripted model's own streams in each dialect, which are written apart
from the code that translates.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from api.core import script_chat, script_messages, script_responses
from api.core.dialects import anthropic_messages, openai_chat, openai_responses
from api.core.script import script_of
from api.core.sse import Framer
from tests.core.test_translate_answers import translated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from api.core.dialects import Dialect

Shape = dict[str, str]
TOOLS = ["weather", "time"]
SCRIPTS = ["tokens=3", "tokens=0&calls=2", "tokens=3&calls=1", "tokens=3&refuse=1", "tokens=3&max_tokens=3"]
DIALECTS = {one.NAME: one for one in (openai_chat, openai_responses, anthropic_messages)}
FREE = {"input", "metadata"}
"""Objects whose fields are anybody's."""

LEFT_OUT = {
    # A translation knows no more of the input than the provider says before the end.
    "message_start": {"message.usage.cache_creation_input_tokens", "message.usage.cache_read_input_tokens"},
    "chunk": {"usage"},  # null on all chunks but the last, where it was asked for
}
BESIDES = {
    "message_delta": {"usage.input_tokens", "usage.cache_read_input_tokens"},
    "chunk": {"usage.prompt_tokens_details", "usage.prompt_tokens_details.cached_tokens"},
}
"""What a translated event may have, as its dialect allows, though the recorded one has it not."""


def native(dialect: str, script: str) -> bytes:
    """The scripted model's own stream."""
    model = script_of(f"scripted?pace_ms=0&{script}")
    if dialect == "openai_chat":
        steps = script_chat.stream_steps(model, "m", 7, include_usage=True, tools=TOOLS)
    else:
        speaking: Any = script_messages if dialect == "anthropic_messages" else script_responses
        steps = speaking.stream_steps(model, "m", 7, TOOLS)
    return b"".join(step.data for step in steps)


def paths(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Each field by its path, and its type; null is none."""
    if path:
        yield path, type(value).__name__
    if isinstance(value, dict) and path.rpartition(".")[2] not in FREE:
        for name, inner in value.items():
            yield from paths(inner, f"{path}.{name}".strip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner, f"{path}[]")


def shapes(stream: bytes) -> Iterator[tuple[str, Shape]]:
    """Each event's kind, and its fields."""
    for event in Framer(1 << 20).feed(stream):
        if event.data not in {b"", b"[DONE]"}:
            data = json.loads(event.data)
            yield str(data.get("type", "chunk")), dict(paths(data))


def recorded(dialect: str) -> dict[str, list[Shape]]:
    """All shapes of a dialect's events, by kind."""
    found: dict[str, list[Shape]] = {}
    for script in SCRIPTS:
        for kind, shape in shapes(native(dialect, script)):
            found.setdefault(kind, []).append(shape)
    return found


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("near", "far"),
    [
        ("openai_chat", "anthropic_messages"),
        ("anthropic_messages", "openai_chat"),
        ("openai_responses", "openai_chat"),
        ("openai_responses", "anthropic_messages"),
    ],
)
def test_a_translated_stream_has_the_shape_of_a_native_one(near: str, far: str, script: str) -> None:
    """No event, field or type that the dialect has not; and every field that its events always have."""
    known = recorded(near)
    client, provider = DIALECTS[near], DIALECTS[far]
    for kind, shape in shapes(translated(client, provider, [native(far, script)])):
        assert kind in known, kind
        types = {(path, name) for one in known[kind] for path, name in one.items()}
        optional = {path for path, name in types if name == "NoneType"}
        besides = BESIDES.get(kind, set())
        for path, name in shape.items():
            allowed = (path, name) in types or path in besides or (name == "NoneType" and path in optional)
            assert allowed or path in optional, (kind, path, name)
        always = set.intersection(*(set(one) for one in known[kind])) - LEFT_OUT.get(kind, set())
        assert always <= set(shape), (kind, always - set(shape))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_kinds_of_events_are_those_of_the_dialects_reader(dialect: str) -> None:
    """What is recorded is read without a word that it does not know: the shapes are no accident."""
    known: Dialect = DIALECTS[dialect]
    for script in SCRIPTS:
        events = Framer(1 << 20).feed(native(dialect, script))
        assert not any(known.read(event).unreadable for event in events)
    assert (
        len(recorded(dialect)) == {"openai_chat": 1, "openai_responses": 14, "anthropic_messages": 7}[dialect]
    )
