"""Fetching keys from providers that are slow, large, broken or not who they say: bytes, or one failure."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from api.adapters.jwks_http import MAX_BODY_BYTES, KeyFetcher
from auth.issuers import IssuerConfig, Issuers
from auth.jwks import FetchFailed
from auth.jws import peek
from auth.principal import NotAuthenticated
from tests.auth.support import NOW, HandClock
from tests.contracts.helpers import bounded
from tests.contracts.wires import Provider, chunked
from tests.support.openid import OpenIDProvider, SigningKey
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BODY = b'{"keys": "SENT-BY-THEM"}'
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
FULL = b"k" * MAX_BODY_BYTES


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """The machine's own proxies stay out of it."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@asynccontextmanager
async def fetching(total_seconds: float = 30.0) -> AsyncIterator[KeyFetcher]:
    """The adapter under test; the bound is far off where it is not what is tested."""
    fetcher = KeyFetcher(total_seconds=total_seconds)
    try:
        yield fetcher
    finally:
        await bounded(fetcher.close())


def answer(status: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """A whole answer; `length` may lie."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize(
    ("said", "body"),
    [
        (answer("200 OK", BODY), BODY),
        (answer("200 OK", BODY, "content-type: text/plain", "content-encoding: identity"), BODY),
        (CHUNKED + chunked(BODY[:3], BODY[3:], b""), BODY),
        (answer("200 OK", FULL), FULL),
        (answer("200 OK", b""), b""),
    ],
    ids=["whole", "plain", "in chunks", "the largest", "empty"],
)
async def test_the_body_comes_as_it_is(said, body):
    """Whatever it is called; what it is worth is for the key set to say."""
    async with Provider(said) as provider, fetching() as fetcher:
        assert await bounded(fetcher.fetch(provider.url)) == body


@pytest.mark.parametrize(
    "said",
    [
        answer("404 SENT-BY-THEM", BODY),
        answer("503 Service Unavailable", BODY),
        answer("201 Created", BODY),
        answer("204 No Content", b""),
        answer("200 OK", gzip.compress(BODY), "content-encoding: gzip"),
        answer("200 OK", BODY, "content-encoding: SENT-BY-THEM"),
        answer("200 OK", FULL + b"k"),
        CHUNKED + chunked(FULL, b"k", b""),
        CHUNKED + b"SENT-BY-THEM\r\n",
        answer("200 OK", BODY, length=len(BODY) + 1),
        b"SENT-BY-THEM\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nSENT-BY-THEM\r\n\r\n",
        answer("200 OK", BODY, "x: " + "SENT-BY-THEM" * 10_000),
        b"",
    ],
    ids=lambda said: said[:60].decode(errors="replace"),
)
async def test_what_is_no_good_answer_is_a_failure(said):
    """One kind, and its text, which goes into the log, holds nothing of what came."""
    async with Provider(said, hangs_up=True) as provider, fetching() as fetcher:
        with pytest.raises(FetchFailed) as failure:
            await bounded(fetcher.fetch(provider.url))
    assert "SENT-BY-THEM" not in f"{failure.value!r} {failure.value.__cause__!r}"
    assert str(failure.value)
    assert failure.value.__suppress_context__ or failure.value.__context__ is None


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent"])
async def test_a_redirect_is_not_followed(status):
    """It could lead to http, or into the house."""
    async with Provider(answer("200 OK", BODY)) as inside:
        location = f"location: {inside.url}"
        async with Provider(answer(status, b"", location)) as provider, fetching() as fetcher:
            with pytest.raises(FetchFailed, match=status[:3]):
                await bounded(fetcher.fetch(provider.url))
        assert inside.accepted == 0


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\n", CHUNKED, CHUNKED + chunked(BODY)])
async def test_a_provider_that_says_no_more_is_given_up(begun):
    """Within the bound for all of it, wherever it stopped; the connection is closed."""
    async with Provider(begun, asyncio.Event()) as provider, fetching(total_seconds=0.2) as fetcher:
        with pytest.raises(FetchFailed, match="TimeoutError"):
            await bounded(fetcher.fetch(provider.url))
        await bounded(provider.gone.wait())


async def test_the_bound_is_five_seconds():
    """Unless somebody says otherwise: requests wait for it, those with a new key."""
    async with fetching() as fetcher, fetching(5.0) as five:
        assert KeyFetcher()._timeout == five._timeout != fetcher._timeout


async def test_nobody_there_is_a_failure():
    """As is a URL that is none, and a fetcher that was closed."""
    async with fetching() as fetcher:
        for url in (f"http://127.0.0.1:{free_port()}/", "http://", "nonsense"):
            with pytest.raises(FetchFailed):
                await bounded(fetcher.fetch(url))
    with pytest.raises(FetchFailed):
        await fetcher.fetch("http://127.0.0.1/")
    await KeyFetcher().close()


async def test_nothing_is_said_but_the_question():
    """No cookie comes back, no compression is asked for; and the connection is kept for the next time."""
    async with Provider(answer("200 OK", BODY, "set-cookie: a=SENT-BY-THEM")) as provider:
        async with fetching() as fetcher:
            for _ in range(3):  # by a name, because nobody keeps the cookies of an address
                await bounded(fetcher.fetch(f"http://localhost:{provider.port}/"))
        heads = [request.head.decode().lower() for request in provider.requests]
        assert provider.accepted == 1
    assert len(heads) == 3
    for head in heads:
        assert "accept-encoding: identity" in head
        assert "cookie" not in head
        assert "authorization" not in head


async def test_a_proxy_of_the_environment_is_used(monkeypatch):
    """Where the gate may reach the provider by it alone."""
    async with Provider(answer("200 OK", BODY)) as proxy, fetching() as fetcher:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        assert await bounded(fetcher.fetch("http://id.example/keys")) == BODY
    assert proxy.requests[0].head.startswith(b"GET http://id.example/keys HTTP/1.1\r\n")


def self_signed(folder: Path) -> ssl.SSLContext:
    """The TLS of a server that nobody has vouched for."""
    key = SigningKey("tls", "ES256").private
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    today = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    pem.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


async def test_a_certificate_is_verified(tmp_path):
    """Somebody who stands between us and the provider cannot hand out keys of his own."""
    said: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said.append(await reader.read(1))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=self_signed(tmp_path))
    port = server.sockets[0].getsockname()[1]
    async with fetching() as fetcher:
        with pytest.raises(FetchFailed, match="Certificate"):
            await bounded(fetcher.fetch(f"https://localhost:{port}/keys"))
    server.close()
    assert said == []


async def test_a_provider_that_fails_hangs_and_rotates():
    """The whole of it over HTTP: found, kept while it is away, and a withdrawn key gone afterwards."""
    clock = HandClock()
    with OpenIDProvider() as provider:
        async with fetching() as patient, fetching(total_seconds=0.1) as hasty:
            fetchers = [patient]
            config = IssuerConfig.model_validate(provider.config())

            async def fetch(url: str) -> bytes:
                return await fetchers[-1].fetch(url)

            issuers = Issuers([config], fetch, clock)

            async def accepted(token: str) -> bool:
                try:
                    return bool(await bounded(issuers.read(token, peek(token))))
                except NotAuthenticated:
                    return False

            old, token = provider.signs, provider.sign(provider.claims(NOW, exp=NOW + 5000))
            assert await accepted(token)
            provider.fail()
            clock.seconds = 300
            await bounded(issuers.refresh())
            assert await accepted(token)
            assert provider.fetches == 2
            provider.hang()
            fetchers.append(hasty)
            clock.seconds = 600
            await bounded(issuers.refresh())
            assert await accepted(token)
            provider.serve()
            fetchers.append(patient)
            provider.rotate()
            provider.withdraw(old)
            clock.seconds = 900
            await bounded(issuers.refresh())
            assert not await accepted(token)
            assert await accepted(provider.sign(provider.claims(NOW, exp=NOW + 5000)))
