"""OpenTelemetry: a span for each booking, and the GenAI metrics, to where the standard OTEL settings say.

Names are those of OpenTelemetry's semantic conventions for generative AI. Of content nothing is said.
Everything is recorded once, at settlement; the SDK sends it from threads of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from api.core.booking import Ended

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

    from api.core.record import UsageEvent

_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
_OPERATIONS = {"openai_embeddings": "embeddings"}


class Traces:
    """One worker's. `endpoint` is OTLP over HTTP; the rest of OTEL_* the SDK reads itself."""

    def __init__(self, endpoint: str, service: str, worker: str) -> None:
        resource = Resource.create({"service.name": service, "service.instance.id": worker})
        base = endpoint.rstrip("/")
        self._spans = TracerProvider(resource=resource)
        self._spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{base}/v1/traces")))
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=f"{base}/v1/metrics"))
        views = [
            View(instrument_name=f"gen_ai.*{name}", aggregation=ExplicitBucketHistogramAggregation(bounds))
            for name, bounds in (("token.usage", _TOKENS), ("duration", _SECONDS), ("token", _SECONDS))
        ]
        self._meters = MeterProvider(metric_readers=[reader], resource=resource, views=views)
        self._tracer = self._spans.get_tracer("sluicegate")
        meter = self._meters.get_meter("sluicegate")
        self._tokens = meter.create_histogram("gen_ai.client.token.usage", "{token}")
        self._duration = meter.create_histogram("gen_ai.client.operation.duration", "s")
        self._first = meter.create_histogram("gen_ai.server.time_to_first_token", "s")
        self._each = meter.create_histogram("gen_ai.server.time_per_output_token", "s")
        self._context = TraceContextTextMapPropagator()

    def begin(
        self, asked: Mapping[str, str], operation: str, model: str, at: datetime
    ) -> tuple[Span, dict[str, str]]:
        """A span under the caller's, if it sent one, and the headers that tell the provider of it."""
        span = self._tracer.start_span(
            f"{_OPERATIONS.get(operation, 'chat')} {model}",
            context=self._context.extract(asked),
            kind=SpanKind.CLIENT,
            start_time=_nanoseconds(at),
        )
        headers: dict[str, str] = {}
        self._context.inject(headers, trace.set_span_in_context(span))
        return span, headers

    def end(self, span: Span, event: UsageEvent, *, first_token: bool) -> None:
        """What is known of it in the end."""
        booking, usage = event.booking, event.usage
        common: dict[str, AttributeValue] = {
            "gen_ai.operation.name": _OPERATIONS.get(booking.dialect, "chat"),
            "gen_ai.provider.name": booking.upstream,
            "gen_ai.request.model": booking.model,
        }
        if event.answered_model:
            common["gen_ai.response.model"] = event.answered_model
        failed = event.ended in {Ended.FAILED, Ended.CUT, Ended.LOST}
        if failed:
            common["error.type"] = event.cause.value
        seconds = event.duration_ms / 1000
        self._duration.record(seconds, common)
        self._tokens.record(usage.input_tokens, {**common, "gen_ai.token.type": "input"})
        self._tokens.record(usage.output_tokens, {**common, "gen_ai.token.type": "output"})
        if first_token and event.first_token_ms is not None:
            first = event.first_token_ms / 1000
            self._first.record(first, common)
            if usage.output_tokens > 1:
                self._each.record(max(0.0, (seconds - first) / (usage.output_tokens - 1)), common)
        span.set_attributes(
            {
                **common,
                "gen_ai.usage.input_tokens": usage.input_tokens,
                "gen_ai.usage.output_tokens": usage.output_tokens,
                "sluicegate.request.id": booking.request_id,
                "sluicegate.tenant.id": booking.tenant_id,
                "sluicegate.ended": event.ended.value,
                "sluicegate.certainty": usage.certainty.value,
            }
        )
        if failed:
            span.set_status(Status(StatusCode.ERROR, event.cause.value))
        span.end(_nanoseconds(event.ended_at))

    def close(self) -> None:
        """Send what waits. Blocks for as long as OTEL_* says."""
        self._spans.shutdown()
        self._meters.shutdown()


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000
