"""Pods in user namespaces: whose ids, which files are theirs, what their rights do not reach."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon, Pod

HOST_ID = 1_000_000
LENGTH = 65536
LINES = [cri.IDMapping(host_id=HOST_ID, container_id=0, length=LENGTH)]
OPTIONS = cri.NamespaceOption(
    pid=cri.CONTAINER, userns_options=cri.UserNamespace(mode=cri.POD, uids=LINES, gids=LINES)
)
OWN_KINDS = ("user", "net", "ipc", "uts", "mnt", "pid")

pytestmark = pytest.mark.cri("CreateContainer", "namespace_options.userns_options")


def _config(daemon: Daemon, name: str, options: cri.NamespaceOption = OPTIONS, **fields: Any) -> cri.PodSandboxConfig:
    config = daemon.sandbox_config(name, **fields)
    config.linux.security_context.namespace_options.CopyFrom(options)
    return config


def _linux(options: cri.NamespaceOption = OPTIONS, **security: Any) -> cri.LinuxContainerConfig:
    context = cri.LinuxContainerSecurityContext(namespace_options=options, **security)
    return cri.LinuxContainerConfig(security_context=context)


@pytest.fixture(scope="module")
def daemon(daemon_of_each_kind: Daemon) -> Daemon:
    return daemon_of_each_kind


@pytest.fixture(scope="module")
def pod(daemon: Daemon) -> Iterator[Pod]:
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1"}
    config = _config(daemon, "users", linux=cri.LinuxPodSandboxConfig(sysctls=sysctls))
    config.dns_config.servers.append("10.9.8.7")
    with daemon.pod(config=config) as running:
        running.daemon.wait_exited(running.run("true", name="first", linux=_linux()))  # makes the pod's cgroup
        yield running


_names = iter(range(10**6))


def _output(pod: Pod, command: str, code: int = 0, **fields: Any) -> list[str]:
    """The lines that a shell command prints in a container of its own."""
    name = f"c{next(_names)}"
    container = pod.run("sh", "-c", f"exec 2>&1; {command}", name=name, **{"linux": _linux(), **fields})
    status = pod.daemon.wait_exited(container)
    lines = [line.split(" ", 3)[3] for line in pod.log(name).splitlines()]
    assert status.exit_code == code, lines
    pod.daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), timeout=30)
    return lines


@pytest.mark.cri("Status", "user_namespaces")
@pytest.mark.cri("PodSandboxStatus", "namespaces.userns_options")
def test_it_is_told(daemon: Daemon, pod: Pod) -> None:
    status = daemon.runtime.Status(cri.StatusRequest(), timeout=30)
    assert all(handler.features.user_namespaces for handler in status.runtime_handlers)
    assert status.features.user_namespaces_host_network
    assert pod.status().linux.namespaces.options.userns_options == OPTIONS.userns_options


@pytest.mark.oci("linux.namespaces", "linux.uidMappings", "linux.gidMappings")
@pytest.mark.oci("linux.namespaces[].type: user")
def test_root_is_nobody_outside(daemon: Daemon, pod: Pod) -> None:
    container = pod.run("sleep", "100", name="ids", linux=_linux())
    look = "id; cat /proc/self/uid_map; stat -c %u:%g / /bin /etc/hosts /dev/null /root"
    seen = pod.exec(container, "sh", "-c", look)
    own, mapping, *owners = seen.stdout.decode().splitlines()
    assert own.startswith("uid=0(root) gid=0(root)")
    assert [int(word) for word in mapping.split()] == [0, HOST_ID, LENGTH]
    assert set(owners) == {"0:0"}
    pid = _pid(daemon, container)
    assert os.stat(f"/proc/{pid}").st_uid == HOST_ID
    # An exec joins all of the container's namespaces, and each is another than the machine's.
    look = "for n in user net ipc uts mnt pid; do readlink /proc/PID/ns/$n; done"
    inside = [pod.exec(container, "sh", "-c", look.replace("PID", p)).stdout.decode().split() for p in ("1", "self")]
    assert inside[0] == inside[1]
    assert set(inside[0]).isdisjoint(os.readlink(f"/proc/self/ns/{kind}") for kind in OWN_KINDS)
    daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), timeout=30)


def _pid(daemon: Daemon, container: str) -> int:
    import json

    request = cri.ContainerStatusRequest(container_id=container, verbose=True)
    return int(json.loads(daemon.runtime.ContainerStatus(request, timeout=30).info["info"])["pid"])


def test_the_pods_files_and_devices_are_usable(pod: Pod) -> None:
    assert _output(
        pod,
        "grep nameserver /etc/resolv.conf; hostname; cat /etc/hostname; grep -c users /etc/hosts; echo x >> /etc/hosts;"
        "touch /dev/shm/x && stat -c %u /dev/shm /dev/shm/x; head -c1 /dev/zero | wc -c; echo out > /dev/stdout;"
        " cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced;"
        "ls /sys/class/net | grep eth0",
    ) == ["nameserver 10.9.8.7", "users", "users", "1", "0", "0", "1", "out", "80", "1", "eth0"]


def test_writes_belong_to_the_container(pod: Pod) -> None:
    assert _output(
        pod,
        "touch /new; mkdir /made; chown 5:6 /made; echo more >> /etc/passwd; rm /bin/vi; stat -c %u:%g /new /made "
        "/etc/passwd; ls /bin/vi",
        code=1,
    ) == ["0:0", "5:6", "0:0", "ls: /bin/vi: No such file or directory"]
    user = {"run_as_user": cri.Int64Value(value=1234), "supplemental_groups": [77]}
    assert _output(pod, "id -u; id -G; touch /x", code=1, linux=_linux(**user))[:2] == ["1234", "0 77"]
    assert _output(pod, "echo again > /dev/stdout; tty; test -r $(tty) && echo readable", tty=True,
                   linux=_linux(**user))[1:] == ["/dev/pts/0", "readable"]


@pytest.mark.cri("CreateContainer", "mounts.mount_options")
def test_an_id_mapped_mount_has_its_options_and_the_hosts(pod: Pod, tmp_path: Path) -> None:
    """Recursive read-only too; what the host's mount forbids stays forbidden."""
    closed = tmp_path / "closed"
    closed.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid,nodev,mode=755", "crisp-test", closed], check=True)
    try:
        mapped: dict[str, Any] = {"host_path": str(closed), "uidMappings": LINES, "gidMappings": LINES}
        mapped["mount_options"] = ["noexec"]
        mounts = [
            cri.Mount(container_path="/some", **mapped),
            cri.Mount(container_path="/all", readonly=True, recursive_read_only=True, **mapped),
        ]
        look = "grep -E ' (/some|/all) ' /proc/self/mountinfo | cut -d' ' -f5,6; stat -c %u /some"
        told = _output(pod, look, mounts=mounts)
        flags = {line.split()[0]: set(line.split()[1].split(",")) for line in told[:2]}
        assert {"rw", "nosuid", "nodev", "noexec"} <= flags["/some"]
        assert {"ro", "nosuid", "nodev", "noexec"} <= flags["/all"]
        assert told[2] == "0"
    finally:
        subprocess.run(["umount", closed], check=True)


