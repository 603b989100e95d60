"""The upstream's contract: the scripted model in this process, and OpenAI's SDK that reaches it over HTTP."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import msgspec
import pytest

from api.adapters.tokenizer_toktok import ToktokTokenizer
from api.adapters.upstream_http import Line
from api.adapters.upstream_openai import OpenAIUpstream
from api.adapters.upstream_scripted import ScriptedUpstream
from api.core.sse import Framer
from api.ports import Patience, UpstreamFailed
from tests.contracts.helpers import bounded, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from api.ports import Upstream, UpstreamAnswer
    from tests.support.servers import ScriptedProcess

KEY = "sk-THE-SECRET-KEY"
PATH = "the-secret-path"
KINDS = ("scripted", "openai")


def body(script: str = "", **fields: Any) -> dict[str, Any]:
    """A streaming request whose model's name carries the script."""
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    model = f"scripted?pace_ms=0&{script}"
    return {"model": model, "messages": messages, "stream": True, **fields}


def open_openai(base_url: str, silence_seconds: float = 20) -> OpenAIUpstream:
    """The adapter under test."""
    line = Line(Patience(silence_seconds=silence_seconds))
    return OpenAIUpstream("openai", api_key=KEY, base_url=base_url, line=line)


async def gather_pieces(answer: UpstreamAnswer, pieces: list[bytes]) -> None:
    """Read to the end, or until it fails."""
    while piece := await bounded(answer.read()):
        pieces.append(piece)


async def drain(answer: UpstreamAnswer) -> bytes:
    """All of its bytes; it is closed afterwards, whatever happened."""
    pieces: list[bytes] = []
    try:
        await gather_pieces(answer, pieces)
        assert await bounded(answer.read()) == b""
    finally:
        await bounded(answer.finish())
        await bounded(answer.close())
    return b"".join(pieces)


@dataclass
class Provider:
    """An upstream, and what its provider sees of the one client that these tests play."""

    upstream: Any
    process: ScriptedProcess | None

    async def sees(self, label: str, **until: int) -> dict[str, Any]:
        """Statistics, once they say `until`."""
        if self.process is not None:
            return await bounded(asyncio.to_thread(self.process.stats, label, **until))

        async def so() -> bool:
            return all(getattr(self.upstream, name) == value for name, value in until.items())

        await eventually(so)
        return {"live": self.upstream.live, "opened": self.upstream.opened}


@pytest.fixture(params=KINDS)
async def provider(request: pytest.FixtureRequest) -> AsyncIterator[Provider]:
    """Both implementations, playing the same scripts."""
    if request.param == "scripted":
        upstream: Any = ScriptedUpstream(ToktokTokenizer())
        process = None
    else:
        process = request.getfixturevalue("scripted")
        upstream = open_openai(f"{process.url}/{PATH}/v1")
    yield Provider(upstream, process)
    await upstream.close()


@pytest.fixture
def upstream(provider: Provider) -> Upstream:
    """Both, where only the upstream's side is looked at."""
    return provider.upstream


@pytest.fixture
def label() -> str:
    """A label for the provider's statistics that no other test has."""
    return uuid.uuid4().hex


# --- answers ----------------------------------------------------------------------------------------

SCRIPTS = {
    "plain": {},
    "with usage": {"fields": {"stream_options": {"include_usage": True}}},
    "usage in each chunk": {"script": "usage=2&per_chunk=5"},
    "large chunks": {"script": "tokens=20&pad=200000"},
    "no terminal event": {"script": "done=0"},
    "an error in the middle": {"script": "error_at=7"},
    "an end in the middle": {"script": "eof_at=7"},
    "at the output limit": {"fields": {"max_completion_tokens": 3}},
    "not streamed": {"fields": {"stream": False}},
    "stream not said": {"fields": {"stream": None}},
}


