"""Containers through CRI: what runs, as whom, what it sees, what limits it, how it ends."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import BUSYBOX, Daemon, Pod
from tests.images import build_image, busybox_layer, entry, layer, write_layout
from tests.waiting import until

_CALL = {"timeout": 120}
_RECORD = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z (stdout|stderr) ([PF]) (.*)$")


@pytest.fixture(scope="module")
def sandbox(daemon: Daemon) -> Iterator[Pod]:
    with daemon.pod("containers") as running:
        running.run("true")  # makes the pod's cgroup
        yield running


@pytest.fixture
def pod(sandbox: Pod) -> Iterator[Pod]:
    """The module's sandbox, whose containers are removed after each test."""
    yield sandbox
    _remove_containers(sandbox)


@pytest.fixture
def privileged_pod(daemon: Daemon) -> Iterator[Pod]:
    config = daemon.sandbox_config("privileged")
    config.linux.security_context.privileged = True
    with daemon.pod(config=config) as running:
        yield running


def _remove_containers(pod: Pod) -> None:
    request = cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=pod.id))
    for container in pod.daemon.runtime.ListContainers(request, **_CALL).containers:
        pod.daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container.id), **_CALL)


_names = iter(range(10**6))


def _finished(pod: Pod, *command: str, **fields: object) -> tuple[cri.ContainerStatus, list[str]]:
    """Run a container to its end: its status, and its log's lines as "stream tag text"."""
    name = f"c{next(_names)}"
    container = pod.run(*command, name=name, **fields)
    status = pod.daemon.wait_exited(container)
    lines = []
    for line in pod.log(name).splitlines():
        match = _RECORD.match(line)
        assert match, line
        lines.append(" ".join(match.groups()))
    pod.daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), **_CALL)
    return status, lines


def _output(pod: Pod, *command: str, **fields: object) -> str:
    status, lines = _finished(pod, *command, **fields)
    assert status.exit_code == 0, lines
    return "\n".join(line.split(" ", 2)[2] for line in lines)


def _security(**fields: object) -> cri.LinuxContainerConfig:
    return cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(**fields))


# -- what runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.cri("CreateContainer", "log_path")
@pytest.mark.cri("RunPodSandbox", "log_directory")
def test_output_is_logged_by_stream(pod: Pod) -> None:
    _status, lines = _finished(pod, "sh", "-c", "echo one; echo two >&2; printf three")
    assert sorted(lines) == ["stderr F two", "stdout F one", "stdout P three"]


@pytest.mark.cri("CreateContainer", "command", "args", "envs", "working_dir")
def test_args_environment_and_directory(pod: Pod) -> None:
    envs = [cri.KeyValue(key="A", value=b"1 2"), cri.KeyValue(key="EMPTY", value=b"")]
    seen = _output(pod, "sh", "-c", 'echo "$0|$1|$A|${EMPTY-unset}|$PWD|$HOME"', args=["x", "y z"], envs=envs,
                   working_dir="/made/for/it")
    assert seen == "x|y z|1 2||/made/for/it|/root"


@pytest.mark.cri("StartContainer")
@pytest.mark.cri("ContainerStatus")
def test_exit_codes_and_reasons(pod: Pod) -> None:
    before = time.time_ns()
    done, _ = _finished(pod, "true")
    assert (done.exit_code, done.reason) == (0, "Completed")
    assert before < done.created_at < done.started_at <= done.finished_at < time.time_ns()
    failed, _ = _finished(pod, "sh", "-c", "exit 3")
    assert (failed.exit_code, failed.reason) == (3, "Error")
    killed, _ = _finished(pod, "sh", "-c", "kill -9 $$")
    # PID 1 of its own namespace is deaf to its own signals.
    assert killed.exit_code in (0, 137)


