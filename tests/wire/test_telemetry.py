"""What operators see: /metrics over all workers, logs as JSON, spans and GenAI metrics at a collector."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx2
import psutil
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from api.core.numbers import METRICS
from tests.contracts.helpers import eventually
from tests.support.gates import GateProcess, gate_process
from tests.wire import people

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.servers import ScriptedProcess


def samples(gate: GateProcess) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What /metrics says."""
    text = gate.http("GET", "/metrics").text
    return {
        (sample.name.removeprefix("sluicegate_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(gate: GateProcess, name: str, **labels: str) -> float:
    """The sum of a metric over all labels that are not named."""
    return sum(
        value
        for (found, having), value in samples(gate).items()
        if found == name and labels.items() <= dict(having).items()
    )


async def test_whichever_worker_answers_tells_of_all(two_more: GateProcess) -> None:
    """Two workers: every stream and each of its tokens is counted once, a refusal under its limit's name."""
    gate = two_more
    await eventually(lambda: asyncio.to_thread(lambda: total(gate, "workers") == 2))
    tenant, key = gate.tenant(max_streams=1)
    for _ in range(6):  # on both
        assert people.chat(gate, key).status_code == 200
    client = await people.held(gate, key)
    assert (await asyncio.to_thread(people.chat, gate, key)).status_code == 429
    await eventually(lambda: asyncio.to_thread(lambda: total(gate, "open_streams") >= 1))
    await people.leave([client])
    await people.settled(gate, tenant, 7)
    usage = people.call(gate, "GET", "/v1/usage", key)
    tokens = usage["input_tokens"] + usage["output_tokens"]

    async def complete() -> bool:
        def seen() -> bool:
            return (
                total(gate, "tokens_total") == tokens
                and total(gate, "refusals_total", limit="max_streams", of="tenant") == 1
                and total(gate, "first_token_seconds_count") == 7
            )

        return all([await asyncio.to_thread(seen) for _ in range(4)])  # whichever is asked

    await eventually(complete)


def test_every_family_is_there_and_names_no_tenant(gate: GateProcess) -> None:
    """Prometheus' own parser reads them; labels are those of the list, so their number is bounded."""
    tenant, key = gate.tenant()
    people.chat(gate, key)
    text = gate.http("GET", "/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {f"sluicegate_{name}" for name in METRICS} == set(families)
    for name, metric in METRICS.items():
        for sample in families[f"sluicegate_{name}"].samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)
    assert tenant not in text
    assert key not in text


async def test_what_a_killed_worker_counted_is_not_lost(tmp_path: Path, two_more: GateProcess) -> None:
    """Its counters stay in the sums; it is no longer among the workers that live."""
    gate = two_more
    await eventually(lambda: asyncio.to_thread(lambda: total(gate, "workers") == 2))
    _, key = gate.tenant()
    for _ in range(6):
        people.chat(gate, key)
    await eventually(lambda: asyncio.to_thread(lambda: written(gate) == 6))
    victim = next(
        child
        for child in psutil.Process(gate.process.pid).children()
        if "spawn_main" in " ".join(child.cmdline())
    )
    victim.send_signal(signal.SIGKILL)
    await eventually(lambda: asyncio.to_thread(lambda: not victim.is_running()))

    async def back() -> bool:
        try:
            return await asyncio.to_thread(lambda: total(gate, "workers") == 2)
        except httpx2.TransportError:  # the connection was the dead one's
            return False

    await eventually(back)
    assert total(gate, "bookings_ended_total") >= 6


def written(gate: GateProcess) -> float:
    """The bookings that ended, as both workers have told each other; what was not told dies with a worker."""
    found = 0.0
    for path in (gate.directory / "data" / "metrics").glob("*/*.json"):
        values = json.loads(path.read_bytes())["values"]
        found += sum(value for name, _, value in values if name == "bookings_ended")
    return found


@pytest.fixture
def two_more(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: Any, scripted: ScriptedProcess
) -> Iterator[GateProcess]:
    """Two workers of which one may be killed."""
    from tests.wire.conftest import two_workers

    with two_workers(tmp_path_factory.mktemp("killed"), postgres_server, scripted) as process:
        yield process


class Collector:
    """An OpenTelemetry collector's HTTP side, which keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.metrics: dict[str, Any] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces":
                    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                        collector.spans += [span for scope in resource.scope_spans for span in scope.spans]
                else:
                    for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                        for scope in resource.scope_metrics:
                            collector.metrics |= {metric.name: metric for metric in scope.metrics}
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    """It listens."""
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


def plainly(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def test_spans_and_genai_metrics_reach_a_collector(
    tmp_path: Path, collector: Collector, scripted: ScriptedProcess
) -> None:
    """A span under the caller's own, by the GenAI conventions, with what the ledger says and no content."""
    trace_id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    with gate_process(
        tmp_path / "otel",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_BSP_SCHEDULE_DELAY="50",
        OPENAI_BASE_URL=f"{scripted.url}/v1",
    ) as gate:
        _, key = gate.tenant()
        body = people.plain("scripted?tokens=5&pace_ms=0", prompt="a secret of mine")
        headers = {"traceparent": f"00-{trace_id}-{parent}-01"}
        assert gate.http("POST", "/chat/stream", key, json=body, headers=headers).status_code == 200
        assert (
            gate.http("POST", "/chat/stream", key, json=people.plain("scripted?status=500")).status_code
            == 502
        )
        [event, failed] = people.call(gate, "GET", "/v1/usage/events", key)["data"]
        assert gate.stop() == 0
    good, bad = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    assert (good.trace_id.hex(), good.parent_span_id.hex()) == (trace_id, parent)
    said = plainly(good.attributes)
    assert (said["gen_ai.operation.name"], said["gen_ai.provider.name"]) == ("chat", event["upstream"])
    assert said["gen_ai.usage.output_tokens"] == event["output_tokens"] == 5
    assert said["gen_ai.usage.input_tokens"] == event["input_tokens"]
    assert said["sluicegate.request.id"] == event["request_id"]
    assert plainly(bad.attributes)["error.type"] == failed["cause"] == "upstream_refused"
    assert "secret of mine" not in str(collector.spans)
    assert {
        "gen_ai.client.token.usage",
        "gen_ai.client.operation.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
    } == set(collector.metrics)
    points = collector.metrics["gen_ai.server.time_to_first_token"].histogram.data_points
    assert sum(point.count for point in points) == 1


def test_logs_are_json_with_the_id_of_the_request(tmp_path: Path, scripted: ScriptedProcess) -> None:
    """Each line is an object with a time, a level and a logger; what belongs to a request says to which."""
    with gate_process(tmp_path / "logs", OPENAI_BASE_URL=f"{scripted.url}/v1") as gate:
        _, key = gate.tenant()
        body = people.plain("scripted?status=500", prompt="a secret of mine")
        gate.http("POST", "/chat/stream", key, json=body, headers={"x-request-id": "req-seen"})
        password = gate.facts["admin_password"]
        assert gate.stop() == 0
        log = gate.log
    lines = [json.loads(line) for line in log.splitlines()]
    assert all({"event", "level", "logger", "timestamp"} <= set(line) for line in lines)
    assert any(line.get("request_id") == "req-seen" for line in lines)
    for secret in ("a secret of mine", key, password):
        assert secret not in log
