"""A client that does what browsers and SDKs do not: read so much and no more, leave at once, never read."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import h11

from api.core.sse import Event, Framer


class WireClient:
    """One request on one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)
        self._framer = Framer(1 << 26)
        self._events: list[Event] = []
        self.status = 0
        self.headers: dict[str, str] = {}
        self.raw = b""
        self.complete = False

    @classmethod
    async def post(
        cls,
        url: str,
        path: str,
        body: Any,
        *,
        key: str = "",
        headers: dict[str, str] | None = None,
        receive_buffer: int = 0,
    ) -> WireClient:
        """Send a POST; nothing is read yet. A small `receive_buffer` makes a slow reader felt sooner."""
        parts = urlsplit(url)
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
        limit = 2**12 if receive_buffer else 2**16
        client = cls(*await asyncio.open_connection(sock=sock, limit=limit))
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {
            "host": parts.netloc,
            "content-type": "application/json",
            "content-length": str(len(payload)),
        }
        if key:
            given["authorization"] = f"Bearer {key}"
        given |= headers or {}
        request = h11.Request(method="POST", target=path, headers=list(given.items()))
        client._send(request, h11.Data(data=payload), h11.EndOfMessage())
        await client._writer.drain()
        return client

    def _send(self, *events: Any) -> None:
        for event in events:
            self._writer.write(self._http.send(event) or b"")

    async def _next(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(65536))
        return event

    async def head(self) -> int:
        """Read the status line and the headers."""
        response = await self._next()
        assert isinstance(response, h11.Response), response
        self.status = response.status_code
        self.headers = {name.decode().lower(): value.decode() for name, value in response.headers}
        return self.status

    async def body(self) -> bytes:
        """Read to the end; raises h11.RemoteProtocolError if the connection breaks before it."""
        if not self.status:
            await self.head()
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            self.raw += bytes(event.data)
        self.complete = True
        return self.raw

    async def events(self, count: int) -> list[Event]:
        """Read until `count` more events with data are there."""
        if not self.status:
            await self.head()
        while len(self._events) < count:
            event = await self._next()
            if isinstance(event, h11.EndOfMessage):
                self.complete = True
                break
            self.raw += bytes(event.data)
            self._events += [e for e in self._framer.feed(bytes(event.data)) if e.data]
        got, self._events = self._events[:count], self._events[count:]
        return got

    def write(self, data: bytes) -> None:
        """Send bytes that no client should."""
        self._writer.write(data)

    def leave(self) -> None:
        """Go away at once."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Go away politely."""
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)


def data_lines(raw: bytes) -> list[bytes]:
    """The data of all events in a body."""
    return [event.data for event in Framer(1 << 26).feed(raw) if event.data]