@pytest.mark.parametrize(
    ("command", "words"),
    [(["/no/such/program"], "no such file or directory"), (["nosuch"], "executable file not found in $PATH"),
     (["/etc/passwd"], "permission denied")],
)
def test_a_program_that_cannot_run_fails_at_start(pod: Pod, command: list[str], words: str) -> None:
    name = f"c{next(_names)}"
    container = pod.create(*command, name=name)
    with pytest.raises(grpc.RpcError) as raised:
        pod.daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container), **_CALL)
    assert words in raised.value.details()
    status = pod.daemon.status(container)
    assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 128, "StartError")
    assert words in status.message
    with pytest.raises(grpc.RpcError) as raised:
        pod.daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container), **_CALL)
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    pod.daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), **_CALL)


@pytest.mark.cri("CreateContainer", "tty")
def test_a_terminal(pod: Pod) -> None:
    look = "test -t 0 && test -t 1 && tty && ls -l /dev/console | cut -c1; echo $TERM"
    seen = _output(pod, "sh", "-c", look, tty=True)
    assert seen.replace("\r", "") == "/dev/pts/0\nc\nxterm"


@pytest.mark.cri("CreateContainer", "stdin")
def test_standard_input(pod: Pod) -> None:
    assert _output(pod, "readlink", "/proc/self/fd/0") == "/dev/null"
    container = pod.run("cat", name="stdin", stdin=True)
    assert pod.daemon.status(container).state == cri.CONTAINER_RUNNING
    pod.daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), **_CALL)


def test_no_descriptor_and_no_signal_setting_leaks_in(pod: Pod) -> None:
    look = "ls /proc/self/fd | wc -l; grep -E 'SigIgn|SigBlk' /proc/self/status; umask; cat /proc/self/cwd/. 2>&1; true"
    fds, blocked, ignored, umask, *_ = _output(pod, "sh", "-c", look).splitlines()
    assert _output(pod, "sh", "-c", "ulimit -n") == "1024"  # not what crispd has raised its own to
    assert int(fds) == 4  # three streams and the directory that ls reads
    assert blocked.split()[1] == "0" * 16
    assert ignored.split()[1] == "0" * 16
    assert umask == "0022"


# -- as whom -----------------------------------------------------------------------------------------------------------


@pytest.mark.cri("CreateContainer", "security_context.run_as_user", "security_context.run_as_group")
@pytest.mark.cri("CreateContainer", "security_context.run_as_username")
def test_users_are_looked_up_in_the_image(pod: Pod) -> None:
    user = cri.Int64Value(value=1234)
    assert _output(pod, "id", linux=_security(run_as_user=user)) == "uid=1234 gid=0(root) groups=0(root)"
    both = _security(run_as_user=user, run_as_group=cri.Int64Value(value=77), supplemental_groups=[88, 99])
    status, lines = _finished(pod, "id", linux=both)
    assert lines == ["stdout F uid=1234 gid=77 groups=77,88,99"]
    assert (status.user.linux.uid, status.user.linux.gid) == (1234, 77)
    assert set(status.user.linux.supplemental_groups) == {77, 88, 99}
    with pytest.raises(grpc.RpcError) as raised:
        pod.create("id", name="nobody-there", linux=_security(run_as_username="nosuchuser"))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "nosuchuser" in raised.value.details()


@pytest.mark.trial("numeric-user", "a number in user or group is an id, whatever names the image gives")
def test_a_number_is_no_name_of_the_images(pod: Pod, tmp_path: Path) -> None:
    """CVE-2016-3697, by each way to say who runs; kubelet's runAsNonRoot judges by the number."""
    names = layer(
        entry("etc/passwd", b"root:x:0:0::/root:/bin/sh\n1000:x:0:0::/root:/bin/sh\nuser:x:1000:50::/:/bin/sh\n"),
        entry("etc/group", b"root:x:0:\n1000:x:0:\ndisk:x:6:1000\nstaff:x:50:\n"),
    )
    ways = {  # by the image's user
        "1000": _security(),
        "1000:1000": _security(),
        "root": _security(run_as_user=cri.Int64Value(value=1000)),
        "0": _security(run_as_username="1000"),
    }
    for number, (user, security) in enumerate(ways.items()):
        name = f"localhost/misnamed{number}:1"
        image = build_image([busybox_layer(), names], {"User": user})
        pod.daemon.import_image(write_layout(tmp_path / str(number), {name: image}))
        status, lines = _finished(pod, "sh", "-c", "id; grep CapEff /proc/self/status", image=name, linux=security)
        gid = 1000 if user == "1000:1000" else 50
        assert lines[0].startswith(f"stdout F uid=1000(user) gid={gid}"), (user, lines)
        assert lines[1].split()[-1] == "0" * 16
        found = status.user.linux
        assert (found.uid, found.gid, list(found.supplemental_groups)) == (1000, gid, [gid])
        _remove_containers(pod)
        pod.daemon.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=name)), **_CALL)


