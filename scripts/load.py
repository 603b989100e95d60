"""The load client: raw sockets that are kept, bytes built beforehand; it tells a token from a refusal.

It speaks the plain dialect of `/chat/stream`. A request costs it a small part of what it costs the gate; who
quotes a figure states the client's own CPU beside it.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

_OK, _TOO_MANY = 200, 429
_KEPT_BYTES = 64  # of what was read, for a word that two packets share


@dataclass(slots=True)
class Answer:
    """What came of a request. Times are the loop's; `status` 0: the connection broke before one came."""

    sent_at: float
    status: int = 0
    retry_after: float = 0.0  # seconds
    code: str = ""  # of an error that is no 429
    degraded: bool = False  # decided without Redis
    first_at: float | None = None  # the first token
    tokens: int = 0
    finished: bool = False  # `[DONE]` was read
    failed: bool = False  # an error event was
    left: bool = False  # the client itself went away


class Line(asyncio.Protocol):
    """One connection, one request at a time: `begun` with its status line, `ended` with its last byte."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.open = False
        self.answer = Answer(0)
        self.begun: asyncio.Future[Answer] | None = None
        self.ended: asyncio.Future[Answer] | None = None
        self.busy = False
        self._leave_after = -1
        self._head = self._tail = b""
        self._left = -1  # bytes of a body with a length; -1: it comes in chunks

    def ask(self, request: bytes, *, leave_after: int = -1) -> None:
        """Send a request; leave after so many tokens."""
        self.begun, self.ended = self._loop.create_future(), self._loop.create_future()
        self._leave_after = leave_after
        self.send(request)

    def send(self, request: bytes) -> None:
        """Send a request that nobody awaits."""
        self.answer = Answer(self._loop.time())
        self._head, self.busy = b"", True
        self.transport.write(request)

    def leave(self) -> None:
        """Go away at once, in the middle of whatever it is."""
        self.answer.left = self.busy
        self.transport.abort()
        self._over()

    def over(self) -> None:
        """The answer is there; for those who do not await it."""

    # --- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It can be asked."""
        self.transport = transport  # type: ignore[assignment]
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """Whatever was on its way is over."""
        self.open = False
        self._over()

    def data_received(self, data: bytes) -> None:
        """Some of the answer."""
        if not self.busy:
            return
        if not self.answer.status:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._read_head(head)
        if self._left >= 0:
            self._left -= len(data)
            if self.answer.status != _TOO_MANY:
                self._tail += data
            if self._left <= 0:
                self._read_error()
                self._over()
        elif data:
            self._read_stream(data)

    def _read_head(self, head: bytes) -> None:
        answer, head = self.answer, head.lower()
        answer.status = int(head[9:12])
        length = _header(head, b"content-length")
        self._left = int(length) if length else -1
        self._tail = b"\r\n"  # a body that is empty ends with its first chunk
        if answer.status != _OK:
            answer.retry_after = float(_header(head, b"retry-after") or 0)
        answer.degraded = b"\r\nx-sluicegate-mode: degraded" in head
        if self.begun is not None and not self.begun.done():
            self.begun.set_result(answer)

    def _read_error(self) -> None:
        _, found, rest = self._tail.partition(b'"code":')
        if found:
            self.answer.code = rest.partition(b",")[0].strip(b' "}').decode(errors="replace")

    def _read_stream(self, data: bytes) -> None:
        answer = self.answer
        seen = self._tail + data
        answer.tokens += seen.count(b'{"token"') - self._tail.count(b'{"token"')
        if answer.tokens and answer.first_at is None:
            answer.first_at = self._loop.time()
        answer.finished = answer.finished or b"data: [DONE]" in seen
        answer.failed = answer.failed or b'{"error"' in seen
        self._tail = seen[-_KEPT_BYTES:]
        if seen.endswith(b"\r\n0\r\n\r\n"):
            self._over()
        elif 0 <= self._leave_after <= answer.tokens:
            self.leave()

    def _over(self) -> None:
        if not self.busy:
            return
        self.busy = False
        for future in (self.begun, self.ended):
            if future is not None and not future.done():
                future.set_result(self.answer)
        self.over()


def _header(head: bytes, name: bytes) -> bytes:
    """The value of a header; both are in lower case."""
    _, found, rest = head.partition(b"\r\n" + name + b": ")
    return rest.partition(b"\r\n")[0] if found else b""


async def dial(url: str, kind: Callable[[], Line] = Line) -> Line:
    """A new connection. Raises OSError."""
    parts = urlsplit(url)
    _, line = await asyncio.get_running_loop().create_connection(kind, parts.hostname, parts.port)
    return line


def request_bytes(url: str, key: str, **script: object) -> bytes:
    """A request to `/chat/stream` for a script of the scripted model, as it goes over the wire."""
    words = "&".join(f"{name}={value}" for name, value in script.items())
    body = json.dumps({"prompt": "hi", "model": f"scripted?{words}"}).encode()
    head = (
        f"POST /chat/stream HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
