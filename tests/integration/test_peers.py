"""What images, scripts, plugins and readers of logs are used to from containerd and CRI-O."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import BUSYBOX as BUSYBOX_IMAGE
from tests.daemon import Daemon, Pod
from tests.images import BUSYBOX, build_image, entry, layer, write_layout
from tests.waiting import until

_CALL = {"timeout": 30}
_LAST_LINE = pytest.mark.trial(
    "last-line", "A log's reader gets every byte that the program wrote, and no newline that it did not"
)


@pytest.fixture
def pod(daemon: Daemon) -> Iterator[Pod]:
    with daemon.pod("peers") as running:
        yield running
    shutil.rmtree(running.config.log_directory)


def _records(pod: Pod, name: str) -> list[str]:
    """The records of a log without their times."""
    return [line.split(" ", 1)[1] for line in pod.log(name).splitlines()]


# -- logs -------------------------------------------------------------------------------------------------------------


@_LAST_LINE
@pytest.mark.parametrize(
    ("script", "records"),
    [
        ("printf abcd", ["stdout P abcd"]),
        ("printf 'a\\nb'; printf 'c\\nd' >&2", ["stdout F a", "stdout P b", "stderr F c", "stderr P d"]),
        ("echo whole; printf ''", ["stdout F whole"]),
        ("printf x; kill -9 $$", ["stdout P x"]),
    ],
)
def test_a_last_line_without_newline_is_a_piece(daemon: Daemon, pod: Pod, script: str, records: list[str]) -> None:
    container = pod.run("sh", "-c", script, name="piece")
    daemon.wait_exited(container)
    assert sorted(_records(pod, "piece")) == sorted(records)
    command = [sys.executable, "-m", "cri.client", "-r", daemon.listen, "logs", container]
    shown = subprocess.run(command, capture_output=True, check=True, timeout=30)
    assert shown.stdout == b"".join(
        text.encode() + (b"\n" if tag == "F" else b"")
        for stream, tag, text in (record.split(" ", 2) for record in records)
        if stream == "stdout"
    )


@_LAST_LINE
def test_a_line_that_a_rotation_falls_into_stays_whole(daemon: Daemon, pod: Pod) -> None:
    fifo = Path(pod.config.log_directory, "go")
    os.mkfifo(fifo)
    container = pod.run(
        "sh", "-c", "echo one; printf two; cat /go >/dev/null; printf three", name="turned",
        mounts=[cri.Mount(container_path="/go", host_path=str(fifo))],
    )  # fmt: skip
    path = Path(pod.config.log_directory, "turned.log")
    until(lambda: path.exists() and path.stat().st_size)
    path.rename(path.with_suffix(".old"))
    daemon.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=container), **_CALL)
    fifo.write_text("")
    daemon.wait_exited(container)
    assert path.with_suffix(".old").read_text().endswith("stdout F one\n")
    assert _records(pod, "turned") == ["stdout P twothree"]


@_LAST_LINE
def test_a_terminals_last_line_is_a_piece(daemon: Daemon, pod: Pod) -> None:
    daemon.wait_exited(pod.run("sh", "-c", "echo one; printf two", name="terminal", tty=True))
    assert [record.rstrip("\r") for record in _records(pod, "terminal")] == ["stdout F one", "stdout P two"]


# -- verbose answers --------------------------------------------------------------------------------------------------

_VERBOSE = pytest.mark.trial(
    "verbose", "Verbose answers have what scripts around crictl read where containerd and CRI-O have it"
)


def _info(answer: Any) -> dict[str, Any]:
    return dict(json.loads(answer.info["info"]))


@_VERBOSE
def test_the_verbose_status_of_a_pod(daemon: Daemon) -> None:
    with daemon.pod("told") as pod:
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True)
        told = _info(daemon.runtime.PodSandboxStatus(request, **_CALL))
        (path,) = [one["path"] for one in told["runtimeSpec"]["linux"]["namespaces"] if one["type"] == "network"]
        assert os.stat(path).st_ino == os.stat(f"/proc/{told['pid']}/ns/net").st_ino
        for one in told["runtimeSpec"]["linux"]["namespaces"]:
            assert os.path.exists(one["path"])
        assert told["config"]["metadata"] == {"name": "told", "uid": "told-uid", "namespace": "default"}
        assert told["config"]["log_directory"] == pod.config.log_directory
        assert (told["processStatus"], told["netNamespaceClosed"]) == ("running", False)
        daemon.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), **_CALL)
        told = _info(daemon.runtime.PodSandboxStatus(request, **_CALL))
        assert told["runtimeSpec"]["linux"]["namespaces"] == []
        assert (told["pid"], told["processStatus"], told["netNamespaceClosed"]) == (0, "deleted", True)


@_VERBOSE
def test_a_pod_on_the_hosts_network_has_no_network_namespace(daemon: Daemon) -> None:
    config = daemon.sandbox_config("onhost")
    config.linux.security_context.namespace_options.network = cri.NODE
    with daemon.pod(config=config) as pod:
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True)
        told = _info(daemon.runtime.PodSandboxStatus(request, **_CALL))
        assert {one["type"] for one in told["runtimeSpec"]["linux"]["namespaces"]} == {"ipc", "pid"}
        assert told["netNamespaceClosed"] is False


@_VERBOSE
def test_the_verbose_status_of_a_container(daemon: Daemon, pod: Pod) -> None:
    container = pod.run(
        "sleep", "100", name="told", envs=[cri.KeyValue(key="A", value=b"b")], working_dir="/tmp",
        mounts=[cri.Mount(container_path="/m", host_path=pod.config.log_directory, readonly=True)],
        linux=cri.LinuxContainerConfig(
            resources=cri.LinuxContainerResources(cpu_shares=7),
            security_context=cri.LinuxContainerSecurityContext(
                run_as_user=cri.Int64Value(value=0), capabilities=cri.Capability(drop_capabilities=["NET_RAW"])
            ),
        ),
    )  # fmt: skip
    request = cri.ContainerStatusRequest(container_id=container, verbose=True)
    told = _info(daemon.runtime.ContainerStatus(request, **_CALL))
    assert Path(f"/proc/{told['pid']}/comm").read_text() in ("sleep\n", "busybox\n")
    assert (told["sandboxID"], told["snapshotKey"], told["runtimeType"]) == (pod.id, container, "crisp")
    config = told["config"]
    assert config["command"] == ["sleep", "100"]
    assert config["envs"] == [{"key": "A", "value": "b"}]
    assert config["mounts"] == [{"container_path": "/m", "host_path": pod.config.log_directory, "readonly": True}]
    assert config["linux"]["resources"] == {"cpu_shares": 7}
    security = config["linux"]["security_context"]
    assert security["run_as_user"] == {"value": 0}
    assert security["capabilities"] == {"drop_capabilities": ["NET_RAW"]}
    assert told["runtimeSpec"]["process"]["cwd"] == "/tmp"


# -- images -----------------------------------------------------------------------------------------------------------


def _image(daemon: Daemon, directory: Path, name: str, *entries: Any, **config: Any) -> str:
    """An image of busybox and more; its name."""
    base = layer(entry("bin/"), entry("bin/busybox", BUSYBOX.read_bytes(), mode=0o755), *entries)
    name = f"localhost/{name}:1"
    layout = directory / name.replace("/", "-")
    daemon.import_image(write_layout(layout, {name: build_image([base], {"Env": ["PATH=/bin"], **config})}))
    return name


@_VERBOSE
def test_the_verbose_status_of_an_image(daemon: Daemon, tmp_path: Path) -> None:
    own = {"Cmd": ["busybox", "true"], "Entrypoint": ["x"], "WorkingDir": "/w", "Volumes": {"/v": {}}, "User": "7"}
    name = _image(daemon, tmp_path, "told", **own)
    request = cri.ImageStatusRequest(image=cri.ImageSpec(image=name), verbose=True)
    told = _info(daemon.images.ImageStatus(request, **_CALL))
    assert told["imageSpec"]["config"] == {"Env": ["PATH=/bin"], **own}
    assert told["imageSpec"]["os"] == "linux"
    assert len(told["imageSpec"]["rootfs"]["diff_ids"]) == 1


@pytest.mark.trial("entrypoint", "An entrypoint of one empty string means none")
def test_an_entrypoint_of_one_empty_string_means_none(daemon: Daemon, pod: Pod, tmp_path: Path) -> None:
    name = _image(daemon, tmp_path, "entry", Entrypoint=[""], Cmd=["busybox", "echo", "ran"])
    daemon.wait_exited(pod.run(image=name, name="entry"))
    assert _records(pod, "entry") == ["stdout F ran"]
    daemon.wait_exited(pod.run(image=name, name="args", args=["busybox", "echo", "args"]))
    assert _records(pod, "args") == ["stdout F args"]
    nothing = _image(daemon, tmp_path, "nothing", Entrypoint=[""])
    with pytest.raises(grpc.RpcError, match="has neither entrypoint nor cmd"):
        pod.create(image=nothing, name="nothing")


# -- a pod's network --------------------------------------------------------------------------------------------------


@pytest.mark.trial("netns-unmounted", "A pod whose network namespace was unmounted behind its back can be removed")
@pytest.mark.parametrize("restart", [False, True])
def test_a_pod_whose_namespace_was_unmounted_is_removed(fresh_daemon: Daemon, restart: bool) -> None:
    daemon = fresh_daemon
    network = daemon.cni_conf_dir / "10-test.conflist"
    # The bridge plugin keeps the rules of masquerading when it is told that the namespace is gone.
    network.write_text(network.read_text().replace('"ipMasq": true', '"ipMasq": false'))
    with daemon.pod("unmounted") as pod:
        namespace = Path(f"/run/netns/crisp-{pod.id}")
        subprocess.run(["umount", "-l", namespace], check=True)
        assert namespace.read_bytes() == b""  # what was under the mount
        if restart:
            daemon.restart()
        daemon.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), **_CALL)
        assert not namespace.exists()
        assert not list(daemon.leases.rglob("10.*"))
        daemon.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id), **_CALL)
        with daemon.pod("unmounted"):  # the name is free
            pass


_UNPRIVILEGED = pytest.mark.trial(
    "unprivileged-network", "In a pod's own network anybody binds low ports and pings, unless told otherwise"
)
_TRY = """
import socket
with socket.socket() as port:
    port.bind(("127.0.0.1", 80))
socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()
"""


def _settings(pod: Pod, **namespaces: Any) -> list[str]:
    """The pod's two sysctls, as a container sees them."""
    security = cri.LinuxContainerSecurityContext(namespace_options=cri.NamespaceOption(**namespaces))
    look = "cd /proc/sys/net/ipv4; cat ip_unprivileged_port_start; set -- $(cat ping_group_range); echo $1 $2"
    container = pod.run("sh", "-c", look, name="look", linux=cri.LinuxContainerConfig(security_context=security))
    pod.daemon.wait_exited(container)
    return [record.removeprefix("stdout F ") for record in _records(pod, "look")]


def _tries(pod: Pod, host_id: int) -> str:
    """What somebody without any rights in the pod's network is told who binds a port and pings; "" for nothing."""
    into = ["nsenter", f"--net=/run/netns/crisp-{pod.id}"]
    become = ["setpriv", f"--reuid={host_id}", f"--regid={host_id}", "--clear-groups", "--bounding-set=-all"]
    tried = subprocess.run([*into, *become, "/usr/bin/python3", "-I", "-c", _TRY], capture_output=True, timeout=30)
    return tried.stderr.decode().rstrip().rpartition("\n")[2]


@_UNPRIVILEGED
def test_anybody_binds_low_ports_and_pings(daemon: Daemon) -> None:
    with daemon.pod("free") as pod:
        assert _settings(pod) == ["0", "0 2147483647"]
        assert _tries(pod, 1000) == ""
    lines = [cri.IDMapping(host_id=2_000_000, container_id=0, length=65536)]
    users = {"userns_options": cri.UserNamespace(mode=cri.POD, uids=lines, gids=lines)}
    config = daemon.sandbox_config("users")
    config.linux.security_context.namespace_options.CopyFrom(cri.NamespaceOption(**users))
    with daemon.pod(config=config) as pod:
        assert _settings(pod, **users) == ["0", "0 65535"]
        assert _tries(pod, 2_001_000) == ""