@pytest.mark.cri("CreateContainer", "security_context.capabilities")
def test_capabilities(pod: Pod) -> None:
    def effective(**fields: object) -> int:
        line = _output(pod, "grep", "CapEff", "/proc/self/status", linux=_security(**fields))
        return int(line.split()[1], 16)

    assert effective() == 0xA80425FB
    assert effective(capabilities=cri.Capability(drop_capabilities=["ALL"])) == 0
    only = cri.Capability(drop_capabilities=["ALL"], add_capabilities=["NET_ADMIN"])
    assert effective(capabilities=only) == 1 << 12
    assert effective(run_as_user=cri.Int64Value(value=1)) == 0
    ambient = cri.Capability(add_ambient_capabilities=["NET_BIND_SERVICE"])
    assert effective(run_as_user=cri.Int64Value(value=1), capabilities=ambient) == 1 << 10
    with pytest.raises(grpc.RpcError) as raised:
        pod.create("id", name="cap", linux=_security(capabilities=cri.Capability(add_capabilities=["FLY"])))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.cri("CreateContainer", "security_context.no_new_privs")
@pytest.mark.oci("process.noNewPrivileges")
def test_no_new_privileges(pod: Pod) -> None:
    assert _output(pod, "grep", "NoNewPrivs", "/proc/self/status", linux=_security(no_new_privs=True)).endswith("1")
    assert _output(pod, "grep", "NoNewPrivs", "/proc/self/status").endswith("0")


@pytest.mark.cri("CreateContainer", "security_context.seccomp")
def test_seccomp(pod: Pod, tmp_path: Path) -> None:
    default = cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault)
    look = "grep -E '^Seccomp:' /proc/self/status; unshare -n true 2>&1; true"
    assert "2" in _output(pod, "sh", "-c", look, linux=_security(seccomp=default))
    assert "0" in _output(pod, "sh", "-c", look)
    profile = tmp_path / "no-mkdir.json"
    profile.write_text('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], '
                       '"action": "SCMP_ACT_ERRNO", "errnoRet": 123}]}')
    local = cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref=str(profile))
    status, lines = _finished(pod, "mkdir", "/x", linux=_security(seccomp=local))
    assert status.exit_code == 1
    assert "No medium found" in lines[0]
    container = pod.run("sleep", "100", name="filtered", linux=_security(seccomp=local))
    assert b"No medium found" in pod.exec(container, "mkdir", "/y").stderr


# -- what it sees ------------------------------------------------------------------------------------------------------


def test_default_devices_and_mounts(pod: Pod) -> None:
    look = "cd /dev; for n in null zero full random urandom tty; do stat -c '%n %t:%T %a' $n; done"
    nodes = _output(pod, "sh", "-c", look)
    assert nodes.split("\n") == ["null 1:3 666", "zero 1:5 666", "full 1:7 666", "random 1:8 666", "urandom 1:9 666",
                                 "tty 5:0 666"]
    mounts = {line.split()[1]: line.split()[3].split(",") for line in _output(pod, "cat", "/proc/mounts").splitlines()}
    assert {"/", "/proc", "/dev", "/dev/pts", "/dev/mqueue", "/dev/shm", "/sys", "/sys/fs/cgroup"} <= mounts.keys()
    assert mounts["/sys"][0] == mounts["/sys/fs/cgroup"][0] == "ro"
    assert "nosuid" in mounts["/proc"]
    assert not [point for point in mounts if "crisp" in point]


