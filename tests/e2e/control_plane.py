"""The control plane of a test's cluster: etcd, an API server, a controller manager and a scheduler."""

from __future__ import annotations

import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import yaml
from kubernetes import client

from tests.e2e import kubernetes
from tests.e2e.processes import Processes, until
from tests.pki import Authority

PROGRAMS: Final = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
SERVICES: Final = "10.96.0.0/16"
FIRST_SERVICE: Final = "10.96.0.1"  # the API server's own
ISSUER: Final = "https://kubernetes.default.svc.cluster.local"
START_SECONDS: Final = 90.0


class ControlPlane:
    """The API server listens at `ip`, etcd at the loopback; `into` is a command that runs them (Processes)."""

    def __init__(
        self,
        directory: Path,
        ip: str,
        ports: Sequence[int],
        *,
        advertised: str = "",
        flags: Sequence[str] = (),
        into: Sequence[str] = (),
    ) -> None:
        """`ports` are the API server's, etcd's, and etcd's for its peers; `flags` are added to all but etcd's.

        `advertised` is the address that pods are told of, if that is another.
        """
        directory.mkdir()
        self.directory = directory
        self.address = f"https://{ip}:{ports[0]}"
        self.authority = Authority(directory / "authority")
        self.processes = Processes(directory, into)
        self._front = Authority(directory / "front")
        self._ip, self._ports, self._flags = ip, ports, flags
        self._advertised = advertised or ip
        self._programs = kubernetes.directory(*PROGRAMS)
        self._account_key = directory / "accounts.key"

    def start_servers(self) -> None:
        """Start etcd and the API server, and return when that answers. Raises ProgramFailed."""
        self._start_etcd()
        self._start_api_server()
        until(self._answers, "have an API server", START_SECONDS, self.processes)

    def start_controllers(self) -> None:
        """Start what makes pods of objects and gives them nodes."""
        manager, scheduler = map(self.kubeconfig, ("system:kube-controller-manager", "system:kube-scheduler"))
        common = ("--leader-elect=false", "--secure-port=0", *self._flags)
        self.processes.start(
            self._programs / "kube-controller-manager",
            f"--kubeconfig={manager}",
            f"--service-account-private-key-file={self._account_key}",
            f"--root-ca-file={self.authority.certificate}",
            f"--cluster-signing-cert-file={self.authority.certificate}",
            f"--cluster-signing-key-file={self.authority.key}",
            "--use-service-account-credentials=true",
            *common,
        )
        self.processes.start(self._programs / "kube-scheduler", f"--kubeconfig={scheduler}", *common)

    def issue(self, name: str, organization: str = "") -> tuple[Path, Path]:
        """A client's certificate and its key."""
        return self.authority.issue(self.directory, name, organization)

    def kubeconfig(self, user: str, organization: str = "") -> Path:
        """A file with which a program is that user."""
        path = self.directory / f"{user}.kubeconfig"
        if path.exists():  # somebody has read it
            return path
        certificate, key = self.issue(user, organization)
        server = {"server": self.address, "certificate-authority": str(self.authority.certificate)}
        credentials = {"client-certificate": str(certificate), "client-key": str(key)}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        path.write_text(yaml.safe_dump(content))
        return path

    def connect(self) -> client.ApiClient:
        """A client with every right."""
        settings = client.Configuration(host=self.address)
        settings.ssl_ca_cert = str(self.authority.certificate)
        settings.cert_file, settings.key_file = map(str, self.issue("admin", "system:masters"))
        return client.ApiClient(settings)

    def _start_etcd(self) -> None:
        clients, peers = (f"http://127.0.0.1:{port}" for port in self._ports[1:])
        self.processes.start(
            self._programs / "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={clients}",
            f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            "--unsafe-no-fsync",  # it is thrown away
        )

    def _start_api_server(self) -> None:
        host, *domains = ISSUER.removeprefix("https://").split(".")
        names = [".".join([host, *domains[:length]]) for length in (0, 1, 2, len(domains))]
        addresses = dict.fromkeys(("127.0.0.1", self._ip, self._advertised, FIRST_SERVICE))
        server, server_key = self.authority.issue(
            self.directory, "apiserver", "", [*(f"IP:{one}" for one in addresses), *(f"DNS:{one}" for one in names)]
        )
        caller, caller_key = self.issue("apiserver-kubelet-client", "system:masters")
        front, front_key = self._front.issue(self.directory, "front-proxy-client")
        subprocess.run(["openssl", "genrsa", "-out", self._account_key, "2048"], check=True, capture_output=True)
        self.processes.start(
            self._programs / "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._ports[1]}",
            "--etcd-compaction-interval=1m",  # what tests wait for
            f"--bind-address={self._ip}",
            f"--advertise-address={self._advertised}",
            f"--secure-port={self._ports[0]}",
            f"--tls-cert-file={server}",
            f"--tls-private-key-file={server_key}",
            f"--client-ca-file={self.authority.certificate}",
            f"--kubelet-client-certificate={caller}",
            f"--kubelet-client-key={caller_key}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={self._account_key}",
            f"--service-account-signing-key-file={self._account_key}",
            f"--service-cluster-ip-range={SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            # For servers that extend the API.
            f"--requestheader-client-ca-file={self._front.certificate}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-username-headers=X-Remote-User",
            f"--proxy-client-cert-file={front}",
            f"--proxy-client-key-file={front_key}",
            *self._flags,
        )

    def _answers(self) -> bool:
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        try:
            with urllib.request.urlopen(f"{self.address}/readyz", context=context, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
