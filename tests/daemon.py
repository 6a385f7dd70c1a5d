"""A real crispd for tests: state, data, socket, bridge and subnet of its own; gRPC stubs; and what it leaves behind."""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from cri.admin.v1 import admin_pb2, admin_pb2_grpc
from cri.v1 import api_pb2 as cri
from cri.v1 import api_pb2_grpc
from tests import leaks
from tests.waiting import SECONDS

REPOSITORY = Path(__file__).parent.parent
BUSYBOX = "localhost/busybox:latest"
CNI_BIN_DIRS = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
LAYERS_VARIABLE = "CRISP_TEST_LAYERS"  # the kind of layers of daemons that do not say which, instead of the default
SLEEP_VARIABLE = "CRISP_TEST_SHIM_SLEEP"  # after how many seconds shims sleep, instead of the default
START_SECONDS = 60.0
STOP_SECONDS = 60.0
CALL_SECONDS = 120.0
LOG_LINES = 60

_numbers = itertools.count(1)


@functools.cache
def busybox_layout() -> Path:
    """An OCI layout made from the host's busybox, once a run of tests."""
    layout = Path(tempfile.mkdtemp(prefix="b", dir="/tmp"))
    atexit.register(shutil.rmtree, layout)
    subprocess.run([sys.executable, REPOSITORY / "deploy/busybox-image.py", layout, BUSYBOX], check=True)
    return layout


class DaemonFailed(Exception):
    """crispd did not start, stop, or clean up as it must; the message carries the end of its log."""