@pytest.mark.cri("CreateContainer", "mounts.uidMappings")
@pytest.mark.oci("mounts[].uidMappings", "mounts[].gidMappings")
@pytest.mark.cri("CreateContainer", "mounts.gidMappings")
def test_volumes_are_mapped_when_asked(pod: Pod, tmp_path: Path) -> None:
    for name in ("mapped", "plain"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        os.chown(tmp_path / name / "file", 1000, 1000)
    mounts = [
        cri.Mount(container_path="/mapped", host_path=str(tmp_path / "mapped"), uidMappings=LINES, gidMappings=LINES),
        cri.Mount(container_path="/ro", host_path=str(tmp_path / "mapped"), readonly=True, recursive_read_only=True,
                  uidMappings=LINES, gidMappings=LINES),
        cri.Mount(container_path="/plain", host_path=str(tmp_path / "plain")),
    ]
    look = "stat -c %u:%g /mapped/file /ro/file /plain/file; cat /plain/file; echo; touch /mapped/new; touch /ro/new"
    *seen, refused = _output(pod, look, code=1, mounts=mounts)
    assert seen == ["1000:1000", "1000:1000", "65534:65534", "plain"]
    assert "Read-only file system" in refused
    created = os.stat(tmp_path / "mapped" / "new")
    assert (created.st_uid, created.st_gid) == (0, 0)
    assert _output(pod, "touch /plain/new", code=1, mounts=mounts)


def test_mappings_of_a_mount_need_no_pod_of_their_own(daemon: Daemon, tmp_path: Path) -> None:
    os.chown(tmp_path, 7, 7)
    lines = [cri.IDMapping(host_id=500, container_id=7, length=1)]
    mount = cri.Mount(container_path="/v", host_path=str(tmp_path), uidMappings=lines, gidMappings=lines)
    with daemon.pod("plain") as pod:
        assert _output(pod, "stat -c %u:%g /v", mounts=[mount], linux=None) == ["500:500"]


def test_rights_end_at_the_namespace(daemon: Daemon) -> None:
    config = _config(daemon, "strong")
    config.linux.security_context.privileged = True
    with daemon.pod(config=config) as pod:
        linux = _linux(privileged=True, masked_paths=["/proc/timer_list"])
        said = _output(
            pod,
            "hostname changed; hostname; ip link add type veth && echo net; mkdir /m && mount -t tmpfs x /m && echo m;"
            "umount /dev/shm; mknod /x c 1 3; echo 1 > /proc/sys/kernel/panic; nsenter -t 1 -m true && echo own;"
            " chown 65536 /tmp; ulimit -n; true",
            linux=linux,
        )
    assert said[:3] == ["changed", "net", "m"]
    assert [line.split(": ")[-1] for line in said[3:6]] == [
        "Invalid argument", "Operation not permitted", "Permission denied",
    ]
    assert said[6] == "own"
    assert "Invalid argument" in said[7]


def test_limits_and_scores_of_the_machines_root(pod: Pod) -> None:
    resources = cri.LinuxContainerResources(oom_score_adj=123, memory_limit_in_bytes=64 << 20)
    linux = _linux()
    linux.resources.CopyFrom(resources)
    assert _output(pod, "cat /proc/self/oom_score_adj; cat /sys/fs/cgroup/memory/memory.limit_in_bytes; ulimit -n",
                   linux=linux) == ["123", str(64 << 20), "1024"]


def test_a_shared_pid_namespace_and_the_hosts_network(daemon: Daemon) -> None:
    options = cri.NamespaceOption()
    options.CopyFrom(OPTIONS)
    options.pid = cri.POD
    with daemon.pod(config=_config(daemon, "shared", options)) as pod:
        container = pod.run("sleep", "100", linux=_linux(options))
        assert b"sleep" in pod.exec(container, "ps").stdout
        # PID 1 is the infra process: nothing of the machine is to be had through it.
        assert pod.exec(container, "ls", "/proc/1/root/").exit_code != 0
    options.network = cri.NODE
    with daemon.pod(config=_config(daemon, "hostnet", options)) as pod:
        container = pod.run("sleep", "100", linux=_linux(options))
        seen = pod.exec(container, "sh", "-c", "readlink /proc/self/ns/net; ls /sys/class/net; ip link add type veth")
        assert seen.stdout.decode().split()[0] == os.readlink("/proc/self/ns/net")
        assert b"lo" in seen.stdout.split()
        assert b"Operation not permitted" in seen.stderr


@pytest.mark.parametrize(
    ("userns", "words"),
    [
        (cri.UserNamespace(mode=cri.POD), "0 mappings"),
        (cri.UserNamespace(mode=cri.NODE, uids=LINES, gids=LINES), "mode NODE has no mappings"),
        (cri.UserNamespace(mode=cri.POD, uids=LINES * 2, gids=LINES), "mapped twice"),
        (cri.UserNamespace(mode=cri.POD, uids=[cri.IDMapping(host_id=2**32 - 2, length=9)], gids=LINES), "go beyond"),
        (cri.UserNamespace(mode=cri.POD, uids=[cri.IDMapping(host_id=9, container_id=1, length=9)], gids=LINES),
         "id 0 is not mapped"),
    ],
)
@pytest.mark.cri("RunPodSandbox", "namespace_options.userns_options")
def test_mappings_that_cannot_be(daemon: Daemon, userns: cri.UserNamespace, words: str) -> None:
    config = _config(daemon, "wrong", cri.NamespaceOption(userns_options=userns))
    with pytest.raises(grpc.RpcError) as raised:
        daemon.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config), timeout=30)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "userns_options" in raised.value.details()
    assert words in raised.value.details()


