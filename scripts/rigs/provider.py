"""A provider that costs next to nothing: bytes made beforehand, on raw sockets, in a process of its own.

The model's name says what it answers: `bench?chunks=500&pace_ms=20`. Chunks of about 230 bytes, each an event
and a write of its own; without a pace as fast as it can. Prints its port, and serves until it is killed.
"""

from __future__ import annotations

import asyncio
import json
from functools import lru_cache
from urllib.parse import parse_qsl

import uvloop

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_END = b"0\r\n\r\n"


def _event(data: str) -> bytes:
    sent = f"data: {data}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(sent), sent)


def _chunk(choices: list[dict[str, object]], **more: object) -> bytes:
    about = {"id": "chatcmpl-" + "x" * 29, "object": "chat.completion.chunk", "created": 1_790_000_000}
    about |= {"model": "bench-2026-01-01", "service_tier": "default", "system_fingerprint": None}
    return _event(json.dumps(about | {"choices": choices} | more, separators=(",", ":")))


_TOKENS = [
    _chunk([{"index": 0, "delta": {"content": word}, "logprobs": None, "finish_reason": None}])
    for word in (" water", " light")  # a model that says one word for ever is cut off by LiteLLM
]
_STOP = _chunk([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}])


@lru_cache(maxsize=100)
def _last(chunks: int) -> bytes:
    usage = {"prompt_tokens": 8, "completion_tokens": chunks, "total_tokens": 8 + chunks}
    return _STOP + _chunk([], usage=usage) + _event("[DONE]") + _END


class Provider(asyncio.Protocol):
    """One connection."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It may ask."""
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """A part of a request, or all of it."""
        self._got += data
        head, end, body = self._got.partition(b"\r\n\r\n")
        if not end:
            return
        _, _, length = head.lower().partition(b"content-length:")
        if len(body) < int(length.split(b"\r\n")[0] or 0):
            return
        self._got = b""
        asked = dict(parse_qsl(json.loads(body)["model"].partition("?")[2]))
        chunks, pace_ms = int(asked.get("chunks", 10)), float(asked.get("pace_ms", 0))
        self.transport.write(_HEAD)
        self._tick(chunks, chunks, pace_ms / 1000, self._loop.time())

    def _tick(self, left: int, chunks: int, pace_seconds: float, due: float) -> None:
        if self.transport.is_closing():
            return
        if not left:
            self.transport.write(_last(chunks))
            return
        self.transport.write(_TOKENS[left % 2])
        due += pace_seconds
        if pace_seconds:
            self._loop.call_at(due, self._tick, left - 1, chunks, pace_seconds, due)
        else:
            self._loop.call_soon(self._tick, left - 1, chunks, pace_seconds, due)


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())
