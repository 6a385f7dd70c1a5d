"""Traces, as a collector of the tests' own is sent them by OTLP over gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon

_EXPORTED = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_TRACE, _PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        trace = pytest.importorskip("opentelemetry.proto.trace.v1.trace_pb2", reason="the extra tracing")
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service

        self.spans: list[trace.Span] = []

        def export(request: service.ExportTraceServiceRequest, _: object) -> service.ExportTraceServiceResponse:
            assert {a.key: a.value.string_value for a in request.resource_spans[0].resource.attributes}[
                "service.name"
            ] == "crispd"
            self.spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
            return service.ExportTraceServiceResponse()

        handler = grpc.unary_unary_rpc_method_handler(
            export, service.ExportTraceServiceRequest.FromString, service.ExportTraceServiceResponse.SerializeToString
        )
        *path, method = _EXPORTED.strip("/").split("/")
        self.server = grpc.server(ThreadPoolExecutor(2))
        self.server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("/".join(path), {method: handler})]
        )
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    def named(self, name: str) -> dict[str, object]:
        (found,) = [span for span in self.spans if span.name == name]
        attributes = {one.key: one.value.string_value for one in found.attributes}
        return {"span": found, "attributes": attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    collector.server.start()
    try:
        yield collector
    finally:
        collector.server.stop(None).wait()


def test_a_traced_pod_start_is_seen_in_its_parts() -> None:
    with collecting() as collector:
        with Daemon.running(f"--tracing-endpoint=127.0.0.1:{collector.port}") as daemon:
            daemon.may_hold("socket")  # spans are sent every five seconds, over one connection
            daemon.import_busybox()
            with daemon.pod("untraced"):
                pass
            metadata = [("traceparent", f"00-{_TRACE}-{_PARENT}-01")]
            config = daemon.sandbox_config("traced")
            sandbox = daemon.runtime.RunPodSandbox(
                cri.RunPodSandboxRequest(config=config), metadata=metadata, timeout=30
            ).pod_sandbox_id
            with pytest.raises(grpc.RpcError):
                daemon.runtime.ContainerStatus(
                    cri.ContainerStatusRequest(container_id="nothing"), metadata=metadata, timeout=30
                )
            with pytest.raises(grpc.RpcError):
                daemon.images.PullImage(
                    cri.PullImageRequest(image=cri.ImageSpec(image="127.0.0.1:1/none")), metadata=metadata, timeout=30
                )
            daemon.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox), timeout=30)
        assert {span.trace_id.hex() for span in collector.spans} == {_TRACE}, "the untraced pod left spans"

        run = collector.named("runtime.v1.RuntimeService/RunPodSandbox")
        assert run["span"].parent_span_id.hex() == _PARENT
        assert run["attributes"]["crisp.sandbox"] == sandbox
        assert run["attributes"]["k8s.pod.name"] == "traced"
        children = {s.name: s for s in collector.spans if s.parent_span_id == run["span"].span_id}
        assert {"files written", "network added", "sandbox durable", "CNI ADD bridge"} <= children.keys()
        for child in children.values():
            assert run["span"].start_time_unix_nano <= child.start_time_unix_nano
            assert child.start_time_unix_nano <= child.end_time_unix_nano <= run["span"].end_time_unix_nano

        failed = collector.named("runtime.v1.RuntimeService/ContainerStatus")
        assert failed["span"].status.code == 2
        assert "nothing" in failed["span"].status.message
        pull = collector.named("runtime.v1.ImageService/PullImage")
        assert collector.named("pull")["span"].parent_span_id == pull["span"].span_id


def test_a_collector_that_is_away_holds_nothing_up() -> None:
    pytest.importorskip("opentelemetry.sdk", reason="the extra tracing")
    flags = ("--tracing-endpoint=127.0.0.1:1", "--tracing-sampling-rate-per-million=1000000")
    with Daemon.running(*flags) as daemon:
        daemon.runtime.Version(cri.VersionRequest(), timeout=10)
        daemon.stop()  # which waits no longer than a daemon may take
