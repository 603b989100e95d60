"""Any OpenAI-compatible server, by the official SDK on aiohttp.

`max_retries=0`: a retry would be a second bill, so the gate owns it. The body goes out as it came in
(`extra_body`), and the answer's bytes come back unparsed. Public texts of errors never hold the provider's
address or key.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import httpx2
import openai
from openai import AsyncOpenAI, DefaultAioHttpClient

from api.ports import CALLERS_FAULT, UpstreamFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from openai import AsyncAPIResponse

_END_SECONDS = 0.1
"""How long to wait for the end of a body whose terminal event was seen, to keep the connection."""

_FAILURES = (
    openai.OpenAIError,
    httpx2.HTTPError,
    httpx2.StreamError,
    aiohttp.ClientError,
    OSError,
    ValueError,
)
"""What the SDK and what is below it raise when a provider does; ValueError for bytes that are not HTTP."""


class OpenAIUpstream:
    """One provider endpoint and its connection pool."""

    name = "openai"

    def __init__(self, *, api_key: str, base_url: str | None, silence_seconds: float) -> None:
        timeout = httpx2.Timeout(connect=5.0, read=silence_seconds, write=30.0, pool=5.0)
        self._client = AsyncOpenAI(
            api_key=api_key,
            base_url=base_url,
            max_retries=0,
            timeout=timeout,
            # 0 is no bound of aiohttp's own (None would be its 100): the caps of tenants are the bound.
            http_client=DefaultAioHttpClient(
                limits=httpx2.Limits(max_connections=0, max_keepalive_connections=100)
            ),
        )

    async def open(self, body: dict[str, Any]) -> OpenAIAnswer:
        """Send a chat completion; returns when the provider has said 200."""
        manager = self._client.chat.completions.with_streaming_response.create(
            model=body["model"],
            messages=[],  # the body's own come with extra_body, untouched
            stream=bool(body.get("stream")),
            extra_body=body,
        )
        try:
            response = await manager.__aenter__()
        except _FAILURES as error:
            raise _failure(error) from error
        answer = OpenAIAnswer(response)
        kind = response.headers.get("content-type", "")
        if body.get("stream") and kind.startswith(("text/html", "application/json")):
            await answer.close()
            raise UpstreamFailed("The provider did not answer with a stream.")
        return answer

    async def models(self) -> bytes:
        """The provider's model list, as it says it."""
        try:
            return (await self._client.models.with_raw_response.list()).content
        except _FAILURES as error:
            raise _failure(error) from error

    async def close(self) -> None:
        """Close the pool."""
        await self._client.close()


class OpenAIAnswer:
    """A body being read."""

    def __init__(self, response: AsyncAPIResponse[Any]) -> None:
        self._response = response
        self._chunks: AsyncIterator[bytes] = response.iter_bytes().__aiter__()
        self._at_end = False

    async def read(self) -> bytes:
        """The next bytes; b"" at the end."""
        try:
            return await anext(self._chunks)
        except StopAsyncIteration:
            self._at_end = True
            return b""
        except httpx2.TimeoutException as error:
            raise UpstreamFailed("The provider fell silent.", timed_out=True) from error
        except _FAILURES as error:
            raise UpstreamFailed("The provider broke off its answer.") from error

    async def finish(self) -> None:
        """Read what follows the terminal event, so that the connection can be used again."""
        with suppress(UpstreamFailed, TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                while not self._at_end:
                    await self.read()

    async def close(self) -> None:
        """Break the connection, or give it back if the body was read to its end."""
        with suppress(Exception):
            await self._response.close()


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
