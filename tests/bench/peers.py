"""The runtimes under comparison: how each is started with state, network and images of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from cri.version import crisp_version
from runtime.cgroups import WORKERS_CGROUP
from tests import cgroups
from tests.bench.layouts import BUSYBOX, PAUSE
from tests.bench.machine import descendants

REPOSITORY = Path(__file__).parents[2]
CNI_BIN_DIRS = tuple(path for path in (Path("/opt/cni/bin"), Path("/usr/lib/cni")) if path.is_dir())
_CAP_SYS_RESOURCE = 24
_START_SECONDS = 30.0
_STOP_SECONDS = 20.0
_START_STEP = 0.05
_FREEZE_STEP = 0.001
_RESTART_STEP = 0.002  # what is measured must not be rounded up


class PeerFailed(Exception):
    """A runtime could not be started, given its images, or do what it was asked."""


@dataclass
class Peer:
    """A runtime of the comparison. `prepare` and `start` it, then talk CRI at `address`."""

    name: ClassVar[str]
    directory: Path
    subnet: int
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @classmethod
    def version(cls) -> str | None:
        """What is installed; None if it is not."""
        raise NotImplementedError

    @property
    def socket(self) -> Path:
        return self.directory / "cri.sock"

    @property
    def address(self) -> str:
        return f"unix://{self.socket}"

    @property
    def bridge(self) -> str:
        return f"bench{self.subnet}"

    def command(self) -> list[str]:
        """How the daemon is started."""
        raise NotImplementedError

    def load(self, busybox: Path, pause: Path) -> None:
        """Give the running daemon its images."""
        raise NotImplementedError

    def start(self, undo: ExitStack) -> None:
        """Start the daemon and wait for its socket; `undo` will stop it. Raises PeerFailed."""
        self.directory.mkdir()
        write_network(self.directory / "cni", self.bridge, self.subnet, self.directory / "leases")
        undo.callback(self._stop)
        self._launch(self.command(), _START_STEP)

    def restart(self) -> tuple[float, float]:
        """Stop the daemon and start it again; the milliseconds until it has ended, and until it can be connected to."""
        before = time.monotonic()
        self._stop()
        stopped = time.monotonic()
        assert self.process is not None
        self._launch([*map(os.fsdecode, self.process.args)], _RESTART_STEP)  # type: ignore[arg-type]
        return 1000 * (stopped - before), 1000 * (time.monotonic() - stopped)

    def _launch(self, command: list[str], step: float) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START_SECONDS
        while not accepts(self.socket):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise PeerFailed(f"start {self.name}: {self.log()}")
            time.sleep(step)

    def daemon_pids(self) -> set[int]:
        """The daemon's processes while no pod runs."""
        assert self.process is not None
        return descendants(self.process.pid)

    @property
    def cgroups(self) -> tuple[Path, ...]:
        """Cgroups of version 2 whose processor time is the daemon's, once `move_into_cgroup` was called."""
        return (_unified() / f"bench-{self.name}",)

    def move_into_cgroup(self) -> None:
        """Give the daemon a cgroup of its own. Raises PeerFailed on a machine without version 2."""
        self.cgroups[0].mkdir(exist_ok=True)
        for pid in self.daemon_pids():
            (self.cgroups[0] / "cgroup.procs").write_text(str(pid))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all of the daemon's processes, in the cgroups that `move_into_cgroup` made."""
        switches = [path / "cgroup.freeze" for path in self.cgroups if path.exists()]
        try:
            for switch in switches:
                switch.write_text("1")
            for switch in switches:
                while "frozen 1" not in switch.with_name("cgroup.events").read_text():
                    time.sleep(_FREEZE_STEP)
            yield
        finally:
            for switch in switches:
                switch.write_text("0")

    def log(self) -> str:
        """The end of what the daemon printed."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-15:])

    @property
    def log_path(self) -> Path:
        return self.directory / "log"

    def _stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Crisp(Peer):
    """This checkout's crispd."""

    name = "crisp"

    @classmethod
    def version(cls) -> str | None:
        revision = _output("git", "rev-parse", "--short", "HEAD")
        return crisp_version() + (f" ({revision})" if revision else "")

    def command(self) -> list[str]:
        (self.directory / "crisp.toml").write_text("shim_sleep = 30\n")
        flags = {
            "config": self.directory / "crisp.toml",
            "listen": self.address,
            "root": self.directory / "root",
            "state": "/run/crisp",  # in a tmpfs of the box, and short: a socket's path has 107 bytes
            "cni-conf-dir": self.directory / "cni",
            "registries-conf": self.directory / "registries.conf",
        }
        bin_dirs = [f"--cni-bin-dir={path}" for path in CNI_BIN_DIRS]
        options = [f"--{flag}={value}" for flag, value in flags.items()] + bin_dirs
        return [sys.executable, "-m", "cri.daemon", *options]

    @property
    def cgroups(self) -> tuple[Path, ...]:
        """With the one that crispd itself makes for the workers of images, if it limits memory by version 2."""
        return (*super().cgroups, _unified() / WORKERS_CGROUP.lstrip("/"))

    def load(self, busybox: Path, pause: Path) -> None:
        _run(self, sys.executable, "-m", "cri.client", "-r", self.address, "image", "import", str(busybox))


