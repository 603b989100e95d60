"""For Prometheus: how the upstreams of this worker stand; each worker has breakers of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

from api.core.breaker import Standing
from api.deps import GateDep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from api.flow.gate import Gate

router = APIRouter(tags=["operations"])


class _Now:
    """What is true when it is asked."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The families."""
        gate = self._gate
        standing = GaugeMetricFamily(
            "sluicegate_upstream_standing",
            "1 for how the breaker of an upstream stands: closed, open or half_open.",
            labels=["worker", "upstream", "standing"],
        )
        live = GaugeMetricFamily(
            "sluicegate_upstream_streams",
            "Answers of an upstream that are being read.",
            labels=["worker", "upstream"],
        )
        now, worker = gate.clock.monotonic(), gate.policy.worker
        for name, provider in gate.providers.all().items():
            stands = provider.breaker.standing(now)
            for one in Standing:
                standing.add_metric([worker, name, one.value], float(one is stands))
            live.add_metric([worker, name], provider.live)
        yield from (standing, live)


@router.get("/metrics", response_class=Response)
async def metrics(gate: GateDep) -> Response:
    """In Prometheus' text format, of the worker that answers."""
    registry = CollectorRegistry()
    registry.register(_Now(gate))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
