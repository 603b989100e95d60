"""What the OpenAI adapter does on the wire, seen by a provider that the test itself plays."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI

from api.ports import UpstreamFailed
from tests.contracts.helpers import bounded, eventually, turns
from tests.contracts.test_upstream import open_openai
from tests.contracts.wires import STREAM_HEAD, Provider, chunked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from api.adapters.upstream_openai import OpenAIUpstream
    from api.ports import UpstreamAnswer

KEY = "sk-THE-SECRET-KEY"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
TOKEN = b'data: {"choices": []}\n\n'
DONE = b"data: [DONE]\n\n"


@asynccontextmanager
async def upstream_of(provider: Provider, silence_seconds: float = 20) -> AsyncIterator[OpenAIUpstream]:
    """The adapter under test."""
    upstream = open_openai(provider.url, silence_seconds)
    try:
        yield upstream
    finally:
        await bounded(upstream.close())


def response(status: str, content: bytes, *headers: str, length: int | None = None) -> bytes:
    """A whole answer; `length` may lie."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(content) if length is None else length}", *headers]
    return "\r\n".join([*lines, "content-type: application/json", "", ""]).encode() + content


async def read_until(answer: UpstreamAnswer, wanted: bytes) -> bytes:
    """Bytes up to and with `wanted`."""
    got = b""
    while wanted not in got:
        piece = await bounded(answer.read())
        assert piece, got
        got += piece
    return got


async def read_all(answer: UpstreamAnswer) -> bytes:
    """Bytes up to the end."""
    got = b""
    while piece := await bounded(answer.read()):
        got += piece
    return got


async def test_the_body_reaches_the_provider_as_it_is() -> None:
    """Fields nobody here knows, and values that types of ours would change, arrive as they were."""
    sent = {
        "model": "m",
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "ü\u2028🌊", "cache": {"a": [None]}}]},
            {"role": "assistant", "content": None, "tool_calls": [], "thinking": {"signature": "x=="}},
        ],
        "stream": True,
        "stream_options": {"include_usage": True, "include_obfuscation": False},
        "temperature": 0.1,
        "top_p": 1e-7,
        "seed": 2**60,
        "user": None,
        "stop": [],
        "n": 1,
        "extra_body": {"guided_json": {}},
        "extra_headers": {"authorization": "Bearer other"},
        "timeout": 0.001,
        "vendor.option": {"nested": {"deep": [1, 2.5, "3", False]}},
    }
    async with Provider(STREAM_HEAD + chunked(DONE, b"")) as provider, upstream_of(provider) as upstream:
        answer = await bounded(upstream.open(dict(sent)))
        await read_until(answer, DONE)
        await answer.close()
    (request,) = provider.requests
    assert json.loads(request.body) == sent
    head = request.head.decode().lower().split("\r\n")
    assert head[0] == "post /v1/chat/completions http/1.1"
    assert f"authorization: bearer {KEY}".lower() in head


def of_its_own(head: bytes) -> list[str]:
    """The lines of a request's head that a client does not write differently each time."""
    own = ("accept-encoding:", "connection:", "content-length:", "host:", "x-stainless-raw-response:")
    return sorted(line for line in head.decode().split("\r\n") if not line.lower().startswith(own))


async def test_the_request_is_the_one_that_the_sdk_sends() -> None:
    """Same address, same headers, same body as openai-python's own, which says what a provider expects."""
    async with (
        Provider(response("200 OK", b"{}")) as provider,
        upstream_of(provider) as upstream,
        AsyncOpenAI(api_key=KEY, base_url=provider.url, max_retries=0) as sdk,
    ):
        await bounded((await bounded(upstream.open({**BODY, "stream": False}))).close())
        await bounded(sdk.chat.completions.create(**{**BODY, "stream": False}))
    ours, theirs = provider.requests
    assert [line.lower() for line in of_its_own(ours.head)] == [
        line.lower() for line in of_its_own(theirs.head)
    ]
    assert json.loads(ours.body) == json.loads(theirs.body)


async def test_a_redirect_is_a_failure() -> None:
    """A request with our key in it goes where an admin said, and nowhere else."""
    async with (
        Provider(response("307 Temporary Redirect", b"", "location: /elsewhere")) as provider,
        upstream_of(provider) as upstream,
    ):
        with pytest.raises(UpstreamFailed) as failed:
            await bounded(upstream.open(BODY))
        assert (failed.value.status, len(provider.requests)) == (307, 1)


@pytest.mark.parametrize("bypass", ["", "provider.invalid"])
async def test_a_proxy_of_the_environment_is_used(monkeypatch, bypass) -> None:
    """HTTP_PROXY is asked for the provider's address, unless NO_PROXY names it."""
    async with Provider(STREAM_HEAD + chunked(DONE, b"")) as proxy:
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, bypass)
        upstream = open_openai("http://provider.invalid/v1")
        try:
            await bounded((await bounded(upstream.open(BODY))).close())
        except UpstreamFailed:
            assert bypass, "the name is nobody's: only the proxy can have answered"
        finally:
            await bounded(upstream.close())
        lines = [request.head.split(b"\r\n")[0] for request in proxy.requests]
        assert lines == ([] if bypass else [b"POST http://provider.invalid/v1/chat/completions HTTP/1.1"])


