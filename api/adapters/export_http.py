"""Delivers events over HTTP.

No redirects (events would go where nobody said), no cookies, and a bound on time; what comes back is read as
far as it helps to see what is wrong. TLS is verified, and proxies are taken from the environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import aiohttp

from api.exports import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_BODY_BYTES = 2048
_MAX_TEXT = 180
_OK = range(200, 300)


class HttpReceiver:
    """One receiver, by its URL. `token` goes along as a Bearer token."""

    def __init__(self, url: str, *, token: str, timeout_seconds: float) -> None:
        self._url = url
        self._token = token
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def deliver(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Send a batch, in bounded time. Never raises for what the receiver does."""
        sent = {"Accept-Encoding": "identity", **headers}
        if self._token:
            sent["Authorization"] = f"Bearer {self._token}"
        try:
            async with self._opened().post(
                self._url, data=body, headers=sent, allow_redirects=False
            ) as response:
                text = "" if response.status in _OK else await self._text(response)
                return Answer(response.status, text, response.headers.get("Retry-After"))
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError) as error:
            # Not the error's own text: aiohttp quotes what it received, and the URL.
            return Answer(None, type(error).__name__)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _text(self, response: aiohttp.ClientResponse) -> str:
        """What it says is wrong, on one line, and never our token, should it quote that."""
        try:
            found = await response.content.read(_MAX_BODY_BYTES)
        except (aiohttp.ClientError, OSError, ValueError):
            return ""
        text = found.decode("utf-8", "replace")
        if self._token:
            text = text.replace(self._token, "***")
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_MAX_TEXT]

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:  # not made before, because it wants a running loop
            self._session = aiohttp.ClientSession(
                timeout=self._timeout,
                trust_env=True,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session
