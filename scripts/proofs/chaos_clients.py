"""The clients of a chaos run: they finish, hang up anywhere, stall, or flood, in every dialect there is."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from scripts.load import Line
from scripts.proofs.chaos_check import Heard

if TYPE_CHECKING:
    from collections.abc import Callable

_OK, _TOO_MANY, _UNAVAILABLE = 200, 429, 503
_KINDS = {"finishes": 50, "hangs up": 22, "hangs up soon": 10, "stalls": 5}
_DIALECTS = {"plain": 45, "openai": 45, "whole": 10}
_CHUNK = {"plain": b'{"token"', "openai": b'"delta":{"content":"'}
_NO_CHUNK = b'"delta":{"content":""'  # of an error, in OpenAI's dialect
_FAILURES = ("error_at", "reset_at", "eof_at", "silence_at")
_SMALL_BUFFER = 4096
_PAD_BYTES = 16_384
_MARK_SECONDS, _MARKS = 0.02, 200
_AWAY_SECONDS = (0.1, 0.6)
_WORDS = "why does water find its way down the hill and not before we open the gate".split()  # noqa: SIM905


class Asked(NamedTuple):
    """A request, and what its client is going to do."""

    label: str
    kind: str
    dialect: str
    script: dict[str, Any]
    words: int  # of its prompt
    usage_wanted: bool  # in the stream, where the dialect has that
    after_chunks: int = -1
    after_seconds: float = -1.0


def draw(rng: random.Random, label: str) -> Asked:
    """Any request that there is."""
    kind, dialect = _one_of(rng, _KINDS), _one_of(rng, _DIALECTS)
    per_chunk = rng.choice((1, 1, 1, 4))
    chunks = rng.randint(1, 150)
    script: dict[str, Any] = {
        "label": label,
        "tokens": chunks * per_chunk,
        "per_chunk": per_chunk,
        "pace_ms": rng.randint(10, 60),
        "usage": rng.choice((0, 1, 1, 2)),
    }
    if rng.random() < 0.3:  # noqa: PLR2004 - a part of them
        script["first_ms"] = rng.randint(1, 800)
    if dialect == "whole" and kind == "hangs up":
        kind = "hangs up soon"
    if kind == "stalls":
        dialect = "openai"
        script |= {"tokens": 600, "per_chunk": 1, "pace_ms": 8, "pad": _PAD_BYTES}
    elif rng.random() < 0.25:  # noqa: PLR2004 - the same
        script |= _failure(rng, int(script["tokens"]))
    elif rng.random() < 0.1:  # noqa: PLR2004 - the same
        script["max_tokens"] = rng.randint(0, chunks) * per_chunk
    return Asked(
        label,
        kind,
        dialect,
        script,
        rng.randint(1, 400),
        rng.random() < 0.5,  # noqa: PLR2004 - the same
        after_chunks=rng.randint(1, chunks),
        after_seconds=rng.uniform(0.5, 6.0) if kind == "stalls" else rng.uniform(0.0, 1.5),
    )


def _one_of(rng: random.Random, weights: dict[str, int]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def _failure(rng: random.Random, tokens: int) -> dict[str, Any]:
    what = rng.choice((*_FAILURES, "status", "done"))
    if what == "status":
        return {"status": rng.choice((400, 404, 429, 500, 503)), "retry_after": rng.choice((0, 1))}
    if what == "done":
        return {"done": 0}
    silence = {"silence_ms": rng.randint(200, 3000)} if what == "silence_at" else {}
    return {what: rng.randrange(tokens)} | silence


def request_of(asked: Asked, url: str, key: str) -> bytes:
    """As it goes over the wire."""
    prompt = " ".join(_WORDS[i % len(_WORDS)] for i in range(asked.words))
    body: dict[str, Any] = {"model": f"scripted?{urlencode(asked.script)}"}
    if asked.dialect == "plain":
        path = "/chat/stream"
        body["prompt"] = prompt
    else:
        path = "/v1/chat/completions"
        body |= {"messages": [{"role": "user", "content": prompt}], "stream": asked.dialect == "openai"}
        if asked.usage_wanted and body["stream"]:
            body["stream_options"] = {"include_usage": True}
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


class Listener(Line):
    """A connection that can count what comes in each dialect, and can stop reading."""

    def __init__(self, asked: Asked) -> None:
        super().__init__()
        self.asked = asked
        self.pauses_at = -1
        self.paused = asyncio.Event()
        self._marks: deque[tuple[float, int]] = deque(maxlen=_MARKS)

    def _read_stream(self, data: bytes) -> None:
        before, seen = self._tail, self._tail + data
        chunk, answer = _CHUNK[self.asked.dialect], self.answer
        super()._read_stream(data)  # which counts the plain dialect's tokens
        if self.asked.dialect == "openai":
            answer.tokens += _new(seen, before, chunk) - _new(seen, before, _NO_CHUNK)
        now = self._loop.time()
        if not self._marks or now - self._marks[-1][0] >= _MARK_SECONDS:
            self._marks.append((now, answer.tokens))
        if 0 <= self.pauses_at <= answer.tokens and self.busy:
            self.pauses_at = -1
            self.transport.pause_reading()
            self.paused.set()
        if 0 <= self._leave_after <= answer.tokens:
            self.leave()

    def _over(self) -> None:
        if self.busy and self.asked.dialect == "whole" and self.answer.status == _OK and self._left == 0:
            body = json.loads(self._tail)
            self.answer.tokens = len(body["choices"][0]["message"]["content"].split())
            self.answer.finished = True
        self.paused.set()
        super()._over()

    @property
    def heard(self) -> Heard:
        """What it got. An answer's chunks are counted; all but a whole one's have as many tokens each."""
        asked, answer = self.asked, self.answer
        each = 1 if asked.dialect == "whole" else asked.script["per_chunk"]
        return Heard(
            asked.label,
            asked.kind,
            asked.dialect,
            answer.status,
            answer.tokens * each,
            answer.finished,
            answer.failed,
            asked.script["usage"],
            [(at, chunks * each) for at, chunks in self._marks] if answer.status == _OK else [],
        )


def _new(seen: bytes, before: bytes, word: bytes) -> int:
    return seen.count(word) - before.count(word)


async def dial(url: str, asked: Asked) -> Listener:
    """A new connection; of who will stall with a small buffer. Raises OSError."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    try:
        sock.setblocking(False)
        if asked.kind == "stalls":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
        await loop.sock_connect(sock, (parts.hostname, parts.port))
    except BaseException:
        sock.close()
        raise
    _, line = await loop.create_connection(lambda: Listener(asked), sock=sock)
    return line


