"""P11: the official SDKs work by base_url alone: the newest major of each, and an older one of Python's.

Each probe in `tests/sdks` plays the same scenarios and prints what its application got. They go to a provider
that speaks the client's own dialect, and across to one that speaks the other, and must not be able to tell.
A heartbeat comes between any two events of the paced streams, and many in a silence.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.contracts.helpers import until
from tests.support.servers import ROOT
from tests.wire import people
from tests.wire.conftest import two_workers
from tests.wire.people import call, new_key, new_tenant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.gates import GateProcess
    from tests.support.servers import PostgresServer, ScriptedProcess

PROBES = ROOT / "tests" / "sdks"
OLDER = ROOT / ".venv" / "older-sdks"
NODES = sorted(PROBES.glob("node_modules/node-linux-*/bin/node"))

FIVE, THREE, FOUR = "water finds its way down", "water finds its", "water finds its way"
CALLS = [["weather", {"words": "water"}], ["weather", {"words": "finds"}]]
RESPONSE_EVENTS = [
    *(
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ),
    *["response.output_text.delta"] * 3,
    *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
    "response.completed",
]
OPENAI: dict[str, Any] = {
    "chat_whole": [FIVE, "stop", 5],
    "chat_stream": [FIVE, 5, 0],
    "chat_tools": [CALLS, "tool_calls"],
    "chat_structured": {"name": "Ada"},
    "chat_error": [5, "upstream_failed"],
    "chat_silences": FOUR,
    "chat_abort": 3,
    "chat_busy": [True, True, "water finds"],
    "no_such_model": [404, "model_not_found"],
    "responses_whole": [FIVE, "completed", 5],
    "responses_stream": [RESPONSE_EVENTS, True, THREE],
    "responses_tools": CALLS,
    "responses_error": "upstream_failed",
}
ANTHROPIC: dict[str, Any] = {
    "whole": [FIVE, "end_turn", 5],
    "tools": [CALLS, "tool_use"],
    "structured": {"name": "Ada"},
    "error": [5, "api_error", "upstream_failed"],
    "silences": FOUR,
    "abort": 3,
    "busy": [True, True, "water finds"],
    "no_such_model": [404, "not_found_error"],
    "wrong_key": ["authentication_error", True],
}
MESSAGE_EVENTS = [
    *("message_start", "content_block_start"),
    *["content_block_delta"] * 3,
    *("content_block_stop", "message_delta", "message_stop"),
]


def python(*more: str) -> list[str]:
    """This Python, with other packages before its own."""
    path = f"import sys; sys.path[:0] = {list(more)!r}; sys.argv = sys.argv[1:]; import runpy; "
    return [sys.executable, "-c", f"{path}runpy.run_path(sys.argv[0], run_name='__main__')"]


SDKS = {
    "openai-python": (python(), "probe_openai.py", 3),
    "openai-python, older": (python(str(OLDER)), "probe_openai.py", 2),
    "openai-node": ([str(NODES[0]) if NODES else "node"], "probe_openai.mjs", 7),
    "anthropic-python": (python(), "probe_anthropic.py", 2),
    "anthropic-python, older": (python(str(OLDER)), "probe_anthropic.py", 1),
    "anthropic-node": ([str(NODES[0]) if NODES else "node"], "probe_anthropic.mjs", 1),
}


@pytest.fixture(scope="module")
def gate(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer, scripted: ScriptedProcess
) -> Iterator[GateProcess]:
    """Two workers that beat all the time, with a provider of each kind."""
    with two_workers(
        tmp_path_factory.mktemp("gate"),
        postgres_server,
        scripted,
        ANTHROPIC_BASE_URL=scripted.url,
        TICK_SECONDS="0.03",
        HEARTBEAT_SECONDS="0.03",
    ) as process:
        yield process


@pytest.fixture
def tenant(gate: GateProcess, request: pytest.FixtureRequest) -> tuple[str, str]:
    """A tenant that may have one stream at a time, whose models are answered by that provider."""
    upstream = request.param
    tenant = new_tenant(gate, max_streams=1)
    model = {"name": "scripted*", "tenant_id": tenant, "targets": [{"upstream": upstream}]}
    key = str(new_key(gate, tenant)["key"])
    for name in ("scripted*", "known"):
        call(gate, "PUT", "/admin/models", gate.admin, json=model | {"name": name})

    def listed() -> bool:
        return all(call(gate, "GET", "/v1/models", key)["data"] for _ in range(10))

    until(listed, "both workers know the tenant's models")
    return tenant, key


def probe(sdk: str, gate: GateProcess, key: str) -> dict[str, Any]:
    """What an application on that SDK got."""
    command, script, _ = SDKS[sdk]
    asked = [*command, str(PROBES / script), gate.url, key]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=100, check=False, cwd=PROBES)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("tenant", ["openai", "anthropic"], indirect=True, ids=lambda name: f"on {name}")
@pytest.mark.parametrize("sdk", [name for name in SDKS if name.startswith("openai")])
def test_an_openai_client_works(sdk: str, gate: GateProcess, tenant: tuple[str, str]) -> None:
    """Whole, streamed, tools, schemas, errors, retries, silences: alike on either provider, and billed."""
    found = probe(sdk, gate, tenant[1])
    assert found.pop("major") == SDKS[sdk][2]
    assert found == OPENAI
    events = asyncio.run(people.settled(gate, tenant[0], len(OPENAI)))
    assert [event["ended"] for event in events].count("left") == 1
    assert [event["ended"] for event in events].count("failed") == 2
    assert {event["source"] for event in events if event["ended"] == "finished"} == {"provider"}


@pytest.mark.parametrize("tenant", ["openai", "anthropic"], indirect=True, ids=lambda name: f"on {name}")
@pytest.mark.parametrize("sdk", [name for name in SDKS if name.startswith("anthropic")])
def test_an_anthropic_client_works(sdk: str, gate: GateProcess, tenant: tuple[str, str]) -> None:
    """The same of messages."""
    found = probe(sdk, gate, tenant[1])
    assert found.pop("major") == SDKS[sdk][2]
    kinds, *rest = found.pop("stream")
    # The helper in Python adds an event of its own for each text.
    assert [kind for kind in kinds if kind != "text"] == MESSAGE_EVENTS
    assert rest == [THREE, "end_turn", 3]
    assert found == ANTHROPIC
    events = asyncio.run(people.settled(gate, tenant[0], len(ANTHROPIC)))
    assert [event["ended"] for event in events].count("left") == 1
    assert [event["ended"] for event in events].count("failed") == 1
    assert {event["source"] for event in events if event["ended"] == "finished"} == {"provider"}


def test_the_probes_play_all_that_is_expected() -> None:
    """A scenario that nobody plays would be one that nobody tests."""
    for script, expected in (("probe_openai", OPENAI), ("probe_anthropic", ANTHROPIC)):
        for ending in (".py", ".mjs"):
            text = Path(PROBES / f"{script}{ending}").read_text()
            assert all(f"async def {name}(" in text or f"async {name}(" in text for name in expected)
