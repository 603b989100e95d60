"""The door for passwords: it tells nothing, it is throttled, and no stream waits for those who knock.

One worker behind a trusted proxy on 127.0.0.1; whoever comes from another address of loopback is nobody's
proxy. Each test has addresses and accounts of its own, because both are counted. They are counted in memory:
where Redis counts, the one that is taken away has a gate of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from api.core.sse import HEARTBEAT
from tests.support.gates import SECRET_KEY, GateProcess, gate_process
from tests.support.servers import RedisServer, running
from tests.support.wire import WireClient, data_lines
from tests.wire import people
from tests.wire.people import call, error_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.support.servers import PostgresServer, ScriptedProcess

BOSS, PASSWORD = "boss@example.com", "correct horse battery staple"
PER_ADDRESS, PER_ACCOUNT = 10, 30
_addresses = itertools.count(1)


def proxied(
    directory: Path, scripted: ScriptedProcess, **changes: str
) -> AbstractContextManager[GateProcess]:
    """A gate behind the proxy."""
    return gate_process(
        directory,
        OPENAI_BASE_URL=f"{scripted.url}/v1",
        SECRET_KEY=SECRET_KEY,
        ADMIN_EMAIL=BOSS,
        ADMIN_PASSWORD=PASSWORD,
        TRUSTED_PROXIES="127.0.0.1",
        TICK_SECONDS="0.1",
        HEARTBEAT_SECONDS="0.1",
        DRAIN_SECONDS="1",
        **changes,
    )


@pytest.fixture(scope="module")
def gate(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, scripted: ScriptedProcess
) -> Iterator[GateProcess]:
    """One worker."""
    with proxied(
        tmp_path_factory.mktemp("gate"), scripted, DATABASE_URL=postgres_server.new_database()
    ) as process:
        yield process


def address() -> str:
    """One that nobody has called from."""
    number = next(_addresses)
    return f"10.77.{number // 256}.{number % 256}"


def log_in(gate: GateProcess, forwarded_for: str, email: str = BOSS, password: str = "wrong") -> Any:
    """A sign-in, by way of the proxy."""
    body = {"email": email, "password": password}
    return gate.http("POST", "/auth/login", json=body, headers={"x-forwarded-for": forwarded_for})


def is_throttled(answer: httpx2.Response) -> bool:
    """Whether it is refused for the number of attempts; then it says when to come back."""
    if answer.status_code != 429:
        return False
    assert error_of(answer) == (429, "rate_limit_exceeded")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    return True


def test_a_password_buys_a_token_of_an_admin(gate: GateProcess) -> None:
    """However the address is written, the token opens the admins' routes and no tenant's."""
    for email in (BOSS, BOSS.upper()):
        answer = log_in(gate, address(), email, PASSWORD)
        token = answer.json()["access_token"]
        assert (answer.status_code, answer.json()["token_type"]) == (200, "Bearer")
        assert call(gate, "GET", "/admin/tenants", token) is not None
        for method, path in (("GET", "/v1/models"), ("GET", "/v1/keys"), ("POST", "/auth/tokens")):
            assert error_of(gate.http(method, path, token)) == (403, "insufficient_scope")


def test_an_unknown_account_is_answered_as_a_wrong_password(gate: GateProcess) -> None:
    """Status, headers and body are the same: nobody learns who may sign in."""

    def seen(email: str) -> tuple[Any, ...]:
        answer = log_in(gate, address(), email)
        passing = {"x-request-id", "date"}
        return (
            answer.status_code,
            answer.text,
            {name: value for name, value in answer.headers.items() if name not in passing},
        )

    wrong, unknown = seen(BOSS), seen("nobody@example.com")
    assert wrong == unknown
    assert wrong[0] == 401
    assert json.loads(wrong[1])["error"]["code"] == "invalid_api_key"


def test_an_address_has_ten_attempts_in_a_minute(gate: GateProcess) -> None:
    """The next is a 429, with the right password too; another address is not concerned."""
    here, there = address(), address()
    answers = [log_in(gate, here, f"a{number}@example.com") for number in range(PER_ADDRESS)]
    assert [answer.status_code for answer in answers] == [401] * PER_ADDRESS
    assert is_throttled(log_in(gate, here, BOSS, PASSWORD))
    assert log_in(gate, there, BOSS, PASSWORD).status_code == 200


def test_a_network_of_one_customer_is_one_address(gate: GateProcess) -> None:
    """In IPv6 that is a /64: who has one has 2^64 addresses, and still ten attempts."""
    answers = [log_in(gate, f"2001:db8:7:7::{number}", f"v{number}@example.com") for number in range(1, 12)]
    assert [is_throttled(answer) for answer in answers] == [False] * PER_ADDRESS + [True]
    assert log_in(gate, "2001:db8:7:8::1", BOSS, PASSWORD).status_code == 200


def test_an_account_has_thirty_attempts_in_a_minute_from_everywhere(gate: GateProcess) -> None:
    """A password is not guessed from many addresses either; other accounts are not concerned."""
    email = "target@example.com"
    spellings = itertools.cycle((email, email.upper()))
    answers = [log_in(gate, address(), next(spellings)) for _ in range(PER_ACCOUNT)]
    assert [answer.status_code for answer in answers] == [401] * PER_ACCOUNT
    assert is_throttled(log_in(gate, address(), email))
    assert log_in(gate, address(), BOSS, PASSWORD).status_code == 200


def test_only_the_proxy_is_believed(gate: GateProcess) -> None:
    """Who is not the proxy, or writes ahead of it, cannot make itself another: its attempts are one's."""
    here = address()
    answers = [log_in(gate, f"{address()}, {here}", f"b{number}@example.com") for number in range(11)]
    assert [is_throttled(answer) for answer in answers] == [False] * PER_ADDRESS + [True]
    transport = httpx2.HTTPTransport(local_address="127.0.0.9")
    with httpx2.Client(base_url=gate.url, transport=transport, timeout=30) as direct:
        answers = [
            direct.post(
                "/auth/login",
                json={"email": f"c{number}@example.com", "password": "wrong"},
                headers={"x-forwarded-for": address()},
            )
            for number in range(11)
        ]
    assert [is_throttled(answer) for answer in answers] == [False] * PER_ADDRESS + [True]
    [entry] = _audit(gate, "login.refused", "user:c0@example.com")
    assert entry["address"] == "127.0.0.9"