@dataclass
class Hordes:
    """All of them: `clients` with a tenant of theirs, and `flooders` who never wait, with one of their own.

    `heard` is by label.
    """

    url: str
    keys: list[str]
    flooded_key: str
    clients: int
    flooders: int
    seed: int
    heard: dict[str, Heard] = field(default_factory=dict)
    no_connection: int = 0
    strange: list[str] = field(default_factory=list)
    most_open: int = 0
    _open: int = 0
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Everybody comes."""
        for number in range(self.clients):
            key = self.keys[number % len(self.keys)]
            self._begin(f"c{number}", key, draw, patient=True)
        for number in range(self.flooders):
            self._begin(f"f{number}", self.flooded_key, _of_a_flooder, patient=False)

    def _begin(
        self, name: str, key: str, choose: Callable[[random.Random, str], Asked], *, patient: bool
    ) -> None:
        rng = random.Random(f"{self.seed} {name}")  # noqa: S311 - a load
        self._tasks.append(asyncio.create_task(self._live(name, key, rng, choose, patient=patient)))

    async def stop(self) -> None:
        """Everybody leaves, whatever they are at."""
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome

    async def _live(
        self,
        name: str,
        key: str,
        rng: random.Random,
        choose: Callable[[random.Random, str], Asked],
        *,
        patient: bool,
    ) -> None:
        number = 0
        while True:
            number += 1
            asked = choose(rng, f"{name}n{number}")
            try:
                line = await dial(self.url, asked)
            except OSError:
                self.no_connection += 1
                await asyncio.sleep(rng.uniform(*_AWAY_SECONDS))
                continue
            self._open += 1
            self.most_open = max(self.most_open, self._open)
            try:
                await _behave(line, request_of(asked, self.url, key))
            finally:
                self._open -= 1
                line.leave()
                self._note(line.heard)
            if line.answer.status == _UNAVAILABLE or (patient and line.answer.status != _OK):
                await asyncio.sleep(rng.uniform(*_AWAY_SECONDS))

    def _note(self, heard: Heard) -> None:
        self.heard[heard.label] = heard
        if heard.status not in {0, 200, 400, 404, 429, 500, 502, 503, 504}:
            self.strange.append(f"{heard.label}: status {heard.status}")


def _of_a_flooder(rng: random.Random, label: str) -> Asked:
    script = {"label": label, "tokens": rng.randint(5, 40), "per_chunk": 1, "pace_ms": 20, "usage": 1}
    return Asked(label, "floods", "plain", script, 3, usage_wanted=False)


async def _behave(line: Listener, request: bytes) -> None:
    """One request, as its client is."""
    asked = line.asked
    if asked.kind == "stalls":
        line.pauses_at = min(asked.after_chunks, 100)
    line.ask(request, leave_after=asked.after_chunks if asked.kind == "hangs up" else -1)
    assert line.ended is not None  # noqa: S101 - it was asked
    if asked.kind == "hangs up soon":
        with suppress(TimeoutError):
            async with asyncio.timeout(asked.after_seconds):
                await asyncio.shield(line.ended)
        return
    if asked.kind == "stalls":
        await line.paused.wait()
        await asyncio.sleep(asked.after_seconds)
        if asked.after_chunks % 2:
            return  # it leaves, and has not read
        if not line.transport.is_closing():
            line.transport.resume_reading()
    await line.ended
