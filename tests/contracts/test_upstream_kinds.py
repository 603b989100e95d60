"""How each kind of upstream is asked, and where a connection may go; the test plays the provider."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from anthropic import AsyncAnthropic
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from openai import AsyncAzureOpenAI

from api.adapters.upstream_anthropic import AnthropicUpstream
from api.adapters.upstream_http import Line
from api.adapters.upstream_openai import AzureUpstream, OpenAIUpstream
from api.ports import Patience, UpstreamFailed
from tests.contracts.helpers import bounded
from tests.contracts.test_upstream_wire import BODY, DONE, KEY, of_its_own, response
from tests.contracts.wires import STREAM_HEAD, Provider, chunked

if TYPE_CHECKING:
    from pathlib import Path

    from api.adapters.upstream_http import HttpUpstream

LINE = Line(Patience(2, 20))
ANSWER = STREAM_HEAD + chunked(DONE, b"")
MESSAGE: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


async def ask(upstream: HttpUpstream, body: dict[str, Any], *dialect: str, **how: Any) -> None:
    """A request whose answer is not looked at."""
    await bounded((await bounded(upstream.open(body, *dialect, **how))).close())


async def test_azure_is_asked_as_its_sdk_asks() -> None:
    """The deployment in the path, the dated version in the query, the key in `api-key`."""
    async with Provider(response("200 OK", b"{}")) as provider:
        base = f"http://127.0.0.1:{provider.port}"
        upstream = AzureUpstream("azure", api_key=KEY, base_url=base, api_version="2024-10-21", line=LINE)
        asked = {**BODY, "model": "my-deployment", "stream": False}
        await ask(upstream, asked)
        await ask(upstream, {**asked, "model": "another"})
        async with AsyncAzureOpenAI(
            api_key=KEY, azure_endpoint=base, api_version="2024-10-21", max_retries=0
        ) as sdk:
            await bounded(sdk.chat.completions.create(**asked))
        await upstream.close()
    ours, other, theirs = provider.requests
    path = b"POST /openai/deployments/my-deployment/chat/completions?api-version=2024-10-21 HTTP/1.1"
    assert ours.head.split(b"\r\n")[0] == path
    assert b"/deployments/another/" in other.head.split(b"\r\n")[0]
    assert f"api-key: {KEY}".encode().lower() in ours.head.lower()
    assert [line.lower() for line in of_its_own(ours.head)] == [
        line.lower() for line in of_its_own(theirs.head)
    ]


async def test_anthropic_is_asked_as_its_sdk_asks() -> None:
    """Address, headers and body as anthropic-python's own."""
    async with Provider(response("200 OK", b"{}")) as provider:
        base = f"http://127.0.0.1:{provider.port}"
        upstream = AnthropicUpstream("anthropic", api_key=KEY, base_url=base, line=LINE)
        await ask(upstream, MESSAGE, "anthropic_messages")
        async with AsyncAnthropic(api_key=KEY, base_url=base, max_retries=0) as sdk:
            await bounded(sdk.messages.with_raw_response.create(**MESSAGE))
        await upstream.close()
    ours, theirs = provider.requests
    assert ours.head.split(b"\r\n")[0] == b"POST /v1/messages HTTP/1.1"
    assert json.loads(ours.body) == json.loads(theirs.body)
    own = ("x-stainless-timeout", "x-stainless-read-timeout")  # the smallest request's, and that of an answer
    heads = [sorted(line.lower() for line in of_its_own(one.head)) for one in (ours, theirs)]
    kept = [[line for line in head if not line.startswith(own)] for head in heads]
    assert kept[0] == kept[1]


async def test_a_clients_own_version_and_betas_go_along() -> None:
    """In place of the SDK's, and a tenant's key in place of the upstream's."""
    async with Provider(ANSWER) as provider:
        upstream = AnthropicUpstream(
            "anthropic", api_key=KEY, base_url=f"http://127.0.0.1:{provider.port}", line=LINE
        )
        headers = {"anthropic-version": "2099-01-01", "anthropic-beta": "one,two"}
        await ask(upstream, MESSAGE, "anthropic_messages", headers=headers, api_key="sk-of-the-tenant")
        await ask(upstream, MESSAGE, "anthropic_messages")
        await upstream.close()
    first, second = (request.head.decode().lower() for request in provider.requests)
    assert "anthropic-version: 2099-01-01\r\n" in first
    assert "anthropic-beta: one,two\r\n" in first
    assert "authorization: bearer sk-of-the-tenant\r\n" in first
    assert KEY.lower() not in first
    assert f"authorization: bearer {KEY.lower()}\r\n" in second
    assert "anthropic-beta" not in second