def test_devices_are_filtered(pod: Pod) -> None:
    # Loop device 0 by its numbers: mknod is allowed, opening is not.
    said = _output(pod, "sh", "-c", "mknod /dev/x b 7 0 && cat /dev/x 2>&1; cat /dev/null; true")
    assert "Operation not permitted" in said


@pytest.mark.cri("CreateContainer", "devices")
def test_a_host_device(pod: Pod) -> None:
    device = cri.Device(container_path="/dev/mine", host_path="/dev/zero", permissions="r")
    assert _output(pod, "sh", "-c", "head -c3 /dev/mine | wc -c; ls -l /dev/mine | cut -c1", devices=[device]) == "3\nc"
    with pytest.raises(grpc.RpcError) as raised:
        pod.create("true", name="nodev", devices=[cri.Device(container_path="/dev/x", host_path="/dev/nosuchdevice")])
    assert "/dev/nosuchdevice" in raised.value.details()


@pytest.mark.cri("CreateContainer", "security_context.masked_paths", "security_context.readonly_paths")
@pytest.mark.oci("linux.maskedPaths", "linux.readonlyPaths")
def test_masked_and_readonly_paths(pod: Pod) -> None:
    paths = _security(masked_paths=["/proc/timer_list", "/sys/firmware", "/nowhere"], readonly_paths=["/proc/sys"])
    look = "cat /proc/timer_list; ls -A /sys/firmware; echo 1 2>&1 > /proc/sys/net/ipv4/ip_forward; true"
    status, lines = _finished(pod, "sh", "-c", look, linux=paths)
    assert status.exit_code == 0
    assert len(lines) == 1
    assert "Read-only file system" in lines[0]


@pytest.mark.cri("CreateContainer", "security_context.readonly_rootfs")
def test_a_readonly_root(pod: Pod) -> None:
    look = "touch /x 2>&1; touch /dev/shm/y && echo fine"
    said = _output(pod, "sh", "-c", look, linux=_security(readonly_rootfs=True)).splitlines()
    assert "Read-only file system" in said[0]
    assert said[1] == "fine"


def test_writes_stay_in_the_container(pod: Pod) -> None:
    change = "echo changed > /etc/passwd; rm /bin/vi; ls /bin/vi 2>&1; cat /etc/passwd"
    assert _output(pod, "sh", "-c", change).endswith("changed")
    assert _output(pod, "sh", "-c", "head -1 /etc/passwd; ls /bin/vi").startswith("root:")


@pytest.mark.cri("CreateContainer", "mounts.host_path", "mounts.readonly")
@pytest.mark.cri("CreateContainer", "mounts.container_path")
@pytest.mark.oci("mounts[].source", "mounts[].options: bind, rbind")
def test_volumes(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "file").write_text("content")
    (tmp_path / "link").symlink_to("dir")
    mounts = [
        cri.Mount(container_path="/rw", host_path=str(tmp_path / "dir")),
        cri.Mount(container_path="/ro", host_path=str(tmp_path / "dir"), readonly=True),
        cri.Mount(container_path="/etc/one.conf", host_path=str(tmp_path / "dir" / "file")),
        cri.Mount(container_path="/by/link", host_path=str(tmp_path / "link")),
        cri.Mount(container_path="/fresh", host_path=str(tmp_path / "not" / "yet")),
        cri.Mount(container_path="/rw/nested", host_path=str(tmp_path)),
    ]
    look = "cat /rw/file /ro/file /etc/one.conf /by/link/file; echo; echo 1 2>&1 > /ro/x; echo 2 > /rw/y; ls /rw/nested"
    said = _output(pod, "sh", "-c", look, mounts=mounts).splitlines()
    assert said[0] == "content" * 4
    assert (tmp_path / "dir" / "y").read_text() == "2\n"
    assert not (tmp_path / "dir" / "x").exists()
    assert (tmp_path / "not" / "yet").is_dir()
    assert "link" in said