class Daemon:
    """One crispd process and the directory it lives in. `Daemon.running()` makes one for a `with` block.

    `runtime`, `images` and `admin` are gRPC stubs of the running process; a restart replaces them. `tree` is where the
    next start takes its modules from, `into` a command that runs another one: in other namespaces, say.
    """

    python = sys.executable
    module = "cri.daemon"
    runtime: api_pb2_grpc.RuntimeServiceStub
    images: api_pb2_grpc.ImageServiceStub
    admin: admin_pb2_grpc.AdminStub

    def __init__(
        self,
        directory: Path,
        arguments: tuple[str, ...],
        registries: str,
        ipv6: bool,
        tree: Path,
        into: Sequence[str],
    ) -> None:
        number = next(_numbers)
        self.directory, self.tree, self.into = directory, tree, into
        self.bridge = f"crispt{number}"
        self.root, self.state, self.logs = directory / "root", directory / "state", directory / "logs"
        self.cni_conf_dir, self.leases = directory / "cni", directory / "leases"
        self.registries_conf = directory / "registries.conf"
        self.listen = f"unix://{directory}/crisp.sock"
        self.process: subprocess.Popen[bytes] | None = None
        self._arguments = arguments
        self._log = directory / "crispd.log"
        self.cni_conf_dir.mkdir()
        self.registries_conf.write_text(registries)
        self.write_network(number, ipv6)

    @classmethod
    @contextmanager
    def running(
        cls,
        *arguments: str,
        registries: str = "",
        ipv6: bool = False,
        tree: Path = REPOSITORY,
        into: Sequence[str] = (),
    ) -> Iterator[Self]:
        """A started daemon; afterwards it is emptied, stopped, and must have left nothing.

        `arguments` are added to crispd's; `registries` is the text of its registries.conf; `ipv6` gives pods a second
        address (which costs a second for duplicate address detection); `tree` is another checkout that crispd is of;
        `into` runs its command. Raises DaemonFailed.
        """
        before = leaks.Snapshot.take()
        # A socket's path has 107 bytes, and a shim's ends in 64 digits of an id.
        directory = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))
        leaks.claim(directory)
        daemon = cls(directory, arguments, registries, ipv6, tree, into)
        with ExitStack() as undo:
            undo.callback(daemon.end)
            daemon.start()
            undo.callback(daemon.empty)
            yield daemon
        if left := leaks.settle(before):
            raise DaemonFailed("crispd left behind:\n  " + "\n  ".join(sorted(left)) + f"\n{daemon.log()}")
        shutil.rmtree(directory)

    def write_network(self, number: int, ipv6: bool = False) -> None:
        """A bridge with host-local addresses 10.200.`number`.0/24 (and fd00:`number`::/64), and port mapping."""
        ranges = [[{"subnet": f"10.200.{number}.0/24"}]] + ([[{"subnet": f"fd00:{number}::/64"}]] if ipv6 else [])
        bridge = {
            "type": "bridge",
            "bridge": self.bridge,
            "isGateway": True,
            "ipMasq": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(self.leases),
                "ranges": ranges,
                "routes": [{"dst": "0.0.0.0/0"}] + ([{"dst": "::/0"}] if ipv6 else []),
            },
        }
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        network = {"cniVersion": "1.0.0", "name": self.bridge, "plugins": [bridge, portmap]}
        (self.cni_conf_dir / "10-test.conflist").write_text(json.dumps(network))

    def start(self) -> None:
        """Start crispd and return when it says READY=1 (sd_notify). Raises DaemonFailed if it exits or keeps silent."""
        notify = self.directory / "notify"
        notify.unlink(missing_ok=True)
        # Namespaces of mounts that are joined have another working directory.
        into = [*self.into, "env", f"--chdir={self.tree}"] if self.into else []
        command = [*into, self.python, "-m", self.module, *self._flags(), *self._arguments]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, self._log.open("ab") as log:
            ready.bind(str(notify))
            notify.chmod(0o777)  # crispd may be another user
            self.process = subprocess.Popen(
                command, cwd=self.tree, env=os.environ | {"NOTIFY_SOCKET": str(notify)}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip
            self._wait_until_ready(ready)
        self.connect()

    def connect(self) -> None:
        """Make the stubs of a daemon that is up."""
        self._channel = grpc.insecure_channel(self.listen, options=(("grpc.max_receive_message_length", -1),))
        self.runtime = api_pb2_grpc.RuntimeServiceStub(self._channel)
        self.images = api_pb2_grpc.ImageServiceStub(self._channel)
        self.admin = admin_pb2_grpc.AdminStub(self._channel)
        grpc.channel_ready_future(self._channel).result(CALL_SECONDS)
        self._descriptors = leaks.descriptors_of(self.pid())

    def pid(self) -> int:
        """The daemon's own. Raises DaemonFailed if it does not run."""
        return self._running().pid

    def streams_pid(self) -> int:
        """The process that serves the daemon's streams."""
        return leaks.streams_of(self.pid())

    def descriptors(self) -> Counter[str]:
        """What the daemon has open."""
        return leaks.descriptors_of(self.pid())

    def stop(self) -> None:
        """End crispd with SIGTERM; pods go on. Raises DaemonFailed if it takes too long or exits with an error."""
        process = self._running()
        self._channel.close()
        process.terminate()
        try:
            status = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise DaemonFailed(f"stop crispd: still there {STOP_SECONDS} s after SIGTERM\n{self.log()}") from None
        self.process = None
        if status:
            raise DaemonFailed(f"stop crispd: exit status {status}\n{self.log()}")

    def kill9(self) -> None:
        """Kill crispd as a crash would."""
        process = self._running()
        process.kill()
        process.wait()
        self.process = None
        self._channel.close()

    def buried(self) -> None:
        """Forget a crispd that somebody else killed."""
        process = self._running()
        process.wait(STOP_SECONDS)
        self.process = None
        self._channel.close()

    def restart(self) -> None:
        """Stop crispd (unless it is dead already) and start it again on the same state."""
        if self.process is not None:
            self.stop()
        self.start()

    def log(self) -> str:
        """The end of what crispd wrote to its standard output and error, over all its starts."""
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return "\n".join(["--- crispd's log:", *lines[-LOG_LINES:]])

    def import_busybox(self) -> str:
        """Import an image made from the host's busybox, named localhost/busybox:latest; its id."""
        return self.import_image(busybox_layout())

    def import_image(self, archive: Path, name: str = "") -> str:
        """Import an OCI layout or docker archive; the id of the first image in it."""
        request = admin_pb2.ImportImageRequest(path=str(archive), name=name)
        return str(self.admin.ImportImage(request, timeout=CALL_SECONDS).images[0].id)

    def sandbox_config(self, name: str, **fields: Any) -> cri.PodSandboxConfig:
        """What RunPodSandbox needs at least: metadata and a log directory. `fields` are added."""
        logs = self.logs / name
        logs.mkdir(parents=True, exist_ok=True)
        metadata = cri.PodSandboxMetadata(name=name, uid=f"{name}-uid", namespace="default")
        return cri.PodSandboxConfig(metadata=metadata, hostname=name, log_directory=str(logs), **fields)

    @contextmanager
    def pod(self, name: str = "pod", config: cri.PodSandboxConfig | None = None) -> Iterator[Pod]:
        """A running sandbox, stopped and removed afterwards."""
        config = config or self.sandbox_config(name)
        answer = self.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config), timeout=CALL_SECONDS)
        pod = Pod(self, answer.pod_sandbox_id, config)
        try:
            yield pod
        finally:
            pod.remove()

    def status(self, container_id: str) -> cri.ContainerStatus:
        return self.runtime.ContainerStatus(
            cri.ContainerStatusRequest(container_id=container_id), timeout=CALL_SECONDS
        ).status

    def wait_exited(self, container_id: str, seconds: float = SECONDS) -> cri.ContainerStatus:
        """The status of a container once it has exited. Raises DaemonFailed when that takes longer."""
        deadline = time.monotonic() + seconds
        while (status := self.status(container_id)).state != cri.CONTAINER_EXITED:
            if time.monotonic() > deadline:
                raise DaemonFailed(f"wait for container {container_id}: not exited in {seconds} s\n{self.log()}")
            time.sleep(0.01)
        return status

    def _left(self) -> list[str]:
        places = (self.state / "sandboxes", self.state / "containers", self.root / "containers", self.root / "network")
        left = [str(path) for place in places if place.is_dir() for path in place.iterdir()]
        return left + [str(path) for path in self.leases.rglob("10.*")]

    def empty(self) -> None:
        """Stop and remove every sandbox, starting crispd if it was killed.

        Raises DaemonFailed when files or descriptors of pods stay.
        """
        if self.process is None:
            self.start()
        for sandbox in self.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=CALL_SECONDS).items:
            Pod(self, sandbox.id, cri.PodSandboxConfig()).remove()
        deadline = time.monotonic() + SECONDS  # containers' files go after their removals are answered
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.01)
        if left:
            raise DaemonFailed("empty crispd: these files stayed:\n  " + "\n  ".join(left) + f"\n{self.log()}")
        deadline = time.monotonic() + leaks.GRACE_SECONDS
        while held := self._held():
            if time.monotonic() > deadline:
                raise DaemonFailed(f"empty crispd: it still holds {dict(held)}\n{self.log()}")
            time.sleep(0.02)

    def _held(self) -> Counter[str]:
        """The descriptors that crispd did not have when it started, but for mounts of layers: images may stay."""
        held = leaks.descriptors_of(self.pid()) - self._descriptors
        held.pop(leaks.LAYER, None)
        return held - Counter({"socket": bool(leaks.streams_of(self.pid()))})  # the one to it

    def may_hold(self, kind: str) -> None:
        """One more descriptor of this kind (tests.leaks) is no leak from now on."""
        self._descriptors[kind] += 1

    def end(self) -> None:
        """Stop crispd and take its bridge away."""
        try:
            if self.process is not None:
                self.stop()
        finally:
            if Path("/proc/sys/net/ipv4/conf", self.bridge).exists():
                subprocess.run(["ip", "link", "delete", self.bridge], check=True)

    def _flags(self) -> list[str]:
        flags = {
            "--config": self.directory / "crisp.toml",
            "--listen": self.listen,
            "--root": self.root,
            "--state": self.state,
            "--cni-conf-dir": self.cni_conf_dir,
            "--registries-conf": self.registries_conf,
            "--stream-addr": "127.0.0.1:0",
            "--nri-socket": "",  # the default is the machine's
            "--log-level": "debug",
        }
        if not (settings := self.directory / "crisp.toml").exists():
            settings.write_text(f"shim_sleep = {sleep}\n" if (sleep := os.environ.get(SLEEP_VARIABLE)) else "")
        if (layers := os.environ.get(LAYERS_VARIABLE)) and self.tree == REPOSITORY:
            flags["--image-layers"] = layers
        bin_dirs = [f"--cni-bin-dir={path}" for path in CNI_BIN_DIRS]
        return [f"{flag}={value}" for flag, value in flags.items()] + bin_dirs

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise DaemonFailed("crispd is not running")
        return self.process

    def _wait_until_ready(self, ready: socket.socket) -> None:
        process = self._running()
        exited = os.pidfd_open(process.pid)
        try:
            deadline = time.monotonic() + START_SECONDS
            while (left := deadline - time.monotonic()) > 0:
                found, _, _ = select.select([ready.fileno(), exited], [], [], left)
                if ready.fileno() in found and b"READY=1" in ready.recv(4096).splitlines():
                    return
                if exited in found:
                    status, self.process = process.wait(), None
                    raise DaemonFailed(f"start crispd: exit status {status}\n{self.log()}")
        finally:
            os.close(exited)
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.process = None
        raise DaemonFailed(f"start crispd: no READY=1 within {START_SECONDS} s\n{self.log()}")