@pytest.mark.parametrize("name", SCRIPTS)
async def test_both_give_the_same_bytes_and_events(scripted, name) -> None:
    """A test against the scripted upstream speaks for the real one: byte for byte, event for event."""
    request = body(SCRIPTS[name].get("script", ""), **SCRIPTS[name].get("fields", {}))
    here, there = ScriptedUpstream(ToktokTokenizer()), open_openai(f"{scripted.url}/v1")
    ours, theirs = [await drain(await bounded(one.open(dict(request)))) for one in (here, there)]
    assert ours == theirs
    framers = Framer(4 << 20), Framer(4 << 20)
    assert framers[0].feed(ours) == framers[1].feed(theirs)
    assert len(ours) > 100
    assert here.live == 0
    await there.close()


async def test_streams_do_not_mix(upstream) -> None:
    """Fifty answers at once over one upstream: each is its own script's."""
    asked = [bounded(upstream.open(body(f"tokens={n}", stream=False))) for n in range(50)]
    texts = [await drain(answer) for answer in await asyncio.gather(*asked)]
    usages = [msgspec.json.decode(text)["usage"]["completion_tokens"] for text in texts]
    assert usages == list(range(50))


async def test_a_crowd_of_streams_is_open_at_the_same_time(provider, label) -> None:
    """The gate's caps are the only ones: no pool of the client's holds the 101st stream back."""
    request = body(f"silence_at=1&silence_ms=60000&label={label}")
    answers = await bounded(asyncio.gather(*(provider.upstream.open(request) for _ in range(150))))
    await provider.sees(label, live=150)
    for answer in answers:
        await bounded(answer.close())
    await provider.sees(label, live=0)


async def test_an_open_answer_comes_in_pieces(provider, label) -> None:
    """The first token can be read while the provider still sits on the rest."""
    answer = await bounded(provider.upstream.open(body(f"silence_at=1&silence_ms=60000&label={label}")))
    got = b""
    while b'"water"' not in got:
        piece = await bounded(answer.read())
        assert piece
        got += piece
    assert b"finds" not in got
    assert (await provider.sees(label, live=1))["live"] == 1
    await bounded(answer.close())
    await provider.sees(label, live=0)


async def test_models_are_listed(upstream) -> None:
    """OpenAI's list, with the names that are answered to."""
    listed = msgspec.json.decode(await bounded(upstream.models()))
    assert listed["object"] == "list"
    assert {model["id"] for model in listed["data"]} >= {"scripted", "gpt-4o"}


# --- refusals ---------------------------------------------------------------------------------------

REFUSALS = {
    "a bad request": "status=400",
    "a wrong key": "status=401",
    "not found": "status=404",
    "too large": "status=413",
    "rate limited": "status=429&retry_after=7",
    "rate limited, no hint": "status=429",
    "broken": "status=500",
    "overloaded": "status=503&retry_after=9",
}


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("name", [*REFUSALS, "unknown model", "unknown option"])
async def test_both_refuse_alike(scripted, name, streamed) -> None:
    """Status, Retry-After and error object are the same; blame is shown only where the request has it."""
    request = body(REFUSALS.get(name, "bogus=1"), stream=streamed)
    if name == "unknown model":
        request["model"] = "gpt-none"
    failures = []
    for one in (ScriptedUpstream(ToktokTokenizer()), open_openai(f"{scripted.url}/{PATH}/v1")):
        with pytest.raises(UpstreamFailed) as failed:
            await bounded(one.open(dict(request)))
        failures.append(failed.value)
        await one.close()
    seen = [(each.status, each.retry_after, each.timed_out, dict(each.body)) for each in failures]
    assert seen[0] == seen[1]
    assert bool(seen[0][3]) is (seen[0][0] in {400, 404, 413})


def public(failure: UpstreamFailed) -> str:
    """Everything of a failure that may reach a caller."""
    return f"{failure} {failure!r} {failure.args} {dict(failure.body)} {failure.retry_after}"


