"""Servers that tests hold in their hands: a proxy that can be cut, and a provider that can be told."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from api.tasks import Tasks

if TYPE_CHECKING:
    from asyncio import Event, StreamReader, StreamWriter
    from collections.abc import Awaitable, Callable, Sequence
    from typing import Self

    Dial = Callable[[], Awaitable[tuple[StreamReader, StreamWriter]]]

_GONE = (OSError, EOFError)


class Wire(ABC):
    """A TCP port on loopback. `accepted` counts connections, `gone` is set when a client has left."""

    def __init__(self) -> None:
        self.port = 0
        self.accepted = 0
        self.gone = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._writers: set[StreamWriter] = set()
        self._tasks = Tasks()

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cut()

    async def mend(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Refuse new connections, and reset those that are open."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._tasks.cancel()

    def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.accepted += 1
        self._tasks.start(self._serve(reader, writer), name="wire")

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with suppress(*_GONE):
                await self.serve(reader, writer)
        finally:
            self._writers.discard(writer)
            writer.transport.abort()
            self.gone.set()

    @abstractmethod
    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Serve one connection."""


class Proxy(Wire):
    """Passes bytes on; those of the server are swallowed while it is `mute`.

    `round_trips` counts how often the client spoke after it was answered.
    """

    def __init__(self, dial: Dial) -> None:
        super().__init__()
        self.mute = False
        self.round_trips = 0
        self._dial = dial
        self._answered = True

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Until either side leaves."""
        far_reader, far_writer = await self._dial()
        self._writers.add(far_writer)
        ways = Tasks()
        there = ways.start(self._pass(reader, far_writer, asked=True), name="there")
        back = ways.start(self._pass(far_reader, writer, asked=False), name="back")
        try:
            await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._writers.discard(far_writer)
            far_writer.transport.abort()
            await ways.cancel()

    async def _pass(self, source: StreamReader, sink: StreamWriter, *, asked: bool) -> None:
        with suppress(*_GONE):
            while data := await source.read(1 << 18):
                self.round_trips += asked and self._answered
                self._answered = not asked
                if self.mute and not asked:
                    continue
                sink.write(data)
                await sink.drain()


class Request(NamedTuple):
    """What the provider got."""

    head: bytes
    body: bytes


class Provider(Wire):
    """An HTTP/1.1 server that answers every request with `answer`: bytes, and events to wait for.

    It keeps the connection after it, unless `hangs_up`.
    """

    def __init__(self, *answer: bytes | Event, hangs_up: bool = False) -> None:
        super().__init__()
        self.answer: Sequence[bytes | Event] = answer
        self.hangs_up = hangs_up
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        """The base URL for an SDK."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Requests of one connection, in turn."""
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            body = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
            self.requests.append(Request(head, body))
            for part in self.answer:
                if isinstance(part, bytes):
                    writer.write(part)
                    await writer.drain()
                elif not await _unless_gone(part, reader):
                    return
            if self.hangs_up:
                writer.close()
                return


async def _unless_gone(awaited: Event, reader: StreamReader) -> bool:
    """Wait for it; False if the client has left meanwhile."""
    tasks = Tasks()
    waiting = tasks.start(awaited.wait(), name="wait")
    leaving = tasks.start(reader.read(1), name="leave")
    await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
    gone = leaving.done()
    await tasks.cancel()
    return not gone


def chunked(*chunks: bytes) -> bytes:
    """Chunks of a body, as HTTP/1.1 writes them; b"" is the end."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