def test_an_images_symlink_does_not_lead_a_mount_to_the_host(pod: Pod, tmp_path: Path) -> None:
    # The first container's writes are gone with it; within one, a volume's link is the only hostile content.
    (tmp_path / "escape").symlink_to("/etc")
    mounts = [
        cri.Mount(container_path="/vol", host_path=str(tmp_path)),
        cri.Mount(container_path="/vol/escape/crisp-escaped", host_path=str(tmp_path)),
    ]
    _output(pod, "ls", "/etc/crisp-escaped", mounts=mounts)
    assert not Path("/etc/crisp-escaped").exists()


@pytest.mark.cri("CreateContainer", "mounts.recursive_read_only")
@pytest.mark.oci("mounts[].options: rro, rnosuid, rnodev, rnoexec, rnoatime, rnosymfollow ...")
def test_recursively_readonly_volumes(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "below", tmp_path / "below"], check=True)
    try:
        top = cri.Mount(container_path="/top", host_path=str(tmp_path), readonly=True)
        whole = cri.Mount(container_path="/whole", host_path=str(tmp_path), readonly=True, recursive_read_only=True)
        look = "touch /top/x; touch /top/below/x && echo only the top; touch /whole/below/y; true"
        said = [line.split(" ", 2)[2] for line in _finished(pod, "sh", "-c", look, mounts=[top, whole])[1]]
    finally:
        subprocess.run(["umount", tmp_path / "below"], check=True)
    assert "only the top" in said
    assert len([line for line in said if "Read-only file system" in line]) == 2


@pytest.mark.cri("CreateContainer", "mounts.propagation")
@pytest.mark.oci("mounts[].options: rprivate, rslave, rshared, runbindable")
def test_mount_propagation(privileged_pod: Pod, tmp_path: Path) -> None:
    pod = privileged_pod
    for name in ("private", "slave", "shared"):
        (tmp_path / name / "in").mkdir(parents=True)
    mounts = [
        cri.Mount(container_path="/private", host_path=str(tmp_path / "private")),
        cri.Mount(container_path="/slave", host_path=str(tmp_path / "slave"),
                  propagation=cri.PROPAGATION_HOST_TO_CONTAINER),
        cri.Mount(container_path="/shared", host_path=str(tmp_path / "shared"),
                  propagation=cri.PROPAGATION_BIDIRECTIONAL),
    ]
    container = pod.run("sleep", "100", name="propagation", mounts=mounts, linux=_security(privileged=True))
    for name in ("private", "slave"):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", name, tmp_path / name / "in"], check=True)
    seen = pod.exec(container, "cat", "/proc/mounts").stdout.decode()
    assert "/slave/in" in seen
    assert "/private/in" not in seen
    assert pod.exec(container, "mount", "-t", "tmpfs", "inner", "/shared/in").exit_code == 0
    assert str(tmp_path / "shared/in") in Path("/proc/self/mounts").read_text()
    for name in ("private", "slave", "shared"):
        subprocess.run(["umount", tmp_path / name / "in"], check=True)


@pytest.mark.cri("CreateContainer", "security_context.privileged")
@pytest.mark.cri("RunPodSandbox", "security_context.privileged")
def test_a_privileged_container(privileged_pod: Pod) -> None:
    look = ("grep CapEff /proc/self/status; ls /dev/kmsg; mount | grep -c 'sysfs.*rw'; mkdir /m; "
            "mount -t tmpfs x /m && echo ok")
    said = _output(privileged_pod, "sh", "-c", look, linux=_security(privileged=True)).splitlines()
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    assert said[0].split()[1] == own.split()[1]
    assert said[1:] == ["/dev/kmsg", "1", "ok"]


# -- what limits it ----------------------------------------------------------------------------------------------------


