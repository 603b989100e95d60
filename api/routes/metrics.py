"""For Prometheus: what all workers of this host have counted, whichever of them answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from api.core.numbers import METRICS
from api.deps import GateDep
from api.flow.numbers import all_numbers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from api.core.numbers import Histogram, Totals

router = APIRouter(tags=["operations"])
PREFIX = "sluicegate_"


class _Families:
    """Numbers, as prometheus_client wants them."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        """Each of METRICS, also those that nothing was counted of yet."""
        for name, (kind, text, labels, _) in METRICS.items():
            if kind == "histogram":
                histogram = HistogramMetricFamily(PREFIX + name, text, labels=labels)
                for (family, values), one in self._totals.histograms.items():
                    if family == name:
                        histogram.add_metric(values, _buckets(one), one.total)
                yield histogram
                continue
            shown = (CounterMetricFamily if kind == "counter" else GaugeMetricFamily)(
                PREFIX + name, text, labels=labels
            )
            for (family, values), value in self._totals.values.items():
                if family == name:
                    shown.add_metric(values, value)
            yield shown


def _buckets(one: Histogram) -> list[tuple[str, float]]:
    found, sum_ = [], 0
    for bound, count in zip((*map(str, one.bounds), "+Inf"), one.counts, strict=True):
        sum_ += count
        found.append((bound, float(sum_)))
    return found


@router.get("/metrics", response_class=Response)
async def metrics(gate: GateDep) -> Response:
    """In Prometheus' text format; nothing of tenants, keys or what was said."""
    registry = CollectorRegistry()
    registry.register(_Families(await all_numbers(gate)))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