@pytest.mark.parametrize(
    ("dialect", "path"),
    [
        ("openai_chat", "/v1/chat/completions"),
        ("openai_responses", "/v1/responses"),
        ("openai_embeddings", "/v1/embeddings"),
        ("anthropic_messages", "/v1/messages"),
    ],
)
async def test_each_dialect_has_its_address(dialect, path) -> None:
    """Under the same base URL; servers that speak messages have them there too."""
    async with Provider(ANSWER) as provider:
        upstream = OpenAIUpstream("one", api_key=KEY, base_url=provider.url, line=LINE)
        await ask(upstream, BODY, dialect)
        await upstream.close()
    assert provider.requests[0].head.startswith(f"POST {path} HTTP/1.1\r\n".encode())


async def test_models_of_anthropic_are_listed_as_openais() -> None:
    """With the moment of their making."""
    model = {"type": "model", "id": "claude-x", "display_name": "X", "created_at": "2026-01-02T00:00:00Z"}
    body = json.dumps({"data": [model], "has_more": False, "first_id": "x", "last_id": "x"}).encode()
    async with Provider(response("200 OK", body)) as provider:
        base = f"http://127.0.0.1:{provider.port}"
        upstream = AnthropicUpstream("anthropic", api_key=KEY, base_url=base, line=LINE)
        listed = json.loads(await bounded(upstream.models()))
        await upstream.close()
    made = int(datetime(2026, 1, 2, tzinfo=UTC).timestamp())
    expected = {"id": "claude-x", "object": "model", "created": made, "owned_by": "anthropic"}
    assert listed == {"object": "list", "data": [expected]}


@pytest.mark.parametrize("said", [KEY, "127.0.0.1", "sk-of-the-tenant"])
async def test_what_a_provider_says_of_our_key_or_its_host_is_kept_back(said) -> None:
    """Even where it blames the request: the caller gets the status, and words of ours."""
    error = json.dumps({"error": {"message": f"no good: {said}", "code": "x"}}).encode()
    async with Provider(response("400 Bad Request", error)) as provider:
        upstream = OpenAIUpstream("one", api_key=KEY, base_url=provider.url, line=LINE)
        own = {"api_key": "sk-of-the-tenant"} if said == "sk-of-the-tenant" else {}
        with pytest.raises(UpstreamFailed) as failed:
            await ask(upstream, BODY, **own)
        await upstream.close()
    assert (failed.value.status, dict(failed.value.body)) == (400, {})


async def test_a_name_that_leads_to_a_clouds_own_address_leads_nowhere(monkeypatch) -> None:
    """Looked up by name: what an admin was shown may have changed since. Allowed by a setting."""
    loop = asyncio.get_running_loop()
    asked = []

    async def resolve(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(2, 1, 6, "", ("169.254.169.254", port))]

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    upstream = OpenAIUpstream("one", api_key=KEY, base_url="http://rebound.example/v1", line=LINE)
    with pytest.raises(UpstreamFailed) as failed:
        await ask(upstream, BODY)
    await upstream.close()
    assert asked == ["rebound.example"]
    assert "169.254" not in str(failed.value)


async def test_a_proxy_that_is_set_is_the_way_out() -> None:
    """`UPSTREAM_PROXY`, whatever the environment says."""
    async with Provider(ANSWER) as proxy:
        line = LINE._replace(proxy=f"http://127.0.0.1:{proxy.port}")
        upstream = OpenAIUpstream("one", api_key=KEY, base_url="http://provider.invalid/v1", line=line)
        await ask(upstream, BODY)
        await upstream.close()
    assert proxy.requests[0].head.startswith(b"POST http://provider.invalid/v1/chat/completions HTTP/1.1")


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody knows, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(pem, *plain))
    file = tmp_path / "ca.pem"
    file.write_bytes(certificate.public_bytes(pem))
    return file


async def test_certificates_are_checked_and_authorities_can_be_added(authority: Path) -> None:
    """An unknown one is a provider that cannot be reached; with `UPSTREAM_CA_FILE` it is known."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, authority.parent / "key.pem")
    heard = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(ANSWER)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        base = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        stranger = OpenAIUpstream("one", api_key=KEY, base_url=base, line=LINE)
        with pytest.raises(UpstreamFailed):
            await ask(stranger, BODY)
        await stranger.close()
        assert heard == []
        known = OpenAIUpstream("one", api_key=KEY, base_url=base, line=LINE._replace(ca_file=str(authority)))
        await ask(known, BODY)
        await known.close()
    assert len(heard) == 1


async def test_a_full_pool_is_waited_for_as_long_as_for_a_connection() -> None:
    """`max_connections`: the next request waits, and then fails as one that could not be connected."""
    async with Provider(STREAM_HEAD, asyncio.Event()) as provider:
        line = LINE._replace(patience=Patience(0.1, 20), connections=1)
        upstream = OpenAIUpstream("one", api_key=KEY, base_url=provider.url, line=line)
        first = await bounded(upstream.open(BODY))
        with pytest.raises(UpstreamFailed) as failed:
            await ask(upstream, BODY)
        assert failed.value.status is None
        await bounded(first.close())
        await upstream.close()
    assert len(provider.requests) == 1