async def failing(name: str, scripted: ScriptedProcess) -> UpstreamFailed:
    """What is raised by an upstream that fails in this way."""
    base = {"refused": "http://127.0.0.1:1", "unknown host": "http://the-secret-path.invalid"}
    upstream = open_openai(base.get(name, scripted.url) + f"/{PATH}/v1", silence_seconds=0.2)
    try:
        answer = await bounded(upstream.open(body(REFUSALS.get(name, name))))
        await drain(answer)
    except UpstreamFailed as failure:
        return failure
    finally:
        await upstream.close()
    pytest.fail("it did not fail")


@pytest.mark.parametrize(
    "name",
    [*REFUSALS, "refused", "unknown host", "reset_at=3", "first_ms=60000", "silence_at=3&silence_ms=60000"],
)
async def test_a_failure_does_not_tell_address_or_key(scripted, name) -> None:
    """What a caller may see of a failure holds neither where the provider is nor how we sign in there."""
    text = public(await failing(name, scripted))
    port = str(urlsplit(scripted.url).port)
    assert not [secret for secret in (KEY, PATH, "127.0.0.1", port, "http:") if secret in text]


async def test_nobody_there_is_a_failure(scripted) -> None:
    """A refused connection, or a name that does not resolve: no status, and not a timeout."""
    for name in ("refused", "unknown host"):
        failure = await failing(name, scripted)
        assert (failure.status, failure.timed_out, failure.body) == (None, False, {})


# --- breaking off -----------------------------------------------------------------------------------


async def test_a_reset_in_the_middle_is_a_failure(upstream) -> None:
    """What came before it is delivered; the break is an error, and never looks like an end."""
    answer = await bounded(upstream.open(body("reset_at=9&pace_ms=5")))
    got: list[bytes] = []
    with pytest.raises(UpstreamFailed) as failed:
        await gather_pieces(answer, got)
    assert (failed.value.status, failed.value.timed_out) == (None, False)
    assert b'"water"' in b"".join(got)
    await bounded(answer.finish())
    await bounded(answer.close())


@pytest.mark.parametrize("silence", ["first_ms=60000", "silence_at=3&silence_ms=60000"])
async def test_silence_has_an_end(scripted, label, silence) -> None:
    """A provider that says nothing for `silence_seconds` has timed out, before its answer and in it."""
    failure = await failing(f"{silence}&label={label}", scripted)
    assert (failure.status, failure.timed_out) == (None, True)
    assert await bounded(asyncio.to_thread(scripted.stats, label, live=0))


@pytest.mark.parametrize("reading", [True, False], ids=["while reading", "between reads"])
async def test_closing_in_the_middle_reaches_the_provider(provider, label, reading) -> None:
    """P6: a client that leaves mid-stream stops the provider, which would bill for all that follows."""
    script = f"silence_at=3&silence_ms=60000&label={label}"
    answer = await bounded(provider.upstream.open(body(script)))
    got = b""
    while b'" its"' not in got:
        got += await bounded(answer.read())
    if reading:
        pending = asyncio.gather(answer.read())
        await asyncio.wait([pending], timeout=0.05)
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pending
    await bounded(answer.close())
    await bounded(answer.close())  # again is the same
    seen = await provider.sees(label, live=0)
    assert len(seen.get("left_at", [0])) == 1


async def test_cancelling_open_while_the_provider_is_silent_reaches_it(provider, label) -> None:
    """P6: a client that leaves before the first byte does not leave a request behind."""
    opening = asyncio.gather(provider.upstream.open(body(f"first_ms=60000&label={label}")))
    await provider.sees(label, opened=1)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    seen = await provider.sees(label, live=0)
    assert len(seen.get("left_at", [0])) == 1


async def test_a_model_name_of_any_text_arrives(scripted, label) -> None:
    """The label travels in the model's name, through JSON, unharmed."""
    upstream = open_openai(f"{scripted.url}/v1")
    odd = f"{label} ü\u2028&'\"\\"
    await drain(await bounded(upstream.open(body(f"label={quote(odd)}"))))
    assert (await asyncio.to_thread(scripted.stats, odd, live=0))["opened"] == 1
    await upstream.close()
