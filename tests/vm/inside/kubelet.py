"""kubelet as a unit of this machine's, beside crispd with the systemd cgroup driver: static pods, seen through CRI."""

from __future__ import annotations

import json
import ssl
import subprocess
import urllib.request
from pathlib import Path
from typing import Any, Final

import grpc
import yaml

from cri.v1 import api_pb2 as cri
from tests.daemon import CALL_SECONDS
from tests.vm.inside.node import Service, systemctl

EXPECTED: Final = Path("/var/lib/crisp-guest-kubelet.json")  # what the third boot has to find
MANIFESTS: Final = Path("/etc/kubernetes/manifests")
SAMPLE: Final = Path("/payload/deploy/kubelet.yaml")
SECONDS: Final = 600.0  # kubelet alone takes 15 to start under emulation, and a minute on a machine with more to do
ADDRESS: Final = "192.0.2.1"
_UNIT: Final = f"""
[Unit]
After=crispd.service
Wants=crispd.service

[Service]
ExecStartPre=/bin/ip address replace {ADDRESS}/32 dev lo
ExecStart=/payload/kubelet --config=/var/lib/kubelet/config.yaml --hostname-override=guest --node-ip={ADDRESS} --v=1
KillMode=process
Restart=always

[Install]
WantedBy=multi-user.target
"""


def install() -> None:
    """Put both units where they survive a reboot; kubelet has the configuration that deploy/ offers."""
    configuration = yaml.safe_load(SAMPLE.read_text()) | {
        "address": "127.0.0.1",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "evictionHard": {"memory.available": "1Mi"},
        "podPidsLimit": 99,
        "syncFrequency": "1s",
        "fileCheckFrequency": "1s",
    }
    Path("/var/lib/kubelet").mkdir(parents=True, exist_ok=True)
    Path("/var/lib/kubelet/config.yaml").write_text(yaml.safe_dump(configuration))
    Path("/etc/systemd/system/kubelet.service").write_text(_UNIT)
    Path("/etc/crisp/crisp.toml.d/driver.toml").write_text('cgroup_driver = "systemd"\n')
    MANIFESTS.mkdir(parents=True, exist_ok=True)
    systemctl("daemon-reload")
    systemctl("restart", "crispd")
    systemctl("enable", "--quiet", "--now", "kubelet")


def add(pod: dict[str, Any]) -> None:
    """Write a static pod's manifest, on the disk for good."""
    temporary = MANIFESTS.parent / "new.yaml"
    temporary.write_text(json.dumps(pod))
    temporary.rename(MANIFESTS / f"{pod['metadata']['name']}.yaml")
    subprocess.run(["sync", MANIFESTS], check=True)


def containers(service: Service, pod: str) -> list[cri.Container]:
    """The pod's, newest first."""
    labels = {"io.kubernetes.pod.name": f"{pod}-guest"}
    request = cri.ListContainersRequest(filter=cri.ContainerFilter(label_selector=labels))
    found = service.runtime.ListContainers(request, timeout=CALL_SECONDS).containers
    return sorted(found, key=lambda one: -one.created_at)


def running(service: Service, pod: str) -> str:
    """The id of its newest container, "" unless it runs."""
    newest = next(iter(containers(service, pod)), None)
    return newest.id if newest is not None and newest.state == cri.CONTAINER_RUNNING else ""


def ends(service: Service, pod: str) -> list[str]:
    """The reasons of its exited containers, without those that kubelet removes while this asks."""
    reasons = []
    for one in containers(service, pod):
        try:
            status = service.status(one.id)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            continue
        if status.state == cri.CONTAINER_EXITED:
            reasons.append(status.reason)
    return reasons


def ready_sandboxes(service: Service) -> dict[str, str]:
    """Their ids, by the pods' names."""
    ready = cri.PodSandboxFilter(state=cri.PodSandboxStateValue(state=cri.SANDBOX_READY))
    found = service.runtime.ListPodSandbox(cri.ListPodSandboxRequest(filter=ready), timeout=CALL_SECONDS).items
    assert len({one.metadata.name for one in found}) == len(found)
    return {one.metadata.name.removesuffix("-guest"): one.id for one in found}


def get(path: str, method: str = "GET") -> str:
    """What kubelet's own API answers; its certificate is signed by itself."""
    request = urllib.request.Request(f"https://127.0.0.1:10250{path}", method=method)
    with urllib.request.urlopen(request, timeout=SECONDS, context=ssl._create_unverified_context()) as answer:
        return str(answer.read().decode())


def log() -> str:
    """What kubelet complained of."""
    command = ["journalctl", "--unit=kubelet", "--no-pager", "--output=cat", "--lines=400"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return "\n".join([line for line in lines if line[:1] in "EF"][-40:])
