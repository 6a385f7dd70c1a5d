"""What a container sees of a process that comes into its PID namespace: from its birth on it is the container's own.

By ptrace each new process is stopped before its first instruction and looked at (`tests/births.py`), so that there is
no race to win: what holds there holds until the execve, at which it is looked at again.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.births import Births, look
from tests.daemon import Daemon, Pod
from tests.integration.test_runtime_old_kernels import LAUNCHER
from tests.oci import PARENT, REPOSITORY, Bundle
from tests.waiting import until

_CALL = {"timeout": 30}
confined = pytest.mark.trial(
    "seen-from-the-container",
    "who comes into a PID namespace that others are in has the container's rights and namespaces only, from birth on",
)
_LINES = [cri.IDMapping(container_id=0, host_id=200_000, length=65536)]
_USERNS = cri.UserNamespace(mode=cri.POD, uids=_LINES, gids=_LINES)
_ALLOW_ALL = cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault)
_SECURITY: dict[str, dict[str, Any]] = {
    "root who may trace": {"capabilities": cri.Capability(add_capabilities=["SYS_PTRACE"])},
    "with a filter": {"capabilities": cri.Capability(add_capabilities=["SYS_PTRACE"]), "seccomp": _ALLOW_ALL},
    "nobody": {
        "run_as_user": cri.Int64Value(value=1000),
        "capabilities": cri.Capability(drop_capabilities=["ALL"]),
        "seccomp": _ALLOW_ALL,
        "no_new_privs": True,
    },
    "nobody, who may gain": {
        "run_as_user": cri.Int64Value(value=1000),
        "capabilities": cri.Capability(drop_capabilities=["ALL"], add_ambient_capabilities=["NET_BIND_SERVICE"]),
        "seccomp": _ALLOW_ALL,
    },
    "in a user namespace": {"capabilities": cri.Capability(add_capabilities=["ALL"])},
}


def _bits(seen: dict[str, Any], name: str) -> int:
    return int(seen["status"][name][0], 16)


def _check(seen: list[dict[str, Any]], container: int, *, programs: int) -> None:
    """Of all births those in the container's PID namespace are as the container is; so many became programs."""
    own = look(container, "container")
    inside = [one for one in seen if one["namespaces"]["pid"] == own["namespaces"]["pid"]]
    births = {one["pid"]: one for one in inside if one["event"] == "birth"}
    executed = {one["pid"]: one for one in inside if one["event"] == "exec"}
    assert len(executed) == programs, seen
    assert births.keys() >= executed.keys()
    for pid, program in executed.items():
        birth = births[pid]
        assert birth["namespaces"] == program["namespaces"]
        for name in ("root", "cgroup"):
            assert birth[name] == program[name]
        for name in ("Uid", "Gid", "Groups", "CapBnd", "CapInh", "CapAmb"):
            assert birth["status"][name] == program["status"][name], name
        assert _bits(birth, "CapPrm") & ~_bits(birth, "CapBnd") == 0
        assert _bits(birth, "CapEff") & ~_bits(birth, "CapPrm") == 0
        assert birth["owner"] == 0  # not dumpable: its /proc/PID is root's
        assert program["namespaces"]["mnt"] != os.readlink("/proc/self/ns/mnt")
        kept = [name for number, name in birth["files"].items() if int(number) > 2]  # not the streams
        assert [name for name in kept if not name.startswith(("pipe:", "socket:", "/memfd:"))] == []


def _pod(daemon: Daemon, name: str, options: cri.NamespaceOption) -> cri.PodSandboxConfig:
    config = daemon.sandbox_config(name)
    config.linux.security_context.namespace_options.CopyFrom(options)
    return config


def _linux(kind: str, options: cri.NamespaceOption) -> cri.LinuxContainerConfig:
    security = cri.LinuxContainerSecurityContext(namespace_options=options, **_SECURITY[kind])
    return cri.LinuxContainerConfig(security_context=security)