@pytest.mark.cri("CreateContainer", "resources")
@pytest.mark.cri("ContainerStatus", "verbose")
@pytest.mark.oci("process.oomScoreAdj", "linux.resources.cpu.cpus")
def test_limits_reach_the_cgroup(pod: Pod) -> None:
    resources = cri.LinuxContainerResources(
        cpu_period=50000, cpu_quota=25000, cpu_shares=512, memory_limit_in_bytes=64 << 20, cpuset_cpus="0",
        oom_score_adj=500,
    )
    container = pod.run("sleep", "100", name="limits", linux=cri.LinuxContainerConfig(resources=resources))
    look = ("cd /sys/fs/cgroup; cat cpu/cpu.cfs_period_us cpu/cpu.cfs_quota_us cpu/cpu.shares "
            "memory/memory.limit_in_bytes cpuset/cpuset.cpus; cat /proc/self/oom_score_adj")
    assert pod.exec(container, "sh", "-c", look).stdout.decode().split() == [
        "50000", "25000", "512", str(64 << 20), "0", "500",
    ]
    assert pod.daemon.status(container).resources.linux == resources


def test_running_out_of_memory(pod: Pod) -> None:
    resources = cri.LinuxContainerResources(memory_limit_in_bytes=16 << 20)
    status, _ = _finished(pod, "sh", "-c", "x=a; while true; do x=$x$x; done",
                          linux=cri.LinuxContainerConfig(resources=resources))
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


@pytest.mark.cri("RunPodSandbox", "linux.cgroup_parent")
@pytest.mark.cri("ContainerStatus", "verbose")
def test_a_cgroup_parent(daemon: Daemon) -> None:
    config = daemon.sandbox_config("parent")
    config.linux.cgroup_parent = "/crisptest/pod-x"
    with daemon.pod(config=config) as pod:
        container = pod.run("sleep", "100")
        assert f"/crisptest/pod-x/{container}" in Path(f"/proc/{_pid(daemon, container)}/cgroup").read_text()


def _pid(daemon: Daemon, container: str) -> int:
    import json

    request = cri.ContainerStatusRequest(container_id=container, verbose=True)
    return int(json.loads(daemon.runtime.ContainerStatus(request, **_CALL).info["info"])["pid"])


# -- how it ends -------------------------------------------------------------------------------------------------------


@pytest.mark.cri("StopContainer")
def test_stopping_asks_first(pod: Pod) -> None:
    script = "trap 'echo bye; exit 7' TERM; echo up; while true; do sleep 0.05; done"
    container = pod.run("sh", "-c", script, name="polite")
    until(lambda: "up" in pod.log("polite"))
    pod.daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=container, timeout=60), **_CALL)
    status = pod.daemon.status(container)
    assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 7, "Error")
    assert "bye" in pod.log("polite")


@pytest.mark.cri("StopContainer", "timeout")
def test_stopping_ends_the_deaf(pod: Pod) -> None:
    container = pod.run("sh", "-c", "trap '' TERM; echo up; sleep 1000 & while true; do wait; done", name="deaf")
    until(lambda: "up" in pod.log("deaf"))
    begun = time.monotonic()
    pod.daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=container, timeout=1), **_CALL)
    assert time.monotonic() - begun > 0.9
    assert pod.daemon.status(container).exit_code == 128 + signal.SIGKILL


@pytest.mark.cri("CreateContainer", "stop_signal")
def test_a_stop_signal(pod: Pod) -> None:
    container = pod.run("sh", "-c", "trap 'exit 5' USR1; echo up; while true; do sleep 0.05; done", name="usr1",
                        stop_signal=cri.SIGNAL_SIGUSR1)
    until(lambda: "up" in pod.log("usr1"))
    pod.daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=container, timeout=60), **_CALL)
    assert pod.daemon.status(container).exit_code == 5


