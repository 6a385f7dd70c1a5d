"""A cluster that kind makes, with podman, of nodes that run crisp: its steps, each of which prints what it took."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from tests.e2e import kubernetes
from tests.e2e.kind import base
from tests.e2e.kind.podman import Podman
from tests.images import busybox_image, tar_of, write_layout
from tests.waiting import until

REPOSITORY: Final = Path(__file__).parents[3]
SAMPLE: Final = REPOSITORY / "deploy/kind/kind.yaml"
NETWORK: Final = REPOSITORY / "deploy/10-crisp-bridge.conflist"
NAME: Final = "crisp"
IMAGE: Final = "docker.io/library/loaded:1"  # what `kind load` brings to the node
SECONDS: Final = 180.0  # for a restart, on a busy machine
_SUBNET: Final = yaml.safe_load(NETWORK.read_text())["plugins"][0]["ipam"]["ranges"][0][0]["subnet"]
_BASE: Final = "localhost/kind-base"
# What a node of kind has and the machine may lack: version 2 of cgroups, and the right to lower an OOM score.
_KUBELET: Final = "kind: KubeletConfiguration\nfailCgroupV1: false\noomScoreAdj: 0\n"
_DEPLOYMENT: Final = f"""\
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: %d
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      topologySpreadConstraints:
        - topologyKey: kubernetes.io/hostname
          maxSkew: 1
          whenUnsatisfiable: DoNotSchedule
          labelSelector: {{matchLabels: {{app: web}}}}
      containers:
        - name: web
          image: {IMAGE}
          imagePullPolicy: Never
          command: [sh, -c]
          args: ["trap 'sleep 2; echo ended; exit' TERM; echo started; httpd -p 8080 -h /www; sleep 1d & wait"]
          readinessProbe: {{httpGet: {{port: 8080}}, periodSeconds: 1}}
          resources: {{limits: {{cpu: 100m, memory: 64Mi}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  selector: {{app: web}}
  ports: [{{port: 80, targetPort: 8080}}]
"""


class Trial:
    """One node: a Deployment runs on it, and comes back when the node was restarted."""

    nodes: tuple[str, ...] = (f"{NAME}-control-plane",)

    @property
    def steps(self) -> Sequence[Callable[[], None]]:
        return self.create, self.load, self.deploy, self.restart, self.delete

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.podman = Podman(directory / "podman")
        self.kubeconfig = directory / "kubeconfig"
        self.environment = self.podman.environment | {
            "KIND_EXPERIMENTAL_PROVIDER": "podman", "KUBECONFIG": str(self.kubeconfig), "HOME": str(directory),
        }  # fmt: skip

    def build(self) -> None:
        """Make the node image, by deploy/kind/Dockerfile; takes a network."""
        with timed("base image"):
            changes = [f"--change={change}" for change in base.CHANGES]
            self.podman.run("import", "--quiet", *changes, base.prepare(), _BASE)
        with timed("node image"):
            # The machine's own certificates and settings of pip are how it reaches packages.
            settings = [Path("/etc/pip.conf"), Path("/etc/ssl/certs/ca-certificates.crt")]
            mounts = [f"--volume={path}:{path}:ro" for path in settings if path.exists()]
            self.podman.run("build", "--quiet", "--isolation=chroot", "--network=host", *mounts,
                            f"--build-arg=BASE={_BASE}", f"--file={SAMPLE.with_name('Dockerfile')}",
                            f"--tag={_node_image()}", REPOSITORY)  # fmt: skip

    def create(self) -> None:
        _cover(self.directory, Path("/var/lib"))  # where podman's network plugin keeps leases
        modules = Path("/lib/modules").resolve()  # which kind gives to nodes, and some machines do not have
        if not modules.exists():
            _cover(self.directory, modules.parent)
            modules.mkdir()
        # There is no way outside. Who asks for a Service before kube-proxy knows it is to hear that at once, each time.
        subprocess.run(["sysctl", "--quiet", "--write", "net.ipv4.icmp_ratelimit=0"], check=True)
        config = self.directory / "kind.yaml"
        config.write_text(yaml.safe_dump(_config(self.nodes, self.directory)))
        with timed("kind create cluster"):
            self.kind("create", "cluster", f"--name={NAME}", f"--config={config}", "--wait=5m", "--retain")
        with timed("node and DNS ready"):
            self.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=3m")
            self.kubectl("--namespace=kube-system", "rollout", "status", "deployment/coredns", "--timeout=3m")
        self.kubectl("get", "nodes", "--output=wide")

    def load(self) -> None:
        layout = write_layout(self.directory / "layout", {IMAGE: busybox_image()})
        archive = tar_of(layout, self.directory / "image.tar")
        with timed("kind load image-archive"):
            self.kind("load", "image-archive", str(archive), f"--name={NAME}")

    def deploy(self) -> None:
        manifest = self.directory / "deployment.yaml"
        manifest.write_text(_DEPLOYMENT % (2 * len(self.nodes)))
        with timed("Deployment"):
            self.kubectl("apply", f"--filename={manifest}")
            self.kubectl("rollout", "status", "deployment/web", "--timeout=3m")
        with timed("exec, logs, and the Service by its name"):
            until(self.serves, SECONDS, pause=1)
            self.kubectl("logs", "deployment/web")
        self.kubectl("get", "pods", "--all-namespaces")

    def serves(self) -> bool:
        """Does the Service answer in a pod? kube-proxy takes a second to know a new one."""
        url = "http://web.default.svc.cluster.local"
        try:
            said = self.read("exec", "deployment/web", "--", "timeout", "5", "wget", "-q", "-O", "-", url)
        except subprocess.CalledProcessError:
            return False
        return said == "hello from a pod\n"

    def restart(self) -> None:
        """Restart the node, as users of podman do: its containers have time to end, and its pods come back."""
        with timed("podman restart, until the Deployment is back"):
            self.podman.run("restart", *self.nodes)
            until(self._is_back, SECONDS, pause=1)
        if "ended" not in (said := self.read("logs", "deployment/web", "--previous")):
            raise RuntimeError(f"a container had no time to end with its node: it said {said!r}")

    def _is_back(self) -> bool:
        """Do the Deployment's containers run, for the second time?"""
        try:
            pods = json.loads(self.read("get", "pods", "--selector=app=web", "--output=json", "--request-timeout=5s"))
        except subprocess.CalledProcessError:
            return False  # the API server is not back
        states = [state for pod in pods["items"] for state in pod["status"].get("containerStatuses", ())]
        return bool(states) and all(state["ready"] and state["restartCount"] for state in states)

    def delete(self) -> None:
        with timed("kind delete cluster"):
            self.kind("delete", "cluster", f"--name={NAME}")
        left = self.podman.read("ps", "--all", "--quiet") + self.podman.read("volume", "ls", "--quiet")
        if left:
            raise RuntimeError(f"kind left containers or volumes of podman: {left}")

    def tell(self) -> None:
        """Print what the nodes' runtimes and kubelets said last, if there are nodes."""
        for node in self.nodes:
            subprocess.run(["podman", "exec", node, "journalctl", "--no-pager", "--lines=60", "--unit=crispd",
                            "--unit=crisp-preload", "--unit=kubelet"],
                           env=self.podman.environment, check=False, stdin=subprocess.DEVNULL)  # fmt: skip

    def kind(self, *arguments: str) -> None:
        subprocess.run([base.kind() / "kind", *arguments], env=self.environment, check=True, stdin=subprocess.DEVNULL)

    def kubectl(self, *arguments: str) -> None:
        print(self.read(*arguments), end="", flush=True)

    def read(self, *arguments: str) -> str:
        """What kubectl says."""
        kubectl = kubernetes.directory("kubectl") / "kubectl"
        done = subprocess.run([kubectl, *arguments], env=self.environment, check=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
        return done.stdout


def _config(names: Sequence[str], directory: Path) -> dict[str, Any]:
    """That of deploy/kind, for these nodes, a network without images, and this machine."""
    config: dict[str, Any] = yaml.safe_load(SAMPLE.read_text())
    nodes = config["nodes"][: len(names)]
    nodes[0]["kubeadmConfigPatches"] = [_KUBELET]
    for number, node in enumerate(nodes):
        network = directory / f"{number}-{NETWORK.name}"
        network.write_text(NETWORK.read_text().replace(_SUBNET, subnet_of(number)))
        node["extraMounts"] = [{"hostPath": str(network), "containerPath": f"/etc/cni/net.d/{NETWORK.name}"}]
    return config | {"nodes": nodes, "networking": {"disableDefaultCNI": True, "podSubnet": _SUBNET}}


def subnet_of(number: int) -> str:
    """The addresses of a node's pods."""
    return str(list(ipaddress.ip_network(_SUBNET).subnets(new_prefix=24))[number])


def _node_image() -> str:
    return f"docker.io/{yaml.safe_load(SAMPLE.read_text())['nodes'][0]['image']}"


def _cover(directory: Path, place: Path) -> None:
    """Have changes of a directory of the machine in `directory`; only the box sees them."""
    upper, work = (directory / name / place.relative_to("/") for name in ("upper", "work"))
    for made in (upper, work):
        made.mkdir(parents=True)
    options = f"lowerdir={place},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", place], check=True)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long it took."""
    begun = time.monotonic()
    yield
    print(f"{time.monotonic() - begun:6.1f} s  {what}", flush=True)
