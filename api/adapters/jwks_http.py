"""Fetches identity providers' keys over HTTP.

Trusts nothing that answers: no redirects (they would lead past the check that the URL is https), no cookies,
no compression (a small body could become a large one), and a bound on time and size.
"""

from __future__ import annotations

import aiohttp

from auth.jwks import FetchFailed

MAX_BODY_BYTES = 1024 * 1024
_TOTAL_SECONDS = 5.0
_OK = 200


class KeyFetcher:
    """One connection pool for all providers. Proxies are taken from the environment; TLS is verified."""

    def __init__(self, *, total_seconds: float = _TOTAL_SECONDS) -> None:
        self._timeout = aiohttp.ClientTimeout(total=total_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self, url: str) -> bytes:
        """The body behind `url`. Raises FetchFailed, whose text holds nothing of what was received."""
        try:
            async with self._opened().get(
                url, allow_redirects=False, headers={"Accept-Encoding": "identity"}
            ) as response:
                return await _body(response)
        except FetchFailed:
            raise
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            # Not the error's own text: aiohttp quotes bytes that are not HTTP. RuntimeError: it was closed.
            raise FetchFailed(type(error).__name__) from None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:  # not made before, because it wants a running loop
            self._session = aiohttp.ClientSession(
                timeout=self._timeout,
                trust_env=True,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


async def _body(response: aiohttp.ClientResponse) -> bytes:
    if response.status != _OK:
        raise FetchFailed(f"status {response.status}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise FetchFailed("compressed")
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise FetchFailed(f"more than {MAX_BODY_BYTES} bytes")
    return bytes(body)
