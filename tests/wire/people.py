"""Who takes part in tests of accounts: tenants with keys and tokens, streams held open, one worker's line."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

from api.adapters.database_sql import open_engine
from api.adapters.ledger_sql import SqlLedger
from api.core.record import UsageEvent
from tests.contracts.helpers import eventually
from tests.support.wire import WireClient, data_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx2

    from tests.support.gates import GateProcess, InProcess

HELD = "scripted?pace_ms=0&tokens=20&silence_at=10&silence_ms=60000"
"""Ten tokens come at once; then nothing for longer than any test takes."""
SHORT = "scripted?pace_ms=0&tokens=3"

BOUND_SECONDS = 1.0
"""P9: so long after the answer to whoever revoked it, a credential may still be taken at most."""
CUT_SECONDS = 3 * BOUND_SECONDS
"""The same for its streams, threefold: cut, settlement and our reading share two cores with others."""
EVERY_TENANT_SCOPE = ["chat", "embeddings", "usage:read", "tenant:admin"]
_PATIENCE_SECONDS = 20.0


def call(
    gate: GateProcess, method: str, path: str, token: str = "", status: int = 200, **options: Any
) -> Any:
    """A request that has to end with that status; its JSON, where there is any."""
    answer = gate.http(method, path, token, **options)
    assert answer.status_code == status, (method, path, answer.status_code, answer.text)
    return answer.json() if answer.content else None


def new_tenant(gate: GateProcess, **fields: Any) -> str:
    """A new tenant's id."""
    asked = {"name": "test", "max_streams": 50} | fields
    return str(call(gate, "POST", "/admin/tenants", gate.admin, 201, json=asked)["id"])


def new_key(gate: GateProcess, tenant: str, **fields: Any) -> dict[str, Any]:
    """A new key of the tenant, as issued: `key` is its text."""
    return dict(call(gate, "POST", f"/admin/tenants/{tenant}/keys", gate.admin, 201, json=fields))


def buy(gate: GateProcess, key: str, **asked: Any) -> tuple[str, str]:
    """A token bought with the key, and its id."""
    token = call(gate, "POST", "/auth/tokens", key, json=asked)
    return token["access_token"], token["id"]


def plain(model: str = SHORT, **fields: Any) -> dict[str, Any]:
    """The body of a plain stream."""
    return {"prompt": "hi", "model": model} | fields


def chat(gate: GateProcess, token: str, model: str = SHORT, **options: Any) -> httpx2.Response:
    """A plain stream of a few tokens, read to its end."""
    return gate.http("POST", "/chat/stream", token, json=plain(model), **options)


def error_of(answer: httpx2.Response) -> tuple[int, str]:
    """The status and the code of an error in OpenAI's shape."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"]


async def ledger_events(gate: GateProcess, tenant: str) -> list[dict[str, Any]]:
    """The tenant's events as they stand in the database, with the worker that wrote each."""
    return await settled(gate, tenant)


async def settled(gate: GateProcess, tenant: str, count: int | None = None) -> list[dict[str, Any]]:
    """The same, as soon as there are so many."""
    engine = open_engine(gate.environment["DATABASE_URL"])
    ledger, found = SqlLedger(engine), list[UsageEvent]()

    async def enough() -> bool:
        found[:] = await ledger.events(tenant, after=None, limit=1000)
        return count is None or len(found) == count

    try:
        await eventually(enough)
        return [event.flat() for event in found]
    finally:
        await engine.dispose()


# --- one of several workers -------------------------------------------------------------------------


def worker_of(gate: GateProcess, port: int) -> int:
    """The process that serves the connection from our `port`, by the system's own table of sockets."""
    for worker in psutil.Process(gate.process.pid).children(recursive=True):
        for connection in worker.net_connections("tcp"):
            if connection.raddr and connection.raddr.port == port:
                return int(worker.pid)
    raise AssertionError(f"nobody serves the connection from port {port}")


class Line:
    """A connection to one worker, that never becomes one to another."""

    def __init__(self, gate: GateProcess) -> None:
        parts = urlsplit(gate.url)
        assert parts.hostname is not None
        self._http = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        self._http.connect()
        self._http.auto_open = 0
        assert self.get("/healthz") == 200
        self.worker = worker_of(gate, self._http.sock.getsockname()[1])

    def get(self, path: str, token: str = "") -> int:
        """The status of an answer."""
        self._http.request("GET", path, headers={"authorization": f"Bearer {token}"} if token else {})
        answer = self._http.getresponse()
        answer.read()
        return answer.status

    def answers(self, path: str, token: str, status: int) -> bool:
        """Whether the answer has that status."""
        return self.get(path, token) == status

    def refused_in_time(self, path: str, token: str, since: float) -> None:
        """Ask until the credential is refused; what is asked later than the bound must be."""
        while True:
            asked = time.monotonic() - since
            status = self.get(path, token)
            if status == 401:
                return
            assert status == 200
            assert asked < BOUND_SECONDS, "a worker still takes it"

    def close(self) -> None:
        self._http.close()


@contextmanager
def lines(gate: GateProcess) -> Iterator[list[Line]]:
    """A line to each of the two workers, as soon as both are there."""
    with ExitStack() as stack:
        found: dict[int, Line] = {}
        patience = time.monotonic() + _PATIENCE_SECONDS
        while len(found) < 2:
            assert time.monotonic() < patience, "one worker gets all connections"
            line = Line(gate)
            stack.callback(line.close)
            found.setdefault(line.worker, line)
        yield list(found.values())


async def until_settled(app: InProcess, count: int) -> None:
    """Wait until the streams have ended, and so many events are on the ledger."""
    await app.settled()
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while len(await app.events()) < count:
            await asyncio.sleep(0)


# --- streams ----------------------------------------------------------------------------------------


async def held(gate: GateProcess, credential: str, model: str = HELD) -> WireClient:
    """A plain stream whose first ten tokens are here."""
    client = await WireClient.post(gate.url, "/chat/stream", plain(model), key=credential)
    tokens = await client.events(10)
    assert client.status == 200, client.raw
    assert all("token" in json.loads(event.data) for event in tokens), client.raw
    return client


async def held_on_both(gate: GateProcess, credential: str, model: str = HELD) -> list[WireClient]:
    """Streams of the credential, until each of the two workers has one."""
    streams: list[WireClient] = []
    workers: set[int] = set()
    while len(workers) < 2:
        assert len(streams) < 40, "one worker gets all connections"
        streams.append(await held(gate, credential, model))
        port = streams[-1]._writer.get_extra_info("sockname")[1]
        workers.add(await asyncio.to_thread(worker_of, gate, port))
    return streams


async def last_event(client: WireClient) -> Any:
    """The event a stream ends with; the stream has to be whole as HTTP, too."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        data = data_lines(await client.body())[-1]
    await client.close()
    assert client.complete
    return data.decode() if data == b"[DONE]" else json.loads(data)


async def until(holds: Callable[[], bool]) -> None:
    """Ask, in a thread, until it is so."""
    await eventually(lambda: asyncio.to_thread(holds))


async def leave(streams: list[WireClient]) -> None:
    """Go away from all of them at once."""
    for stream in streams:
        stream.leave()
        await stream.close()
