"""What a request and a chunk cost, counted: a change that makes them dearer is seen here, on any machine.

Nothing is timed (`scripts/bench gate` does that). The bounds are what was counted, and a little more.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis
from sqlalchemy import Engine, event

from api.core.dialects import openai_chat
from tests.support.gates import serving, settings_of
from tests.support.hand import DONE, FINISH, Hand, token
from tests.support.servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

    from tests.support.servers import ScriptedProcess

BOUNDS = {
    "our calls for a chunk that comes alone": 22,
    "our calls for a chunk in company of ten": 9,
    "our calls for a request": 480,
    "all Python calls for a request": 2370,
    "Redis scripts for a request": 2,
    "Redis commands for a request, those of its scripts among them": 19,
    "SQL statements for a request": 2,
}
_OURS = (str(ROOT / "api"), str(ROOT / "auth"))


def within(name: str, counted: float) -> None:
    """Whether it costs no more than it may."""
    assert 0 < counted <= BOUNDS[name], f"{name}: {counted:g}, at most {BOUNDS[name]}"


@dataclass
class Calls:
    """Python functions that began, or went on, in this thread."""

    ours: int = 0
    all: int = 0

    def see(self, frame: FrameType, what: str, _argument: Any) -> None:
        if what == "call":
            self.all += 1
            self.ours += frame.f_code.co_filename.startswith(_OURS)


@contextmanager
def calls_counted() -> Iterator[Calls]:
    """While it lasts."""
    calls = Calls()
    sys.setprofile(calls.see)
    try:
        yield calls
    finally:
        sys.setprofile(None)


async def sent(hand: Hand, messages: int) -> None:
    """Let others run until the server was given so many."""
    while len(hand.sent) < messages:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("in_company", "name"),
    [(1, "our calls for a chunk that comes alone"), (10, "our calls for a chunk in company of ten")],
)
async def test_a_chunk_costs_few_calls_and_a_read_one_send(in_company: int, name: str) -> None:
    """All that comes in one read goes out in one send, whatever comes before or after it."""
    hand = Hand(dialect=openai_chat.NAME)
    walk = hand.start()
    hand.upstream.feed(token("first"))
    await sent(hand, 2)
    reads = 20
    with calls_counted() as calls:
        for number in range(reads):
            hand.upstream.feed(token("word") * in_company)
            await sent(hand, 3 + number)
    assert len(hand.sent) == 2 + reads
    hand.upstream.feed(FINISH + DONE)
    await walk
    within(name, calls.ours / reads / in_company)


class Asked:
    """SQL statements and Redis commands so far."""

    def __init__(self, redis_url: str) -> None:
        self.statements: list[str] = []
        self._client = redis.Redis.from_url(redis_url)

    def of_redis(self) -> tuple[int, int]:
        """Scripts, and all commands, theirs among them."""
        stats = self._client.info("commandstats")
        calls = {name.removeprefix("cmdstat_"): int(of["calls"]) for name, of in stats.items()}
        return calls.get("evalsha", 0) + calls.get("eval", 0), sum(calls.values()) - calls.get("info", 0)

    def seen(self, _c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.statements.append(statement)

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def asked(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    """What is asked of the stores while the test runs, by whichever way."""
    asked = Asked(redis_url)
    begin = asyncpg.Connection.__init__

    def begun(connection: Any, *args: Any, **options: Any) -> None:
        begin(connection, *args, **options)
        connection.add_query_logger(lambda record: asked.statements.append(record.query))

    monkeypatch.setattr(asyncpg.Connection, "__init__", begun)
    event.listen(Engine, "before_cursor_execute", asked.seen)
    yield asked
    event.remove(Engine, "before_cursor_execute", asked.seen)
    asked.close()


async def test_a_request_costs_few_round_trips_and_calls(
    tmp_path: Path,
    redis_url: str,
    new_database: Callable[[str], str],
    scripted: ScriptedProcess,
    asked: Asked,
) -> None:
    """Alone at the gate, with all it does: two scripts in Redis, two statements in the ledger.

    The least of several: once in a while there is something else to do.
    """
    settings = settings_of(
        tmp_path,
        redis_url=redis_url,
        database_url=new_database("postgresql"),
        openai_base_url=f"{scripted.url}/v1",
        tick_seconds=60,
        lease_seconds=600,
    )
    least: dict[str, int] = {}
    async with serving(settings) as app:
        client = http.client.HTTPConnection(urlsplit(app.url).netloc, timeout=30)
        for _ in range(7):
            statements, before = len(asked.statements), asked.of_redis()
            with calls_counted() as calls:
                assert b"[DONE]" in await asyncio.to_thread(ask, client, app.key)
                await app.settled()
            scripts, commands = (now - then for now, then in zip(asked.of_redis(), before, strict=True))
            counted = {
                "our calls for a request": calls.ours,
                "all Python calls for a request": calls.all,
                "Redis scripts for a request": scripts,
                "Redis commands for a request, those of its scripts among them": commands,
                "SQL statements for a request": len(asked.statements) - statements,
            }
            least = {name: min(least.get(name, count), count) for name, count in counted.items()}
        client.close()
        assert len(await app.events()) == 7
    for name, count in least.items():
        within(name, count)


def ask(client: http.client.HTTPConnection, key: str) -> bytes:
    """A streamed answer, all of it, on a connection that is kept."""
    said = {"model": "scripted?pace_ms=0&tokens=3", "stream": True}
    said["messages"] = [{"role": "user", "content": "hi"}]
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    client.request("POST", "/v1/chat/completions", json.dumps(said), headers)
    return client.getresponse().read()
