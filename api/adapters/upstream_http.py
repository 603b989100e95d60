"""Providers over HTTP: what the official SDK would send, sent by aiohttp alone.

The SDK says once for each dialect how a request looks (address, headers, key); building each by it costs more
than all that the gate does besides. Nothing is sent twice: a retry would be a second bill, so the gate owns
it. The body goes out as it came in, and the answer's bytes come back unparsed. Public texts of errors never
hold the provider's address or key.
"""

from __future__ import annotations

import asyncio
import io
import socket
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
import msgspec
from multidict import CIMultiDict
from yarl import URL

from api.core.base_url import is_metadata_host
from api.ports import CALLERS_FAULT, NO_HEADERS, Patience, UpstreamFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import ClientResponse
    from aiohttp.abc import ResolveResult

PLACEHOLDER = "the-key-goes-here"
"""What the SDK is given for a key; each request puts its own there."""

_END_SECONDS = 0.1
"""How long to wait for the end of a body whose terminal event was seen, to keep the connection."""

_KEPT_SECONDS = 4.0
"""How long an idle connection is kept: less than the 5 s after which uvicorn, and with it vLLM, hangs up."""

_READ_BYTES = 1 << 14
"""At twice this much of an answer unread, the provider is no longer read from."""

_MOST_PREPARED = 1000
_MAX_ERROR_BYTES = 1 << 18
_MAX_MODELS_BYTES = 4 << 20
_MAX_BYTES_AT_ONCE = 1 << 20  # above that aiohttp wants a file
_REFUSED = 300  # from here on, statuses are no answers; a redirect of a request with a key is none either

_FAILURES = (aiohttp.ClientError, OSError, ValueError)
"""What aiohttp and what is below it raise when a provider does; ValueError for bytes that are not HTTP."""


class Prepared(NamedTuple):
    """What all requests of one kind have in common."""

    url: URL
    headers: CIMultiDict[str]
    proxy: str | None

    def signed(self, api_key: str, more: Mapping[str, str] = NO_HEADERS) -> CIMultiDict[str]:
        """The headers with that key in them, and more."""
        headers = CIMultiDict(
            (name, text.replace(PLACEHOLDER, api_key)) for name, text in self.headers.items()
        )
        headers.update(more)
        return headers


class Recorder:
    """An HTTP client for an SDK that keeps what it is given to send."""

    def __init__(self) -> None:
        self._sent: list[httpx2.Request] = []
        transport = httpx2.MockTransport(self._keep)
        self.client = httpx2.AsyncClient(transport=transport, trust_env=False)

    def _keep(self, request: httpx2.Request) -> httpx2.Response:
        self._sent.append(request)
        return httpx2.Response(200, json={})

    def prepared(self, proxy: str | None) -> Prepared:
        """The last request, without what belongs to it alone; by `proxy`, or as the environment says."""
        request = self._sent[-1]
        own = {"host", "content-length", "connection", "accept-encoding", "x-stainless-raw-response"}
        headers = CIMultiDict((name, value) for name, value in request.headers.items() if name not in own)
        headers["accept-encoding"] = "gzip, deflate"  # what aiohttp can unpack without more packages
        return Prepared(URL(str(request.url), encoded=True), headers, proxy or _proxy_of(request.url))


def _proxy_of(url: httpx2.URL) -> str | None:
    """What HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY say of an address. aiohttp would ask each time."""
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    return None if proxy is None or proxy_bypass(url.host) else proxy


class Line(NamedTuple):
    """How a provider is reached. `proxy` and `ca_file` None: as the environment says, the usual authorities.

    `connections` bounds the pool; whoever finds it full waits for as long as for a connection to be made.
    """

    patience: Patience
    proxy: str | None = None
    ca_file: str | None = None
    connections: int = 0
    metadata_hosts: bool = False


class _Resolver(aiohttp.ThreadedResolver):
    """Names that lead to a cloud's own address lead nowhere."""

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        """The addresses of a name. Raises OSError where none is left."""
        found = await super().resolve(host, port, family)
        allowed = [one for one in found if not is_metadata_host(one["host"])]
        if not allowed:
            raise OSError("a name that leads to an address that is not allowed")
        return allowed