def _shim(pod: Pod, container: str) -> tuple[int, int]:
    """Process ids of the pod's shim and of the container."""
    request = cri.ContainerStatusRequest(container_id=container, verbose=True)
    pid = json.loads(pod.daemon.runtime.ContainerStatus(request, **_CALL).info["info"])["pid"]
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1]), pid


@pytest.fixture(params=_SECURITY)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@confined
def test_an_exec(daemon: Daemon, kind: str) -> None:
    """CVE-2016-9962: a probe's process, in a container with a PID namespace of its own."""
    options = cri.NamespaceOption(pid=cri.CONTAINER, userns_options=_USERNS if "user namespace" in kind else None)
    with daemon.pod(config=_pod(daemon, "births", options)) as pod:
        container = pod.run("sleep", "1000", linux=_linux(kind, options))
        shim, pid = _shim(pod, container)
        with Births.below(shim) as births:
            assert pod.exec(container, "sh", "-c", "exit 3").exit_code == 3
            assert pod.exec(container, "echo", "said").stdout == b"said\n"
            with pytest.raises(Exception, match="not found"):
                pod.exec(container, "no-such-program")
            seen = births.seen()
            _check(seen, pid, programs=2)
        own = look(pid, "container")["namespaces"]["pid"]
        born = {one["exe"] for one in seen if one["event"] == "birth" and one["namespaces"]["pid"] == own}
        assert born == {"/memfd:crisp-script (deleted)"}  # nothing of the shim's memory, which knows of others


@confined
def test_a_container_of_a_shared_pid_namespace(daemon: Daemon, kind: str) -> None:
    options = cri.NamespaceOption(pid=cri.POD, userns_options=_USERNS if "user namespace" in kind else None)
    with daemon.pod(config=_pod(daemon, "sharing", options)) as pod:
        first = pod.run("sleep", "1000", name="first", linux=_linux(kind, options))
        shim, _pid = _shim(pod, first)
        with Births.below(shim) as births:
            second = pod.run("sleep", "1000", name="second", linux=_linux(kind, options))
            pod.exec(second, "true")
            seen = births.seen()
        _check(seen, _shim(pod, second)[1], programs=2)
        names = pod.exec(second, "sh", "-c", "echo /proc/[0-9]*").stdout.split()
        assert len(names) == 4  # the infra process, both containers, and this
        namespaces = {look(_shim(pod, one)[1], "now")["namespaces"]["pid"] for one in (first, second)}
        assert len(namespaces | {os.readlink("/proc/self/ns/pid")}) == 2
        assert pod.daemon.status(second).state == cri.CONTAINER_RUNNING


@confined
def test_a_debug_container(daemon: Daemon) -> None:
    own = cri.NamespaceOption(pid=cri.CONTAINER)
    with daemon.pod(config=_pod(daemon, "debug", own)) as pod:
        target = pod.run("sleep", "1000", name="target", linux=_linux("root who may trace", own))
        shim, pid = _shim(pod, target)
        joining = cri.NamespaceOption(pid=cri.TARGET, target_id=target)
        with Births.below(shim) as births:
            debug = pod.run("sh", "-c", "exit 7", name="debug", linux=_linux("with a filter", joining))
            assert daemon.wait_exited(debug).exit_code == 7
            seen = births.seen()
        _check(seen, pid, programs=1)