@_UNPRIVILEGED
def test_a_pods_own_sysctls_and_the_settings_win(daemon: Daemon, tmp_path: Path) -> None:
    config = daemon.sandbox_config("own")
    config.linux.sysctls.update({"net.ipv4.ping_group_range": "5 6", "net.ipv4.ip_unprivileged_port_start": "90"})
    with daemon.pod(config=config) as pod:
        assert _settings(pod) == ["90", "5 6"]
        assert "Permission denied" in _tries(pod, 1000)
    (tmp_path / "crisp.toml").write_text("enable_unprivileged_ports = false\nenable_unprivileged_icmp = false\n")
    with Daemon.running(f"--config={tmp_path}/crisp.toml") as strict:
        strict.import_busybox()
        with strict.pod("strict") as pod:
            assert _settings(pod) == ["1024", "1 0"]


@pytest.mark.trial("dying", "What is asked of a container that is just ending is refused as of one that has ended")
@pytest.mark.parametrize("shared", [False, True])
def test_an_exec_in_a_container_that_dies_is_a_failed_precondition(daemon: Daemon, shared: bool) -> None:
    config = daemon.sandbox_config("dying")
    pid = cri.POD if shared else cri.CONTAINER
    config.linux.security_context.namespace_options.pid = pid
    options = cri.NamespaceOption(pid=pid)
    linux = cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(namespace_options=options))
    with daemon.pod(config=config) as pod:
        codes = set[grpc.StatusCode]()
        for number in range(20):
            container = pod.run("sleep", "100", name=f"c{number}", linux=linux)
            status = cri.ContainerStatusRequest(container_id=container, verbose=True)
            told = _info(daemon.runtime.ContainerStatus(status, **_CALL))
            shim = int(Path(f"/proc/{told['pid']}/stat").read_text().rsplit(") ", 1)[1].split()[1])
            os.kill(shim, signal.SIGSTOP)  # it hears of the end and of the execs at the same moment
            try:
                request = cri.ExecSyncRequest(container_id=container, cmd=["true"], timeout=10)
                calls = [daemon.runtime.ExecSync.future(request, **_CALL) for _ in range(8)]
                stats = cri.ContainerStatsRequest(container_id=container)
                update = cri.UpdateContainerResourcesRequest(
                    container_id=container, linux=cri.LinuxContainerResources(cpu_shares=100)
                )
                calls += [daemon.runtime.UpdateContainerResources.future(update, **_CALL)]
                os.kill(told["pid"], signal.SIGKILL)
                daemon.runtime.ContainerStats(stats, **_CALL)
            finally:
                os.kill(shim, signal.SIGCONT)
            for call in calls:
                if (error := call.exception()) is not None:
                    codes.add(error.code())
                    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION, error.details()
            daemon.wait_exited(container)
        assert codes == {grpc.StatusCode.FAILED_PRECONDITION}


