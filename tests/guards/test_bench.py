"""Benchmarks and proofs run; what they measure is for people to read, and nothing here asserts a time."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

from scripts.benchmarks import admission, auth, failover, flood, gate, usage
from scripts.load import Line, request_bytes
from scripts.proofs import caps, leaving, streams
from tests.support.servers import ROOT

COMMANDS = {
    "bench": sorted(path.stem for path in (ROOT / "scripts/benchmarks").glob("*.py")),
    "prove": ["caps", "leaving", "streams"],
}
MAINS = {
    "admission": admission,
    "auth": auth,
    "caps": caps,
    "failover": failover,
    "flood": flood,
    "gate": gate,
    "leaving": leaving,
    "streams": streams,
    "usage": usage,
}


async def test_warm_authentication_asks_nobody() -> None:
    """A credential that was seen before costs no look-up, whatever its kind; each has a row."""
    rows = await auth.measure(rounds=1, count=40)
    warm = {name: row["lookups"] for name, row in rows.items() if name.endswith("warm")}
    assert len(warm) == 4
    assert set(warm.values()) == {0}
    assert all(row["median_us"] >= 0 for row in rows.values())


async def test_admission_is_one_call_of_redis_for_each_question() -> None:
    """A stream asks Redis twice, a refusal once, a tick once for each tenant, whatever the limits are."""
    tables = await admission.measure(rounds=1, count=4, streams=40)
    assert set(tables) == {"redis", "memory"}
    assert set(tables["redis"]) == set(tables["memory"])
    calls = {name: row["calls"] for name, row in tables["redis"].items()}
    assert {calls[name] for name in ("caps", "caps, rates", "caps, rates, 4 budgets")} == {2}
    assert calls["a refusal"] == 1
    assert {count for name, count in calls.items() if name.startswith("renew")} == {21}


async def test_answers_about_usage_are_measured_with_all_that_they_add_up() -> None:
    """Roll-ups of every event, some of which wait; each question has a row, and the events themselves."""
    found = await usage.measure(events=3000, rounds=1, users=50, tenants=3, days=1)
    assert found["made"]["rows of day"] > 0
    assert set(found["rows"]) > {*usage.questions("UTC"), "the events summed up, the yardstick"}
    assert all(row["median_ms"] > 0 for row in found["rows"].values())


@pytest.mark.parametrize("name", MAINS)
def test_each_says_what_it_measures(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --help, in its own words and without running anything."""
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        MAINS[name].main()
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "--json" in out
    assert f" {name} " in out


@pytest.mark.parametrize(
    ("script", "name"), [(script, name) for script in COMMANDS for name in COMMANDS[script]]
)
def test_each_has_its_command(script: str, name: str) -> None:
    """`scripts/bench` and `scripts/prove` name all that there are, and refuse what there is not."""
    command = str(ROOT / "scripts" / script)
    told = subprocess.run([command, "--help"], capture_output=True, text=True, check=True, cwd="/")
    assert name in told.stdout
    assert subprocess.run([command, "nothing"], capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize("words", [["--workers", "1"], ["--kills", "0"], ["--streams", "5"]])
def test_a_proof_that_proves_nothing_is_refused(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is killed, or nobody is left to go on: that is no fire."""
    monkeypatch.setattr(sys, "argv", ["caps", *words])
    with pytest.raises(SystemExit) as ended:
        caps.main()
    assert ended.value.code == 2


def answer_to(*packets: bytes) -> dict[str, object]:
    """What the load client makes of these."""

    class Told(asyncio.Transport):
        def write(self, data: bytes) -> None:
            assert json.loads(data.partition(b"\r\n\r\n")[2])["model"] == "scripted?label=a&tokens=2"

    async def ask() -> dict[str, object]:
        line = Line()
        line.connection_made(Told())
        line.send(request_bytes("http://gate:8000", "sg_key", label="a", tokens=2))
        for packet in packets:
            line.data_received(packet)
        line.connection_lost(None)
        answer = line.answer
        return {name: getattr(answer, name) for name in ("status", "tokens", "finished", "failed", "code")}

    return asyncio.run(ask())


STREAM = (
    b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n18\r\ndata: {"token":"water"}\n\n\r\n'
    b'17\r\ndata: {"token":" is"}\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n'
)
REFUSED = (
    b'HTTP/1.1 503 No\r\ncontent-length: 34\r\nretry-after: 1\r\n\r\n{"error":{"code":"gateway_full"}}  '
)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_the_load_client_tells_a_stream_from_a_refusal(step: int) -> None:
    """However the bytes are cut into packets, and where a stream breaks off."""

    def packets(data: bytes) -> list[bytes]:
        return [data[i : i + step] for i in range(0, len(data), step)]

    whole = {"status": 200, "tokens": 2, "finished": True, "failed": False, "code": ""}
    assert answer_to(*packets(STREAM)) == whole
    broken = answer_to(*packets(STREAM[:-20]))
    assert (broken["status"], broken["finished"]) == (200, False)
    refused = answer_to(*packets(REFUSED))
    assert (refused["status"], refused["code"]) == (503, "gateway_full")
    assert answer_to()["status"] == 0
