"""Checks of the kernel: its version, modules, sysctls, cgroups and security."""

from __future__ import annotations

from collections.abc import Iterator

from cri.client.doctor.machine import Finding, Level, Machine
from linux import lsm, selinux

_OLDEST = (5, 12)  # mount_setattr; clone3 into a cgroup and openat2 are older
_OWN_CORE_NEEDS = "install a newer kernel, as in Debian 12 (6.1), Ubuntu 22.04 (5.15) and later"
_CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")
_V1_CONTROLLERS = ("cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids")
_INOTIFY_INSTANCES = 1024
_NO_CONTROLLER = "boot with cgroup_enable=memory (add it to GRUB_CMDLINE_LINUX in /etc/default/grub, then update-grub)"


def version(machine: Machine) -> Iterator[Finding]:
    """Check whether the kernel is new enough for the runtime core."""
    major, minor = machine.release()
    if (major, minor) < _OLDEST:
        needed = ".".join(map(str, _OLDEST))
        yield Finding(Level.WRONG, "kernel", f"{major}.{minor} is older than {needed}", _OWN_CORE_NEEDS)
    else:
        yield Finding(Level.OK, "kernel", f"{major}.{minor}")


def modules(machine: Machine) -> Iterator[Finding]:
    """Check for overlay, which containers' root file systems need, and br_netfilter, which Services need."""
    known = machine.text("/proc/filesystems").split()
    if "overlay" in known:
        yield Finding(Level.OK, "overlay", "there")
    else:
        yield Finding(Level.WRONG, "overlay", "the kernel has no overlay file system", _load("overlay"))
    if machine.exists("/proc/sys/net/bridge"):
        yield Finding(Level.OK, "br_netfilter", "there")
    else:
        yield Finding(
            Level.WARNING, "br_netfilter", "Services do not reach pods on the same bridge", _load("br_netfilter")
        )


def sysctls(machine: Machine) -> Iterator[Finding]:
    """Check forwarding, which pods' networks need, and limits that kubelet exceeds."""
    if machine.text("/proc/sys/net/ipv4/ip_forward") == "1":
        yield Finding(Level.OK, "forwarding", "on")
    else:
        message = "packets between pods and other hosts are dropped"
        yield Finding(Level.WRONG, "forwarding", message, _set("net.ipv4.ip_forward", "1"))
    instances = machine.text("/proc/sys/fs/inotify/max_user_instances")
    if instances.isdecimal() and int(instances) < _INOTIFY_INSTANCES:
        yield Finding(
            Level.WARNING, "inotify", f"{instances} instances are used up by some {int(instances) // 6} pods",
            _set("fs.inotify.max_user_instances", "8192"),
        )  # fmt: skip
    if machine.text("/proc/sys/user/max_user_namespaces") == "0":
        message = "pods with hostUsers: false cannot start"
        yield Finding(Level.WARNING, "user namespaces", message, _set("user.max_user_namespaces", "65536"))


def cgroups(machine: Machine, driver: str) -> Iterator[Finding]:
    """Check the hierarchy, its controllers, and whether `driver` fits the machine."""
    unified = machine.text("/sys/fs/cgroup/cgroup.controllers").split()
    if unified:
        version, missing = "v2", [name for name in _CONTROLLERS if name not in unified]
    else:
        version, missing = "v1", [name for name in _V1_CONTROLLERS if not machine.exists(f"/sys/fs/cgroup/{name}")]
    if missing:
        yield Finding(Level.WRONG, "cgroups", f"{version}, without {', '.join(missing)}", _NO_CONTROLLER)
    elif version == "v1":
        yield Finding(
            Level.WARNING, "cgroups", "v1: kubelet 1.35 and later refuses it by default",
            "set failCgroupV1: false in kubelet's configuration, or boot with systemd.unified_cgroup_hierarchy=1",
        )  # fmt: skip
    else:
        yield Finding(Level.OK, "cgroups", version)
    systemd_runs = machine.exists("/run/systemd/system")
    if driver == "cgroupfs" and systemd_runs:
        yield Finding(
            Level.WARNING, "cgroup driver", "cgroupfs, but systemd runs: two programs write to one tree",
            'set cgroup_driver = "systemd" in crisp.toml, and cgroupDriver: systemd in kubelet\'s configuration',
        )  # fmt: skip
    elif driver == "systemd" and not systemd_runs:
        yield Finding(
            Level.WRONG, "cgroup driver", "systemd, but systemd does not run",
            'set cgroup_driver = "cgroupfs" in crisp.toml',
        )
    else:
        yield Finding(Level.OK, "cgroup driver", driver)


def security(machine: Machine) -> Iterator[Finding]:
    """Check for seccomp, for AppArmor's parser if AppArmor is on, and SELinux's policy if that is."""
    if "Seccomp:" not in machine.text("/proc/self/status"):
        yield Finding(Level.WRONG, "seccomp", "the kernel does not have it", _OWN_CORE_NEEDS)
    else:
        yield Finding(Level.OK, "seccomp", "there")
    if lsm.apparmor_is_on(machine.path("/sys")) and not machine.program("apparmor_parser"):
        message = "AppArmor is on, but no program can load a profile for containers"
        yield Finding(Level.WARNING, "apparmor", message, "apt-get install apparmor")
    if lsm.selinux_is_on(machine.path("/sys")):
        yield _selinux(machine)


def _selinux(machine: Machine) -> Finding:
    contexts = selinux.container_contexts(machine.path("/etc"))
    if contexts is None:
        message = "SELinux is on, but its policy has no labels for containers: pods get none"
        return Finding(Level.WARNING, "selinux", message, "install a policy with containers, as in Debian 13")
    return Finding(Level.OK, "selinux", f"on; containers are {contexts.process}, with categories for each pod")


def _load(module: str) -> str:
    return f"modprobe {module}; echo {module} >>/etc/modules-load.d/crisp.conf"


def _set(name: str, value: str) -> str:
    return f"sysctl -w {name}={value}; echo '{name} = {value}' >>/etc/sysctl.d/90-crisp.conf"