def test_a_container_that_is_not_the_pods(daemon: Daemon, pod: Pod) -> None:
    other = cri.NamespaceOption()
    other.CopyFrom(OPTIONS)
    other.userns_options.uids[0].host_id += 1
    for linux, words in (
        (_linux(other), "must be the same as the pod sandbox's"),
        (_linux(cri.NamespaceOption()), "must be the same as the pod sandbox's"),
        (_linux(run_as_user=cri.Int64Value(value=LENGTH)), f"user {LENGTH} is not mapped"),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            pod.create("true", name="other", linux=linux)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert words in raised.value.details()


def test_several_ranges_and_a_restart(fresh_daemon: Daemon) -> None:
    lines = [cri.IDMapping(host_id=300_000, container_id=0, length=1),
             cri.IDMapping(host_id=200_000, container_id=1, length=999)]
    options = cri.NamespaceOption(userns_options=cri.UserNamespace(mode=cri.POD, uids=lines, gids=lines))
    with fresh_daemon.pod(config=_config(fresh_daemon, "ranges", options)) as pod:
        container = pod.run("sleep", "100", linux=_linux(options))
        fresh_daemon.restart()
        assert pod.exec(container, "cat", "/proc/self/uid_map").stdout.split() == b"0 300000 1 1 200000 999".split()
        assert _output(pod, "id -u", linux=_linux(options, run_as_user=cri.Int64Value(value=998))) == ["998"]