@pytest.mark.cri("ReopenContainerLog")
def test_log_rotation_loses_nothing(pod: Pod) -> None:
    writing = "i=0; while [ ! -e /stop ]; do i=$((i+1)); echo line $i; done; echo line $((i+1))"
    container = pod.run("sh", "-c", writing, name="rotated")
    path = Path(pod.config.log_directory, "rotated.log")
    rotated = []
    for number in range(5):
        until(lambda: path.stat().st_size > 10000, pause=0.01)
        rotated.append(path.rename(path.with_suffix(f".{number}")))
        pod.daemon.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=container), **_CALL)
    pod.exec(container, "touch", "/stop")
    pod.daemon.wait_exited(container)
    text = "".join(file.read_text() for file in [*rotated, path])
    numbers = [int(line.rsplit(" ", 1)[1]) for line in text.splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_long_lines_are_split(pod: Pod) -> None:
    _status, lines = _finished(pod, "sh", "-c", "head -c 40000 /dev/zero | tr '\\0' x; echo")
    assert [line.split(" ")[1] for line in lines] == ["P", "P", "F"]
    assert sum(len(line.split(" ", 2)[2]) for line in lines) == 40000


@pytest.mark.cri("CreateContainer", "metadata")
@pytest.mark.cri("RemoveContainer")
def test_names_of_containers(daemon: Daemon) -> None:
    with daemon.pod("names") as pod:
        first = pod.create("sleep", "100", name="taken")
        assert pod.create("sleep", "100", name="taken") == first
        with pytest.raises(grpc.RpcError) as raised:
            pod.create("sleep", "200", name="taken")
        assert raised.value.code() is grpc.StatusCode.ALREADY_EXISTS
        assert first in raised.value.details()
        daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=first), **_CALL)
        daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=first), **_CALL)
        assert pod.create("sleep", "200", name="taken") != first


@pytest.mark.cri("CreateContainer", "image")
def test_an_image_that_is_not_here(pod: Pod) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        pod.create("true", name="noimage", image="localhost/absent:1")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert "localhost/absent:1" in raised.value.details()


@pytest.mark.cri("RemoveImage", "image")
@pytest.mark.cri("ImageStatus", "image")
def test_an_image_in_use_stays(daemon: Daemon) -> None:
    with daemon.pod("inuse") as pod:
        pod.run("sleep", "100")
        with pytest.raises(grpc.RpcError) as raised:
            daemon.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=BUSYBOX)), **_CALL)
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    image = daemon.images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=BUSYBOX)), **_CALL).image
    assert image.id


# -- exec --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def target(pod: Pod) -> str:
    return pod.run("sh", "-c", "trap : TERM; while true; do sleep 1; done", name="target",
                   envs=[cri.KeyValue(key="FROM", value=b"container")])


@pytest.mark.cri("ExecSync", "cmd")
def test_exec_returns_output_and_code(pod: Pod, target: str) -> None:
    answer = pod.exec(target, "sh", "-c", "echo out $FROM; echo err >&2; exit 42")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out container\n", b"err\n", 42)
    assert pod.exec(target, "sh", "-c", "kill -9 $$").exit_code == 137


def test_exec_joins_all_namespaces_and_the_cgroup(daemon: Daemon) -> None:
    config = daemon.sandbox_config("joined")
    config.linux.security_context.namespace_options.pid = cri.CONTAINER
    with daemon.pod(config=config) as pod:
        options = cri.NamespaceOption(pid=cri.CONTAINER)
        container = pod.run("sleep", "100", linux=_security(namespace_options=options))
        look = "cd /proc/PID; for n in net ipc uts pid mnt; do readlink ns/$n; done; sort cgroup"
        seen = [pod.exec(container, "sh", "-c", look.replace("PID", pid)).stdout for pid in ("1", "self")]
        assert seen[0] == seen[1]
        assert len(seen[0].splitlines()) > 6


