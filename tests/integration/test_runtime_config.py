"""Members of config.json as a container sees them: crisp-oci on bundles of busybox."""

from __future__ import annotations

import array
import ctypes
import fcntl
import json
import os
import socket
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.oci import PARENT, Bundle

_NAMESPACES = ("pid", "mount", "ipc", "uts", "network")


def _namespaces(**more: str) -> list[dict[str, str]]:
    """New ones, and those of `more` by path ("" for new)."""
    kinds = dict.fromkeys(_NAMESPACES, "") | more
    return [{"type": kind, "path": path} if path else {"type": kind} for kind, path in kinds.items()]


def _with_mounts(bundle: Bundle, *more: dict[str, Any]) -> None:
    path = bundle.directory / "config.json"
    config = json.loads(path.read_text())
    config["mounts"] += more
    path.write_text(json.dumps(config))


def _output(bundle: Bundle) -> str:
    return bundle.call("run", "one").stdout


def _status(text: str) -> dict[str, str]:
    """/proc/PID/status."""
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


@pytest.mark.oci("process.cwd", "process.user.umask", "process.user.additionalGids", "process.rlimits")
@pytest.mark.oci("process.noNewPrivileges", "process.oomScoreAdj", "process.capabilities.ambient")
def test_the_process(bundle: Bundle) -> None:
    kept = ["CAP_NET_RAW", "CAP_KILL"]
    process = {
        "cwd": "/made/here",
        "user": {"uid": 5, "gid": 6, "umask": 0o27, "additionalGids": [7, 8]},
        "capabilities": {"bounding": kept, "permitted": kept, "inheritable": kept[:1], "effective": kept[:1],
                         "ambient": kept[:1]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
        "noNewPrivileges": True,
        "oomScoreAdj": 321,
    }  # fmt: skip
    look = "pwd; umask; ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj /proc/self/status"
    bundle.configure("sh", "-c", look, process=process)
    cwd, umask, soft, hard, core, score, *status = _output(bundle).splitlines()
    assert (cwd, umask, soft, hard, core, score) == ("/made/here", "0027", "100", "200", "0", "321")
    seen = _status("\n".join(status))
    assert (seen["Uid"].split()[0], seen["Gid"].split()[0], seen["Groups"].split()) == ("5", "6", ["7", "8"])
    assert [int(seen[name], 16) for name in ("CapBnd", "CapPrm", "CapInh", "CapEff", "CapAmb")] == [
        1 << 13 | 1 << 5, 1 << 13, 1 << 13, 1 << 13, 1 << 13,  # of the user's execve, ambient capabilities are left
    ]  # fmt: skip
    assert seen["NoNewPrivs"] == "1"


def _scheduled(bundle: Bundle, **scheduler: Any) -> tuple[int, int, int]:
    """Nice, real-time priority and policy of a process."""
    bundle.configure("cat", "/proc/self/stat", process={"scheduler": scheduler})
    fields = _output(bundle).rsplit(") ", 1)[1].split()
    return int(fields[16]), int(fields[37]), int(fields[38])


@pytest.mark.oci("process.scheduler.policy", "process.scheduler.nice", "process.scheduler.flags")
@pytest.mark.oci("process.scheduler.runtime", "process.scheduler.deadline", "process.scheduler.period")
def test_scheduling(bundle: Bundle) -> None:
    assert _scheduled(bundle, policy="SCHED_BATCH", nice=5) == (5, 0, 3)
    times = {"runtime": 10_000_000, "deadline": 100_000_000, "period": 200_000_000}
    assert _scheduled(bundle, policy="SCHED_DEADLINE", flags=["SCHED_FLAG_RESET_ON_FORK"], **times)[2] == 6


@pytest.mark.oci("process.scheduler.priority")
def test_real_time_scheduling(bundle: Bundle) -> None:
    """Where the cgroup has real-time for it: version 1 wants to be told how much."""
    limits = {"cpu": {"realtimeRuntime": 1000, "realtimePeriod": 1_000_000}}
    scheduler = {"policy": "SCHED_RR", "priority": 7}
    grant = Path(f"/sys/fs/cgroup/cpu{PARENT}")
    needed = Path("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists()
    if needed:
        grant.mkdir()
        (grant / "cpu.rt_runtime_us").write_text("1000")
    try:
        bundle.configure("cat", "/proc/self/stat", process={"scheduler": scheduler},
                         linux={"resources": limits} if needed else {})  # fmt: skip
        fields = _output(bundle).rsplit(") ", 1)[1].split()
        assert (fields[37], fields[38]) == ("7", "2")
    finally:
        if needed:
            grant.rmdir()


@pytest.mark.oci("process.ioPriority", "linux.personality")
@pytest.mark.oci("linux.memoryPolicy.mode", "linux.memoryPolicy.nodes", "linux.memoryPolicy.flags")
def test_what_execve_keeps(bundle: Bundle) -> None:
    look = "busybox ionice; busybox uname -m; cat /proc/self/numa_maps"
    linux = {
        "personality": {"domain": "LINUX32"},
        "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]},
    }
    priority = {"class": "IOPRIO_CLASS_BE", "priority": 6}
    bundle.configure("sh", "-c", look, process={"ioPriority": priority}, linux=linux)
    io, machine, *maps = _output(bundle).splitlines()
    assert io == "best-effort: prio 6"
    assert machine in ("i686", "armv8l")
    assert {line.split()[1] for line in maps} == {"bind=static:0"}
    # With a filter too: system calls have other numbers there, and the maker's are the machine's.
    bundle.configure("sleep", "100", linux=linux | {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}})
    bundle.create()
    assert bundle.call("exec", "one", "busybox", "uname", "-m").stdout.strip() == machine


@pytest.mark.oci("process.execCPUAffinity.initial", "process.execCPUAffinity.final")
def test_where_an_exec_runs(bundle: Bundle) -> None:
    bundle.configure("sleep", "100")
    bundle.create()
    process = {"args": ["cat", "/proc/self/status"], "cwd": "/", "env": ["PATH=/bin"]}
    last = max(os.sched_getaffinity(0))
    for affinity, expected in (({"initial": "0", "final": str(last)}, str(last)), ({"initial": "0"}, "0")):
        document = bundle.directory / "process.json"
        document.write_text(json.dumps(process | {"execCPUAffinity": affinity}))
        seen = _status(bundle.call("exec", "--process", str(document), "one").stdout)
        assert seen["Cpus_allowed_list"] == expected
    document.write_text(json.dumps(process | {"execCPUAffinity": {"initial": "3-1"}}))
    refused = bundle.call("exec", "--process", str(document), "one", check=False)
    assert (refused.returncode, "process.execCPUAffinity.initial" in refused.stderr) == (255, True)


@pytest.mark.oci("linux.namespaces[].type: pid", "linux.namespaces[].type: ipc", "linux.namespaces[].type: uts")
@pytest.mark.oci("linux.namespaces[].type: network", "linux.namespaces[].type: cgroup")
@pytest.mark.oci("linux.namespaces[].type: mount", "domainname")
def test_namespaces_new_and_by_path(bundle: Bundle) -> None:
    kinds = ("pid", "ipc", "uts", "net", "cgroup", "time", "mnt")
    bundle.configure("sleep", "100", linux={"namespaces": _namespaces(cgroup="", time="")}, domainname="of.mine")
    pid = bundle.create()
    first = {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds}
    assert not set(first.values()) & {os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
    look = "cat /proc/sys/kernel/domainname; " + "; ".join(f"readlink /proc/self/ns/{kind}" for kind in kinds)
    paths = {"network" if kind == "net" else kind: f"/proc/{pid}/ns/{kind}" for kind in kinds if kind != "mnt"}
    bundle.configure("sh", "-c", look, linux={"namespaces": _namespaces(**paths), "cgroupsPath": f"{PARENT}/two"},
                     hostname="")  # fmt: skip
    domain, *second = bundle.call("run", "two").stdout.splitlines()
    assert domain == "of.mine"
    assert second[:-1] == list(first.values())[:-1]
    assert second[-1] not in (first["mnt"], os.readlink("/proc/self/ns/mnt"))


@pytest.mark.oci("linux.namespaces[].type: time", "linux.timeOffsets")
def test_clocks_of_a_time_namespace(bundle: Bundle) -> None:
    offsets = {"boottime": {"secs": 7_000_000, "nanosecs": 5}, "monotonic": {"secs": 3}}
    bundle.configure("sleep", "100", linux={"namespaces": _namespaces(time=""), "timeOffsets": offsets})
    pid = bundle.create()
    bundle.call("start", "one")
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    seen = float(bundle.call("exec", "one", "cat", "/proc/uptime").stdout.split()[0])
    assert 7_000_000 <= seen - uptime < 7_000_060
    lines = Path(f"/proc/{pid}/timens_offsets").read_text().split()
    assert lines == ["monotonic", "3", "0", "boottime", "7000000", "5"]


@pytest.mark.oci("mounts[].destination", "mounts[].type", "mounts[].options")
@pytest.mark.oci("mounts[].options: ro, nosuid, nodev, noexec, noatime, nosymfollow ...")
@pytest.mark.oci("mounts[].options: private, slave, shared, unbindable")
@pytest.mark.oci("mounts[].options: defaults, async, silent ... (no effect)")
def test_mounts(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "bundle/relative").mkdir()
    (tmp_path / "bundle/relative/file").write_text("of the bundle")
    bundle.configure("sh", "-c", "cat /b/file; echo; cat /proc/self/mountinfo; ls /dev/mqueue /cgroup")
    _with_mounts(
        bundle,
        {"destination": "/t", "type": "tmpfs", "source": "tmpfs",
         "options": "ro nosuid nodev noexec noatime nosymfollow size=4k shared defaults async".split()},
        {"destination": "/b", "type": "bind", "source": "relative", "options": ["bind", "strictatime", "unbindable"]},
        {"destination": "/s", "type": "none", "source": str(tmp_path), "options": ["rbind", "slave", "rro"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid"]},
        {"destination": "/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
    )  # fmt: skip
    content, *lines = _output(bundle).splitlines()
    assert content == "of the bundle"
    mounts = {line.split()[4]: line.split() for line in lines if " - " in line}
    assert set(mounts["/t"][5].split(",")) == {"ro", "nosuid", "nodev", "noexec", "noatime", "nosymfollow"}
    assert mounts["/t"][6].startswith("shared:")
    assert "size=4k" in mounts["/t"][-1]
    assert "unbindable" in mounts["/b"]
    assert "relatime" not in mounts["/b"][5]
    assert mounts["/s"][5].startswith("ro")
    assert mounts["/dev/mqueue"][mounts["/dev/mqueue"].index("-") + 1] == "mqueue"
    assert "memory" in lines


@pytest.mark.oci("mounts[].options: tmpcopyup")
def test_a_tmpfs_that_begins_with_what_it_covers(bundle: Bundle) -> None:
    covered = bundle.rootfs / "etc"
    (covered / "sub/deep").mkdir(parents=True)
    (covered / "file").write_text("kept\n")
    (covered / "file").chmod(0o640)
    os.chown(covered / "file", 3, 4)
    (covered / "sub/link").symlink_to("/etc/file")
    os.mkfifo(covered / "sub/deep/fifo")
    (covered / "sub").chmod(0o750)
    bundle.configure("sh", "-c", "cd /etc; busybox stat -c '%n %a %u %g' . file sub; cat sub/link; ls sub/deep; "
                     "echo 1 2>&- >file || echo readonly")  # fmt: skip
    mount = {"destination": "/etc", "type": "tmpfs", "source": "tmpfs"}
    _with_mounts(bundle, mount | {"options": ["tmpcopyup", "ro"]})
    assert _output(bundle).splitlines() == [". 755 0 0", "file 640 3 4", "sub 750 0 0", "kept", "fifo", "readonly"]
    bundle.configure("sh", "-c", "echo more >>/etc/file; cat /etc/file")
    _with_mounts(bundle, mount | {"options": ["tmpcopyup", "mode=700"]})
    assert _output(bundle) == "kept\nmore\n"
    assert (covered / "file").read_text() == "kept\n"


@pytest.mark.oci("linux.devices", "linux.sysctl", "linux.rootfsPropagation", "root.readonly")
@pytest.mark.oci("linux.maskedPaths", "linux.readonlyPaths")
def test_what_is_made_in_the_rootfs(bundle: Bundle) -> None:
    devices = [
        {"path": "/dev/mine/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 4, "gid": 5},
        {"path": "/dev/fifo", "type": "p"},
    ]
    sysctl = {"net.ipv4.ip_unprivileged_port_start": "77", "kernel/shm_rmid_forced": "1"}
    linux = {"devices": devices, "sysctl": sysctl, "rootfsPropagation": "shared",
             "maskedPaths": ["/open/masked", "/masked"], "readonlyPaths": ["/open"]}  # fmt: skip
    for name in ("masked", "open"):
        (bundle.rootfs / name).mkdir()
        (bundle.rootfs / name / "file").touch()
    (bundle.rootfs / "open/masked").write_text("secret")
    look = ("cd /dev; busybox stat -c '%n %a %u %g %F %t:%T' mine/null fifo; "
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced; "
            "wc -c /open/masked; ls /masked; touch /open/file 2>&- || echo readonly; "
            "touch /x 2>&- || echo readonly root; cat /proc/self/mountinfo")  # fmt: skip
    bundle.configure("sh", "-c", look, linux=linux, root={"path": "rootfs", "readonly": True})
    lines = _output(bundle).splitlines()
    assert lines[:7] == [
        "mine/null 600 4 5 character special file 1:3", "fifo 666 0 0 fifo 0:0", "77", "1", "0 /open/masked",
        "readonly", "readonly root",
    ]  # fmt: skip
    (root,) = [line.split() for line in lines if " - " in line and line.split()[4] == "/"]
    assert root[6].startswith("shared:")


@pytest.mark.oci("linux.netDevices{}.name")
def test_an_interface_of_the_host(bundle: Bundle) -> None:
    def ip(*arguments: str) -> str:
        return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout

    ip("link", "add", "crisptest0", "type", "veth", "peer", "name", "crisptest1")
    try:
        ip("address", "add", "192.0.2.7/24", "dev", "crisptest0")
        ip("address", "add", "2001:db8::7/64", "dev", "crisptest0", "nodad")
        ip("link", "set", "crisptest0", "up")
        bundle.configure("sh", "-c", "busybox ip -o address; busybox ip -o link",
                         linux={"netDevices": {"crisptest0": {"name": "eth5"}}})  # fmt: skip
        seen = _output(bundle)
        assert "192.0.2.7/24" in seen
        assert "2001:db8::7/64" in seen
        assert " eth5@" in seen
        assert "UP" in next(line for line in seen.splitlines() if " eth5@" in line and "link/ether" in line)
        assert "crisptest0" not in ip("-o", "link")
        bundle.configure("true", linux={"netDevices": {"nosuch0": {}}})
        refused = bundle.call("run", "one", check=False)
        assert "move linux.netDevices `nosuch0`: No such device" in refused.stderr
    finally:
        subprocess.run(["ip", "link", "delete", "crisptest1"], capture_output=True)


class _Agent(threading.Thread):
    """Listens at a listenerPath, and answers each notified call with an error."""

    def __init__(self, path: Path, error: int) -> None:
        super().__init__(daemon=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.settimeout(60)
        self._error = error
        self.states: list[dict[str, Any]] = []
        self.start()

    def run(self) -> None:
        with self._listener:
            while True:
                try:
                    connection, _ = self._listener.accept()
                except TimeoutError:
                    return
                with connection:
                    data, ancillary, _flags, _address = connection.recvmsg(65536, socket.CMSG_LEN(4))
                if data == b"end":
                    return
                self.states.append(json.loads(data))
                (listener,) = array.array("i", ancillary[0][2])
                threading.Thread(target=self._answer, args=(listener,), daemon=True).start()

    def _answer(self, listener: int) -> None:
        receive, send = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV and _SEND
        try:
            while True:
                notification = bytearray(80)
                fcntl.ioctl(listener, receive, notification)
                answer = notification[:8] + bytes(8) + ctypes.c_int32(-self._error) + bytes(4)
                fcntl.ioctl(listener, send, bytes(answer))
        except OSError:
            os.close(listener)  # all who had the filter have ended

    def stop(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.send(b"end")
        self.join()


@pytest.mark.oci("linux.seccomp.listenerPath", "linux.seccomp.listenerMetadata")
@pytest.mark.oci("linux.seccomp action: SCMP_ACT_NOTIFY")
@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_a_seccomp_agent(bundle: Bundle, no_new_privileges: bool) -> None:
    path = bundle.directory / "agent.sock"
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": str(path), "listenerMetadata": "meta",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    }  # fmt: skip
    bundle.configure("sh", "-c", "mkdir /x 2>&1; exec sleep 100", linux={"seccomp": profile},
                     process={"noNewPrivileges": no_new_privileges})  # fmt: skip
    refused = bundle.call("create", "one", check=False)
    assert "linux.seccomp.listenerPath: " in refused.stderr
    agent = _Agent(path, 122)  # EDQUOT
    try:
        pid = bundle.create()
        bundle.call("start", "one")
        done = bundle.call("exec", "one", "mkdir", "/y", check=False)
        assert "Disk quota exceeded" in done.stderr
    finally:
        agent.stop(path)
    created, executed = agent.states
    assert (created["fds"], created["pid"], created["metadata"]) == (["seccompFd"], pid, "meta")
    assert (created["state"]["id"], created["state"]["status"], created["state"]["pid"]) == ("one", "creating", pid)
    assert (executed["state"]["status"], executed["pid"] == pid) == ("running", False)
    assert not (bundle.rootfs / "x").exists()
    assert not (bundle.rootfs / "y").exists()


@pytest.mark.oci("linux.seccomp.defaultErrnoRet")
def test_a_default_error(bundle: Bundle) -> None:
    calls = ("read write close openat execve execveat exit_group fcntl mmap mprotect munmap brk arch_prctl prctl fstat "
             "newfstatat set_tid_address set_robust_list rseq prlimit64 getrandom readlink getuid sendmsg sendto chdir "
             "getcwd setgroups setresgid setresuid capget capset umask rt_sigaction rt_sigprocmask lseek access "
             "statx ioctl dup2 getpid gettid futex stat lstat open").split()  # fmt: skip
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 122,
               "syscalls": [{"names": calls, "action": "SCMP_ACT_ALLOW"}]}  # fmt: skip
    bundle.configure("mkdir", "/x", linux={"seccomp": profile})
    assert "Disk quota exceeded" in bundle.call("run", "one", check=False).stderr


@pytest.mark.oci("linux.intelRdt", "linux.mountLabel", "process.apparmorProfile", "process.selinuxLabel")
@pytest.mark.parametrize(
    ("process", "linux", "words"),
    [
        ({}, {"intelRdt": {"closID": "x"}}, "linux.intelRdt: is not supported"),
        ({}, {"mountLabel": "a:b"}, "linux.mountLabel: 'a:b' cannot be applied: SELinux is not enabled"),
        ({"selinuxLabel": "a:b"}, {}, "process.selinuxLabel: 'a:b' cannot be applied: SELinux is not enabled"),
        ({"apparmorProfile": "mine"}, {}, "process.apparmorProfile: 'mine' cannot be applied: AppArmor is not enabled"),
        ({}, {"namespaces": _namespaces(network="/etc/passwd")}, "linux.namespaces[4].path: expected a network"),
        ({}, {"namespaces": _namespaces(ipc="/proc/1/ns/uts")}, "/proc/1/ns/uts is a uts one"),
        ({}, {"namespaces": _namespaces(mount="/proc/1/ns/mnt")}, "linux.namespaces[1].path: a mount namespace"),
        ({}, {"namespaces": _namespaces(network="/proc/self/ns/net"), "sysctl": {"net.core.somaxconn": "1"}},
         "linux.sysctl.net.core.somaxconn: would change the host"),
        ({}, {"seccomp": {"defaultAction": "SCMP_ACT_NO"}}, "linux.seccomp.defaultAction: unknown action"),
        ({}, {"resources": {"memory": {"swap": 5}}}, "linux.resources.memory.swap: 5 is set without"),
        ({}, {"cgroupsPath": "/../x"}, "linux.cgroupsPath: "),
    ],
)  # fmt: skip
def test_what_this_machine_has_not_got_is_refused_by_name(
    bundle: Bundle, process: dict[str, Any], linux: dict[str, Any], words: str
) -> None:
    if "apparmorProfile" in process and Path("/sys/module/apparmor/parameters/enabled").exists():
        pytest.skip("AppArmor may be on")
    bundle.configure("true", process=process, linux=linux)
    refused = bundle.call("create", "one", check=False)
    assert (refused.returncode, words in refused.stderr) == (1, True), refused.stderr
    assert stat.S_ISDIR(os.stat(bundle.directory).st_mode)
    assert not list(bundle.root.glob("one*"))
