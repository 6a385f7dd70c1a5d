"""Records what a kubelet asks of a runtime:   sudo .venv/bin/python -m tests.e2e.record [VERSION...]

A kubelet of each VERSION (v1.37.2; built where it is missing, by build-kubernetes.sh) runs two static pods on a crispd,
with a proxy between the two that writes down every call. What comes of it are tests/integration/kubelets/*.jsonl, which
tests/integration/test_kubelets.py repeats. Names of the machine are not in them: kubelet is told others.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc

from tests import box, cgroups, recorded
from tests.daemon import CALL_SECONDS, Daemon
from tests.e2e.kubelet import NODE, Kubelet
from tests.e2e.manifests import FOREVER, Object, pod
from tests.images import busybox_image
from tests.registry import Registry
from tests.stream_clients import STDOUT, Command

DEFAULT = ("v1.34.4", "v1.35.4", "v1.36.2", "v1.37.2")
IMAGE = f"{recorded.REGISTRY}/recorded/busybox:1"
THREADS = 32
RESOLV_CONF = "nameserver 192.0.2.53\nsearch recorded.test\noptions ndots:3\n"
WHOLE, MAPPED = "whole", "mapped"


class Recorder(grpc.GenericRpcHandler):
    """A gRPC server that passes on whatever it is asked, one call after the other, and keeps it.

    Streams are passed on beside that: they last.
    """

    def __init__(self, runtime: str) -> None:
        self.calls: list[recorded.Call] = []
        self._channel = grpc.insecure_channel(runtime, options=(("grpc.max_receive_message_length", -1),))
        self._methods = recorded.methods()
        self._one_at_a_time = threading.Lock()

    @contextmanager
    def serving(self, address: str) -> Iterator[None]:
        server = grpc.server(ThreadPoolExecutor(THREADS), handlers=(self,))
        server.add_insecure_port(address)
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()
            self._channel.close()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        method = str(details.method)
        if method not in self._methods:
            return None
        if self._methods[method].server_streaming:
            return grpc.unary_stream_rpc_method_handler(lambda request, context: self._stream(method, request, context))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._call(method, request, context))

    def _call(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        with self._one_at_a_time:
            try:
                answer = self._channel.unary_unary(method)(request, timeout=CALL_SECONDS)
            except grpc.RpcError as error:
                self.calls.append(recorded.made(method, request, error.code().name))
                context.abort(error.code(), error.details())
            self.calls.append(recorded.made(method, request, "OK", answer))
        return bytes(answer)

    def _stream(self, method: str, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        self.calls.append(recorded.made(method, request, "OK"))
        call = self._channel.unary_stream(method)(request)
        context.add_callback(call.cancel)
        try:
            yield from call
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())


def record(version: str) -> list[recorded.Call]:
    """What a kubelet of that version asks. Only in a box."""
    with ExitStack() as undo:
        daemon = undo.enter_context(Daemon.running())
        registry = undo.enter_context(Registry(daemon.directory / "registry"))
        registry.push("recorded/busybox", "1", busybox_image())
        daemon.registries_conf.write_text(recorded.registries(registry.host))
        recorder = Recorder(daemon.listen)
        proxy = f"unix://{daemon.directory}/recorder.sock"
        undo.enter_context(recorder.serving(proxy))
        undo.enter_context(cgroups.tree(recorded.CGROUP))
        resolv_conf = daemon.directory / "resolv.conf"
        resolv_conf.write_text(RESOLV_CONF)
        settings: dict[str, Any] = {
            "cgroupRoot": f"/{recorded.CGROUP}",
            "containerRuntimeEndpoint": proxy,
            "crashLoopBackOff": None,  # not in all versions
            "featureGates": {"EventedPLEG": True, "PodAndContainerStatsFromCRI": True},
            "resolvConf": str(resolv_conf),
            "containerLogMaxSize": "4Ki",
            "containerLogMaxFiles": 2,
            "containerLogMonitorInterval": "3s",
        }
        with Kubelet.running(daemon, **settings) as kubelet:
            _use(kubelet, recorder)
        return list(recorded.distinct(recorder.calls))


def pods() -> list[Object]:
    """One with most of what a pod can ask for, and one with users of its own."""

    def container(name: str, script: str, **fields: Any) -> Object:
        return {"name": name, "image": IMAGE, "command": ["sh", "-c", script], **fields}

    always = {"exec": {"command": ["test", "-e", "/bin/sh"]}, "periodSeconds": 1}
    main = container(
        "main",
        f"seq 10000; {FOREVER}",
        env=[
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "WORD", "value": "ä"},
        ],
        imagePullPolicy="Always",
        lifecycle={"postStart": {"exec": {"command": ["true"]}}, "preStop": {"exec": {"command": ["true"]}}},
        livenessProbe=always,
        readinessProbe=always,
        resources={"limits": {"cpu": "200m", "memory": "48Mi"}, "requests": {"cpu": "100m"}},
        startupProbe=always,
        securityContext={
            "runAsUser": 1000, "runAsGroup": 3000, "runAsNonRoot": True, "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
        },
        volumeMounts=[
            {"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"},
            {"name": "disk", "mountPath": "/part", "subPath": "a/b", "readOnly": True},
            {"name": "down", "mountPath": "/down", "readOnly": True},
        ],
    )  # fmt: skip
    whole = pod(
        WHOLE, main, container("terminal", "exec sh", stdin=True, tty=True),
        initContainers=[container("first", "true")],
        securityContext={
            "fsGroup": 2000, "supplementalGroups": [4000], "seccompProfile": {"type": "RuntimeDefault"},
            "sysctls": [{"name": "net.ipv4.ip_local_port_range", "value": "40000 41000"}],
        },
        volumes=[
            {"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}},
            {"name": "down", "downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        ],
    )  # fmt: skip
    mapped = pod(MAPPED, container("main", FOREVER), hostUsers=False, shareProcessNamespace=True)
    return [whole, mapped]


def _use(kubelet: Kubelet, recorder: Recorder) -> None:
    """Run the pods, and do what people do with them."""
    for wanted in pods():
        kubelet.add(wanted)
    for name, containers in ((WHOLE, ("main", "terminal")), (MAPPED, ("main",))):
        for container in containers:
            kubelet.until(lambda n=name, c=container: kubelet.container(n, c).get("ready"), f"run {name}/{container}")
    kubelet.run(WHOLE, "main", "id")
    base = f"https://127.0.0.1:{kubelet.port}"
    query = "command=echo&command=hello&output=1"
    command = Command.over("websocket", f"{base}/exec/default/{WHOLE}-{NODE}/main?{query}", "v5.channel.k8s.io", STDOUT)
    command.until(b"hello")
    command.close()
    query = "input=1&output=1&tty=1"
    command = Command.over("websocket", f"{base}/attach/default/{WHOLE}-{NODE}/terminal?{query}", "v5.channel.k8s.io")
    command.send(b"echo $((6*7))\n")
    command.until(b"42")
    command.close()
    for path in ("/stats/summary", "/metrics/cadvisor"):
        kubelet.get(path)
    asked = ("ReopenContainerLog", "Exec", "Attach", "ListPodSandboxStats")
    kubelet.until(lambda: {call.name for call in recorder.calls}.issuperset(asked), f"ask for {asked}")
    kubelet.clear()
    removed = "RemovePodSandbox"  # once a minute
    kubelet.until(lambda: [call.name for call in recorder.calls].count(removed) == len(pods()), "remove sandboxes", 180)


def main() -> int:
    """Record the versions that are named, or all of them, each in a box of its own."""
    if box.inside():
        version = os.environ["KUBERNETES_VERSION"]
        calls = record(version)
        recorded.DIRECTORY.mkdir(exist_ok=True)
        path = recorded.DIRECTORY / f"kubelet-{version.removeprefix('v').rpartition('.')[0]}.jsonl"
        recorded.save(path, calls)
        print(f"{path}: {len(calls)} calls")
        return 0
    command = [sys.executable, "-m", "tests.e2e.record"]
    statuses = [box.run(command, {"KUBERNETES_VERSION": version}) for version in sys.argv[1:] or DEFAULT]
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
