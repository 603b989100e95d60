"""The scripted model as a server of its own: it speaks as OpenAI and Anthropic do, and keeps the truth.

`GET /stats?label=L` tells of the streams whose script carried that label: opened, live now, most at one
time, tokens sent, when clients left (the machine's monotonic seconds, the same for all processes), and of the
last one the tokens of its prompt and the usage that was reported. With `&live=0` or `&opened=3` it answers
as soon as that is so: nobody needs to poll. `GET /stats/all` tells the same of all labels.
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

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
    """What happened under one label; input and report are the last stream's."""

    opened: int = 0
    live: int = 0
    peak: int = 0
    refused: int = 0
    tokens_sent: int = 0
    input_tokens: int = 0
    reported: tuple[int, int] | None = None
    left_at: list[float] = field(default_factory=list)

    def sent(self, step: scripted.Step) -> None:
        """It is on its way."""
        self.tokens_sent += step.tokens
        self.reported = step.usage or self.reported


class _Run:
    """One stream in the statistics; over once, whoever says it first."""

    def __init__(self, stats: Stats, changed: asyncio.Event) -> None:
        self.stats = stats
        self._changed = changed
        self._over = False
        stats.opened += 1
        stats.live += 1
        stats.peak = max(stats.peak, stats.live)
        changed.set()

    def over(self) -> None:
        if not self._over:
            self._over = True
            self.stats.live -= 1
            self._changed.set()


class ScriptedServer:
    """A bare ASGI application."""

    def __init__(self) -> None:
        self._upstream = ScriptedUpstream(ToktokTokenizer())
        self._stats: dict[str, Stats] = {}
        self._changed = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["path"] == "/stats":
            await self._tell(scope, receive, send)
        elif scope["path"] == "/stats/all":
            await _answer(send, 200, msgspec.json.encode(self._stats))
        elif scope["path"].endswith("/models"):
            await _answer(send, 200, await self._upstream.models())
        elif scope["method"] == "POST" and (dialect := _dialect_of(scope["path"])) is not None:
            await self._answer(dialect, receive, send)
        else:
            await _answer(send, 404, b'{"error": {"message": "no such route", "code": "not_found"}}')

    async def _tell(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The statistics of a label, at once or when `live` or `opened` have become what is waited for."""
        query = dict(parse_qsl(scope["query_string"].decode()))
        stats = self._stats.setdefault(query.pop("label", ""), Stats())
        leaving = asyncio.create_task(_left(receive))  # noqa: TID251 - a tool, with its own end
        while not leaving.done() and any(getattr(stats, key) != int(value) for key, value in query.items()):
            self._changed.clear()
            waiting = asyncio.create_task(self._changed.wait())  # noqa: TID251 - the same
            await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        leaving.cancel()
        await _answer(send, 200, msgspec.json.encode(stats))

    async def _answer(self, dialect: str, receive: Receive, send: Send) -> None:
        body = msgspec.json.decode(await _body(receive))
        label = ""
        with suppress(scripted.UnknownModel):  # `_play` answers with the 404
            label = scripted.script_of(body["model"]).label
        run = _Run(self._stats.setdefault(label, Stats()), self._changed)
        playing = asyncio.create_task(self._play(dialect, body, run, send))  # noqa: TID251 - a tool, with its own end
        leaving = asyncio.create_task(_left(receive))  # noqa: TID251 - the same
        await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not playing.done():
            run.stats.left_at.append(time.monotonic())
            run.over()
        for task in (playing, leaving):
            task.cancel()
        await asyncio.wait({playing, leaving})
        if not playing.cancelled():
            playing.result()

    async def _play(self, dialect: str, body: dict[str, Any], run: _Run, send: Send) -> None:
        try:
            answer = await self._upstream.open(body, dialect)
        except UpstreamFailed as refused:
            run.stats.refused += 1
            run.over()
            error = dict(refused.body) or {"message": str(refused), "type": "server_error", "code": None}
            extra = [(b"retry-after", refused.retry_after.encode())] if refused.retry_after else []
            await _answer(send, refused.status or 500, msgspec.json.encode({"error": error}), extra)
            return
        media = b"text/event-stream" if body.get("stream") else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", media)]})
        run.stats.input_tokens = answer.input_tokens
        held = scripted.Step(0, b"")

        async def put(step: scripted.Step, *, more: bool = True) -> None:
            run.stats.sent(step)
            await send({"type": "http.response.body", "body": step.data, "more_body": more})

        for step in answer.steps:
            await put(held)
            await asyncio.sleep(step.wait_ms / 1000)
            if step.reset:
                run.over()
                send.__self__.transport.abort()  # type: ignore[attr-defined]
                return
            held = step
            if step.wait_ms or step.tokens:
                await put(held)
                held = scripted.Step(0, b"")
        run.over()  # before anybody can see its end
        await put(held, more=False)


def _dialect_of(path: str) -> str | None:
    """What is spoken under a path."""
    known = {
        "/chat/completions": "openai_chat",
        "/responses": "openai_responses",
        "/embeddings": "openai_embeddings",
        "/messages": "anthropic_messages",
    }
    return next((dialect for ending, dialect in known.items() if path.endswith(ending)), None)


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