@confined
@pytest.mark.parametrize(("pid", "birth"), [(cri.CONTAINER, 1), (cri.CONTAINER, 2), (cri.POD, 2), (cri.POD, 3)])
def test_a_shim_that_dies_between_two_births_leaves_nobody(fresh_daemon: Daemon, pid: int, birth: int) -> None:
    """Whoever it was that was just born on the way to the program: none gets there."""
    daemon, options = fresh_daemon, cri.NamespaceOption(pid=cri.NamespaceMode.ValueType(pid))
    with daemon.pod(config=_pod(daemon, "bereft", options)) as pod:
        first = pod.run("sleep", "1000", name="first", linux=_linux("root who may trace", options))
        shim, _pid = _shim(pod, first)
        container = pod.create("sleep", "1001", name="second", linux=_linux("with a filter", options))
        with Births.below(shim, kill_at=birth) as births:
            # The shim's successor starts it again, if there was nothing of it any more.
            with contextlib.suppress(grpc.RpcError):
                daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container), **_CALL)
            seen = births.seen()
        born = [one["pid"] for one in seen if one["event"] == "birth"]
        assert len(born) >= birth
        assert {one["exe"] for one in seen if one["event"] == "exec"} <= {"/memfd:crisp-script (deleted)"}
        until(lambda: not any(_lives(pid) for pid in born))
        status = daemon.status(container)
        assert status.state == cri.CONTAINER_RUNNING or status.reason == "StartError"
        assert daemon.status(first).state == cri.CONTAINER_RUNNING


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def running(bundle: Bundle) -> tuple[Bundle, int]:
    """A container whose filter kills for what crisp-oci itself has to do under it, without no_new_privs."""
    deadly = ["clone", "clone3", "fork", "vfork", "setsid", "sendmsg"]
    filter = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": deadly, "action": "SCMP_ACT_KILL_PROCESS"}],
    }
    capabilities = {name: ["CAP_SYS_PTRACE", "CAP_KILL"] for name in ("bounding", "permitted", "effective")}
    bundle.configure("sleep", "1000", process={"capabilities": capabilities}, linux={"seccomp": filter})
    pid = bundle.create()
    bundle.call("start", "one")
    return bundle, pid


def _traced(
    bundle: Bundle, *arguments: str, prefix: tuple[str, ...] = ()
) -> tuple[list[dict[str, Any]], subprocess.CompletedProcess[str]]:
    """What was born below that command of crisp-oci, which is stopped until it is traced."""
    command = ["/bin/sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *prefix, *bundle.command(*arguments)]
    output, errors = (bundle.directory / name for name in ("output", "errors"))  # a container may hold them on
    with output.open("w") as out, errors.open("w") as err:
        process = subprocess.Popen(
            command, cwd=bundle.directory, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
    until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1][0] == "T")
    with Births.below(process.pid) as births:
        process.send_signal(18)
        status = process.wait(timeout=60)
        seen = births.seen()
    return seen, subprocess.CompletedProcess(command, status, output.read_text(), errors.read_text())


def test_what_holds_a_scope_does_not_outlive_the_command() -> None:
    """Not even if the command is killed before it has asked for that."""
    code = "from runtime.command import scopes; scopes._start_placeholder(); input()"
    command = ["/bin/sh", "-c", 'kill -STOP $$; exec "$@"', "sh", sys.executable, "-c", code]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)  # nothing comes: it ends when it is killed
    until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1][0] == "T")
    with Births.below(process.pid, kill_at=1) as births:
        process.send_signal(18)
        with process:
            assert process.wait(timeout=60) == -9
        (born,) = [one["pid"] for one in births.seen() if one["event"] == "birth"]
    until(lambda: not Path(f"/proc/{born}").exists())


@confined
@pytest.mark.parametrize("user", ["0", "1000:7"])
def test_an_exec_of_the_command(running: tuple[Bundle, int], user: str) -> None:
    """Under a filter that has no clone: it is loaded before the process is born, and stops that no more than before."""
    bundle, pid = running
    seen, done = _traced(bundle, "exec", "--user", user, "one", "echo", "said")
    assert (done.returncode, done.stdout) == (0, "said\n"), done.stderr
    _check(seen, pid, programs=1)
    killed = bundle.call("exec", "one", "sh", "-c", "true & wait", check=False)
    assert killed.returncode == 128 + 31  # by a clone without the number: the way in is closed behind