class HttpUpstream(ABC):
    """One provider endpoint and its connection pool."""

    def __init__(self, name: str, api_key: str, line: Line) -> None:
        self.name = name
        self._api_key, self._line = api_key, line
        self._ssl = httpx2.create_ssl_context()
        if line.ca_file is not None:
            self._ssl.load_verify_locations(line.ca_file)
        self._session: aiohttp.ClientSession | None = None
        self._prepared: dict[tuple[str, str], tuple[Prepared, CIMultiDict[str]]] = {}
        self._timeouts: dict[Patience, aiohttp.ClientTimeout] = {}

    @abstractmethod
    async def _ask_sdk(self, what: str, model: str) -> Prepared:
        """How the SDK sends a request in that dialect, or for the list of "models"."""

    def _path_of(self, body: dict[str, Any]) -> str:  # noqa: ARG002 - for those whose addresses differ
        """What of a request, besides its dialect, its address depends on."""
        return ""

    async def prepare(self, what: str, model: str = "") -> tuple[Prepared, CIMultiDict[str]]:
        """Ask the SDK, once; with the headers that hold the upstream's own key."""
        found = self._prepared.get((what, model))
        if found is None:
            if len(self._prepared) >= _MOST_PREPARED:  # callers may ask for any model
                self._prepared.clear()
            asked = await self._ask_sdk(what, model)
            found = self._prepared[what, model] = (asked, asked.signed(self._api_key))
        return found

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._line.connections,  # 0 is no bound of its own: the caps of tenants are one
                    keepalive_timeout=_KEPT_SECONDS,
                    ssl=self._ssl,
                    resolver=None if self._line.metadata_hosts else _Resolver(),
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=_READ_BYTES,
            )
        return self._session

    def _timeout(self, patience: Patience) -> aiohttp.ClientTimeout:
        found = self._timeouts.get(patience)
        if found is None:
            found = self._timeouts[patience] = aiohttp.ClientTimeout(
                connect=patience.connect_seconds,
                sock_connect=patience.connect_seconds,
                sock_read=patience.silence_seconds,
            )
        return found

    async def open(
        self,
        body: dict[str, Any],
        dialect: str = "openai_chat",
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        api_key: str | None = None,
        patience: Patience | None = None,
    ) -> HttpAnswer:
        """Send a request; returns when the provider has said 200."""
        prepared, own_headers = await self.prepare(dialect, self._path_of(body))
        key = self._api_key if api_key is None else api_key
        as_usual = api_key is None and not headers
        sent = msgspec.json.encode(body)
        try:
            response = await self._connections().post(
                prepared.url,
                data=sent if len(sent) <= _MAX_BYTES_AT_ONCE else io.BytesIO(sent),
                headers=own_headers if as_usual else prepared.signed(key, headers),
                proxy=prepared.proxy,
                allow_redirects=False,
                timeout=self._timeout(patience or self._line.patience),
            )
        except _FAILURES as error:
            raise _failure(error) from error
        if response.status >= _REFUSED:
            raise await _refusal(response, [key, prepared.url.host or ""])
        if body.get("stream") and response.content_type in {"text/html", "application/json"}:
            response.close()
            raise UpstreamFailed("The provider did not answer with a stream.")
        return HttpAnswer(response)

    async def models(self) -> bytes:
        """The provider's model list, in OpenAI's shape."""
        prepared, headers = await self.prepare("models")
        try:
            response = await self._connections().get(
                prepared.url,
                headers=headers,
                proxy=prepared.proxy,
                allow_redirects=False,
                timeout=self._timeout(self._line.patience),
            )
            if response.status >= _REFUSED:
                raise await _refusal(response, [self._api_key, prepared.url.host or ""])
            return self._listed(await _read_up_to(response, _MAX_MODELS_BYTES))
        except _FAILURES as error:
            raise _failure(error) from error

    def _listed(self, body: bytes) -> bytes:
        """The list in OpenAI's shape, from the provider's."""
        return body

    async def close(self) -> None:
        """Close the pool."""
        if self._session is not None:
            await self._session.close()


class HttpAnswer:
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


async def _read_up_to(response: ClientResponse, most: int) -> bytes:
    """A body, or its beginning; the connection is kept where all of it was read."""
    said = b""
    try:
        while len(said) < most and (part := await response.content.readany()):
            said += part
    finally:
        response.close()
    return said


async def _refusal(response: ClientResponse, secrets: list[str]) -> UpstreamFailed:
    """The provider's status, and its error object where that is for the caller."""
    said = b""
    with suppress(*_FAILURES):
        said = await _read_up_to(response, _MAX_ERROR_BYTES)
    body = None
    # What it says of our key or its own host is not for the caller.
    if response.status in CALLERS_FAULT and not any(s and s.encode() in said for s in secrets):
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
    """Aiohttp's exception in our words; nothing of its own text is repeated."""
    if isinstance(error, TimeoutError):
        return UpstreamFailed("The provider did not answer in time.", timed_out=True)
    return UpstreamFailed("The provider could not be reached.")
