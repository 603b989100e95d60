"""P2, P3: workers are killed and stopped, the database dies; each stream has its event, and it is right."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import h11
import pytest

from tests.contracts.helpers import eventually
from tests.support.gates import SECRET_KEY, GateProcess, gate_process, serving, settings_of
from tests.support.servers import PostgresServer, RedisServer, running
from tests.support.wire import WireClient, data_lines
from tests.wire import people
from tests.wire.people import settled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.servers import ScriptedProcess

TICK_SECONDS = 0.25
SLACK_SECONDS = 1.0
"""How much later than at its tick a count may be on the ledger: tests share two cores with the servers."""
PACED = "scripted?tokens=100000&pace_ms=10"
PAUSED = "scripted?pace_ms=0&tokens=40&silence_at=10"
"""Ten tokens, silence for `silence_ms`, thirty more and the end."""


def environment(scripted: ScriptedProcess, **others: str) -> dict[str, str]:
    """A gate whose workers are dead after 2.4 seconds."""
    return {
        "OPENAI_BASE_URL": f"{scripted.url}/v1",
        "REDIS_TIMEOUT_SECONDS": "5",  # the tests share two cores with the servers
        "LEASE_SECONDS": "3",
        "TICK_SECONDS": str(TICK_SECONDS),
        "DRAIN_SECONDS": "0.2",
        "SECRET_KEY": SECRET_KEY,
        "ADMIN_PASSWORD": "correct horse battery staple",
    } | others


@pytest.fixture(scope="module")
def gate(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, scripted: ScriptedProcess
) -> Iterator[GateProcess]:
    """Two workers, real Redis, PostgreSQL."""
    with running(RedisServer()) as redis:
        redis.start()
        servers = {"DATABASE_URL": postgres_server.new_database(), "REDIS_URL": redis.url}
        with (
            gate_process(
                tmp_path_factory.mktemp("gate"), **environment(scripted, WEB_CONCURRENCY="2", **servers)
            ) as process,
            people.lines(process),
        ):
            yield process


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """One that a test may kill."""
    with running(PostgresServer()) as server:
        yield server


class Reader:
    """A client that notes when each token came. Its first ten are here."""

    def __init__(self, client: WireClient, label: str, worker: int) -> None:
        self.client = client
        self.label = label
        self.worker = worker
        self.came = [time.monotonic()] * 10
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with suppress(h11.RemoteProtocolError, OSError):
            while not self.client.complete:
                found = await self.client.events(1)
                self.came += [time.monotonic() for one in found if one.data != b"[DONE]"]

    def before(self, at: float) -> int:
        """How many tokens had come by then."""
        return sum(1 for came in self.came if came <= at)

    async def goes_on(self) -> None:
        """Until checkpoints behind its first ten tokens must be on the ledger."""
        end = time.monotonic() + TICK_SECONDS + SLACK_SECONDS
        await people.until(lambda: time.monotonic() > end and len(self.came) > 10)

    async def broken_off(self) -> None:
        """Its server is gone, and it has read all there was."""
        async with asyncio.timeout(20):
            await self._reading
        assert not self.client.complete
        await self.client.close()

    async def leave(self) -> None:
        """Go away, or be gone."""
        self.client.leave()
        await self._reading
        await self.client.close()


async def reading(gate: GateProcess, key: str, label: str) -> Reader:
    """A stream that goes on and on."""
    client = await people.held(gate, key, f"{PACED}&label={label}")
    worker = gate.process.pid
    if gate.environment.get("WEB_CONCURRENCY") == "2":
        worker = await asyncio.to_thread(people.worker_of, gate, client._writer.get_extra_info("sockname")[1])
    return Reader(client, label, worker)


async def on_each_worker(gate: GateProcess, key: str, label: str) -> list[Reader]:
    """Streams until each of two workers has one; the last is the only one of its worker."""
    readers: list[Reader] = []
    while len({one.worker for one in readers}) < 2:
        assert len(readers) < 40, "one worker gets all connections"
        readers.append(await reading(gate, key, f"{label}-{len(readers)}"))
    return readers


def is_lost(event: dict[str, Any], reader: Reader, died: float, sent: object) -> None:
    """What the event of a dead worker's stream says: at most one checkpoint's interval less than came."""
    said = [event[name] for name in ("ended", "cause", "source", "certainty", "input_tokens")]
    assert said == ["lost", "worker_lost", "checkpoint", "at_least", 8]
    least = reader.before(died - TICK_SECONDS - SLACK_SECONDS)
    assert 0 < least <= event["output_tokens"] <= int(str(sent))


def is_exact(event: dict[str, Any], tokens: int) -> None:
    """What the event of a stream says that ended as if nothing had been."""
    said = [event[name] for name in ("ended", "source", "certainty", "output_tokens")]
    assert said == ["finished", "provider", "exact", tokens]


async def rest(client: WireClient) -> int:
    """How many tokens come until its `[DONE]`."""
    async with asyncio.timeout(30):
        lines = data_lines(await client.body())
    await client.close()
    assert lines[-1] == b"[DONE]"
    return len(lines) - 1


# --- a worker ---------------------------------------------------------------------------------------


async def test_the_stream_of_a_killed_worker_is_lost_with_what_was_counted(
    gate: GateProcess, scripted: ScriptedProcess, tmp_path: Path
) -> None:
    """Within the lease and a little (30 s with the default settings); the other worker's streams go on."""
    tenant, key = await asyncio.to_thread(gate.tenant)
    *others, reader = await on_each_worker(gate, key, tmp_path.name)
    await reader.goes_on()
    os.kill(reader.worker, signal.SIGKILL)
    died = time.monotonic()
    await reader.broken_off()
    [event] = await settled(gate, tenant, 1)
    is_lost(event, reader, died, scripted.stats(reader.label, live=0)["tokens_sent"])
    for other in others:
        await other.leave()
    events = await settled(gate, tenant, 1 + len(others))
    assert sorted(one["ended"] for one in events) == ["left"] * len(others) + ["lost"]
    assert (
        await asyncio.to_thread(people.call, gate, "GET", f"/admin/streams?tenant={tenant}", gate.admin) == []
    )


