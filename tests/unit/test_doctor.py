"""`crisp doctor` on made-up machines: a good one, and one with everything wrong at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cri.client.doctor import kernel, node
from cri.client.doctor.machine import Disk, Finding, Level, Machine

CONF_DIR, BIN_DIR, DATA = Path("/etc/cni/net.d"), Path("/opt/cni/bin"), Path("/var/lib/crisp")
NETWORK = '{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}]}'
GOOD = {
    "etc/cni/net.d/10-pods.conflist": NETWORK,
    "opt/cni/bin/bridge": "",
    "opt/cni/bin/host-local": "",
    "etc/containers/registries.conf": 'unqualified-search-registries = ["registry.test:5000"]',
    "proc/filesystems": "nodev\toverlay\n\text4\n",
    "proc/self/status": "Name:\tcrisp\nSeccomp:\t0\n",
    "proc/swaps": "Filename Type Size Used Priority\n",
    "proc/sys/fs/inotify/max_user_instances": "8192\n",
    "proc/sys/net/bridge/bridge-nf-call-iptables": "1\n",
    "proc/sys/net/ipv4/ip_forward": "1\n",
    "proc/sys/user/max_user_namespaces": "95000\n",
    "run/systemd/system/any": "",
    "usr/lib/systemd/system/crispd.service": "",
    "usr/lib/x86_64-linux-gnu/libseccomp.so.2": "",
    "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids\n",
    "etc/selinux/config": "SELINUXTYPE=default\n",
    "etc/selinux/default/contexts/lxc_contexts": 'process = "u:r:box_t:s0"\nfile = "u:object_r:box_file_t:s0"\n',
    "sys/fs/selinux/enforce": "1",
    "sys/module/apparmor/parameters/enabled": "Y\n",
}
BAD = {
    "etc/cni/net.d/10-pods.conflist": NETWORK,
    "etc/cni/net.d/05-broken.conflist": "{",
    "etc/containers/registries.conf": "search =",
    "proc/filesystems": "nodev\tproc\n",
    "proc/swaps": "Filename Type Size Used Priority\n/dev/sdb partition 1 0 -2\n",
    "proc/sys/fs/inotify/max_user_instances": "128\n",
    "proc/sys/net/ipv4/ip_forward": "0\n",
    "proc/sys/user/max_user_namespaces": "0\n",
    "sys/fs/cgroup/cpu/tasks": "",
    "sys/fs/selinux/enforce": "0",
    "sys/module/apparmor/parameters/enabled": "Y\n",
}


class MadeUp(Machine):
    def __init__(self, root: Path, files: dict[str, str], good: bool) -> None:
        super().__init__(root)
        self.good = good
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)

    def release(self) -> tuple[int, int]:
        return (6, 1) if self.good else (4, 19)

    def program(self, name: str) -> str:
        return f"/usr/bin/{name}" if self.good else ""

    def disk(self, path: Path) -> Disk:
        return Disk("ext4", 0.5, 0.6) if self.good else Disk("nfs4", 0.5, 0.01)

    def clock_is_kept(self) -> bool | None:
        return self.good

    def now(self) -> float:
        return 2e9 if self.good else 0.0

    def reach(self, host: str) -> str:
        return "" if self.good else "Connection refused"


def all_checks(machine: Machine, driver: str) -> Iterable[Finding]:
    yield from kernel.version(machine)
    yield from kernel.modules(machine)
    yield from kernel.sysctls(machine)
    yield from kernel.cgroups(machine, driver)
    yield from kernel.security(machine)
    yield from node.cni(machine, CONF_DIR, (BIN_DIR,))
    yield from node.registries(machine, Path("/etc/containers/registries.conf"), reach=True)
    yield from node.disks(machine, DATA)
    yield from node.clock(machine)
    yield from node.swap(machine)
    yield from node.programs(machine)
    yield from node.service(machine)


def test_nothing_is_found_on_a_good_machine(tmp_path: Path) -> None:
    found = list(all_checks(MadeUp(tmp_path, GOOD, good=True), "systemd"))
    assert [finding for finding in found if finding.level is not Level.OK] == []
    assert "registry.test:5000 answers" in [finding.message for finding in found]


def test_each_thing_that_is_wrong_is_found_and_has_a_remedy(tmp_path: Path) -> None:
    found = [f for f in all_checks(MadeUp(tmp_path, BAD, good=False), "systemd") if f.level is not Level.OK]
    assert {finding.subject for finding in found if finding.level is Level.WRONG} == {
        "kernel", "overlay", "forwarding", "cgroups", "cgroup driver", "seccomp", "cni", "registries", "disk", "clock",
        "iptables", "libseccomp",
    }  # fmt: skip
    assert {finding.subject for finding in found if finding.level is Level.WARNING} == {
        "br_netfilter", "inotify", "user namespaces", "apparmor", "selinux", "cni", "swap", "kubelet",
    }  # fmt: skip
    assert all(finding.remedy for finding in found)
    messages = " ".join(finding.message for finding in found)
    assert "bridge, host-local" in messages
    assert "1% of the inodes" in messages
    assert "cpuacct, cpuset, devices, freezer, memory, pids" in messages


def test_a_directory_without_networks_says_how_to_get_one(tmp_path: Path) -> None:
    (finding,) = node.cni(Machine(tmp_path), CONF_DIR, (BIN_DIR,))
    assert finding.level is Level.WRONG
    assert "10-crisp-bridge.conflist" in finding.remedy


def test_a_wheel_alone_brings_no_service(tmp_path: Path) -> None:
    files = {name: text for name, text in GOOD.items() if "crispd" not in name}
    (finding,) = node.service(MadeUp(tmp_path, files, good=True))
    assert (finding.level, finding.subject) == (Level.WARNING, "service")


def test_the_real_machine_can_be_asked() -> None:
    """What MadeUp replaces: no exception, and answers that can be."""
    machine = Machine()
    assert machine.release() >= (5, 12)
    assert machine.disk(Path("/var/lib/crisp/not/there")).kind
    assert machine.clock_is_kept() in (True, False, None)
    assert machine.program("sh")
    assert machine.reach("127.0.0.1:1") != ""
