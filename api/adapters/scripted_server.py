"""The scripted model as a server of its own: OpenAI-compatible, and it keeps the truth.

`GET /stats?label=L` tells, for each label a script carried: streams opened, live now, most at one time,
tokens sent, and when clients left (the machine's monotonic seconds, the same clock for all processes).
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import uvicorn

from api.adapters.tokenizer_toktok import ToktokTokenizer
from api.adapters.upstream_scripted import ScriptedUpstream
from api.core import script as scripted
from api.ports import UpstreamFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Message, Receive, Scope, Send


@dataclass
class Stats:
    """What happened under one label."""

    opened: int = 0
    live: int = 0
    peak: int = 0
    tokens_sent: int = 0
    left_at: list[float] = field(default_factory=list)
    resets: int = 0


class ScriptedServer:
    """A bare ASGI application."""

    def __init__(self) -> None:
        self._upstream = ScriptedUpstream(ToktokTokenizer())
        self.stats: dict[str, Stats] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["path"] == "/stats":
            await _answer(send, 200, msgspec.json.encode({k: asdict(v) for k, v in self.stats.items()}))
        elif scope["path"].endswith("/models"):
            await _answer(send, 200, await self._upstream.models())
        elif scope["path"].endswith("/chat/completions") and scope["method"] == "POST":
            await self._chat(receive, send)
        else:
            await _answer(send, 404, b'{"error": {"message": "no such route", "code": "not_found"}}')

    async def _chat(self, receive: Receive, send: Send) -> None:
        body = msgspec.json.decode(await _body(receive))
        label = ""
        with suppress(scripted.UnknownModel):  # `_play` answers with the 404
            label = scripted.script_of(body["model"]).label
        stats = self.stats.setdefault(label, Stats())
        stats.opened += 1
        stats.live += 1
        stats.peak = max(stats.peak, stats.live)
        abort = getattr(getattr(send, "__self__", None), "transport", None)
        playing = asyncio.create_task(self._play(body, stats, send, abort))  # noqa: TID251 - a tool, with its own end
        leaving = asyncio.create_task(_left(receive))  # noqa: TID251 - the same
        try:
            await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not playing.done():
                stats.left_at.append(time.monotonic())
        finally:
            # Before the last byte is out for one that played to its end: see `_play`.
            if not playing.done():
                stats.live -= 1
            for task in (playing, leaving):
                task.cancel()
            await asyncio.wait({playing, leaving})

    async def _play(self, body: dict[str, Any], stats: Stats, send: Send, transport: Any) -> None:
        try:
            answer = await self._upstream.open(body)
        except UpstreamFailed as refused:
            stats.live -= 1
            error = dict(refused.body) or {"message": str(refused), "type": "server_error", "code": None}
            extra = [(b"retry-after", refused.retry_after.encode())] if refused.retry_after else []
            await _answer(send, refused.status or 500, msgspec.json.encode({"error": error}), extra)
            return
        media = b"text/event-stream" if body.get("stream") else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", media)]})
        steps = answer.steps
        for step in steps:
            await asyncio.sleep(step.wait_ms / 1000)
            if step.reset:
                stats.live -= 1
                stats.resets += 1
                transport.abort()
                return
            stats.tokens_sent += step.tokens
            if step.data.endswith(b"data: [DONE]\n\n"):
                break
            await send({"type": "http.response.body", "body": step.data, "more_body": True})
        else:
            step = None
        stats.live -= 1  # counted as over before anybody can see its end
        last = step.data if step is not None else b""
        await send({"type": "http.response.body", "body": last, "more_body": False})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message: Message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _answer(
    send: Send, status: int, body: bytes, extra: list[tuple[bytes, bytes]] | None = None
) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers + (extra or [])})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def run(port: int, say: Callable[[str], None]) -> None:
    """Serve on loopback; `say` gets the URL once the socket listens."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(2048)
    say(f"http://127.0.0.1:{listener.getsockname()[1]}")
    config = uvicorn.Config(
        ScriptedServer(), log_level="warning", access_log=False, timeout_graceful_shutdown=1, lifespan="on"
    )
    uvicorn.Server(config).run(sockets=[listener])
