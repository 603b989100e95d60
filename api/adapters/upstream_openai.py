"""Any OpenAI-compatible server: what the official SDK would send, sent by aiohttp alone.

The SDK says once how a request looks (address, headers, key); building each by it costs more than all that
the gate does besides. Nothing is sent twice: a retry would be a second bill, so the gate owns it. The body
goes out as it came in, and the answer's bytes come back unparsed. Public texts of errors never hold the
provider's address or key.
"""

from __future__ import annotations

import asyncio
import io
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
import msgspec
import openai
from multidict import CIMultiDict
from openai import AsyncOpenAI, DefaultAioHttpClient
from yarl import URL

from api.ports import CALLERS_FAULT, UpstreamFailed

if TYPE_CHECKING:
    from aiohttp import ClientResponse

_END_SECONDS = 0.1
"""How long to wait for the end of a body whose terminal event was seen, to keep the connection."""

_KEPT_SECONDS = 4.0
"""How long an idle connection is kept: less than the 5 s after which uvicorn, and with it vLLM, hangs up."""

_READ_BYTES = 1 << 14
"""At twice this much of an answer unread, the provider is no longer read from."""

_MAX_ERROR_BYTES = 1 << 18
_MAX_BYTES_AT_ONCE = 1 << 20  # above that aiohttp wants a file
_REFUSED = 300  # from here on, statuses are no answers; a redirect of a request with a key is none either

_FAILURES = (
    openai.OpenAIError,
    httpx2.HTTPError,
    httpx2.StreamError,
    aiohttp.ClientError,
    OSError,
    ValueError,
)
"""What the SDK and what is below it raise when a provider does; ValueError for bytes that are not HTTP."""


class Prepared(NamedTuple):
    """What all chat completions have in common."""

    url: URL
    headers: CIMultiDict[str]
    proxy: str | None


async def prepared(api_key: str, base_url: str | None) -> Prepared:
    """A chat completion as the SDK sends it: what is the same in each."""
    sent: list[httpx2.Request] = []

    def keep(request: httpx2.Request) -> httpx2.Response:
        sent.append(request)
        return httpx2.Response(200, json={})

    async with AsyncOpenAI(
        api_key=api_key,
        base_url=base_url,
        http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(keep), trust_env=False),
    ) as client:
        await client.chat.completions.with_raw_response.create(model="", messages=[])
    (request,) = sent
    own = {"host", "content-length", "connection", "accept-encoding", "x-stainless-raw-response"}
    headers = CIMultiDict((name, value) for name, value in request.headers.items() if name not in own)
    headers["accept-encoding"] = "gzip, deflate"  # what aiohttp can unpack without more packages
    return Prepared(URL(str(request.url), encoded=True), headers, _proxy_of(request.url))


def _proxy_of(url: httpx2.URL) -> str | None:
    """What HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY say of an address. aiohttp would ask each time."""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    return None if proxy is None or proxy_bypass(url.host) else proxy