@dataclass(frozen=True, slots=True)
class Pod:
    """A sandbox of a test."""

    daemon: Daemon
    id: str
    config: cri.PodSandboxConfig

    def create(self, *command: str, name: str = "main", image: str = BUSYBOX, **fields: Any) -> str:
        """A created container's id. `fields` are ContainerConfig's."""
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name),
            image=cri.ImageSpec(image=image),
            command=command,
            log_path=f"{name}.log",
            **fields,
        )
        request = cri.CreateContainerRequest(pod_sandbox_id=self.id, config=config, sandbox_config=self.config)
        return str(self.daemon.runtime.CreateContainer(request, timeout=CALL_SECONDS).container_id)

    def run(self, *command: str, name: str = "main", image: str = BUSYBOX, **fields: Any) -> str:
        """A started container's id."""
        container_id = self.create(*command, name=name, image=image, **fields)
        self.daemon.runtime.StartContainer(
            cri.StartContainerRequest(container_id=container_id), timeout=CALL_SECONDS
        )
        return container_id

    def exec(self, container_id: str, *command: str, timeout: int = 60) -> cri.ExecSyncResponse:
        """Run a command in a container; `timeout` in seconds is the runtime's."""
        request = cri.ExecSyncRequest(container_id=container_id, cmd=command, timeout=timeout)
        return self.daemon.runtime.ExecSync(request, timeout=CALL_SECONDS)

    def status(self) -> cri.PodSandboxStatus:
        return self.daemon.runtime.PodSandboxStatus(
            cri.PodSandboxStatusRequest(pod_sandbox_id=self.id), timeout=CALL_SECONDS
        ).status

    def log(self, name: str = "main") -> str:
        """The CRI log of a container."""
        return Path(self.config.log_directory, f"{name}.log").read_text()

    def remove(self) -> None:
        """Stop and remove the sandbox with all in it; no error if it is gone."""
        runtime = self.daemon.runtime
        runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=self.id), timeout=CALL_SECONDS)
        runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=self.id), timeout=CALL_SECONDS)