async def test_a_large_body_goes_out_whole() -> None:
    """Megabytes of images arrive as they were."""
    large = {**BODY, "messages": [{"role": "user", "content": "x" * (3 << 20)}]}
    async with Provider(STREAM_HEAD + chunked(DONE, b"")) as provider, upstream_of(provider) as upstream:
        await bounded((await bounded(upstream.open(large))).close())
        assert json.loads(provider.requests[0].body) == large


async def test_a_finished_answer_gives_its_connection_back() -> None:
    """No handshake per request: after finish and close the next one goes out on the same connection."""
    async with (
        Provider(STREAM_HEAD + chunked(TOKEN), chunked(DONE, b"")) as provider,
        upstream_of(provider) as upstream,
    ):
        for _ in range(5):
            answer = await bounded(upstream.open(BODY))
            await read_until(answer, DONE)
            await bounded(answer.finish())
            await bounded(answer.close())
        assert (len(provider.requests), provider.accepted) == (5, 1)


async def test_the_end_of_a_body_that_comes_late_is_waited_for() -> None:
    """The terminal event and the end of the body may be two packets: the connection is kept all the same."""
    late = asyncio.Event()
    async with (
        Provider(STREAM_HEAD + chunked(TOKEN, DONE), late, chunked(b"")) as provider,
        upstream_of(provider) as upstream,
    ):
        for _ in range(3):
            late.clear()
            answer = await bounded(upstream.open(BODY))
            await read_until(answer, DONE)
            asyncio.get_running_loop().call_soon(late.set)
            await bounded(answer.finish())
            await bounded(answer.close())
        assert provider.accepted == 1


async def test_an_answer_that_does_not_end_is_given_up() -> None:
    """After the terminal event the rest is waited for a moment only; then the connection is broken."""
    never = asyncio.Event()
    async with (
        Provider(STREAM_HEAD + chunked(TOKEN, DONE), never) as provider,
        upstream_of(provider) as upstream,
    ):
        answer = await bounded(upstream.open(BODY))
        await read_until(answer, DONE)
        await bounded(answer.finish())
        assert not provider.gone.is_set()
        await bounded(answer.close())
        await bounded(provider.gone.wait())
        await bounded((await bounded(upstream.open(BODY))).close())
        assert provider.accepted == 2


async def test_a_kept_connection_that_the_provider_closed_is_not_a_failure() -> None:
    """Providers close idle connections when they like; the next request takes another one."""
    async with (
        Provider(STREAM_HEAD + chunked(DONE, b""), hangs_up=True) as provider,
        upstream_of(provider) as upstream,
    ):
        for _ in range(3):
            provider.gone.clear()
            answer = await bounded(upstream.open(BODY))
            await read_until(answer, DONE)
            await bounded(answer.finish())
            await bounded(answer.close())
            await bounded(provider.gone.wait())
            await turns()  # the end of the connection is in the socket: let the client see it
        assert provider.accepted == 3


async def test_one_request_is_sent_once() -> None:
    """No retries of the SDK's own: each would be a second bill."""
    async with (
        Provider(response("500 Oops", b"{}", "retry-after: 0")) as provider,
        upstream_of(provider) as upstream,
    ):
        with pytest.raises(UpstreamFailed):
            await bounded(upstream.open(BODY))
        with pytest.raises(UpstreamFailed):
            await bounded(upstream.models())
        assert len(provider.requests) == 2


BROKEN = {
    "closes without a word": (None, b""),
    "breaks off in the head": (None, b"HTTP/1.1 200 OK\r\ncontent-"),
    "does not speak HTTP": (None, b"220 smtp.example.com ESMTP\r\n\r\n"),
    "breaks off its error": (500, response("500 Oops", b'{"error"', length=100)),
    "breaks off its blame": (400, response("400 Bad Request", b'{"error"', length=100)),
    "sends an error in no known form": (400, response("400 Bad Request", b"<html>")),
    "sends an error that is a list": (422, response("422 No", b'[{"error": 1}]')),
    "sends an error that is a text": (400, response("400 Bad Request", b'{"error": "no"}')),
}


@pytest.mark.parametrize("ask", ["open", "models"])
@pytest.mark.parametrize("name", BROKEN)
async def test_however_a_provider_fails_it_is_upstream_failed(name, ask) -> None:
    """One exception for all of it, with the status if one came: nothing of the SDK or of aiohttp gets out."""
    status, answer = BROKEN[name]
    if ask == "models" and name.startswith("breaks off its"):
        status = None  # read whole before the SDK looks at it: with the body the status is lost
    async with Provider(answer, hangs_up=True) as provider, upstream_of(provider) as upstream:
        with pytest.raises(UpstreamFailed) as failed:
            await bounded(upstream.open(BODY) if ask == "open" else upstream.models())
        assert failed.value.timed_out is False
        assert isinstance(dict(failed.value.body), dict)
        if ask == "open":  # for a list of models nobody looks at it
            assert failed.value.status == status
    gc.collect()  # a connection that was forgotten says so now