class OpenAIUpstream:
    """One provider endpoint and its connection pool."""

    name = "openai"

    def __init__(self, *, api_key: str, base_url: str | None, silence_seconds: float) -> None:
        self._api_key, self._base_url, self._silence_seconds = api_key, base_url, silence_seconds
        self._client = AsyncOpenAI(
            api_key=api_key,
            base_url=base_url,
            max_retries=0,
            timeout=httpx2.Timeout(connect=5.0, read=silence_seconds, write=30.0, pool=5.0),
            http_client=DefaultAioHttpClient(),
        )
        self._ssl = httpx2.create_ssl_context()
        self._session: aiohttp.ClientSession | None = None
        self._prepared: Prepared | None = None

    async def prepare(self) -> Prepared:
        """Ask the SDK, once; the first request does it where nobody did before."""
        if self._prepared is None:
            self._prepared = await prepared(self._api_key, self._base_url)
        return self._prepared

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,  # no bound of its own (None would be 100): the caps of tenants are the bound
                    keepalive_timeout=_KEPT_SECONDS,
                    ssl=self._ssl,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(sock_connect=5.0, sock_read=self._silence_seconds),
                read_bufsize=_READ_BYTES,
            )
        return self._session

    async def open(self, body: dict[str, Any]) -> OpenAIAnswer:
        """Send a chat completion; returns when the provider has said 200."""
        url, headers, proxy = await self.prepare()
        sent = msgspec.json.encode(body)
        try:
            response = await self._connections().post(
                url,
                data=sent if len(sent) <= _MAX_BYTES_AT_ONCE else io.BytesIO(sent),
                headers=headers,
                proxy=proxy,
                allow_redirects=False,
            )
        except _FAILURES as error:
            raise _failure(error) from error
        if response.status >= _REFUSED:
            raise await _refusal(response)
        if body.get("stream") and response.content_type in {"text/html", "application/json"}:
            response.close()
            raise UpstreamFailed("The provider did not answer with a stream.")
        return OpenAIAnswer(response)

    async def models(self) -> bytes:
        """The provider's model list, as it says it."""
        try:
            return (await self._client.models.with_raw_response.list()).content
        except _FAILURES as error:
            raise _failure(error) from error

    async def close(self) -> None:
        """Close the pools."""
        await self._client.close()
        if self._session is not None:
            await self._session.close()


class OpenAIAnswer:
    """A body being read."""

    def __init__(self, response: ClientResponse) -> None:
        self._response = response

    async def read(self) -> bytes:
        """All bytes that are there, or the next ones; b"" at the end."""
        try:
            return await self._response.content.readany()
        except TimeoutError as error:
            raise UpstreamFailed("The provider fell silent.", timed_out=True) from error
        except _FAILURES as error:
            raise UpstreamFailed("The provider broke off its answer.") from error

    async def finish(self) -> None:
        """Read what follows the terminal event, so that the connection can be used again."""
        with suppress(UpstreamFailed, TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                while not self._response.content.at_eof():
                    await self.read()

    async def close(self) -> None:
        """Break the connection, or give it back if the body was read to its end."""
        self._response.close()


async def _refusal(response: ClientResponse) -> UpstreamFailed:
    """The provider's status, and its error object where that is for the caller; its connection is kept."""
    said = b""
    try:
        with suppress(*_FAILURES):
            while len(said) < _MAX_ERROR_BYTES and (part := await response.content.readany()):
                said += part
    finally:
        response.close()
    body = None
    if response.status in CALLERS_FAULT:
        with suppress(ValueError):
            found = msgspec.json.decode(said)
            body = found.get("error", found) if isinstance(found, dict) else None
    return UpstreamFailed(
        f"The provider answered with status {response.status}.",
        status=response.status,
        body=body if isinstance(body, dict) else None,
        retry_after=response.headers.get("retry-after"),
    )


def _failure(error: Exception) -> UpstreamFailed:
    """The SDK's, httpx' or aiohttp's exception in our words; nothing of its own text is repeated."""
    if isinstance(error, openai.APIStatusError):
        status = error.status_code
        body = error.body if status in CALLERS_FAULT and isinstance(error.body, dict) else None
        retry_after = error.response.headers.get("retry-after")
        return UpstreamFailed(
            f"The provider answered with status {status}.", status=status, body=body, retry_after=retry_after
        )
    # The SDK calls every lost connection a timeout, and loses the status of an error whose body breaks off.
    chain = _chain(error)
    for cause in chain:
        if isinstance(cause, httpx2.HTTPStatusError):
            status = cause.response.status_code
            return UpstreamFailed(f"The provider answered with status {status}.", status=status)
    if any(isinstance(cause, TimeoutError) for cause in chain):
        return UpstreamFailed("The provider did not answer in time.", timed_out=True)
    return UpstreamFailed("The provider could not be reached.")


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and all that led to it."""
    found: list[BaseException] = [error]
    for cause in found:
        found += [c for c in (cause.__cause__, cause.__context__) if c is not None and c not in found]
    return found