@confined
@pytest.mark.parametrize("kernel", ["of today", "before 6.18"])
def test_a_container_of_the_command_that_joins(running: tuple[Bundle, int], tmp_path: Path, kernel: str) -> None:
    """By `path`, with a process file that names the one that was born, and a /proc that shows that namespace."""
    bundle, pid = running
    prefix = () if kernel == "of today" else (sys.executable, "-c", LAUNCHER, "pidns")
    other = Bundle(tmp_path / "other/bundle")
    other.rootfs.mkdir(parents=True)
    (other.rootfs / "bin").mkdir()
    for name in ("busybox", "sleep", "cat", "ls"):
        (other.rootfs / "bin" / name).hardlink_to(bundle.rootfs / "bin/busybox")
    namespaces = [{"type": kind} for kind in ("mount", "ipc", "uts", "network")]
    namespaces.append({"type": "pid", "path": f"/proc/{pid}/ns/pid"})
    other.configure("sleep", "1000", linux={"namespaces": namespaces, "cgroupsPath": f"{PARENT}/two"})
    arguments = ("run", "--detach", "--pid-file", str(tmp_path / "pid"), "two")
    seen, done = _traced(other, *arguments, prefix=prefix)
    try:
        assert done.returncode == 0, done.stderr
        state = json.loads(other.call("state", "two").stdout)
        born = int((tmp_path / "pid").read_text())
        assert (state["pid"], state["status"]) == (born, "running")
        assert born in {one["pid"] for one in seen if one["event"] == "birth"}
        inside, host = look(born, "now")["namespaces"], os.readlink("/proc/self/ns/mnt")
        assert inside["pid"] == os.readlink(f"/proc/{pid}/ns/pid")
        births = [one for one in seen if one["namespaces"]["pid"] == inside["pid"] and one["event"] == "birth"]
        for helper in births[:-1]:  # where proc cannot be told a PID namespace, somebody goes there to open it
            assert helper["namespaces"]["user"] != inside["user"]  # its rights are in its own
            # Not compared with the new container's: that is made when the helper is gone, whose number it may get.
            assert helper["namespaces"]["mnt"] not in (look(pid, "now")["namespaces"]["mnt"], host)
            assert [helper["namespaces"][kind] for kind in ("net", "ipc", "uts")] == [
                inside[kind] for kind in ("net", "ipc", "uts")
            ]
            assert helper["status"]["Uid"] == ["65534"] * 4
            assert [name for name in helper["files"].values() if not name.startswith("socket:")] == []
        assert (len(births), births[-1]["namespaces"]) == (1 if kernel == "of today" else 2, inside)
        found = other.call("exec", "two", "ls", "/proc").stdout.split()
        assert len({name for name in found if name.isdigit()}) == 3
        assert other.call("exec", "two", "cat", "/proc/1/cmdline").stdout == "sleep\x001000\x00"
    finally:
        other.call("delete", "--force", "two")


def test_what_a_child_would_not_inherit_or_could_not_be_made_under(bundle: Bundle) -> None:
    """A policy that a fork resets, by a filter that kills for it, and a limit that would count the joining process."""
    filter = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["sched_setattr", "setsid"], "action": "SCMP_ACT_KILL_PROCESS"}],
    }
    bundle.configure("sleep", "1000", linux={"seccomp": filter, "personality": {"domain": "LINUX32"}})
    bundle.create()
    bundle.call("start", "one")
    document = bundle.directory / "process.json"
    look = ["cat", "/proc/self/stat", "/proc/self/status", "/proc/self/limits"]
    capabilities = {name: ["CAP_KILL"] for name in ("bounding", "permitted", "effective")}
    document.write_text(
        json.dumps(
            {
                "args": look,
                "cwd": "/",
                "env": ["PATH=/bin"],
                "user": {"uid": 123_456_789, "gid": 5},
                "capabilities": capabilities,
                "rlimits": [{"type": "RLIMIT_NPROC", "soft": 1, "hard": 1}],
                "scheduler": {"policy": "SCHED_OTHER", "nice": -7, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
            }
        )
    )
    stat, *lines = bundle.call("exec", "--process", str(document), "one").stdout.splitlines()
    assert stat.rsplit(") ", 1)[1].split()[16] == "-7"
    seen = {line.split(":")[0]: line.split(":")[1].strip() for line in lines if ":" in line}
    assert (int(seen["CapBnd"], 16), int(seen["CapPrm"], 16)) == (1 << 5, 0)
    assert next(line for line in lines if line.startswith("Max processes")).split()[2:4] == ["1", "1"]
