"""A cluster of one node: a control plane and a kubelet, on a crispd that tests may kill.

All of it in the tests' box. There is no kube-proxy and no DNS: tests/e2e/conformance has a cluster with both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TypeVar

from kubernetes import client
from kubernetes.stream import stream

from tests.daemon import Daemon
from tests.e2e.control_plane import ControlPlane
from tests.e2e.kubelet import NODE, NODE_IP, Kubelet, free_port

NAMESPACE: Final = "default"
START_SECONDS: Final = 90.0
CLEAR_SECONDS: Final = 90.0
T = TypeVar("T")


class ClusterFailed(Exception):
    """A command in a pod failed, or what a test waits for did not happen in time; carries the ends of the logs."""


class Cluster:
    """The running cluster and clients of its API. `Cluster.running()` makes one for a `with` block."""

    def __init__(self, daemon: Daemon, gates: Mapping[str, bool]) -> None:
        self.daemon = daemon
        opened = "--feature-gates=" + ",".join(f"{name}={str(open_).lower()}" for name, open_ in gates.items())
        self.kubelet: Kubelet
        ports = [free_port() for _ in range(3)]
        self.control = ControlPlane(
            daemon.directory / "cluster", "127.0.0.1", ports, advertised=NODE_IP, flags=[opened]
        )
        self.address = self.control.address

    @classmethod
    @contextmanager
    def running(cls, daemon: Daemon, gates: Mapping[str, bool], **settings: Any) -> Iterator[Cluster]:
        """A cluster whose node is ready; afterwards nothing is left of it. `gates` are of all its programs, `settings`
        are kubelet's."""
        with ExitStack() as undo:
            cluster = cls(daemon, gates)
            undo.callback(cluster.control.processes.stop)
            cluster.control.start_servers()
            cluster.api = cluster.control.connect()
            cluster.core, cluster.apps = client.CoreV1Api(cluster.api), client.AppsV1Api(cluster.api)
            undo.callback(cluster.api.close)
            kubelet = Kubelet.running(
                daemon,
                f"--kubeconfig={cluster.control.kubeconfig(f'system:node:{NODE}', 'system:nodes')}",
                identity=cluster.control.issue("probe", "system:masters"),
                address=NODE_IP,
                authentication={
                    "anonymous": {"enabled": False},
                    "webhook": {"enabled": True},
                    "x509": {"clientCAFile": str(cluster.control.authority.certificate)},
                },
                authorization={"mode": "Webhook"},
                featureGates=dict(gates),
                **settings,
            )
            cluster.kubelet = undo.enter_context(kubelet)
            undo.callback(cluster.clear)
            cluster.control.start_controllers()
            cluster.until(cluster._is_ready, "have a ready node, and what a pod's admission takes", START_SECONDS)
            yield cluster

    def until(self, condition: Callable[[], T], what: str, seconds: float = 120.0) -> T:
        """What `condition` answers once that is true. Raises ClusterFailed: wait for the cluster to `what`."""
        deadline = time.monotonic() + seconds
        while not (answer := condition()):
            self.control.processes.check()
            if time.monotonic() > deadline:
                raise ClusterFailed(f"wait for the cluster to {what}: not in {seconds} s\n{self.summary()}")
            time.sleep(0.1)
        return answer

    def pods(self, app: str) -> list[Any]:
        """The pods of that app that are not about to go."""
        found = self.core.list_namespaced_pod(NAMESPACE, label_selector=f"app={app}").items
        return [pod for pod in found if pod.metadata.deletion_timestamp is None]

    def pod(self, name: str) -> Any:
        return self.core.read_namespaced_pod(name, NAMESPACE)

    def create(self, pod: Mapping[str, Any]) -> str:
        """A pod; its name."""
        self.core.create_namespaced_pod(NAMESPACE, dict(pod))
        return str(pod["metadata"]["name"])

    def ready(self, name: str) -> bool:
        """Whether there is a pod of that name, and it is ready."""
        try:
            conditions = self.pod(name).status.conditions or ()
        except client.exceptions.NotFoundException:
            return False
        return any(one.type == "Ready" and one.status == "True" for one in conditions)

    def run(self, *pods: Mapping[str, Any]) -> None:
        """Create pods and wait until they are ready."""
        names = [self.create(pod) for pod in pods]
        self.until(lambda: all(self.ready(name) for name in names), f"run {names}")

    def exec(self, name: str, command: Sequence[str], *, stdin: bool = False, **options: Any) -> Any:
        """A command in a pod's container `main`, or what `options` say: an open session of kubernetes.stream."""
        options = {"container": "main", "stdout": True, "stderr": True, "tty": False, **options}
        connect = self.core.connect_get_namespaced_pod_exec
        return stream(connect, name, NAMESPACE, command=list(command), stdin=stdin, _preload_content=False, **options)

    def output(self, name: str, script: str, container: str = "main") -> str:
        """What a script prints in a container. Raises ClusterFailed unless it ends with 0."""
        session = self.exec(name, ["sh", "-c", script], container=container)
        session.run_forever(timeout=30)
        status = session.returncode  # which read_all would throw away
        printed = str(session.read_all())
        if status != 0:
            raise ClusterFailed(f"run {script!r} in {name}: exit status {status}: {printed}")
        return printed

    def lives(self, app: str) -> dict[str, list[tuple[str, int]]]:
        """Of each pod of that app the containers, and how often they were restarted."""
        return {
            one.metadata.name: [(each.container_id, each.restart_count) for each in one.status.container_statuses or ()]
            for one in self.pods(app)
        }

    def summary(self) -> str:
        """The pods, what happened to them, and the ends of the logs."""
        lines = []
        for pod in self.core.list_namespaced_pod(NAMESPACE).items:
            statuses = [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]
            states = [f"{one.name}={one.state.to_str() if one.state else None}" for one in statuses]
            lines.append(f"{pod.metadata.name}: {pod.status.phase} {pod.status.reason or ''} {' '.join(states)}")
        events = self.core.list_namespaced_event(NAMESPACE).items
        bad = [event for event in events if event.type != "Normal"]
        lines += [f"event {event.involved_object.name}: {event.reason}: {event.message}" for event in bad]
        return "\n".join([*lines, self.kubelet.log(), self.daemon.log(), self.control.processes.logs()])

    def clear(self) -> None:
        """Delete every object of the tests and wait until the node has nothing of them."""
        at_once = client.V1DeleteOptions(propagation_policy="Foreground")
        apps, batch = client.AppsV1Api(self.api), client.BatchV1Api(self.api)
        for delete in (
            apps.delete_collection_namespaced_deployment,
            apps.delete_collection_namespaced_daemon_set,
            apps.delete_collection_namespaced_stateful_set,
            batch.delete_collection_namespaced_cron_job,
            batch.delete_collection_namespaced_job,
            self.core.delete_collection_namespaced_pod,
        ):
            delete(NAMESPACE, body=at_once)
        self.until(lambda: not self.core.list_namespaced_pod(NAMESPACE).items, "be rid of its pods", CLEAR_SECONDS)

    def _is_ready(self) -> bool:
        nodes: Sequence[Any] = self.core.list_node().items
        accounts = [account.metadata.name for account in self.core.list_namespaced_service_account(NAMESPACE).items]
        conditions = [one for node in nodes for one in node.status.conditions]
        return "default" in accounts and any(one.type == "Ready" and one.status == "True" for one in conditions)
