"""What a newcomer does: the README's first screen, word for word."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.gates import gate_process, run_cli
from tests.support.servers import ROOT, free_port
from tests.support.wire import data_lines

if TYPE_CHECKING:
    from pathlib import Path


def serve(directory: Path) -> subprocess.Popen[str]:
    """`./scripts/serve` without any settings but where to keep its data, and a free port."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "PORT": "0",
        "DATA_DIR": str(directory),
    }
    return subprocess.Popen(
        [ROOT / "scripts" / "serve"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def banner(process: subprocess.Popen[str]) -> str:
    """What it prints before it serves."""
    assert process.stdout is not None
    lines = []
    while "Ctrl+C" not in (line := process.stdout.readline()):
        assert line, "it ended"
        lines.append(line)
    return "".join(lines)


def stop(process: subprocess.Popen[str]) -> None:
    """Ctrl+C."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(20)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def curl_of(text: str) -> str:
    """The command to paste."""
    found = re.search(r"^curl .*?\\\n.*$", text, re.MULTILINE)
    assert found
    return found.group(0)


def test_the_printed_curl_line_streams_and_survives_a_restart(tmp_path: Path) -> None:
    """The banner has the URL, the sign-in and a curl line that streams; a second start keeps the same key."""
    first = serve(tmp_path)
    try:
        text = banner(first)
        assert re.search(r"http://127\.0\.0\.1:\d+", text)
        assert re.search(r"Admin sign-in +\S+@\S+ +password \S+", text)
        pasted = subprocess.run(curl_of(text), shell=True, capture_output=True, check=True)
        lines = data_lines(pasted.stdout)
        assert lines[-1] == b"[DONE]"
        assert all(set(json.loads(line)) == {"token"} for line in lines[:-1])
    finally:
        stop(first)
    second = serve(tmp_path)
    try:
        again = banner(second)
        key = re.search(r"sg_\w+", text)
        assert key
        assert key.group(0) in again
    finally:
        stop(second)
    assert (tmp_path / "demo.json").stat().st_mode & 0o077 == 0


def test_a_demo_does_not_listen_to_the_world(tmp_path: Path) -> None:
    """Without SECRET_KEY it refuses any address but loopback, and says what to do."""
    environment = {"PATH": os.environ["PATH"], "HOST": "0.0.0.0", "DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [ROOT / "scripts" / "serve"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "SECRET_KEY" in done.stderr


def test_several_workers_need_a_shared_redis(tmp_path: Path) -> None:
    """Two workers with `memory://` would grant the cap twice: refused at start."""
    environment = {"PATH": os.environ["PATH"], "WEB_CONCURRENCY": "2", "DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [ROOT / "scripts" / "serve"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "REDIS_URL" in done.stderr


def test_the_command_line_goes_from_nothing_to_usage(tmp_path: Path) -> None:
    """Tenant, key, a stream with that key, its usage, revoked, refused: all by the command line."""
    with gate_process(tmp_path) as gate:
        tenant = gate.cli("tenant", "create", "Acme", "--max-streams", "3")
        assert [t["id"] for t in gate.cli("tenant", "list") if t["name"] == "Acme"] == [tenant["id"]]
        key = gate.cli("key", "issue", tenant["id"], "--name", "web")
        body = {"prompt": "hi", "model": "scripted?tokens=5&pace_ms=0"}
        assert gate.http("POST", "/chat/stream", key["key"], json=body).status_code == 200
        used = gate.cli("usage", "--tenant", tenant["id"])
        assert (used["events"], used["input_tokens"], used["output_tokens"]) == (1, 8, 5)
        [event] = gate.cli("usage", "--tenant", tenant["id"], "--events")
        assert event["request_id"].startswith("req_")
        assert (event["ended"], event["source"], event["certainty"]) == ("finished", "provider", "exact")
        gate.cli("key", "revoke", key["id"])
        [listed] = gate.cli("key", "list", tenant["id"])
        assert listed["revoked_at"]
        assert key["key"] not in json.dumps(listed)
        while gate.http("POST", "/chat/stream", key["key"], json=body).status_code != 401:
            pass  # within a second: see test_bad_input
        assert key["key"] not in gate.log


@pytest.fixture
def bare(tmp_path: Path) -> Any:
    """The command line on an empty directory, without a server."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "DATA_DIR": str(tmp_path / "data")}
    return lambda *arguments: subprocess.run(
        [ROOT / ".venv" / "bin" / "sluicegate", *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_line_says_what_to_do_next(bare: Any) -> None:
    """Unknown ids end with status 1 and a sentence; wrong usage with 2; empty lists say how to fill them."""
    assert "tenant create" in bare("tenant", "list").stdout
    for arguments in (
        ("key", "issue", "tn_none"),
        ("key", "list", "tn_none"),
        ("key", "revoke", "none"),
        ("usage", "--tenant", "tn_none"),
    ):
        done = bare(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert bare("usage", "--interval", "week").returncode == 2
    assert bare("tenant", "create", "a\x1b[31mb").returncode == 2
    assert bare("check-config").returncode == 0
    assert bare("migrate").returncode == 0
    assert "Example" in bare("key", "issue", "--help").stdout


def test_secrets_are_not_shown_by_check_config(tmp_path: Path) -> None:
    """`check-config --json` masks what is secret, passwords in URLs too."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "OPENAI_API_KEY": "hunter2-key",
        "OPENAI_BASE_URL": "https://user:hunter2-base@host/v1",
        "REDIS_URL": "redis://:hunter2-redis@host/0",
        "DATABASE_URL": "postgresql://user:hunter2-db@host/db",
    }
    assert "hunter2" not in json.dumps(run_cli(environment, tmp_path, "check-config"))


def test_a_database_that_is_away_is_one_sentence(tmp_path: Path) -> None:
    """No traceback and no password; it says which settings to look at."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    environment["DATABASE_URL"] = f"postgresql://user:hunter2@127.0.0.1:{free_port()}/db"
    done = subprocess.run(
        [ROOT / ".venv" / "bin" / "sluicegate", "tenant", "list"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr
