"""The load: streams on raw sockets that count what comes, in a process of its own.

Reads a job as a line of JSON, prints what came of it as another, until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import uvloop

if TYPE_CHECKING:
    from collections.abc import Mapping

_SPLIT = len(b"data: ") - 1
_OK = b"HTTP/1.1 200"
_TOLD = 1000
"""So many gaps are told of a job, of all in their order: enough for any percentile."""

_ENDING = 2  # events after the chunks: the end of the choice, and `[DONE]`


@dataclass
class Tally:
    """What came of a job. Times are in milliseconds."""

    requests: int = 0
    failed: int = 0
    chunks: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    first_ms: list[float] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)


class Stream(asyncio.Protocol):
    """One connection, one request at a time."""

    transport: asyncio.Transport

    def __init__(self, tally: Tally, least_chunks: int, *, gaps: bool) -> None:
        self._loop, self._tally, self._gaps = asyncio.get_running_loop(), tally, gaps
        self._least_chunks, self._chunks = least_chunks, 0
        self._ended: asyncio.Future[None] | None = None
        self._tail, self._sent_at, self._last_at = b"", 0.0, 0.0

    def ask(self, request: bytes) -> asyncio.Future[None]:
        """Send it; done with the last byte of the answer."""
        self._chunks = 0
        self._tail, self._last_at, self._sent_at = b"", 0.0, time.perf_counter()
        self._ended = self._loop.create_future()
        self.transport.write(request)
        return self._ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It can be asked."""
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """In the middle of an answer that is a failure."""
        self._over(failed=True)

    def data_received(self, data: bytes) -> None:
        """Some of the answer."""
        if self._ended is None:
            return
        if not self._tail and not data.startswith(_OK):
            self._over(failed=True)
            return
        seen = self._tail + data
        found = seen.count(b"data: ")
        if found:
            now = time.perf_counter()  # uvloop's own time is that of whole milliseconds
            if not self._last_at:
                self._tally.first_ms.append(1000 * (now - self._sent_at))
            elif self._gaps:
                self._tally.gaps_ms.append(1000 * (now - self._last_at))
            self._last_at = now
            self._chunks += found
            self._tally.chunks += found
        self._tail = seen[-_SPLIT:]
        if self._tail == b"0\r\n\r\n":
            self._over(failed=self._chunks < self._least_chunks)

    def _over(self, *, failed: bool) -> None:
        if self._ended is None:
            return
        ended, self._ended = self._ended, None
        self._tally.requests += 1
        self._tally.failed += failed
        ended.set_result(None)


def request_of(url: str, key: str, model: str, more: Mapping[str, str]) -> bytes:
    """A streamed chat completion as it goes over the wire."""
    parts = urlsplit(url)
    message = {"role": "user", "content": "Why is the sky blue? Answer in one short sentence, please."}
    body = json.dumps({"model": model, "messages": [message], "stream": True}).encode()
    head = (
        f"POST {parts.path}/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\n"
        f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n"
    )
    lines = [f"{name}: {value}\r\n" for name, value in more.items()]
    return "".join([head, *lines, "\r\n"]).encode() + body


async def load(job: dict[str, Any]) -> Tally:
    """`streams` connections send `requests` in all; `hold_seconds` after the last it lets go of them."""
    tally, parts, left = Tally(), urlsplit(job["url"]), int(job["requests"])
    request = request_of(job["url"], job["key"], job["model"], job["headers"])
    loop = asyncio.get_running_loop()
    begun, cpu, stagger = time.monotonic(), time.process_time(), job.get("stagger_ms", 0) / 1000
    chunks = int(dict(parse_qsl(urlsplit(job["model"]).query))["chunks"]) + _ENDING

    async def dial() -> Stream:
        made = await loop.create_connection(
            lambda: Stream(tally, chunks, gaps=job.get("gaps", False)), parts.hostname, parts.port
        )
        return made[1]

    async def one(number: int) -> None:
        nonlocal left
        await asyncio.sleep(number * stagger)
        stream = await dial()
        while left > 0:
            left -= 1
            if stream.transport.is_closing():
                stream = await dial()
            await stream.ask(request)
        stream.transport.close()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number)) for number in range(job["streams"])]
        if "hold_seconds" in job:
            await asyncio.sleep(job["hold_seconds"] + job["streams"] * stagger)
            print(json.dumps({"open": True, "chunks": tally.chunks}), flush=True)
            await loop.run_in_executor(None, sys.stdin.readline)
            for task in tasks:
                task.cancel()
    tally.gaps_ms = sorted(tally.gaps_ms)[:: max(1, len(tally.gaps_ms) // _TOLD)]
    tally.seconds, tally.cpu_seconds = time.monotonic() - begun, time.process_time() - cpu
    return tally


def main() -> None:
    """The process."""
    while line := sys.stdin.readline():
        print(json.dumps(vars(uvloop.run(load(json.loads(line))))), flush=True)


if __name__ == "__main__":
    main()