class TracedCrisp(Crisp):
    """crispd when it logs where the time of each start goes; not for comparison."""

    def command(self) -> list[str]:
        return [*super().command(), "--trace-start"]


class UnpackingCrisp(Crisp):
    """crispd when it unpacks layers instead of mounting them."""

    name = "crisp-unpacked"

    def command(self) -> list[str]:
        return [*super().command(), "--image-layers=unpacked", "--state=/run/crisp-unpacked"]


class Containerd(Peer):
    """The installed containerd with its CRI plugin and runc."""

    name = "containerd"

    @classmethod
    def version(cls) -> str | None:
        runc = _output("runc", "--version")
        found = _output("containerd", "--version")
        return f"{found.split()[2]} ({runc.splitlines()[0]})" if found and runc else None

    def command(self) -> list[str]:
        config = self.directory / "config.toml"
        config.write_text(self._config())
        return ["containerd", "--config", str(config)]

    def load(self, busybox: Path, pause: Path) -> None:
        for archive in (busybox, pause):
            _run(self, "ctr", "-a", str(self.socket), "-n", "k8s.io", "images", "import", str(archive))

    def _config(self) -> str:
        return f"""
version = 2
root = "{self.directory}/root"
state = "{self.directory}/state"
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = {str(not has_capability(_CAP_SYS_RESOURCE)).lower()}
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_BIN_DIRS[-1]}"
    conf_dir = "{self.directory}/cni"
"""


class Crio(Peer):
    """The installed CRI-O with conmon and runc."""

    name = "cri-o"

    @classmethod
    def version(cls) -> str | None:
        if not (shutil.which("conmon") and shutil.which("skopeo")):
            return None
        found = _output("crio", "version")
        return next((line.split()[1] for line in (found or "").splitlines() if line.startswith("Version:")), found)

    def command(self) -> list[str]:
        policy = self.directory / "policy.json"
        policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
        empty = self.directory / "empty"
        empty.mkdir()
        options = {
            "config": os.devnull,
            "config-dir": empty,
            "root": self.directory / "root",
            "runroot": self.directory / "runroot",
            "storage-driver": "overlay",
            "listen": self.socket,
            "cgroup-manager": "cgroupfs",
            "conmon-cgroup": "pod",
            "cni-config-dir": self.directory / "cni",
            "signature-policy": policy,
            "pause-image": PAUSE,
            "pause-command": "/pause",
            "container-attach-socket-dir": self.directory / "attach",
            "container-exits-dir": self.directory / "exits",
            "namespaces-dir": self.directory / "namespaces",
            "log-dir": self.directory / "logs",
            "version-file": self.directory / "version",
            "clean-shutdown-file": self.directory / "clean",
            "default-runtime": "runc",
            "stream-port": "0",
        }
        plugins = [f"--cni-plugin-dir={path}" for path in CNI_BIN_DIRS]
        return ["crio", *(f"--{option}={value}" for option, value in options.items()), *plugins]

    def load(self, busybox: Path, pause: Path) -> None:
        store = f"[overlay@{self.directory}/root+{self.directory}/runroot]"
        for archive, name in ((busybox, BUSYBOX), (pause, PAUSE)):
            target = f"containers-storage:{store}{name}"
            _run(self, "skopeo", "--insecure-policy", "copy", f"oci-archive:{archive}", target)


PEERS: tuple[type[Peer], ...] = (Crisp, Containerd, Crio)


def write_network(directory: Path, bridge: str, subnet: int, leases: Path) -> None:
    """The usual network of a small cluster: a bridge with host-local addresses and masquerading, and port mapping."""
    directory.mkdir()
    addresses = {
        "type": "host-local",
        "dataDir": str(leases),
        "ranges": [[{"subnet": f"10.{subnet}.0.0/16"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins = [
        {"type": "bridge", "bridge": bridge, "isGateway": True, "ipMasq": True, "ipam": addresses},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    network = {"cniVersion": "1.0.0", "name": bridge, "plugins": plugins}
    (directory / "10-bench.conflist").write_text(json.dumps(network))


def _unified() -> Path:
    """Where version 2 of cgroups is mounted."""
    found = [path for path in cgroups.hierarchies() if (path / "cgroup.controllers").exists()]
    if not found:
        raise PeerFailed("measure processor time: version 2 of cgroups is not mounted")
    return found[0]


def has_capability(number: int) -> bool:
    """Whether this process has a capability in effect."""
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> number & 1)


def accepts(path: Path) -> bool:
    """Whether somebody listens on a unix socket."""
    with socket.socket(socket.AF_UNIX) as attempt:
        try:
            attempt.connect(str(path))
        except OSError:
            return False
    return True


def _run(peer: Peer, *command: str) -> None:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise PeerFailed(f"load images of {peer.name}: {' '.join(command[:6])}: {done.stderr.strip()}\n{peer.log()}")


def _output(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None