def _audit(gate: GateProcess, action: str, actor: str) -> list[dict[str, Any]]:
    page = call(gate, "GET", "/admin/audit", gate.admin, params={"action": action, "actor": actor})
    return list(page["data"])


def test_every_attempt_is_in_the_audit_log(gate: GateProcess) -> None:
    """Who, from which address, by which request, and whether it was the password; never what was typed."""
    here, email = address(), "typed@example.com"
    refused = log_in(gate, here, email.upper(), "my dog's name")
    [entry] = _audit(gate, "login.refused", f"user:{email}")
    assert (entry["address"], entry["target"]) == (here, email)
    assert entry["request_id"] == refused.headers["x-request-id"]
    fine = log_in(gate, here, BOSS, PASSWORD)
    [*_, entry] = [e for e in _audit(gate, "login.ok", f"user:{BOSS}") if e["address"] == here]
    assert entry["request_id"] == fine.headers["x-request-id"]
    whole = gate.http("GET", "/admin/audit?limit=1000", gate.admin).text
    assert "my dog" not in whole
    assert PASSWORD not in whole
    assert fine.json()["access_token"][-20:] not in whole


async def test_nobody_waits_for_a_hundred_sign_ins(gate: GateProcess) -> None:
    """A stream's tokens all come, in order, and its end before the last of them; others are answered, too.

    How quickly depends on the machine; that three times as many small requests are answered before the last
    sign-in does not: on the event loop each password would hold up all of them.
    """
    tenant, key = await asyncio.to_thread(gate.tenant, 1)
    tokens, crowd, others = 120, 100, 300
    stream = people.plain(f"scripted?tokens={tokens}&pace_ms=5")
    client = await WireClient.post(gate.url, "/chat/stream", stream, key=key)
    await client.events(10)
    order: list[str] = []

    async def knock(http: httpx2.AsyncClient, number: int) -> None:
        body = {"email": f"crowd{number}@example.com", "password": "wrong"}
        answer = await http.post("/auth/login", json=body, headers={"x-forwarded-for": address()})
        assert answer.status_code == 401
        order.append("sign-in")

    async def pass_by(http: httpx2.AsyncClient) -> None:
        for _ in range(others):
            assert (await http.get("/healthz")).status_code == 200
        order.append("others")

    async def read() -> list[bytes]:
        lines = data_lines(await client.body())
        order.append("stream")
        return lines

    limits = httpx2.Limits(max_connections=crowd + 1)
    async with httpx2.AsyncClient(base_url=gate.url, limits=limits, trust_env=False, timeout=60) as http:
        knocking = (knock(http, number) for number in range(crowd))
        lines, *_ = await asyncio.gather(read(), pass_by(http), *knocking)
    await client.close()
    assert order.count("sign-in") == crowd
    assert "sign-in" in order[order.index("stream") :]
    assert "sign-in" in order[order.index("others") :]
    assert (len(lines), lines[-1]) == (tokens + 1, b"[DONE]")
    words = "".join(json.loads(line)["token"] for line in lines[:-1]).split()
    assert words[:6] == ["water", "finds", "its", "way", "down", "the"]
    assert len(words) == tokens
    [event] = await people.ledger_events(gate, tenant)
    assert (event["ended"], event["output_tokens"]) == ("finished", tokens)


async def test_without_redis_admins_get_in_and_streams_go_on(
    tmp_path: Path, scripted: ScriptedProcess
) -> None:
    """The worker counts attempts by itself, still ten; meanwhile a silent stream gets its heartbeats."""
    with running(RedisServer()) as redis:
        redis.start()
        with proxied(tmp_path, scripted, REDIS_URL=redis.url) as gate:
            _, key = await asyncio.to_thread(gate.tenant, 1)
            here, there = address(), address()
            assert await asyncio.to_thread(ten_times, gate, here)
            client = await people.held(gate, key)
            beats = asyncio.create_task(_beats(client))
            redis.stop()
            assert await asyncio.to_thread(ten_times, gate, there)
            before = client.raw.count(HEARTBEAT)
            await people.until(lambda: client.raw.count(HEARTBEAT) > before + 5)
            beats.cancel()
            await asyncio.wait([beats])
            client.leave()
            await client.close()
            await people.until(lambda: call(gate, "GET", "/v1/usage", key)["output_tokens"] == 10)


def ten_times(gate: GateProcess, forwarded_for: str) -> bool:
    """Whether ten sign-ins get in from there, and the next one is one too many."""
    answers = [log_in(gate, forwarded_for, BOSS, PASSWORD) for _ in range(PER_ADDRESS + 1)]
    fine = [answer.status_code for answer in answers[:-1]] == [200] * PER_ADDRESS
    return fine and is_throttled(answers[-1])


async def _beats(client: WireClient) -> None:
    """Read on; nothing that has data comes."""
    await client.events(1)
