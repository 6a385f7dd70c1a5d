"""OpenTelemetry traces over OTLP/gRPC. Imported only if `tracing_endpoint` is set.

A call's span continues its caller's trace, which comes in gRPC's metadata (W3C Trace Context, as kubelet sends it).
Inner spans find their parent by context variables, which a task inherits from its creator. Streams have no spans: some
stay open as long as the daemon runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cri.observers import Answer
from cri.subject import subject
from cri.version import crisp_version

_EXPORT_SECONDS = 2  # a collector that does not answer must not delay a stop
_PER_MILLION = 1e6


class Tracing:
    """Makes spans and sends them to the collector at `endpoint`, in batches and in a separate thread."""

    def __init__(self, endpoint: str, sampling_rate_per_million: int) -> None:
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sampling_rate_per_million / _PER_MILLION)),
            resource=Resource.create({"service.name": "crispd", "service.version": crisp_version()}),
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=True, timeout=_EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, export_timeout_millis=_EXPORT_SECONDS * 1e3))
        self._tracer = self._provider.get_tracer("crisp")
        self._propagator = TraceContextTextMapPropagator()

    def of_call(self, service: str, rpc: str, answer: Answer) -> Answer:
        """Return `answer`, which takes a request and gRPC's context, wrapped in a span."""

        async def traced(request: Any, context: Any) -> Any:
            parent = self._propagator.extract(dict(context.invocation_metadata() or ()))
            said = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": rpc, **_about(request)}
            span = self._tracer.start_span(f"{service}/{rpc}", parent, SpanKind.SERVER, said)
            with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
                try:
                    response = await answer(request, context)
                except BaseException as error:
                    span.set_status(Status(StatusCode.ERROR, context.details() or type(error).__name__))
                    raise
                span.set_attributes(_about(response))
                return response

        return traced

    @contextmanager
    def around(self, name: str, attributes: Mapping[str, str]) -> Iterator[Span]:
        """Make a span around a part of a call."""
        with self._tracer.start_as_current_span(name, attributes=attributes, record_exception=False) as span:
            yield span

    def step(self, operation: str, step: str, begun: int, ended: int) -> None:
        """Make a span for a step of a start; times are nanoseconds of CLOCK_MONOTONIC (pods.trace.StepReport)."""
        wall = time.time_ns() - time.monotonic_ns()
        self._tracer.start_span(step, attributes={"crisp.operation": operation}, start_time=begun + wall).end(
            ended + wall
        )

    async def close(self) -> None:
        """Send the remaining spans, if the collector accepts them."""
        await asyncio.to_thread(self._provider.shutdown)


def _about(request: Any) -> dict[str, str]:
    """Return which pod, container or image a request is about, with OpenTelemetry's names for Kubernetes' objects."""
    said = {f"crisp.{name}": value for name, value in subject(request).items()}
    if said.pop("crisp.pod", ""):
        metadata = request.config.metadata
        said |= {"k8s.namespace.name": metadata.namespace, "k8s.pod.name": metadata.name, "k8s.pod.uid": metadata.uid}
    if container := said.pop("crisp.container_name", ""):
        said["k8s.container.name"] = container
    return said