_VOLUMES = pytest.mark.trial(
    "volume", "A volume of the image is there, with the image's content, owner and mode, and can be written to"
)
_USERS = [cri.IDMapping(host_id=3_000_000, container_id=0, length=65536)]


@pytest.fixture(scope="module")
def volumes(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with volumes of all kinds."""
    return _image(
        daemon, tmp_path_factory.mktemp("volumes"), "volumes",
        entry("empty/", uid=3, gid=4, mode=0o1777), entry("full/", uid=5, gid=6, mode=0o750),
        entry("full/file", b"F", uid=7, mode=0o4711), entry("full/deep/"), entry("full/deep/f", b"D" * 70_000),
        entry("full/same", type=tarfile.LNKTYPE, linkname="full/file"),
        entry("full/link", type=tarfile.SYMTYPE, linkname="/etc/shadow"),
        entry("full/fifo", type=tarfile.FIFOTYPE, mode=0o640),
        entry("host", type=tarfile.SYMTYPE, linkname="../../../../etc"), entry("etc/"), entry("etc/own", b"own"),
        entry("plain", b"a file"), entry("round", type=tarfile.SYMTYPE, linkname="round"),
        Volumes={path: {} for path in ("/nodir/below", "/empty", "/full", "/host", "/plain", "/round", "/proc/x")},
    )  # fmt: skip


def _seen(pod: Pod, image: str, script: str, *, readonly: bool, user: int = 0, users: bool = False) -> list[str]:
    options = cri.NamespaceOption(userns_options=cri.UserNamespace(mode=cri.POD, uids=_USERS, gids=_USERS))
    security = cri.LinuxContainerSecurityContext(
        readonly_rootfs=readonly, run_as_user=cri.Int64Value(value=user), run_as_group=cri.Int64Value(value=user),
        namespace_options=options if users else None,
    )  # fmt: skip
    container = pod.run(
        "busybox", "sh", "-c", f"exec 2>&1; {script}; true", name="seen", image=image,
        linux=cri.LinuxContainerConfig(security_context=security),
    )  # fmt: skip
    pod.daemon.wait_exited(container)
    return [record.removeprefix("stdout F ") for record in _records(pod, "seen")]


@contextmanager
def _pod(daemon: Daemon, users: bool) -> Iterator[Pod]:
    config = daemon.sandbox_config("users" if users else "plain")
    if users:
        options = cri.NamespaceOption(userns_options=cri.UserNamespace(mode=cri.POD, uids=_USERS, gids=_USERS))
        config.linux.security_context.namespace_options.CopyFrom(options)
    try:
        with daemon.pod(config=config) as pod:
            yield pod
    finally:
        shutil.rmtree(config.log_directory)


@_VOLUMES
@pytest.mark.parametrize("users", [False, True])
@pytest.mark.parametrize("readonly", [False, True])
def test_a_volume_has_what_the_image_has_there(daemon: Daemon, volumes: str, readonly: bool, users: bool) -> None:
    script = (
        "cd /; busybox stat -c '%n %u:%g %a' empty full full/file full/fifo; busybox cat full/file; echo;"
        "busybox wc -c <full/deep/f; busybox readlink full/link;"
        "[ full/file -ef full/same ] && echo one; busybox cat host/own; echo;"
        "for v in nodir/below empty full full/deep etc; do echo x >$v/new && busybox cat $v/new; done;"
        "busybox cat plain; echo"
    )
    with _pod(daemon, users) as pod:
        assert _seen(pod, volumes, script, readonly=readonly, users=users) == [
            "empty 3:4 1777", "full 5:6 750", "full/file 7:0 4711", "full/fifo 0:0 640", "F", "70000", "/etc/shadow",
            "one", "own", *["x"] * 5, "a file",
        ]  # fmt: skip


@_VOLUMES
@pytest.mark.parametrize("users", [False, True])
def test_a_volume_that_the_image_lacks_is_the_containers_users(daemon: Daemon, volumes: str, users: bool) -> None:
    look = "busybox stat -c '%u:%g %a' /nodir/below; echo x >/nodir/below/f && busybox stat -c %u /nodir/below/f"
    with _pod(daemon, users) as pod:
        assert _seen(pod, volumes, look, readonly=False, user=77, users=users) == ["77:77 755", "77"]


@_VOLUMES
def test_a_volume_that_is_mounted_is_no_overlay_is_counted_and_goes_away(daemon: Daemon, volumes: str) -> None:
    with _pod(daemon, users=False) as pod:
        write = "busybox dd if=/dev/zero of=/empty/f bs=64k count=64; busybox sleep 100"
        container = pod.run("busybox", "sh", "-c", write, image=volumes, name="counted")
        mounts = pod.exec(container, "busybox", "cat", "/proc/mounts").stdout.decode().splitlines()
        (own,) = [line for line in mounts if line.split()[1] == "/empty"]
        assert own.split()[2] != "overlay"
        directory = daemon.root / "containers" / container / "volumes"
        (file,) = directory.glob("*/f")
        until(lambda: file.stat().st_size == 4 << 20)
        assert not (Path(_info_of(daemon, container)["writableLayer"]) / "empty/f").exists()
        stats = cri.ContainerStatsRequest(container_id=container)
        used = daemon.runtime.ContainerStats(stats, **_CALL).stats.writable_layer.used_bytes.value
        assert used >= 4 << 20
        daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), **_CALL)
        until(lambda: not directory.exists())


@_VOLUMES
def test_a_volume_below_a_mount_of_the_request_does_not_hide_what_is_there(
    daemon: Daemon, volumes: str, tmp_path: Path
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below/kept").write_text("kept")
    with _pod(daemon, users=False) as pod:
        mounts = [cri.Mount(container_path="/nodir", host_path=str(tmp_path))]
        container = pod.run("busybox", "cat", "/nodir/below/kept", image=volumes, name="kept", mounts=mounts)
        daemon.wait_exited(container)
        assert _records(pod, "kept") == ["stdout P kept"]


def _info_of(daemon: Daemon, container: str) -> dict[str, Any]:
    request = cri.ContainerStatusRequest(container_id=container, verbose=True)
    return _info(daemon.runtime.ContainerStatus(request, **_CALL))


_BYTES = bytes(range(1, 256))
_BINARY = pytest.mark.trial("binary-values", "Values of the environment are bytes, and arrive as they are")


def _environment(pid: int) -> dict[bytes, bytes]:
    """Of a process, as the kernel has it."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(entry.partition(b"=")[::2] for entry in entries if entry)


@_BINARY
def test_values_of_the_environment_arrive_byte_for_byte(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    with daemon.pod("bytes") as pod:
        envs = [cri.KeyValue(key="BIN", value=_BYTES), cri.KeyValue(key="TEXT", value="\u00e4".encode())]
        container = pod.run("sleep", "1000", envs=envs)
        created = pod.create("sleep", "1000", name="created", envs=envs)
        daemon.restart()
        daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=created), **_CALL)
        for one in (container, created):
            told = _info_of(daemon, one)
            found = _environment(told["pid"])
            assert (found[b"BIN"], found[b"TEXT"]) == (_BYTES, "\u00e4".encode())
            shown = _BYTES.decode(errors="backslashreplace")
            assert {"key": "BIN", "value": shown} in told["config"]["envs"]
            assert f"BIN={shown}" in told["runtimeSpec"]["process"]["env"]
            assert pod.exec(one, "sh", "-c", 'printf %s "$BIN"').stdout == _BYTES
        # What is kept still tells one request from another.
        with pytest.raises(grpc.RpcError) as refused:
            pod.create("sleep", "1000", name="created", envs=[cri.KeyValue(key="BIN", value=_BYTES[:-1])])
        assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS


@_BINARY
def test_crisp_run_takes_bytes(daemon: Daemon) -> None:
    run = [sys.executable, "-m", "cri.client", "-r", daemon.listen, "run", "--rm", "-e", b"BIN=\xff\xfe", BUSYBOX_IMAGE]
    done = subprocess.run([*run, "sh", "-c", 'printf %s "$BIN"'], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"\xff\xfe")
    wrong = subprocess.run([*run[:-2], b"\xff=1", BUSYBOX_IMAGE, "true"], capture_output=True, timeout=60)
    assert wrong.returncode == 125
    assert b"expected NAME=VALUE" in wrong.stderr
