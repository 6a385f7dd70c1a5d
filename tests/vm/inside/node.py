"""crispd as this machine's service, and the kernel's view of what it runs."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cri.v1 import api_pb2 as cri
from tests import leaks
from tests.daemon import CALL_SECONDS, Daemon, DaemonFailed
from tests.processes import parent_of

MACHINE = json.loads(Path("/payload/machine.json").read_text())  # what is special about it (tests/vm/machine.py)
CGROUPS = Path("/sys/fs/cgroup")
NETWORK = Path("/payload/deploy/10-crisp-bridge.conflist")
LOG_LINES = 60
RESTART_SECONDS = 900.0  # two of them took more than a minute each where eight programs wanted each processor
# Of the machine's, not ours: they come and go as systemd, udev and the kernel please.
FOREIGN = (
    r"child of 2:|systemd-udevd|\(udev-worker\)|systemd-journal|^cgroups: /system\.slice/(?!crispd)|"
    r"^links: crisp0$|^cgroups: /crisp\.slice$"  # stay by design
)


class Service(Daemon):
    """The installed crispd under systemd, with the directories and the network of its defaults."""

    def __init__(self) -> None:
        self.directory = Path("/var/tmp")
        self.bridge = "crisp0"
        self.root, self.state, self.logs = Path("/var/lib/crisp"), Path("/run/crisp"), Path("/var/log/pods")
        self.cni_conf_dir, self.leases = Path("/etc/cni/net.d"), Path("/run/cni/networks/crisp")
        self.listen = "unix:///run/crisp/crisp.sock"
        self.process = None

    def start(self) -> None:
        """Start the unit, unless it runs, and connect: `systemctl start` returns when crispd said that it is ready."""
        systemctl("start", "crispd")
        self.connect()

    def stop(self) -> None:
        self._channel.close()
        systemctl("stop", "crispd")

    def kill9(self) -> None:
        """Kill crispd as a crash would, wait for systemd to start it again, and connect."""
        self._channel.close()
        before = self.pid()
        systemctl("kill", "--kill-whom=main", "--signal=KILL", "crispd")
        deadline = time.monotonic() + RESTART_SECONDS
        while self.pid() in (0, before) or systemctl("show", "--property=ActiveState", "--value", "crispd") != "active":
            if time.monotonic() > deadline:
                raise DaemonFailed(f"kill crispd: systemd did not start it again\n{self.log()}")
            time.sleep(0.2)
        self.start()

    def log(self) -> str:
        command = ["journalctl", "--unit=crispd", "--no-pager", "--output=cat", f"--lines={LOG_LINES}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def pid(self) -> int:
        """The daemon's own."""
        return int(systemctl("show", "--property=MainPID", "--value", "crispd"))

    def info(self, container_id: str) -> dict[str, Any]:
        """The verbose information of a container's status."""
        request = cri.ContainerStatusRequest(container_id=container_id, verbose=True)
        answer = self.runtime.ContainerStatus(request, timeout=CALL_SECONDS)
        return dict(json.loads(answer.info["info"]))

    def network(self) -> cri.RuntimeCondition:
        """The NetworkReady condition."""
        return self._condition("NetworkReady")

    def ready(self) -> cri.RuntimeCondition:
        """The RuntimeReady condition."""
        return self._condition("RuntimeReady")

    def files_left(self) -> list[str]:
        """What there is of pods in crispd's directories and of addresses in the network's.

        A container's files go a moment after the answer to RemoveContainer: wait for none.
        """
        places = (self.state / "sandboxes", self.state / "containers", self.root / "containers", self.root / "network")
        left = [str(path) for place in places if place.is_dir() for path in place.iterdir()]
        return left + [str(path) for path in self.leases.glob("10.*")]

    def _condition(self, kind: str) -> cri.RuntimeCondition:
        status = self.runtime.Status(cri.StatusRequest(), timeout=CALL_SECONDS).status
        return next(condition for condition in status.conditions if condition.type == kind)


@dataclass(frozen=True, slots=True)
class Process:
    """A container's first process as the host sees it."""

    pid: int
    started: str  # in clock ticks since boot: tells a process from a later one with its number

    @classmethod
    def of(cls, service: Service, container_id: str) -> Process:
        return cls.at(int(service.info(container_id)["pid"]))

    @classmethod
    def at(cls, pid: int) -> Process:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return cls(pid, stat[stat.rindex(")") + 2 :].split()[19])

    def read(self, name: str) -> str:
        """A file of /proc/PID."""
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def parent(self) -> Process:
        return Process.at(parent_of(self.pid))

    def cgroup(self) -> Path:
        """Where it is in the one hierarchy."""
        return CGROUPS / self.read("cgroup").strip().removeprefix("0::/")


def systemctl(*arguments: str) -> str:
    """What systemctl printed. Raises CalledProcessError."""
    return subprocess.run(["systemctl", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def left_since(before: leaks.Snapshot) -> list[str]:
    """What crisp left behind of everything made since `before`."""
    return leaks.settle(before, foreign=FOREIGN)