async def test_a_stopped_worker_corrects_what_it_was_taken_for(
    gate: GateProcess, scripted: ScriptedProcess, tmp_path: Path
) -> None:
    """SIGSTOP for longer than the lease: lost. SIGCONT: its stream ends well, and the sums are the truth."""
    tenant, key = await asyncio.to_thread(gate.tenant)
    label = tmp_path.name
    client = await people.held(gate, key, f"{PAUSED}&silence_ms=1500&label={label}")
    worker = await asyncio.to_thread(people.worker_of, gate, client._writer.get_extra_info("sockname")[1])
    path = f"/admin/streams?tenant={tenant}"

    def counted() -> bool:
        return [one["output_tokens"] for one in people.call(gate, "GET", path, gate.admin)] == [10]

    await people.until(counted)
    os.kill(worker, signal.SIGSTOP)
    try:
        [lost] = await settled(gate, tenant, 1)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert (lost["ended"], lost["output_tokens"]) == ("lost", 10)
    assert await rest(client) == 40
    events = await settled(gate, tenant, 2)
    assert events[0] == lost
    correction = events[1]
    assert (correction["id"], correction["corrects"]) == (f"{lost['id']}-1", lost["id"])
    is_exact(correction, 30)
    assert correction["cause"] == "late_worker"
    truth = scripted.stats(label, live=0)["tokens_sent"]
    assert sum(one["output_tokens"] for one in events) == truth == 40
    assert sum(one["input_tokens"] for one in events) == 8


async def test_a_gate_that_was_killed_finds_its_streams_when_it_is_back(
    scripted: ScriptedProcess, new_database: Callable[[str], str], tmp_path: Path
) -> None:
    """One worker on SQLite, SIGKILL, and a new one on the same directory: nobody has to do anything."""
    settings = environment(scripted, DATABASE_URL=new_database("sqlite"), LEASE_SECONDS="1.5")
    with gate_process(tmp_path, **settings) as gate:
        tenant, key = await asyncio.to_thread(gate.tenant)
        reader = await reading(gate, key, tmp_path.name)
        await reader.goes_on()
        await asyncio.to_thread(gate.stop, signal.SIGKILL)
        died = time.monotonic()
        await reader.broken_off()
    with gate_process(tmp_path, **settings) as gate:
        [event] = await settled(gate, tenant, 1)
    is_lost(event, reader, died, scripted.stats(reader.label, live=0)["tokens_sent"])


# --- the database -----------------------------------------------------------------------------------


async def test_a_stream_outlives_its_database(
    postgres: PostgresServer, scripted: ScriptedProcess, tmp_path: Path
) -> None:
    """Killed in mid-stream: the stream ends well, new ones are a 503; when it is back the event is exact."""
    label = tmp_path.name
    settings = settings_of(
        tmp_path, database_url=postgres.new_database(), openai_base_url=f"{scripted.url}/v1"
    )

    async def ask(model: str = people.SHORT) -> WireClient:
        client = await WireClient.post(app.url, "/chat/stream", people.plain(model), key=app.key)
        await client.head()
        return client

    async def welcome() -> bool:
        client = await ask()
        await client.close()
        return client.status == 200

    async with serving(settings) as app:
        client = await ask(f"{PAUSED}&silence_ms=1000&label={label}")
        await client.events(10)
        await asyncio.to_thread(postgres.kill)
        try:
            assert await rest(client) == 40
            refused = await ask()
            assert refused.status == 503
            await refused.close()
        finally:
            await asyncio.to_thread(postgres.start)
        await eventually(welcome)
        await app.settled()
        event = (await app.events())[0].flat()
        is_exact(event, int(str(scripted.stats(label, live=0)["tokens_sent"])))
        assert await app.gate.ledger.in_flight() == []
        assert [one.stat().st_size for one in settings.spool_dir.iterdir()] == [0]
    assert list(settings.spool_dir.iterdir()) == []


async def test_what_was_settled_in_an_outage_outlives_the_gate_too(
    postgres: PostgresServer, scripted: ScriptedProcess, tmp_path: Path
) -> None:
    """Database and gate are killed; a new gate on the same directory puts on the ledger what was on the disk.

    What had ended is exact; what was running is lost with its last checkpoint, which was on the disk as well.
    """
    settings = environment(scripted, DATABASE_URL=postgres.new_database(), LEASE_SECONDS="1.5")
    with gate_process(tmp_path, **settings) as gate:
        tenant, key = await asyncio.to_thread(gate.tenant)
        client = await people.held(gate, key, f"{PAUSED}&silence_ms=1000&label={tmp_path.name}")
        reader = await reading(gate, key, f"{tmp_path.name}-running")
        await asyncio.to_thread(postgres.kill)
        try:
            away_since = len(reader.came)
            assert await rest(client) == 40
            await reader.goes_on()
            await asyncio.to_thread(gate.stop, signal.SIGKILL)
            died = time.monotonic()
            await reader.broken_off()
        finally:
            await asyncio.to_thread(postgres.start)
    with gate_process(tmp_path, **settings) as gate:
        exact, lost = sorted(await settled(gate, tenant, 2), key=lambda one: str(one["ended"]))
    is_exact(exact, 40)
    is_lost(lost, reader, died, scripted.stats(reader.label, live=0)["tokens_sent"])
    assert lost["output_tokens"] > away_since, "it was counted while the database was away"