def test_exec_of_nothing_and_of_what_is_not_there(pod: Pod, target: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        pod.exec(target)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as raised:
        pod.exec(target, "nosuchprogram")
    assert "executable file not found" in raised.value.details()


@pytest.mark.cri("ExecSync", "cmd")
@pytest.mark.parametrize("no_new_privs", [False, True])
def test_exec_says_what_is_wrong_with_a_file(pod: Pod, no_new_privs: bool) -> None:
    """Under a filter, which the exec's process loads early or late."""
    profile = cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault)
    security = cri.LinuxContainerSecurityContext(seccomp=profile, no_new_privs=no_new_privs)
    linux = cri.LinuxContainerConfig(security_context=security)
    container = pod.run("sleep", "1000", name=f"odd-{no_new_privs}", linux=linux)
    script = "echo '#!/not/there' >/lonely; echo echo >/text; chmod +x /lonely /text; echo true >/bin/closed"
    assert pod.exec(container, "sh", "-c", script).exit_code == 0
    for path, told in (
        ("/lonely", 'no such file or directory: its interpreter "/not/there" .#!. is not in the container'),
        ("/text", "exec format error: it is no ELF file"),
        ("/tmp", "permission denied: it is a directory"),
        ("closed", "permission denied: its mode 0644 lets nobody execute it"),
    ):
        with pytest.raises(grpc.RpcError, match=f'exec: "{path}": {told}'):
            pod.exec(container, path)


@pytest.mark.cri("ExecSync", "timeout")
def test_exec_timeout_kills_the_whole_tree(pod: Pod, target: str) -> None:
    begun = time.monotonic()
    with pytest.raises(grpc.RpcError) as raised:
        pod.exec(target, "sh", "-c", "sleep 4321 & (sleep 4322 &) ; sh -c 'sleep 4323'", timeout=1)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begun > 0.9
    until(lambda: "sleep 432" not in pod.exec(target, "ps").stdout.decode())


def test_exec_does_not_wait_for_a_daemon_it_left(pod: Pod, target: str) -> None:
    assert pod.exec(target, "sh", "-c", "sleep 6000 & echo started").stdout == b"started\n"


def test_exec_output_is_whole_and_bounded(pod: Pod, target: str) -> None:
    whole = pod.exec(target, "sh", "-c", "head -c 5000000 /dev/zero").stdout
    assert len(whole) == 5_000_000
    flood = pod.exec(target, "sh", "-c", "head -c 20000000 /dev/zero")
    assert (16 << 20) - 4096 < len(flood.stdout) <= 16 << 20
    assert flood.exit_code == 0


def test_exec_in_a_container_that_does_not_run(pod: Pod) -> None:
    container = pod.create("true", name="idle")
    with pytest.raises(grpc.RpcError) as raised:
        pod.exec(container, "true")
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize(
    "refused",
    [
        {"run_as_username": "nobody-of-this-name"},
        {"capabilities": cri.Capability(add_capabilities=["CAP_OF_NO_KERNEL"])},
        {"seccomp": cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref="/nowhere")},
    ],
)
def test_a_refused_container_leaves_no_directory_for_its_mounts(
    pod: Pod, tmp_path: Path, refused: dict[str, object]
) -> None:
    mounts = [cri.Mount(container_path="/made", host_path=str(tmp_path / "made/below"))]
    with pytest.raises(grpc.RpcError):
        pod.create("true", name="refused", mounts=mounts, linux=_security(**refused))
    assert not (tmp_path / "made").exists()
    pod.create("true", name="refused", mounts=mounts)
    assert (tmp_path / "made/below").is_dir()


def test_a_container_that_an_older_crisp_created_starts_under_its_seccomp_profile(pod: Pod) -> None:
    profile = cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault)
    command = ("grep", "Seccomp:", "/proc/self/status")
    container = pod.create(*command, name="older", linux=_security(seccomp=profile))
    (pod.daemon.directory / "state/containers" / container / "seccomp-filter").unlink()  # which that one had not
    pod.daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container), **_CALL)
    assert pod.daemon.wait_exited(container).exit_code == 0
    assert pod.log("older").split()[-1] == "2"
