"""What it costs a request that its first upstream fails: time to the first token, beside one whose does not.

Each request has an upstream of its own that fails, so that no breaker learns of it: one that refuses
connections, one that takes a connection and says nothing (`first_token_seconds`), one that answers with 500.
The second upstream is the scripted model, and so is the only one of the requests that they are compared with.
Each is a whole request over HTTP to a gate as shipped; the requests of all kinds take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx2

from scripts.stage import gate_on, servers, stop_on_sigterm
from tests.support.servers import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scripts.stage import Stage
    from tests.support.gates import GateProcess

_SILENCE_SECONDS = 0.1
_KINDS = ("direct", "refused", "silent", "status 500")
_MODEL = "scripted?pace_ms=0&tokens=1"


@contextmanager
def _mute() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        yield int(listener.getsockname()[1])


def _prepare(gate: GateProcess, stage: Stage, mute: int, requests: int) -> None:
    """A model and a failing upstream for each request."""
    live = {"kind": "openai", "base_url": f"{stage.upstream.url}/v1"}
    bases = {"refused": f"http://127.0.0.1:{free_port()}/v1", "silent": f"http://127.0.0.1:{mute}/v1"}
    upstreams: dict[str, Any] = {"live": live}
    models: list[dict[str, Any]] = []
    last = {"upstream": "live", "model": _MODEL, "order": 1}
    for number in range(requests):
        for kind in _KINDS:
            name, targets = f"{kind}-{number}".replace(" ", "-"), [last]
            if kind in bases:
                upstreams[name] = {"kind": "openai", "base_url": bases[kind]}
                targets = [{"upstream": name}, last]
            elif kind != "direct":
                upstreams[name] = live
                targets = [{"upstream": name, "model": "scripted?status=500"}, last]
            seconds = {"first_token_seconds": _SILENCE_SECONDS} if kind == "silent" else {}
            models.append({"name": name, "targets": targets, **seconds})
    said = {"upstreams": upstreams, "models": models}
    gate.http("POST", "/admin/models/import", gate.admin, json=said).raise_for_status()


async def _first_token_ms(client: httpx2.AsyncClient, model: str) -> float:
    """Raises SystemExit where the request fails."""
    asked = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    begun = time.perf_counter()
    async with client.stream("POST", "/v1/chat/completions", json=asked) as answer:
        if answer.status_code != httpx2.codes.OK:
            raise SystemExit(f"{model} was answered with {answer.status_code}")
        async for line in answer.aiter_lines():
            if '"content":"w' in line:
                took = 1000 * (time.perf_counter() - begun)
    return took


async def _measure(gate: GateProcess, key: str, requests: int) -> dict[str, list[float]]:
    took: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    headers = {"authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(base_url=gate.url, headers=headers, trust_env=False, timeout=30) as client:
        for number in range(requests):
            for kind in _KINDS:
                took[kind].append(await _first_token_ms(client, f"{kind}-{number}".replace(" ", "-")))
    return took


def measure(requests: int) -> dict[str, Any]:
    """Medians and spreads in milliseconds, and what each kind of failure adds."""
    with servers("postgresql") as stage, _mute() as mute, gate_on(stage, 1) as gate:
        _, key = gate.tenant()
        _prepare(gate, stage, mute, requests)
        took = asyncio.run(_measure(gate, key, requests))
    direct = statistics.median(took["direct"])
    return {
        kind: {
            "median_ms": statistics.median(times),
            "least_ms": min(times),
            "most_ms": max(times),
            "added_ms": statistics.median(times) - direct,
        }
        for kind, times in took.items()
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/bench failover", description=__doc__)
    parser.add_argument("--requests", type=int, default=100, help="of each kind")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    stop_on_sigterm()
    rows = measure(asked.requests)
    if asked.json:
        print(json.dumps(rows))
        return
    print(f"{'ms to the first token':24}{'median':>8}{'least':>8}{'most':>8}{'added':>8}")
    for kind, row in rows.items():
        print(f"{kind:24}" + "".join(f"{row[name]:8.1f}" for name in row))
    print(f"silent ones are given {1000 * _SILENCE_SECONDS:.0f} ms")


if __name__ == "__main__":
    main()
