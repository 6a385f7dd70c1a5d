"""A cluster of one node: Debian's etcd, a real API server, controller manager, scheduler and kubelet, on a crispd.

All of it in the tests' box. There is no kube-proxy and no DNS: what a service's address would need is not a runtime's.
"""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from ssl import create_default_context
from typing import Any, Final, TypeVar

import yaml
from kubernetes import client
from kubernetes.stream import stream

from tests.daemon import Daemon
from tests.e2e import kubernetes
from tests.e2e.kubelet import NODE, NODE_IP, Kubelet, complaints, free_port
from tests.pki import Authority

PROGRAMS: Final = ("etcd", "kubelet", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
NAMESPACE: Final = "default"
START_SECONDS: Final = 90.0
STOP_SECONDS: Final = 20.0
CLEAR_SECONDS: Final = 90.0
T = TypeVar("T")


class ClusterFailed(Exception):
    """A part of the cluster did not start, or do in time what a test waits for; carries the ends of the logs."""


class Cluster:
    """The running cluster and clients of its API. `Cluster.running()` makes one for a `with` block."""

    def __init__(self, daemon: Daemon, gates: Mapping[str, bool]) -> None:
        self.daemon = daemon
        self._gates = "--feature-gates=" + ",".join(f"{name}={str(open_).lower()}" for name, open_ in gates.items())
        self.kubelet: Kubelet
        self.directory = daemon.directory / "cluster"
        self.directory.mkdir()
        self.address = f"https://127.0.0.1:{free_port()}"
        self._authority = Authority(self.directory / "authority")
        self._programs = kubernetes.directory(*PROGRAMS)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @classmethod
    @contextmanager
    def running(cls, daemon: Daemon, gates: Mapping[str, bool], **settings: Any) -> Iterator[Cluster]:
        """A cluster whose node is ready; afterwards nothing is left of it. `gates` are of all its programs, `settings`
        are kubelet's."""
        with ExitStack() as undo:
            cluster = cls(daemon, gates)
            undo.callback(cluster._stop)
            cluster._start_servers()
            cluster._connect()
            undo.callback(cluster.api.close)
            kubelet = Kubelet.running(
                daemon,
                f"--kubeconfig={cluster._kubeconfig(f'system:node:{NODE}', 'system:nodes')}",
                identity=cluster._issue("probe", "system:masters"),
                address=NODE_IP,
                authentication={
                    "anonymous": {"enabled": False},
                    "webhook": {"enabled": True},
                    "x509": {"clientCAFile": str(cluster._authority.certificate)},
                },
                authorization={"mode": "Webhook"},
                featureGates=dict(gates),
                **settings,
            )
            cluster.kubelet = undo.enter_context(kubelet)
            undo.callback(cluster.clear)
            cluster._start_controllers()
            cluster.until(cluster._is_ready, "have a ready node, and what a pod's admission takes", START_SECONDS)
            yield cluster

    def until(self, condition: Callable[[], T], what: str, seconds: float = 120.0) -> T:
        """What `condition` answers once that is true. Raises ClusterFailed: wait for the cluster to `what`."""
        deadline = time.monotonic() + seconds
        while not (answer := condition()):
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise ClusterFailed(f"{name} exited with {process.returncode}\n{self.log(name)}")
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
        return "\n".join([*lines, self.kubelet.log(), self.daemon.log(), *map(self.log, self._processes)])

    def log(self, name: str) -> str:
        """The end of what a program complained of."""
        return complaints(self.directory / f"{name}.log", name)

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

    def _start_servers(self) -> None:
        data, peers, clients = self.directory / "etcd", free_port(), free_port()
        self._start(
            "etcd",
            f"--data-dir={data}",
            f"--listen-client-urls=http://127.0.0.1:{clients}",
            f"--advertise-client-urls=http://127.0.0.1:{clients}",
            f"--listen-peer-urls=http://127.0.0.1:{peers}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peers}",
            f"--initial-cluster=default=http://127.0.0.1:{peers}",
            "--unsafe-no-fsync",  # it is thrown away
        )
        server, server_key = self._issue("apiserver")
        caller, caller_key = self._issue("apiserver-kubelet-client", "system:masters")
        self._account_key = self.directory / "accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", self._account_key, "2048"], check=True, capture_output=True)
        self._start(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{clients}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self.address.rpartition(':')[2]}",
            f"--advertise-address={NODE_IP}",
            f"--tls-cert-file={server}",
            f"--tls-private-key-file={server_key}",
            f"--client-ca-file={self._authority.certificate}",
            f"--kubelet-client-certificate={caller}",
            f"--kubelet-client-key={caller_key}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._account_key}",
            f"--service-account-signing-key-file={self._account_key}",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            self._gates,
        )
        self.until(self._answers, "have an API server", START_SECONDS)

    def _start_controllers(self) -> None:
        common = ("--leader-elect=false", "--secure-port=0", self._gates)
        self._start(
            "kube-controller-manager",
            f"--kubeconfig={self._kubeconfig('system:kube-controller-manager')}",
            f"--service-account-private-key-file={self._account_key}",
            f"--root-ca-file={self._authority.certificate}",
            "--use-service-account-credentials=true",
            *common,
        )
        self._start("kube-scheduler", f"--kubeconfig={self._kubeconfig('system:kube-scheduler')}", *common)

    def _start(self, name: str, *arguments: str) -> None:
        with (self.directory / f"{name}.log").open("wb") as log:
            command = [self._programs / name, *arguments]
            self._processes[name] = subprocess.Popen(
                command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _stop(self) -> None:
        for process in reversed(self._processes.values()):
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _issue(self, name: str, organization: str = "") -> tuple[Path, Path]:
        return self._authority.issue(self.directory, name, organization)

    def _kubeconfig(self, user: str, organization: str = "") -> Path:
        certificate, key = self._issue(user, organization)
        path = self.directory / f"{user}.kubeconfig"
        server = {"server": self.address, "certificate-authority": str(self._authority.certificate)}
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "test", "cluster": server}],
                    "users": [{"name": user, "user": {"client-certificate": str(certificate), "client-key": str(key)}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
                    "current-context": "test",
                }
            )
        )
        return path

    def _connect(self) -> None:
        settings = client.Configuration(host=self.address)
        settings.ssl_ca_cert = str(self._authority.certificate)
        settings.cert_file, settings.key_file = map(str, self._issue("admin", "system:masters"))
        self.api = client.ApiClient(settings)
        self.core, self.apps = client.CoreV1Api(self.api), client.AppsV1Api(self.api)

    def _answers(self) -> bool:
        context = create_default_context(cafile=str(self._authority.certificate))
        try:
            with urllib.request.urlopen(f"{self.address}/readyz", context=context, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _is_ready(self) -> bool:
        nodes: Sequence[Any] = self.core.list_node().items
        accounts = [account.metadata.name for account in self.core.list_namespaced_service_account(NAMESPACE).items]
        conditions = [one for node in nodes for one in node.status.conditions]
        return "default" in accounts and any(one.type == "Ready" and one.status == "True" for one in conditions)
