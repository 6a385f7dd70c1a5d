"""Two nodes on one machine: each has a network and a mount namespace of its own, a crispd, a kubelet and a kube-proxy.

The control plane runs on the first one. Pods of a node have a bridge and the addresses 10.202.NUMBER.0/24; a route
leads to the other's, or flannel does. For use in a box.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any, Final

import yaml
from kubernetes import client

from tests import cgroups
from tests.daemon import Daemon
from tests.e2e import ground, kubernetes
from tests.e2e.conformance import flannel
from tests.e2e.control_plane import SERVICES, ControlPlane
from tests.e2e.kubelet import SAMPLE
from tests.e2e.processes import Processes, until
from tests.registry import Registry

NUMBERS: Final = (1, 2)
OBJECTS: Final = Path(__file__).with_name("objects.yaml")
REGISTRY: Final = "registry.k8s.io"
OUTSIDE: Final = "10.201.0.254"  # the box's own address on the network of the nodes
_BRIDGE: Final = "nodes"
_PODS: Final = "10.202.0.0/16"
_DNS: Final = "10.96.0.10"
_MTU: Final = 1500
_PORTS: Final = (6443, 2379, 2380)
_READY_SECONDS: Final = 120.0
_FORWARDS: Final = ("net.ipv4.ip_forward=1", "net.bridge.bridge-nf-call-iptables=1")


class Node:
    """One of them. `into` is a command that runs another one on it. `mtu` is that of its pods."""

    def __init__(self, number: int, daemon: Daemon, mtu: int) -> None:
        self.name, self.ip, self.pods = _name(number), _ip(number), _pods(number)
        self.daemon, self.into = daemon, daemon.into
        self.directory = daemon.directory / "node"
        self.directory.mkdir()
        self.processes = Processes(self.directory, self.into)
        self._write_network(mtu)

    @classmethod
    @contextmanager
    def running(cls, number: int, daemon: Daemon, control: ControlPlane, mtu: int) -> Iterator[Node]:
        """A node that registers itself with the API server; afterwards its pods are gone."""
        with ExitStack() as undo:
            node = cls(number, daemon, mtu)
            undo.enter_context(ground.covered_directories(node.directory, node.into))
            root = f"crisp-e2e-{daemon.directory.name}"
            undo.enter_context(cgroups.tree(root))
            undo.callback(daemon.empty)
            undo.callback(node.processes.stop)
            node._start_kubelet(control, f"/{root}")
            node._start_proxy(control)
            yield node

    def join_flannel(self, control: ControlPlane, core: client.CoreV1Api) -> None:
        """Tell the cluster of its pods' addresses, which a controller does elsewhere, and start flannel."""
        core.patch_node(self.name, {"spec": {"podCIDR": self.pods, "podCIDRs": [self.pods]}})
        kubeconfig = control.kubeconfig(f"flannel-{self.name}", "system:masters")
        flannel.start(self.processes, self.directory, self.name, kubeconfig, _PODS)

    def reaches(self, pods: str) -> bool:
        """Has it a route to these pods?"""
        found = subprocess.run([*self.into, "ip", "route", "show", pods], check=True, stdout=subprocess.PIPE)
        return bool(found.stdout)

    def _write_network(self, mtu: int) -> None:
        """Instead of the daemon's own, which hides the pods' addresses behind the node's."""
        addresses = {
            "type": "host-local",
            "dataDir": str(self.daemon.leases),
            "ranges": [[{"subnet": self.pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        bridge = {
            "type": "bridge", "bridge": "pods", "isGateway": True, "hairpinMode": True, "mtu": mtu, "ipam": addresses,
        }  # fmt: skip
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        network = {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, portmap]}
        for file in self.daemon.cni_conf_dir.iterdir():
            file.unlink()
        (self.daemon.cni_conf_dir / "10-pods.conflist").write_text(json.dumps(network))

    def _start_kubelet(self, control: ControlPlane, cgroup_root: str) -> None:
        resolver = self.directory / "resolv.conf"
        resolver.write_text(f"nameserver {OUTSIDE}\n")
        settings = {
            **yaml.safe_load(SAMPLE.read_text()),
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(control.authority.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": cgroup_root,
            "clusterDNS": [_DNS],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": self.daemon.listen,
            "enforceNodeAllocatable": [],
            "evictionHard": {"memory.available": "100Mi"},  # the machine's disk may be full of other things
            "failCgroupV1": False,
            "failSwapOn": False,
            "imageGCHighThresholdPercent": 100,
            "oomScoreAdj": 0,  # lower takes CAP_SYS_RESOURCE
            "resolvConf": str(resolver),
            "shutdownGracePeriod": "0s",  # takes a D-Bus
            "shutdownGracePeriodCriticalPods": "0s",
            "staticPodPath": "",
            "volumePluginDir": str(self.directory / "volume-plugins"),
        }
        self.processes.start(
            kubernetes.directory("kubelet") / "kubelet",
            f"--config={self._write('kubelet.yaml', settings)}",
            f"--hostname-override={self.name}",
            f"--kubeconfig={control.kubeconfig(f'system:node:{self.name}', 'system:nodes')}",
            f"--node-ip={self.ip}",
            "--v=2",
        )

    def _start_proxy(self, control: ControlPlane) -> None:
        # Connection tracking's own settings are the first network namespace's.
        tracking = {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}
        settings = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clusterCIDR": _PODS,
            "clientConnection": {"kubeconfig": str(control.kubeconfig("system:kube-proxy"))},
            "conntrack": tracking,
        }
        self.processes.start(
            kubernetes.directory("kube-proxy") / "kube-proxy",
            f"--config={self._write('kube-proxy.yaml', settings)}",
            f"--hostname-override={self.name}",
            "--v=2",
        )

    def _write(self, name: str, content: dict[str, Any]) -> Path:
        path = self.directory / name
        path.write_text(yaml.safe_dump(content))
        return path


class TwoNodes:
    """The cluster. `TwoNodes.running()` makes one for a `with` block."""

    def __init__(self, control: ControlPlane, nodes: Sequence[Node]) -> None:
        self.control, self.nodes = control, nodes
        self.kubeconfig = control.kubeconfig("admin", "system:masters")

    @classmethod
    @contextmanager
    def running(cls, directory: Path, images: Path, *, by_flannel: bool) -> Iterator[TwoNodes]:
        """A cluster whose nodes and DNS are ready; afterwards nothing is left of it.

        `images` is the storage of a registry with what tests pull (images.py). Raises ProgramFailed.
        """
        mtu = flannel.MTU if by_flannel else _MTU
        directory.mkdir(exist_ok=True)
        with ExitStack() as undo:
            undo.enter_context(_network())
            registry = undo.enter_context(Registry(directory / "registry", address=OUTSIDE, storage=images))
            places = [undo.enter_context(_place(number, routed=not by_flannel)) for number in NUMBERS]
            control = ControlPlane(directory / "control", _ip(1), _PORTS, into=places[0])
            undo.callback(control.processes.stop)
            control.start_servers()
            # What a daemon must not leave behind is what came after it: first the daemons, then all that kubelets make.
            daemons = [undo.enter_context(_daemon(registry, into)) for into in places]
            nodes = [
                undo.enter_context(Node.running(number, daemon, control, mtu))
                for number, daemon in zip(NUMBERS, daemons, strict=True)
            ]
            control.start_controllers()
            undo.callback(control.processes.stop)  # or the nodes' daemons would see programs that came and stay
            cluster = cls(control, nodes)
            cluster._add_objects()
            with control.connect() as api:
                core, apps = client.CoreV1Api(api), client.AppsV1Api(api)
                cluster._until(lambda: _ready_nodes(core) == len(nodes), "have ready nodes")
                if by_flannel:
                    for node in nodes:
                        node.join_flannel(control, core)
                    cluster._until(cluster._is_connected, "have a network")
                cluster._until(lambda: _has_dns(apps), "have its DNS")
            yield cluster

    def logs(self) -> str:
        """The ends of what the programs complained of."""
        groups = (self.control.processes, *(node.processes for node in self.nodes))
        return "\n".join([*(group.logs() for group in groups), *(node.daemon.log() for node in self.nodes)])

    def _is_connected(self) -> bool:
        return all(one.reaches(other.pods) for one, other in permutations(self.nodes, 2))

    def _add_objects(self) -> None:
        kubectl = kubernetes.directory("kubectl") / "kubectl"
        subprocess.run([kubectl, f"--kubeconfig={self.kubeconfig}", "apply", "--filename", OBJECTS], check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip

    def _until(self, condition: Any, what: str) -> None:
        until(condition, what, _READY_SECONDS, self.control.processes, *(node.processes for node in self.nodes))


def _daemon(registry: Registry, into: Sequence[str]) -> AbstractContextManager[Daemon]:
    registries = f'[[registry]]\nprefix = "{REGISTRY}"\nlocation = "{registry.host}"\ninsecure = true\n'
    return Daemon.running("--log-level=info", registries=registries, into=into)


@contextmanager
def _network() -> Iterator[None]:
    """A bridge for the nodes, on which the box has an address, too."""
    _run("ip", "link", "add", _BRIDGE, "type", "bridge")
    try:
        _run("ip", "address", "add", f"{OUTSIDE}/24", "dev", _BRIDGE)
        _run("ip", "link", "set", _BRIDGE, "up")
        yield
    finally:
        _run("ip", "link", "delete", _BRIDGE)


@contextmanager
def _place(number: int, *, routed: bool) -> Iterator[tuple[str, ...]]:
    """A network namespace with a link to the bridge, and a mount namespace; the command that runs another one there."""
    name, outer = _name(number), f"to-{_name(number)}"
    with ExitStack() as undo:
        _run("ip", "netns", "add", name)
        undo.callback(_run, "ip", "netns", "delete", name)
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", outer, "master", _BRIDGE, "up")
        within = ("ip", "-n", name)
        _run(*within, "address", "add", f"{_ip(number)}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _run(*within, "link", "set", link, "up")
        # Services have addresses that nobody has a route to. What is outside is not waited for: kubelet pulls one image
        # after the other, and tests name some that do not exist.
        _run(*within, "route", "add", SERVICES, "via", OUTSIDE)
        _run(*within, "route", "add", "unreachable", "default")
        for other in NUMBERS:
            if other != number and routed:
                _run(*within, "route", "add", _pods(other), "via", _ip(other))
        network = f"--net=/run/netns/{name}"
        _run("nsenter", network, "sysctl", "--quiet", "--write", *_FORWARDS)
        yield undo.enter_context(_mounts(network))


@contextmanager
def _mounts(network: str) -> Iterator[tuple[str, ...]]:
    """A mount namespace in a network namespace, held by a process; mounts are shared within it, as systemd has them."""
    script = "mount --make-rshared / && echo ready && exec sleep infinity"
    command = ["nsenter", network, "unshare", "--mount", "--propagation=private", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            if holder.stdout.readline() != b"ready\n":
                raise RuntimeError("make a node's mount namespace: see standard error")
            yield "nsenter", network, f"--mount=/proc/{holder.pid}/ns/mnt"
        finally:
            holder.kill()


def _ready_nodes(core: client.CoreV1Api) -> int:
    conditions = [one for node in core.list_node().items for one in node.status.conditions or ()]
    return sum(one.type == "Ready" and one.status == "True" for one in conditions)


def _has_dns(apps: client.AppsV1Api) -> bool:
    status = apps.read_namespaced_deployment("coredns", "kube-system").status
    return bool(status and status.ready_replicas)


def _name(number: int) -> str:
    return f"node{number}"


def _ip(number: int) -> str:
    return f"10.201.0.{number}"


def _pods(number: int) -> str:
    return f"10.202.{number}.0/24"


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
