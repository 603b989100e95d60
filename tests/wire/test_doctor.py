"""`sluicegate doctor`: finds what is wrong, says how to mend it, and tells no secret."""

from __future__ import annotations

import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.gates import SECRET_KEY, GateProcess, gate_process
from tests.support.servers import RedisServer, running
from tests.wire.commands import sluicegate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.servers import PostgresServer, ScriptedProcess


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """One of the test's own, which may be set up badly."""
    with running(RedisServer()) as server:
        server.start()
        yield server


@pytest.fixture
def production(
    office: Path,
    monkeypatch: pytest.MonkeyPatch,
    postgres_server: PostgresServer,
    redis: RedisServer,
    scripted: ScriptedProcess,
) -> pytest.MonkeyPatch:
    """Settings under which all is well."""
    settings = {
        "SECRET_KEY": SECRET_KEY,
        "DATABASE_URL": postgres_server.new_database(),
        "REDIS_URL": redis.url,
        "REDIS_TIMEOUT_SECONDS": "5",
        "OPENAI_BASE_URL": f"{scripted.url}/v1",
        "OPENAI_API_KEY": "sk-a-secret-of-ours",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def found(*options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status, and what was found by name."""
    done = sluicegate("doctor", *options, "--json")
    assert "sk-a-secret-of-ours" not in done.out + done.err
    assert SECRET_KEY not in done.out + done.err
    return done.status, {finding["name"]: finding for finding in json.loads(done.out)}


def test_a_healthy_production_passes(production: pytest.MonkeyPatch) -> None:
    """Database, Redis, their clocks and the provider are looked at; nothing is to be mended."""
    status, findings = found()
    assert status == 0
    assert {"settings", "database", "clock of database", "migrations", "redis", "clock of redis"} | {
        "upstream openai"
    } == set(findings)
    assert {finding["state"] for finding in findings.values()} <= {"ok", "warn"}  # a busy machine may be slow


@pytest.mark.parametrize(
    ("setting", "value", "name", "mend"),
    [
        ("DATABASE_URL", "postgresql://nobody:pw@127.0.0.1:1/none", "database", "DATABASE_URL"),
        ("REDIS_URL", "redis://127.0.0.1:1/0", "redis", "REDIS_URL"),
        ("OPENAI_BASE_URL", "http://127.0.0.1:1/v1", "upstream openai", "base URL"),
        ("AUTO_MIGRATE", "false", "migrations", "sluicegate migrate"),
    ],
)
def test_what_fails_is_named_and_the_rest_is_looked_at(
    production: pytest.MonkeyPatch, setting: str, value: str, name: str, mend: str
) -> None:
    """One fault: exit status 1, one failure, and what to do about it."""
    production.setenv(setting, value)
    status, findings = found()
    failed = [finding for finding in findings.values() if finding["state"] == "fail"]
    assert (status, [finding["name"] for finding in failed]) == (1, [name])
    assert mend in failed[0]["mend"]
    assert len(findings) >= 5


def test_a_redis_that_may_evict_is_a_failure(production: pytest.MonkeyPatch, redis: RedisServer) -> None:
    """An evicted counter lets a tenant over its cap."""
    redis.client().config_set("maxmemory-policy", "allkeys-lru")
    status, findings = found()
    assert (status, findings["redis memory"]["state"]) == (1, "fail")
    assert "noeviction" in findings["redis memory"]["mend"]


def test_the_demo_is_fine_and_says_what_comes_next(office: Path) -> None:
    """Without any setting: no failure, a warning with the settings to set, as text."""
    done = sluicegate("doctor")
    assert done.status == 0
    assert "warn  settings" in done.out
    assert "Set SECRET_KEY" in done.out
    assert "ok    upstream scripted" in done.out


@pytest.fixture
def behind_a_buffer(tmp_path: Path) -> Iterator[tuple[GateProcess, str]]:
    """A gate, and the URL of a proxy that passes answers on once they are whole."""
    with gate_process(tmp_path / "gate") as gate:

        class Proxy(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with urllib.request.urlopen(f"{gate.url}{self.path}") as answer:
                    body = answer.read()
                    self.send_response(200)
                    self.send_header("content-type", answer.headers["content-type"])
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield gate, f"http://127.0.0.1:{proxy.server_port}"
        proxy.shutdown()
        proxy.server_close()


def test_a_proxy_that_holds_streams_back_is_found(
    office: Path, behind_a_buffer: tuple[GateProcess, str], scripted: ScriptedProcess
) -> None:
    """Straight to the gate events arrive as they are sent; behind the buffer they come at once."""
    gate, proxy = behind_a_buffer
    assert found("--url", gate.url)[1]["proxy"]["state"] == "ok"
    status, findings = found("--url", proxy)
    assert (status, findings["proxy"]["state"]) == (1, "fail")
    assert "proxy_buffering off" in findings["proxy"]["mend"]
    for wrong in (scripted.url, "http://127.0.0.1:1", "llm.example.com"):
        assert found("--url", wrong)[1]["proxy"]["state"] == "fail"
