"""crispd's own metrics, for Prometheus at `metrics_addr`. Imported only if that is set."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, ProcessCollector, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from cri.errors import StartupError
from cri.version import crisp_version
from runtime.wire.calls import Logged

if TYPE_CHECKING:
    from cri.streaming.server import StreamingServer
    from pods.node import Node

_CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


class CallMeter:
    """Counts the calls of one RPC. Looks the metrics up once, not at each call."""

    __slots__ = ("_count", "_errors", "_rpc", "_seconds")

    def __init__(self, monitor: Monitor, rpc: str, *, timed: bool) -> None:
        self._rpc = rpc
        self._count = monitor.calls.labels(rpc)
        self._errors = monitor.errors
        self._seconds = monitor.seconds.labels(rpc) if timed else None

    def ended(self, seconds: float, code: str = "") -> None:
        """Record a call that took `seconds`; `code` is gRPC's name of its error, "" for none."""
        self._count.inc()
        if code:
            self._errors.labels(self._rpc, code).inc()
        if self._seconds is not None:
            self._seconds.observe(seconds)


class Monitor:
    """All metrics of the daemon, and the HTTP server for them."""

    def __init__(self, node: Node, streaming: StreamingServer) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter("crisp_cri_calls", "Calls answered", ("rpc",), registry=self.registry)
        self.errors = Counter(
            "crisp_cri_errors", "Calls answered with an error, by gRPC's code", ("rpc", "code"), registry=self.registry
        )
        self.seconds = Histogram(
            "crisp_cri_call_seconds", "How long calls took", ("rpc",), buckets=_CALL_SECONDS, registry=self.registry
        )
        self._steps = Histogram(
            "crisp_start_step_seconds",
            "How long each step of making and starting pods and containers took",
            ("operation", "step"),
            buckets=_STEP_SECONDS,
            registry=self.registry,
        )
        self._node = node
        self._streaming = streaming
        self._runner: web.AppRunner | None = None
        self._logged = Logged()  # at the last scrape
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.registry.register(self)

    def of_call(self, rpc: str, *, timed: bool) -> CallMeter:
        """Return the counter for an RPC. Streams have no histogram of durations."""
        return CallMeter(self, rpc, timed=timed)

    def step(self, operation: str, step: str, begun: int, ended: int) -> None:
        """Record a step of a start (pods.trace.StepReport)."""
        self._steps.labels(operation.replace(" ", "_"), step).observe((ended - begun) / 1e9)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics that are computed at each request."""
        node = self._node
        yield _gauge("crisp_pods", "Pod sandboxes", "state", Tally(pod.state.value for pod in node.sandboxes()))
        states = Tally(container.state.value for container in node.containers())
        yield _gauge("crisp_containers", "Containers", "state", states)
        yield GaugeMetricFamily("crisp_shims", "Shims that the daemon is connected to", value=node.shim_count())
        asleep = node.shims_asleep()
        yield GaugeMetricFamily("crisp_shims_asleep", "Of these, how many have left until needed", value=asleep)
        silent = len(node.silent_shims())
        yield GaugeMetricFamily("crisp_shims_silent", "Shims that live but do not answer", value=silent)
        others = node.shims_of_other_versions()
        yield GaugeMetricFamily("crisp_shims_of_other_versions", "Shims that have another crisp's code", value=others)
        yield CounterMetricFamily("crisp_shim_successions", "Shims that died and had a successor", node.successions())
        apart = len(node.apart_plugins() or ())
        yield GaugeMetricFamily("crisp_nri_plugins_apart", "NRI plugins that did not answer", value=apart)
        yield GaugeMetricFamily("crisp_images", "Images in the store", value=len(node.images.images()))
        yield from _causes(node)
        yield from _pulls(node)
        yield from _logs(self._logged)
        yield from _streams(self._streaming)
        yield GaugeMetricFamily("crisp_event_listeners", "Open streams of GetContainerEvents", value=len(node.events))
        yield _gauge("crisp_build_info", "The version that runs", "version", {crisp_version(): 1})

    async def start(self, address: str) -> None:
        """Serve http://ADDRESS/metrics. Raises StartupError."""
        application = web.Application()
        application.router.add_get("/metrics", self._answer)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        host, _, port = address.rpartition(":")
        try:
            await web.TCPSite(self._runner, host.strip("[]"), int(port)).start()
        except OSError as error:
            await self.close()
            raise StartupError(f"listen on metrics_addr {address}: {error.strerror or error}") from error

    async def close(self) -> None:
        """Stop serving."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.Response:
        self._logged = await self._node.logged()
        encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self.registry), headers={"Content-Type": content_type})


def _gauge(name: str, text: str, label: str, values: Any) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _logs(logged: Logged) -> Iterator[Metric]:
    """In sum: a label for each pod would be a time series for each, and most of them say nothing."""
    fates = (
        ("written", logged.bytes, logged.lines),
        ("dropped", logged.dropped_bytes, logged.dropped_lines),
        ("failed", logged.lost_bytes, logged.lost_lines),
    )
    size = CounterMetricFamily("crisp_container_log_bytes", "Output of containers, by its fate", labels=["fate"])
    lines = CounterMetricFamily("crisp_container_log_lines", "Lines of that output, by their fate", labels=["fate"])
    for fate, some_bytes, some_lines in fates:
        size.add_metric([fate], some_bytes)
        lines.add_metric([fate], some_lines)
    yield from (size, lines)


def _streams(streaming: StreamingServer) -> Iterator[Metric]:
    traffic = streaming.traffic()
    labels = ["kind", "transport"]
    accepted = "Connections of exec, attach and port-forward that crispd has accepted"
    now = GaugeMetricFamily("crisp_streams", accepted, labels=labels)
    for label, number in traffic.open.items():
        now.add_metric(label, number)
    yield now
    opened = CounterMetricFamily("crisp_streams_opened", "Such connections since crispd started", labels=labels)
    for label, number in traffic.opened.items():
        opened.add_metric(label, number)
    yield opened
    refused = CounterMetricFamily("crisp_streams_refused", "Requests that got none, by HTTP status", labels=["status"])
    for status, number in traffic.refused.items():
        refused.add_metric([str(int(status))], number)
    yield refused
    text = "Processes that serve streams, those of earlier crispds included"
    yield GaugeMetricFamily("crisp_streams_processes", text, value=streaming.processes())


def _causes(node: Node) -> Iterator[Metric]:
    told = CounterMetricFamily("crisp_causes", "Troubles, by the name of the cause (docs/why.md)", labels=["cause"])
    for name, number in sorted(node.bulletins.counts.items()):
        told.add_metric([name], number)
    yield told


def _pulls(node: Node) -> Iterator[Metric]:
    counts = node.images.pulls.counts
    yield GaugeMetricFamily("crisp_image_pulls_in_progress", "Pulls in flight", value=node.images.pulls.in_flight)
    yield CounterMetricFamily("crisp_image_pull_bytes", "Bytes of layers fetched from registries", value=counts.bytes)
    results = CounterMetricFamily("crisp_image_pulls", "Pulls that ended, by how", labels=["result"])
    for result in ("succeeded", "failed", "cancelled"):
        results.add_metric([result], getattr(counts, result))
    yield results
    layers = CounterMetricFamily("crisp_image_layers", "Layers of pulled images, by how they came", labels=["how"])
    layers.add_metric(["fetched"], counts.layers_fetched)
    layers.add_metric(["shared"], counts.layers_shared)
    yield layers
