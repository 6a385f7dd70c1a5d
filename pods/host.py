"""Facts about the host that plans depend on, read once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from image.platforms import node_platforms
from linux import lsm
from linux.selinux import ContainerContexts, container_contexts
from linux.tables import capability_names


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Properties of the kernel and of the daemon that decide what a container can get."""

    cgroup_v2: bool  # every controller is on the unified hierarchy
    swap_limit: bool  # the memory controller can limit swap
    capabilities: frozenset[str]  # those the daemon can pass on: its permitted set within its bounding set
    kernel: tuple[int, int]
    architecture: str  # as Go and image manifests name it: "amd64", "arm64"
    hostname: str
    apparmor: bool = False
    selinux: bool = False
    container_contexts: ContainerContexts | None = None  # of its policy
    # Whether cgroup v2 has that mount option now: whoever mounts it again without the option (criu does) removes it.
    nsdelegate: Callable[[], bool] = lambda: False
    hugetlb: bool = True  # every runtime finds the controller: version 1 has it, or all controllers are on version 2

    @property
    def recursive_read_only(self) -> bool:
        """Whether a whole tree of mounts can be made read-only (mount_setattr(2), Linux 5.12)."""
        return self.kernel >= (5, 12)

    @classmethod
    def detect(
        cls, proc: Path = Path("/proc"), sys: Path = Path("/sys"), etc: Path = Path("/etc")
    ) -> HostFacts:
        """Read the facts from procfs and sysfs. Raises OSError if a file is missing."""
        cgroups = sys / "fs/cgroup"
        cgroup_v2 = (cgroups / "cgroup.controllers").exists()
        machine = os.uname()
        selinux_is_on = lsm.selinux_is_on(sys)
        return cls(
            cgroup_v2=cgroup_v2,
            nsdelegate=lambda: _delegates((proc / "self/mountinfo").read_text(), str(cgroups)),
            swap_limit=_swap_limit(cgroups, proc, v2=cgroup_v2),
            capabilities=_capabilities((proc / "self/status").read_text()),
            kernel=_kernel_version(machine.release),
            architecture=node_platforms(machine.machine)[0].architecture,
            hostname=machine.nodename,
            apparmor=lsm.apparmor_is_on(sys),
            hugetlb=cgroup_v2 or (cgroups / "hugetlb").is_dir(),
            selinux=selinux_is_on,
            container_contexts=container_contexts(etc) if selinux_is_on else None,
        )


def _swap_limit(cgroups: Path, proc: Path, *, v2: bool) -> bool:
    if not v2:
        return (cgroups / "memory/memory.memsw.limit_in_bytes").exists()
    # The root cgroup has no memory.swap.max: look in the daemon's own cgroup, and if that is the root, in any child.
    own = (proc / "self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
    return (cgroups / own / "memory.swap.max").exists() or any(cgroups.glob("*/memory.swap.max"))


def _delegates(mountinfo: str, mountpoint: str) -> bool:
    """Whether the cgroup2 file system at `mountpoint` has the option nsdelegate (cgroups(7))."""
    for line in mountinfo.splitlines():
        mount, _, filesystem = line.partition(" - ")
        if mount.split(" ")[4] == mountpoint and filesystem.startswith("cgroup2 "):
            return "nsdelegate" in filesystem.rpartition(" ")[2].split(",")
    return False


def _capabilities(status: str) -> frozenset[str]:
    masks = {name: int(mask, 16) for name, mask in re.findall(r"^(Cap\w+):\s+([0-9a-f]+)$", status, re.MULTILINE)}
    return capability_names(masks["CapPrm"] & masks["CapBnd"])


def _kernel_version(release: str) -> tuple[int, int]:
    major, minor = release.split(".")[:2]
    return int(major), int(re.match(r"\d+", minor).group())  # type: ignore[union-attr]
