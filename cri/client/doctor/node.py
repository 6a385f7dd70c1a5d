"""Checks of the node: network configuration, registries, disks, clock, programs and swap."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from cri.client.doctor.machine import Finding, Level, Machine
from image.errors import ImageError
from image.reference import DEFAULT_DOMAIN
from image.registry.registries_conf import load
from network.conflist import read_conf_dir

_LITTLE, _TOO_LITTLE = 0.15, 0.05  # kubelet evicts pods under 15% of imagefs, and 5% of inodes
_OLD_YEARS = 1_735_689_600  # 2025, before which there was no crisp
_NO_OVERLAY_ON = ("nfs", "nfs4", "overlay", "vfat", "fuse", "9p", "virtiofs")


def cni(machine: Machine, conf_dir: Path, bin_dirs: Sequence[Path]) -> Iterator[Finding]:
    """Check that there is a valid configuration, and the plugins that it names."""
    network, problems = read_conf_dir(machine.path(conf_dir))
    for problem in problems:
        yield Finding(Level.WARNING, "cni", problem, f"fix or remove that file in {conf_dir}")
    if network is None:
        yield Finding(
            Level.WRONG, "cni", f"{conf_dir} has no network configuration: the node stays NotReady",
            f"install a network plugin; or, for one node: install -Dm644 -t {conf_dir} deploy/10-crisp-bridge.conflist",
        )  # fmt: skip
        return
    needed = {name for plugin in network.plugins for name in (plugin.type, plugin.config.get("ipam", {}).get("type"))}
    absent = sorted(
        name for name in needed if name and not any(machine.exists(directory / name) for directory in bin_dirs)
    )
    if absent:
        places = ", ".join(map(str, bin_dirs))
        message = f"{network.name} needs {', '.join(absent)}: not found in {places}"
        yield Finding(Level.WRONG, "cni", message, "apt-get install containernetworking-plugins")
    else:
        yield Finding(Level.OK, "cni", f"{network.name}, plugins there")


def registries(machine: Machine, configuration: Path, reach: bool) -> Iterator[Finding]:
    """Check registries.conf; with `reach` also that its hosts answer, or Docker Hub if it names none."""
    try:
        found = load(machine.path(configuration))
    except ImageError as error:
        yield Finding(Level.WRONG, "registries", str(error), f"fix {configuration}: see containers-registries.conf(5)")
        return
    if not reach:
        return
    for host in sorted({"registry-1.docker.io" if name == DEFAULT_DOMAIN else name for name in found.search}):
        if why := machine.reach(host):
            remedy = "check the machine's DNS, route and proxy (HTTPS_PROXY in crispd's unit), or set a mirror"
            yield Finding(Level.WARNING, "registries", f"{host} does not answer: {why}", f"{remedy} in {configuration}")
        else:
            yield Finding(Level.OK, "registries", f"{host} answers")


def disks(machine: Machine, root: Path) -> Iterator[Finding]:
    """Check the free space for crisp's data, and that its file system can hold overlay's upper directory."""
    disk = machine.disk(root)
    if disk.kind.startswith(_NO_OVERLAY_ON):
        remedy = "set root in /etc/crisp/crisp.toml to a directory on ext4 or xfs"
        yield Finding(Level.WRONG, "disk", f"{root} is on {disk.kind}, where overlay cannot write", remedy)
    free = min(disk.free_bytes, disk.free_inodes)
    what = "inodes" if disk.free_inodes < disk.free_bytes else "space"
    if free < _LITTLE:
        level = Level.WRONG if free < _TOO_LITTLE else Level.WARNING
        message = f"{free:.0%} of the {what} under {root} is free: kubelet evicts pods"
        yield Finding(level, "disk", message, "remove unneeded images (crisp images, crisp rmi), or use a larger disk")
    else:
        yield Finding(Level.OK, "disk", f"{free:.0%} of the {what} under {root} is free")


def clock(machine: Machine) -> Iterator[Finding]:
    """Check the clock, which certificates and leases need."""
    remedy = "apt-get install systemd-timesyncd; timedatectl set-ntp true"
    if machine.now() < _OLD_YEARS:
        yield Finding(Level.WRONG, "clock", "is years behind, so no certificate is valid", remedy)
    elif machine.clock_is_kept() is False:
        yield Finding(Level.WARNING, "clock", "is not synchronised", remedy)
    else:
        yield Finding(Level.OK, "clock", "kept" if machine.clock_is_kept() else "plausible")


def programs(machine: Machine) -> Iterator[Finding]:
    """Check for Python, the programs of the usual CNI plugins, and kubelet."""
    running = ".".join(map(str, sys.version_info[:3]))
    yield Finding(Level.OK, "python", f"{running} ({sys.executable})")
    if not machine.program("iptables"):
        yield Finding(Level.WRONG, "iptables", "is not installed: the CNI plugins need it", "apt-get install iptables")
    if not machine.program("kubelet"):
        yield Finding(Level.WARNING, "kubelet", "is not installed", "see docs/install.md")


def service(machine: Machine) -> Iterator[Finding]:
    """Check for what a wheel does not bring: the library that compiles seccomp profiles, and systemd's unit."""
    patterns = ("lib/libseccomp.so.2", "lib64/libseccomp.so.2", "lib/*/libseccomp.so.2", "local/lib/libseccomp.so.2")
    if not any(any(machine.path("/usr").glob(pattern)) for pattern in patterns):
        message = "is not installed: seccomp profiles cannot be compiled"
        yield Finding(Level.WRONG, "libseccomp", message, "apt-get install libseccomp2")
    units = ("/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
    if machine.exists("/run/systemd/system") and not any(machine.exists(f"{unit}/crispd.service") for unit in units):
        remedy = "install the Debian package (deploy/package.sh) or by deploy/install.sh; or start crispd yourself"
        yield Finding(Level.WARNING, "service", "systemd has no crispd.service to start with the machine", remedy)


def swap(machine: Machine) -> Iterator[Finding]:
    """Check that swap is off: kubelet does not start with swap unless configured to."""
    if len(machine.text("/proc/swaps").splitlines()) > 1:
        remedy = "swapoff -a, and remove its lines from /etc/fstab; or set failSwapOn: false in kubelet's configuration"
        yield Finding(Level.WARNING, "swap", "is on: kubelet refuses to start by default", remedy)
