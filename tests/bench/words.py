"""`python -m tests.bench words`: the faults of tests/integration/test_why.py, and what each runtime says of them.

Writes the table of docs/why.md.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import grpc

from cri.admin.v1 import admin_pb2, admin_pb2_grpc
from cri.v1 import api_pb2 as cri
from cri.v1 import api_pb2_grpc
from tests.bench.layouts import BUSYBOX
from tests.bench.peers import Crisp, Peer
from tests.integration.test_why import ENDED, REFUSED, Fault, stage
from tests.waiting import until

PAGE: Final = Path(__file__).parents[2] / "docs/why.md"
_BEGIN, _END = "<!-- words:begin -->", "<!-- words:end -->"
_SECONDS: Final = 120.0
_SOON: Final = 2.0  # a program that cannot be executed has ended by then
_LONGEST: Final = 260
_LEFT_OUT: Final = ("sub-path", "image-volume")  # containerd 1.6 knows no images as volumes
_IMAGES: Final = {
    "registry-refuses": "127.0.0.1:1/a:1",
    "registry-unknown": "no-such-host.invalid/a:1",
    "bad-name": "Bad//name",
}


def run(peers: Sequence[Peer], directory: Path, versions: Mapping[str, str]) -> None:
    """Stage each fault on each runtime, and write the table."""
    place = stage(_made(directory / "odd"))
    told = {peer.name: _of(peer, place) for peer in peers}
    names = [peer.name for peer in peers]
    heads = [f"{name} {versions[name]}" for name in names]
    lines = [f"| fault | {' | '.join(heads)} |", "| --- |" + " --- |" * len(names)]
    lines += [
        f"| {fault} | {' | '.join(_cell(told[name].get(fault, '')) for name in names)} |"
        for fault in next(iter(told.values()))
    ]
    page = PAGE.read_text()
    before, rest = page.split(_BEGIN)
    after = rest.split(_END)[1]
    PAGE.write_text(f"{before}{_BEGIN}\n" + "\n".join(lines) + f"\n{_END}{after}")


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _of(peer: Peer, place: Path) -> dict[str, str]:
    with grpc.insecure_channel(peer.address, options=(("grpc.default_authority", "localhost"),)) as channel:
        one = _Runtime(peer, channel)
        found = {}
        for fault in (one for one in REFUSED if one.name not in _LEFT_OUT):
            found[fault.name] = one.refused(fault, place)
        for fault in ENDED:
            found[fault.name] = one.ended(fault, place)
        for name, image in _IMAGES.items():
            found[name] = one.pulled(image)
        one.close()
    return found


class _Runtime:
    """One pod of one runtime."""

    def __init__(self, peer: Peer, channel: grpc.Channel) -> None:
        self._peer = peer
        self._runtime = api_pb2_grpc.RuntimeServiceStub(channel)
        self._images = api_pb2_grpc.ImageServiceStub(channel)
        self._admin = admin_pb2_grpc.AdminStub(channel) if isinstance(peer, Crisp) else None
        self._config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name="words", uid="words", namespace="default"),
            log_directory=str(peer.directory / "logs"),
            linux=cri.LinuxPodSandboxConfig(cgroup_parent=f"/{peer.directory.parent.name}/{peer.name}"),
        )
        (peer.directory / "logs").mkdir(exist_ok=True)
        request = cri.RunPodSandboxRequest(config=self._config)
        self._pod = self._runtime.RunPodSandbox(request, timeout=_SECONDS).pod_sandbox_id

    def close(self) -> None:
        """Remove the pod."""
        self._runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=self._pod), timeout=_SECONDS)
        self._runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=self._pod), timeout=_SECONDS)

    def refused(self, fault: Fault, place: Path) -> str:
        """Return the error of a container's creation or start."""
        try:
            container = self._start(fault, place)
        except grpc.RpcError as error:
            return str(error.details())
        status = cri.ContainerStatusRequest(container_id=container)
        deadline = time.monotonic() + _SOON
        while (found := self._state(status)).state != cri.CONTAINER_EXITED and time.monotonic() < deadline:
            time.sleep(_SOON / 100)
        self._remove(container)
        return f"(it starts) {_end(found)}" if found.state == cri.CONTAINER_EXITED else "(it starts and runs)"

    def ended(self, fault: Fault, place: Path) -> str:
        """Return what is told of a container's end: its status, and with crisp the first line of `crisp why`."""
        try:
            container = self._start(fault, place)
        except grpc.RpcError as error:
            return str(error.details())
        status = cri.ContainerStatusRequest(container_id=container)
        until(lambda: self._state(status).state == cri.CONTAINER_EXITED)
        found = self._state(status)
        told = _end(found)
        if self._admin is not None:
            told = self._admin.Why(admin_pb2.WhyRequest(query=container), timeout=_SECONDS).cause
        self._remove(container)
        return told

    def pulled(self, image: str) -> str:
        """Return the error of a pull."""
        request = cri.PullImageRequest(image=cri.ImageSpec(image=image))
        try:
            self._images.PullImage(request, timeout=_SECONDS)
        except grpc.RpcError as error:
            return str(error.details())
        return "(it is pulled)"

    def _state(self, request: cri.ContainerStatusRequest) -> cri.ContainerStatus:
        return self._runtime.ContainerStatus(request, timeout=_SECONDS).status

    def _start(self, fault: Fault, place: Path) -> str:
        image = BUSYBOX if fault.image == Fault.image else fault.image
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=fault.name),
            image=cri.ImageSpec(image=image),
            command=fault.command,
            log_path=f"{fault.name}.log",
            **fault.fields(place),
        )
        request = cri.CreateContainerRequest(pod_sandbox_id=self._pod, config=config, sandbox_config=self._config)
        container = str(self._runtime.CreateContainer(request, timeout=_SECONDS).container_id)
        begun = time.monotonic()
        try:
            self._runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=_SECONDS)
        except grpc.RpcError:
            self._remove(container)
            raise
        assert time.monotonic() - begun < _SECONDS
        return container

    def _remove(self, container: str) -> None:
        stop = cri.StopContainerRequest(container_id=container, timeout=0)
        self._runtime.StopContainer(stop, timeout=_SECONDS)
        self._runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), timeout=_SECONDS)


def _end(status: cri.ContainerStatus) -> str:
    return f"{status.reason}, exit code {status.exit_code}: {status.message}".removesuffix(": ")


def _cell(text: str) -> str:
    """Return a text for a table's cell: without ids and places of this run, and not too long."""
    text = re.sub(r"[0-9a-f]{64}", "ID", " ".join(text.split()))
    text = re.sub(r"/tmp/b\w+/(?:odd|crisp|containerd)", "...", text)
    text = re.sub(r"x{100,}", "xxx...", text)
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return text.replace("|", "\\|").replace("<", "&lt;")
