"""A receiver of exported events: a real HTTP server in a thread, which keeps what it gets and can be told.

It also answers a gate in another process. `says` decides on each batch: a status, a status and headers,
`RESET` for a connection that is broken off, or an event to wait for before it takes the batch.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

RESET = "reset"

Said = int | tuple[int, dict[str, str]] | str | threading.Event


@dataclass(frozen=True)
class Delivery:
    """A request, and what it was answered; None where it was not."""

    path: str
    headers: dict[str, str]
    body: bytes
    status: int | None

    @property
    def events(self) -> list[dict[str, Any]]:
        return list(json.loads(self.body))

    @property
    def ids(self) -> list[str]:
        return [event["id"] for event in self.events]


class EventReceiver:
    """`deliveries` are all that came, in order."""

    def __init__(self) -> None:
        self.says: Callable[[Delivery], Said] = lambda _: 204
        self.writes = b'{"detail": "no\\u202e"}'
        self.deliveries: list[Delivery] = []
        self.arrived = threading.Condition()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.receiver = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/events"

    @property
    def taken(self) -> list[str]:
        """The ids of what it answered with a 2xx, each time that it did."""
        done = [one for one in self.deliveries if one.status is not None and one.status < 300]
        return [event_id for one in done for event_id in one.ids]

    def wait(self, until: Callable[[], object], seconds: float = 30) -> None:
        """Until something holds of what arrived; fails where it never does."""
        with self.arrived:
            assert self.arrived.wait_for(until, seconds), [(d.status, d.ids) for d in self.deliveries]

    def note(self, delivery: Delivery) -> None:
        with self.arrived:
            self.deliveries.append(delivery)
            self.arrived.notify_all()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    receiver: EventReceiver


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        receiver = self.server.receiver
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Delivery(self.path, headers, body, None)
        said = receiver.says(asked)
        if isinstance(said, threading.Event):
            receiver.note(asked)
            said.wait(60)
            said = 204
        if said == RESET:
            receiver.note(asked)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        status, more = said if isinstance(said, tuple) else (int(said), {})  # type: ignore[call-overload]
        receiver.note(Delivery(self.path, headers, body, status))
        with suppress(OSError):  # whoever asked has left meanwhile
            self._answer(status, more, receiver.writes)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status == 204:
            self.end_headers()
            return
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""