async def test_an_error_that_does_not_end_is_given_up() -> None:
    """A refusal whose body never comes is one all the same, after `silence_seconds`; its connection goes."""
    never = asyncio.Event()
    async with (
        Provider(response("500 Oops", b'{"error"', length=100), never) as provider,
        upstream_of(provider, silence_seconds=0.2) as upstream,
    ):
        with pytest.raises(UpstreamFailed) as failed:
            await bounded(upstream.open(BODY))
        assert failed.value.status == 500
        await bounded(provider.gone.wait())
    gc.collect()


MIDDLE = {
    "closes in a chunk": STREAM_HEAD + chunked(TOKEN) + b"40\r\ndata: ",
    "closes between chunks": STREAM_HEAD + chunked(TOKEN),
    "sends no chunk": STREAM_HEAD + chunked(TOKEN) + b"zzz\r\n",
    "sends less than it said": response("200 OK", TOKEN, length=1000),
}


@pytest.mark.parametrize("name", MIDDLE)
async def test_a_body_that_breaks_off_is_no_end(name) -> None:
    """P3: a body cut short raises; read as an end it would pass for a finished answer."""
    async with Provider(MIDDLE[name], hangs_up=True) as provider, upstream_of(provider) as upstream:

        async def ask() -> None:
            answer = await bounded(upstream.open(BODY))
            try:
                await read_all(answer)
            finally:
                await bounded(answer.close())

        with pytest.raises(UpstreamFailed) as failed:
            await ask()
        assert (failed.value.status, failed.value.timed_out) == (None, False)


async def test_a_key_echoed_by_the_provider_stays_inside() -> None:
    """OpenAI's 401 quotes the key it did not like; that is ours, and no business of the caller's."""
    error = json.dumps(
        {"error": {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}}
    )
    async with (
        Provider(response("401 Unauthorized", error.encode())) as provider,
        upstream_of(provider) as upstream,
    ):
        for ask in (upstream.open(BODY), upstream.models()):
            with pytest.raises(UpstreamFailed) as failed:
                await bounded(ask)
            failure = failed.value
            assert (failure.status, dict(failure.body)) == (401, {})
            assert KEY not in f"{failure} {failure!r} {failure.args}"


async def test_the_blame_of_a_bad_request_is_passed_on() -> None:
    """What the provider says is wrong with a request reaches whoever wrote it, field by field."""
    error = {
        "message": "no",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "bad",
        "more": [1],
    }
    async with (
        Provider(response("400 Bad Request", json.dumps({"error": error}).encode())) as provider,
        upstream_of(provider) as upstream,
    ):
        with pytest.raises(UpstreamFailed) as failed:
            await bounded(upstream.open(BODY))
        assert dict(failed.value.body) == error


async def test_bytes_come_as_they_are_sent() -> None:
    """No line is joined, split or decoded: SSE with CRs, U+2028, broken UTF-8 and NULs is passed through."""
    odd = b"data: a\r\rdata: \xe2\x80\xa8\xff\x00\x85\r\n\r\n: c\x0c\n\n"
    async with (
        Provider(STREAM_HEAD + chunked(*(odd[i : i + 1] for i in range(len(odd))), b"")) as provider,
        upstream_of(provider) as upstream,
    ):
        answer = await bounded(upstream.open(BODY))
        assert await read_all(answer) == odd
        await answer.close()


async def test_a_compressed_answer_is_unpacked() -> None:
    """If the adapter says that it takes gzip, an answer in gzip is readable."""
    packed = gzip.compress(TOKEN + DONE)
    head = STREAM_HEAD.replace(b"content-type", b"content-encoding: gzip\r\ncontent-type")
    async with Provider(head + chunked(packed, b"")) as provider, upstream_of(provider) as upstream:
        answer = await bounded(upstream.open(BODY))
        assert await read_until(answer, DONE) == TOKEN + DONE
        await answer.close()


async def test_closing_the_upstream_closes_its_connections() -> None:
    """P12: nothing stays open after a shutdown, kept connections included."""
    async with Provider(STREAM_HEAD + chunked(DONE, b"")) as provider, upstream_of(provider) as upstream:
        answer = await bounded(upstream.open(BODY))
        await read_until(answer, DONE)
        await bounded(answer.finish())
        await bounded(answer.close())
        assert not provider.gone.is_set()
        await bounded(upstream.close())
        await eventually(lambda: _true(provider.gone.is_set()))


async def _true(value: object) -> bool:
    return bool(value)
