"""The catalogue of staged faults: the error and `crisp why` tell the cause of what goes wrong.

Each row is staged as a user would meet it. docs/why.md has the causes in a table. The first line of the diagnosis is
what the caller of CRI was told, where there was one.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.admin.v1 import admin_pb2
from cri.v1 import api_pb2 as cri
from tests import faulty_registry
from tests.daemon import BUSYBOX, CALL_SECONDS, Daemon, Pod
from tests.faulty_registry import FaultyRegistry
from tests.images import build_image, build_index, busybox_layer, digest, entry, layer
from tests.integration.test_crisp_command import crisp
from tests.nri_plugin import Plugin, objection
from tests.pki import Authority
from tests.processes import parent_of
from tests.waiting import until

_CALL = {"timeout": CALL_SECONDS}
Fields = Callable[[Path], dict[str, Any]]


@dataclass(frozen=True)
class Fault:
    """A container that does not start, or ends: the first line has all of `words`."""

    name: str
    cause: str
    words: tuple[str, ...]
    command: tuple[str, ...] = ("sleep", "60")
    fields: Fields = lambda _place: {}
    image: str = BUSYBOX
    remedy: str = ""  # what it has among others


def why(daemon: Daemon, query: str) -> admin_pb2.WhyResponse:
    return daemon.admin.Why(admin_pb2.WhyRequest(query=query), **_CALL)


def wrong(
    found: admin_pb2.WhyResponse, cause: str, words: tuple[str, ...], told: str | None = None, remedy: str = ""
) -> str:
    """What a diagnosis lacks; "" for a right one. `told` is the text of the call's error."""
    right = found.name == cause and all(word in found.cause for word in words) and found.evidence and found.remedy
    if right and told in (None, found.cause) and remedy in found.remedy:
        return ""
    got = f"{found.name}: {found.cause!r} ({found.evidence!r}; {found.remedy!r})"
    return f"{got}; wanted {cause} with {words} and {remedy!r}, told {told!r}"


def refusal(call: Callable[[], object]) -> str:
    """What a call was answered with."""
    try:
        call()
    except grpc.RpcError as error:
        return str(error.details())
    return "it succeeded"


@pytest.fixture(scope="module")
def pod(daemon: Daemon) -> Iterator[Pod]:
    """A pod for all containers, with one that runs, so that its cgroup stays."""
    with daemon.pod("faults") as running:
        running.run("sleep", "100000", name="bystander")
        yield running


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stage(tmp_path_factory.mktemp("odd"))


def stage(made: Path) -> Path:
    """Make programs and files that are not what they should be (also for `python -m tests.bench words`)."""
    made.chmod(0o755)
    elf = bytearray(Path("/bin/busybox").read_bytes())
    _program(made / "data", b"not a program", 0o644)
    _program(made / "script", b"#!/no/such/interpreter -x\n")
    _program(made / "dos", b"#!/bin/sh\r\necho hello\r\n")
    _program(made / "text", b"echo there is no first line that says who runs this\n")
    _program(made / "empty", b"")
    _program(made / "dynamic", Path(shutil.which("ls") or "").read_bytes())
    struct.pack_into("<H", elf, 18, 183 if elf[18] == 62 else 62)
    _program(made / "foreign", bytes(elf))
    _program(made / "by-foreign", b"#!/odd/foreign\n")
    _program(made / "by-data", b"#!/odd/data\n")
    _program(made / "by-dynamic", b"#!/odd/dynamic\n")
    _program(made / "mark", b"\xef\xbb\xbf#!/bin/sh\n")
    _program(made / "wide", "#!/bin/sh\n".encode("utf-16"))
    _program(made / "late", b"\n#!/bin/sh\n")
    (made / "file").write_text("a file")
    (made / "directory").mkdir()
    (made / "private").mkdir(mode=0o700)
    (made / "loop").symlink_to("loop")
    (made / "kill.json").write_text(
        json.dumps(
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}],
            }
        )
    )
    return made


def _program(path: Path, content: bytes, mode: int = 0o755) -> None:
    path.write_bytes(content)
    path.chmod(mode)


def _mounts(*mounts: tuple[str, str], **more: Any) -> Fields:
    return lambda place: {
        "mounts": [cri.Mount(host_path=host.format(place), container_path=target, **more) for host, target in mounts]
    }


def _image_mount(image: str, sub_path: str = "") -> Fields:
    mount = cri.Mount(container_path="/mnt", image=cri.ImageSpec(image=image), image_sub_path=sub_path, readonly=True)
    return lambda _place: {"mounts": [mount]}


def _loader(place: Path) -> dict[str, Any]:
    """The C library's loader without the libraries."""
    loader = next(iter([*Path("/lib64").glob("ld-linux*"), *Path("/lib").glob("ld-linux*")]))
    return _mounts(("{}", "/odd"), (str(loader.resolve()), str(loader)))(place)


def _linux(**fields: Any) -> Fields:
    return lambda _place: {"linux": cri.LinuxContainerConfig(**fields)}


def _security(**fields: Any) -> Fields:
    return _linux(security_context=cri.LinuxContainerSecurityContext(**fields))


def _resources(**fields: Any) -> Fields:
    return _linux(resources=cri.LinuxContainerResources(**fields))


def _seccomp(profile: str) -> Fields:
    return lambda place: _security(seccomp=_profile(profile.format(place)))(place)


def _profile(ref: str) -> cri.SecurityProfile:
    return cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref=ref)


_ODD = _mounts(("{}", "/odd"))
_MAPPED = cri.IDMapping(host_id=100000, container_id=0, length=65536)
_AS_1000 = _security(run_as_user=cri.Int64Value(value=1000), run_as_group=cri.Int64Value(value=1000))
_NO_DEVICE = cri.Device(host_path="/dev/no-such", container_path="/dev/x", permissions="rw")

REFUSED = (
    Fault("missing", "program-missing", ("/no/such/program",), ("/no/such/program",)),
    Fault("not-in-path", "program-missing", ("no-such-program", "$PATH"), ("no-such-program",)),
    Fault("link-loop", "program-missing", ("/odd/loop", "symbolic links"), ("/odd/loop",), _ODD),
    Fault("not-executable", "program-not-executable", ("/odd/data", "0644"), ("/odd/data",), _ODD),
    Fault("directory", "program-not-executable", ("/odd/directory", "is a directory"), ("/odd/directory",), _ODD),
    Fault("foreign", "wrong-architecture", ("/odd/foreign", "aarch64", "x86_64"), ("/odd/foreign",), _ODD),
    Fault("no-shebang", "not-a-program", ("/odd/text", "#!"), ("/odd/text",), _ODD),
    Fault("empty", "not-a-program", ("/odd/empty", "it is empty"), ("/odd/empty",), _ODD),
    Fault("interpreter", "interpreter-missing", ("/odd/script", "/no/such/interpreter"), ("/odd/script",), _ODD),
    Fault("dos", "interpreter-missing", ("/odd/dos", "carriage return"), ("/odd/dos",), _ODD),
    Fault("elf-interpreter", "interpreter-missing", ("/odd/dynamic", "/ld-linux"), ("/odd/dynamic",), _ODD),
    Fault("by-foreign", "wrong-architecture", ('"/odd/foreign" (#!): ', "aarch64"), ("/odd/by-foreign",), _ODD),
    Fault("by-data", "program-not-executable", ('"/odd/data" (#!): ', "0644"), ("/odd/by-data",), _ODD),
    Fault("by-dynamic", "interpreter-missing", ('"/odd/dynamic" (#!): ', "/ld-linux"), ("/odd/by-dynamic",), _ODD),
    Fault("mark", "not-a-program", ("byte order mark",), ("/odd/mark",), _ODD, remedy="without a byte order mark"),
    Fault("wide", "not-a-program", ("UTF-16",), ("/odd/wide",), _ODD, remedy="UTF-8"),
    Fault("late", "not-a-program", ("after white space",), ("/odd/late",), _ODD),
    Fault("one-word", "program-missing", ("httpd -f", "one word"), ("httpd -f",), remedy="[httpd, -f]"),
    Fault("one-path", "program-missing", ("/bin/httpd -f", "one word"), ("/bin/httpd -f",), remedy="[httpd, -f]"),
    Fault("arguments", "arguments-too-long", ("204800 bytes",), ("true", "x" * (200 << 10))),
    Fault("directory-is-file", "working-directory", ("/etc/passwd",), fields=lambda _: {"working_dir": "/etc/passwd"}),
    Fault("user", "user-missing", ("nosuchuser",), fields=_security(run_as_username="nosuchuser")),
    Fault("file-on-directory", "mount-file-directory", ("file", "/tmp"), fields=_mounts(("{}/file", "/tmp"))),
    Fault("directory-on-file", "mount-file-directory", ("/group",), fields=_mounts(("{}/directory", "/etc/group")),
          remedy="correct subPath"),
    Fault("below-source", "mount-source", ("file/below",), fields=_mounts(("{}/file/below", "/mnt"))),
    Fault("source-loop", "mount-source", ("loop",), fields=_mounts(("{}/loop", "/mnt"))),
    Fault("below-a-file", "mount-target", ("/etc/passwd/x",), fields=_mounts(("{}/directory", "/etc/passwd/x"))),
    Fault("in-proc", "mount-target", ("/proc/none",), fields=_mounts(("{}/directory", "/proc/none"))),
    Fault("id-map", "idmap-unsupported", ("`/sys/fs`, whose file system (sysfs) has no id-mapped mounts",),
          fields=_mounts(("/sys/fs", "/mnt"), uidMappings=[_MAPPED], gidMappings=[_MAPPED])),
    Fault("relative", "invalid-request", ("relative/path",), fields=_mounts(("{}/directory", "relative/path"))),
    Fault("sub-path", "image-sub-path", ("no/such",), fields=_image_mount(BUSYBOX, "no/such")),
    Fault("image-volume", "image-not-here", ("localhost/none:1",), fields=_image_mount("localhost/none:1")),
    Fault("device", "device", ("/dev/no-such",), fields=lambda _: {"devices": [_NO_DEVICE]}),
    Fault("cdi", "device", ("a.b/c=1",), fields=lambda _: {"CDI_devices": [cri.CDIDevice(name="a.b/c=1")]}),
    Fault("memory-small", "memory-too-small", ("65536",), fields=_resources(memory_limit_in_bytes=64 << 10)),
    Fault("cpuset", "cpuset", ("99",), fields=_resources(cpuset_cpus="99")),
    Fault("period", "limit-invalid", ("cpu_period",), fields=_resources(cpu_period=10, cpu_quota=10)),
    Fault("huge", "limit-invalid", ("3KB",),
          fields=_resources(hugepage_limits=[cri.HugepageLimit(page_size="3KB", limit=1)])),
    Fault("unified", "cgroup-controller", ("memory.high",), fields=_resources(unified={"memory.high": "1"})),
    Fault("seccomp-missing", "seccomp-profile", ("/no/such.json",), fields=_seccomp("/no/such.json")),
    Fault("seccomp-bad", "seccomp-profile", ("not JSON",), fields=_seccomp("{}/file")),
    Fault("apparmor", "apparmor", ("no-such",), fields=_security(apparmor=_profile("no-such"))),
    Fault("capability", "invalid-request", ("NO_SUCH",),
          fields=_security(capabilities=cri.Capability(add_capabilities=["NO_SUCH"]))),
    Fault("image", "image-not-here", ("localhost/none:2",), image="localhost/none:2"),
)  # fmt: skip

ENDED = (
    Fault("code", "exit-code", ("exit code 3", "no more tea"), ("sh", "-c", "echo no more tea; exit 3")),
    Fault("segv", "crashed", ("SIGSEGV",), ("sh", "-c", "kill -SEGV $$")),
    Fault("abort", "crashed", ("SIGABRT",), ("sh", "-c", "kill -ABRT $$")),
    Fault("killed", "killed", ("SIGKILL",), ("sh", "-c", "sh -c 'kill -9 $PPID'; true")),
    Fault("oom", "out-of-memory", ("memory limit 16777216 bytes",),
          ("sh", "-c", "x=a; while :; do x=$x$x; done"), _resources(memory_limit_in_bytes=16 << 20)),
    Fault("denied-volume", "exit-code",
          ("/odd/private/f", "`/odd/private` belongs to 0:0 and has mode 0700; the container runs as 1000:1000"),
          ("sh", "-c", "echo starting; cat /odd/private/f"), lambda place: {**_ODD(place), **_AS_1000(place)},
          remedy="fsGroup"),
    Fault("full", "disk-full", ("No space left on device; the file system of `/dev/shm` has 65536 KiB, of which 0 are"),
          ("sh", "-c", "dd if=/dev/zero of=/dev/shm/f bs=1M; rc=$?; echo giving up; exit $rc"), remedy="sizeLimit"),
    Fault("read-only", "read-only", ("/run.pid: Read-only file system",), ("sh", "-c", "echo $$ >/run.pid && sleep 9"),
          _security(readonly_rootfs=True), remedy="emptyDir"),
    Fault("denied-image", "exit-code", ("/etc/x", "`/etc` belongs to 0:0 and has mode 0755; the container runs as"),
          ("sh", "-c", "echo tea >/etc/x; echo no tea; exit 1"), _AS_1000),
    Fault("oom-child", "out-of-memory", ("exit code 1, and another process", "memory limit 16777216 bytes", "no end"),
          ("sh", "-c", "sh -c 'x=a; while :; do x=$x$x; done'; echo no end >&2; exit 1"),
          _resources(memory_limit_in_bytes=16 << 20)),
    Fault("stack", "exit-code", ("exit code 1: Error: no tea",),
          ("sh", "-c", r"printf 'Error: no tea\n    at main\n    at run\n' >&2; exit 1")),
    Fault("port", "port-taken", ("in use",), ("sh", "-c", "echo bind: Address already in use; exit 1"), remedy="ss -l"),
    Fault("not-found", "command-not-found", ("127", "no-such-command"), ("sh", "-c", "no-such-command")),
    Fault("not-run", "command-not-executable", ("126", "/etc/passwd"), ("sh", "-c", "/etc/passwd")),
    Fault("library", "library-missing", ("/odd/dynamic", ".so"), ("/odd/dynamic",), _loader),
    Fault("seccomp", "seccomp-killed", ("SIGSYS", "seccomp", "; the profile is /", "/kill.json"), ("mkdir", "/x"),
          _seccomp("{}/kill.json")),
)  # fmt: skip


def test_containers_that_do_not_start(pod: Pod, place: Path) -> None:
    failures = []
    for fault in REFUSED:
        run = partial(pod.run, *fault.command, name=fault.name, image=fault.image, **fault.fields(place))
        told = refusal(run)
        found = why(pod.daemon, f"faults/{fault.name}")
        if failure := wrong(found, fault.cause, fault.words, told, fault.remedy):
            failures.append(f"{fault.name}: {failure}")
    _remove_all(pod)
    assert failures == []


def test_containers_that_end(pod: Pod, place: Path) -> None:
    failures = []
    for faults in (ENDED[:9], ENDED[9:]):  # a pod's recording, which is bounded, would not hold all of them
        containers = {fault: pod.run(*fault.command, name=fault.name, **fault.fields(place)) for fault in faults}
        for fault, container in containers.items():
            pod.daemon.wait_exited(container)
            if failure := wrong(why(pod.daemon, container[:12]), fault.cause, fault.words, remedy=fault.remedy):
                failures.append(f"{fault.name}: {failure}")
        _remove_all(pod)
    assert failures == []


def _kernel_log() -> bool:
    """Whether the kernel's log, which tells what it killed, can be read."""
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _kernel_log(), reason="needs to read /dev/kmsg")
def test_which_process_was_killed_for_lack_of_memory(daemon: Daemon, pod: Pod) -> None:
    limit = _resources(memory_limit_in_bytes=16 << 20)(Path())
    child = pod.run("sh", "-c", "tail /dev/zero; exit 1", name="child", **limit)
    first = pod.run("tail", "/dev/zero", name="first", **limit)
    words = "the kernel killed 'tail': the container's limit was reached"
    for container in (child, first):
        daemon.wait_exited(container)
        assert wrong(why(daemon, container), "out-of-memory", (words,)) == ""
    runs = pod.run("sleep", "1000", name="runs", **limit)
    assert pod.exec(runs, "tail", "/dev/zero").exit_code == 137
    assert wrong(why(daemon, "faults/runs"), "command-failed", ("'tail (arguments: 1)'", words)) == ""
    _remove_all(pod)


def test_who_has_a_port(daemon: Daemon) -> None:
    serve = ("httpd", "-f", "-p", "8088")
    shell = ("sh", "-c", "httpd -f -p 8088 || { echo giving up; exit 3; }")
    with daemon.pod("ports") as pod:
        pod.exec(pod.run(*serve, name="server"), "sh", "-c", "until nc 127.0.0.1 8088 </dev/null; do :; done")
        daemon.wait_exited(pod.run(*shell, name="late"))
        held = "Address already in use; port 8088 is held by container 'server' of this pod, process 'httpd'"
        assert wrong(why(daemon, "ports/late"), "port-taken", (held,), remedy="another port, here or there") == ""
        daemon.wait_exited(pod.run("sh", "-c", "httpd -f -p $((8000 + 88))", name="silent"))
        held = "the only port taken in the pod's network, 8088, is held by container 'server' of this pod"
        assert wrong(why(daemon, "ports/silent"), "port-taken", (held,)) == ""
    node = cri.NamespaceOption(network=cri.NODE)
    security = cri.LinuxSandboxSecurityContext(namespace_options=node)
    config = daemon.sandbox_config("on-node", linux=cri.LinuxPodSandboxConfig(security_context=security))
    with socket.create_server(("0.0.0.0", 0)) as listening, daemon.pod(config=config) as pod:
        port = listening.getsockname()[1]
        held = f"port {port} is held by process {Path('/proc/self/comm').read_text().strip()!r} (pid {os.getpid()})"
        for name, words in (("bare", "httpd"), ("named", f"echo bind 0.0.0.0:{port}: address already in use; false")):
            command = ("sh", "-c", words) if name == "named" else (words, "-f", "-p", str(port))
            daemon.wait_exited(pod.run(*command, name=name))
            assert wrong(why(daemon, f"on-node/{name}"), "port-taken", (held, "of the node")) == ""
        daemon.wait_exited(pod.run("sh", "-c", "echo bind: address already in use; exit 1", name="unclear"))
        assert "is held by" not in why(daemon, "on-node/unclear").cause


def _remove_all(pod: Pod) -> None:
    request = cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=pod.id))
    for item in pod.daemon.runtime.ListContainers(request, **_CALL).containers:
        if item.metadata.name != "bystander":
            pod.daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=item.id), **_CALL)


def test_states_names_and_commands(daemon: Daemon, pod: Pod) -> None:
    ended = pod.run("true", name="ended")
    daemon.wait_exited(ended)
    runs = pod.run("sh", "-c", "trap '' TERM; while :; do sleep 1; done", name="runs")
    end = cri.StopContainerRequest(timeout=1)
    end.container_id = pod.run("sh", "-c", "trap '' TERM; while :; do sleep 1; done", name="other")
    other = daemon.sandbox_config("faults", labels={"other": "one"})
    handled = daemon.sandbox_config("handled")
    stop = cri.StopContainerRequest(container_id=runs, timeout=1)

    def run_pod(config: cri.PodSandboxConfig, handler: str = "") -> Callable[[], object]:
        request = cri.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return lambda: daemon.runtime.RunPodSandbox(request, **_CALL)

    start = cri.StartContainerRequest(container_id=ended)
    cases: tuple[tuple[str, str, tuple[str, ...], Callable[[], object], bool], ...] = (
        ("faults/ended", "not-running", ("exited",), lambda: pod.exec(ended, "true"), True),
        ("faults/ended", "not-running", ("exited",), lambda: daemon.runtime.StartContainer(start, **_CALL), True),
        ("faults/ended", "name-held", (ended,), lambda: pod.create("false", name="ended"), True),
        ("faults/runs", "program-missing", ("/no/such",), lambda: pod.exec(runs, "/no/such"), True),
        ("faults/runs", "command-failed", ("sh", "code 7: no tea"),
         lambda: pod.exec(runs, "sh", "-c", "echo no tea >&2; exit 7"), False),
        ("faults/runs", "exec-timeout", ("within 1 s",), lambda: pod.exec(runs, "sleep", "100", timeout=1), True),
        # What kubelet does after a hook or a probe has failed.
        ("faults/runs", "exec-timeout", ("within 1 s", "then the container was stopped (SIGTERM"),
         lambda: daemon.runtime.StopContainer(stop, **_CALL), False),
        ("faults/other", "stopped", ("SIGKILL", "SIGTERM"), lambda: daemon.runtime.StopContainer(end, **_CALL), False),
        ("faults", "name-held", (pod.id,), run_pod(other), True),
        ("handled", "handler-missing", ("kata",), run_pod(handled, "kata"), True),
    )
    failures = []
    for query, cause, words, call, refused in cases:
        told = refusal(call)
        if failure := wrong(why(daemon, query), cause, words, told if refused else None):
            failures.append(f"{query}: {failure}")
    _remove_all(pod)
    assert failures == []


def test_a_container_that_ends_well_again_and_again(daemon: Daemon) -> None:
    with daemon.pod("loops") as pod:
        for _ in range(3):
            container = pod.run("sh")
            daemon.wait_exited(container)
            daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), **_CALL)
        found = why(daemon, "loops")
        assert wrong(found, "ends-well", ("exit code 0, again and again",), remedy="restartPolicy") == ""
        assert "3 times in a row" in found.evidence


def test_a_hook_that_does_not_end_is_told_of(daemon: Daemon) -> None:
    """As kubelet runs a preStop hook: without a time limit."""
    with daemon.pod("hooked") as pod:
        container = pod.run("sleep", "1000")
        script = "until [ -e /drained ]; do sleep 1; done"
        request = cri.ExecSyncRequest(container_id=container, cmd=["sh", "-c", script])
        hook = daemon.runtime.ExecSync.future(request, **_CALL)
        until(lambda: why(daemon, "hooked").name == "command-runs", 60, 0.2)
        assert wrong(why(daemon, "hooked"), "command-runs", ("'sh (arguments: 2)'",), remedy="preStop") == ""
        pod.exec(container, "touch", "/drained")
        assert hook.result().exit_code == 0
        assert why(daemon, "hooked").name == "none"


def test_a_volume_that_hides_the_program_is_named(daemon: Daemon, pod: Pod, place: Path) -> None:
    hides = _mounts(("{}/directory", "/bin"))(place)
    for name, command in (("hides", ("/bin/httpd", "-f")), ("hides-too", ("httpd", "-f"))):
        told = refusal(partial(pod.run, *command, name=name, **hides))
        found = why(daemon, f"faults/{name}")
        assert wrong(found, "program-hidden", ("the volume on `/bin` hides the image's `/bin/httpd`",), told) == ""
    told = refusal(partial(pod.run, "/bin/none", name="absent", **hides))
    assert wrong(why(daemon, "faults/absent"), "program-missing", ("/bin/none",), told) == ""
    _remove_all(pod)


_PORTS = "net.ipv4.ip_local_port_range"
_ANSWERS = {
    "words": """echo '{"cniVersion":"1.0.0","code":7,"msg":"no bridge","details":"it is down"}'; exit 1""",
    "later": """echo '{"cniVersion":"1.0.0","code":11,"msg":"try again later"}'; exit 1""",
    "crashes": "echo 'panic: nil map' >&2; exit 2",
    "killed": "kill -9 $$",
    "nonsense": "echo hello",
    "slow": "sleep 6; exit 1",
}


def _network(*plugins: dict[str, Any]) -> str:
    return json.dumps({"cniVersion": "1.0.0", "name": "n", "plugins": plugins})


def test_networks_and_pods(tmp_path: Path) -> None:
    for name, answer in _ANSWERS.items():
        _program(tmp_path / name, f'#!/bin/sh\n[ "$CNI_COMMAND" = DEL ] && exit 0\n{answer}\n'.encode())
    with Daemon.running(f"--cni-bin-dir={tmp_path}") as daemon:
        file = daemon.cni_conf_dir / "10-test.conflist"
        bridge = json.loads(file.read_text())["plugins"][0]
        bridge["ipam"]["ranges"] = [[{"subnet": "10.201.1.0/30"}]]
        good = _network(bridge)
        cases: tuple[tuple[str, str, tuple[str, ...], str, dict[str, Any]], ...] = (
            ("net-words", "network-plugin", ("words", "no bridge: it is down", "7"), "", {}),
            ("net-later", "network-later", ("try again later",), "", {}),
            ("net-crashes", "network-plugin", ("exit status 2", "panic: nil map"), "", {}),
            ("net-killed", "network-plugin", ("killed by signal 9",), "", {}),
            ("net-nonsense", "network-plugin", ("malformed",), "", {}),
            ("net-absent", "network-plugin-missing", ("absent", str(tmp_path)), "", {}),
            ("net-bad", "network-not-ready", (str(file),), "{", {}),
            ("net-first", "none", (), good, {}),
            ("net-full", "no-address", ("10.201.1",), good, {}),
            ("net-sysctl", "sysctl", ("net/no/such",), good, {"sysctls": {"net.no.such": "1"}}),
            ("net-foreign-sysctl", "sysctl", ("vm.swappiness",), good, {"sysctls": {"vm.swappiness": "1"}}),
            ("net-value", "sysctl", ("1-2", "Invalid argument"), good, {"sysctls": {_PORTS: "1-2"}}),
            ("net-parent", "invalid-request", ("cgroup_parent",), good, {"cgroup_parent": "a/../b"}),
        )
        failures = []
        for name, cause, words, network, linux in cases:
            file.write_text(network or _network({"type": name.removeprefix("net-")}))
            config = daemon.sandbox_config(name, linux=cri.LinuxPodSandboxConfig(**linux))
            request = cri.RunPodSandboxRequest(config=config)
            told = refusal(partial(daemon.runtime.RunPodSandbox, request, **_CALL))
            remedy = "correct the value" if name == "net-value" else ""
            found = why(daemon, f"default/{name}")
            if failure := wrong(found, cause, words, told if cause != "none" else None, remedy):
                failures.append(f"{name}: {failure}")
        file.write_text(_network({"type": "slow"}))
        impatient = cri.RunPodSandboxRequest(config=daemon.sandbox_config("impatient"))
        refusal(lambda: daemon.runtime.RunPodSandbox(impatient, timeout=3))
        until(lambda: "waited for network plugin 'slow' (ADD), which has not ended" in why(daemon, "impatient").cause)
        until(lambda: "network plugin 'slow' (ADD) took" in why(daemon, "impatient").cause)
        assert wrong(why(daemon, "impatient"), "deadline", ("RunPodSandbox", "gave up after 3.")) == ""
        file.write_text(good)
        assert failures == []


def _unknown_authority(directory: Path) -> ssl.SSLContext:
    """The TLS of a registry whose certificate nobody knows."""
    certificate, key = Authority(directory / "ca").issue(directory, "registry")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    return tls


async def test_images(tmp_path: Path) -> None:
    good = build_image([busybox_layer()])
    s390x = build_image([layer(entry("file", b"content"))], architecture="s390x")
    foreign = build_index([(s390x, {"os": "linux", "architecture": "s390x"})])
    lying = build_image([layer(entry("file", b"content"))], diff_ids=[digest(b"something else")])
    artifact = build_image([layer(entry("file", b"content"))], config_type="application/vnd.example.thing.v1+json")
    images = {"good:1": good, "foreign:1": foreign, "lying:1": lying, "artifact:1": artifact, "refused/a:1": good}
    registry, secret = FaultyRegistry(images=images), FaultyRegistry(images={"good:1": good})
    manifest, blob = "/v2/good/manifests/1", registry.blob_path("good", list(good.blobs)[1])
    status = faulty_registry.status

    async def flipped(request: Any, content: bytes) -> Any:
        return faulty_registry.web.Response(body=content[:-1] + bytes([content[-1] ^ 1]))

    async def encrypted(request: Any, content: bytes) -> Any:
        return await status(307, {"Location": f"https://{registry.host}{manifest}"})(request, content)

    async with AsyncExitStack() as serving:
        await serving.enter_async_context(registry.running())
        refused = {"docker": {f"{registry.host}/refused": [{"type": "reject"}]}}
        policy = {"default": [{"type": "insecureAcceptAnything"}], "transports": refused}
        (tmp_path / "policy.json").write_text(json.dumps(policy))
        conf = (
            '[[registry]]\nlocation = "blocked.example"\nblocked = true\n[[registry]]\nprefix = "mirrored.example"\n'
            f'location = "127.0.0.1:1"\ninsecure = true\n[[registry.mirror]]\nlocation = "{registry.host}/mirror"\n'
        )
        cases: tuple[tuple[str, str, list[Any], str, tuple[str, ...]], ...] = (
            ("{}/absent:1", "", [], "image-missing", ("absent", "404")),
            ("{}/good:1", manifest, [status(401)] * 2, "image-credentials", ("authentication",)),
            ("{}/good:1", manifest, [status(403)], "image-credentials", ("403",)),
            ("{}/good:1", manifest, [status(500)] * 3, "registry-unavailable", ("500",)),
            ("{}/good:1", manifest, [encrypted] * 3, "registry-tls", ("TLS", "does it speak plain http?")),
            ("{}/good:1", blob, [flipped], "image-damaged", (list(good.blobs)[1],)),
            ("{}/lying:1", "", [], "image-damaged", (digest(b"something else"),)),
            ("{}/foreign:1", "", [], "image-platform", ("s390x",)),
            ("{}/artifact:1", "", [], "not-an-image", ("vnd.example.thing",)),
            ("{}/refused/a:1", "", [], "image-policy", ("rejects",)),
            ("blocked.example/a:1", "", [], "registry-blocked", ("blocked.example",)),
            ("mirrored.example/a:1", "", [], "registry-unavailable", (f"{registry.host}/mirror", "127.0.0.1:1")),
            ("127.0.0.1:1/a:1", "", [], "registry-unavailable", ("Connection refused",)),
            ("no-such-host.invalid/a:1", "", [], "registry-name", ("no-such-host.invalid",)),
            ("Bad//name", "", [], "image-name", ("Bad//name",)),
        )
        failures = []
        with Daemon.running(f"--signature-policy={tmp_path}/policy.json", registries=conf) as daemon:
            pod = daemon.sandbox_config("waits")
            for name, path, faults, cause, words in cases:
                image, registry.faults = name.format(registry.host), {path: list(faults)}
                request = cri.PullImageRequest(image=cri.ImageSpec(image=image), sandbox_config=pod)
                told = await asyncio.to_thread(refusal, partial(daemon.images.PullImage, request, **_CALL))
                # The image's own recording, and that of the pod that waits for it.
                lacks = [wrong(why(daemon, query), cause, words, told) for query in (image, "waits")]
                failures += [f"{image}: {failure}" for failure in lacks if failure]
            request = cri.PullImageRequest(image=cri.ImageSpec(image=f"{registry.host}/good:1"), sandbox_config=pod)
            registry.faults, registry.login = {}, "deploy:right"
            request.auth.username, request.auth.password = "deploy", "wrong"
            for registry.basic in (True, False):
                told = await asyncio.to_thread(refusal, partial(daemon.images.PullImage, request, **_CALL))
                found = why(daemon, f"{registry.host}/good:1")
                failures += filter(None, [wrong(found, "image-credentials", ("cred",), told, "correct the login")])
            request.auth.password = "right"
            await asyncio.to_thread(daemon.images.PullImage, request, **_CALL)
            assert why(daemon, f"{registry.host}/good:1").name == "none"
            await serving.enter_async_context(secret.running(_unknown_authority(tmp_path)))
            image = f"{secret.host}/good:1"
            pull = cri.PullImageRequest(image=cri.ImageSpec(image=image))
            told = await asyncio.to_thread(refusal, partial(daemon.images.PullImage, pull, **_CALL))
            if failure := wrong(why(daemon, image), "registry-tls", ("certificate",), told):
                failures.append(failure)
            await serving.aclose()  # the daemon keeps its connection as long as there is somebody
        assert failures == []


def test_hooks_plugins_and_propagation(tmp_path: Path) -> None:
    hooks = tmp_path / "hooks.d"
    hooks.mkdir()
    _program(tmp_path / "refuses", b"#!/bin/sh\necho no licence >&2\nexit 4\n")
    for stage_name in ("createRuntime", "createContainer"):
        hook = {"path": str(tmp_path / "refuses")}
        document = {"version": "1.0.0", "hook": hook, "when": {"annotations": {"^fail$": stage_name}}}
        (hooks / f"{stage_name}.json").write_text(json.dumps({**document, "stages": [stage_name]}))
        if stage_name == "createRuntime":
            document["hook"] = {"path": str(tmp_path / "none")}
            document["when"] = {"annotations": {"^fail$": "missing"}}
            (hooks / "missing.json").write_text(json.dumps({**document, "stages": [stage_name]}))
    settings = tmp_path / "crisp.toml"
    settings.write_text(f'hooks_dirs = ["{hooks}"]\n')
    socket_path = tmp_path / "nri.sock"
    private = tmp_path / "private"
    private.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "--make-private", "private", private], check=True)

    def mount(propagation: cri.MountPropagation.ValueType) -> dict[str, Any]:
        return {"mounts": [cri.Mount(host_path=str(private), container_path="/mnt", propagation=propagation)]}

    cases: tuple[tuple[str, str, tuple[str, ...], dict[str, Any]], ...] = (
        ("runtime-hook", "hook", ("no licence",), {"annotations": {"fail": "createRuntime"}}),
        ("container-hook", "hook", ("no licence",), {"annotations": {"fail": "createContainer"}}),
        ("missing-hook", "hook", (str(tmp_path / "none"),), {"annotations": {"fail": "missing"}}),
        ("both-ways", "mount-propagation", (str(private), "not shared"), mount(cri.PROPAGATION_BIDIRECTIONAL)),
        ("slave", "mount-propagation", (str(private), "neither shared"), mount(cri.PROPAGATION_HOST_TO_CONTAINER)),
    )
    failures = []
    try:
        with Daemon.running(f"--config={settings}", f"--nri-socket={socket_path}") as daemon:
            daemon.import_busybox()
            with daemon.pod("odd") as pod, Plugin.connected(socket_path, name="strict", index="05") as plugin:
                for name, cause, words, fields in cases:
                    told = refusal(partial(pod.run, "sleep", "60", name=name, **fields))
                    if failure := wrong(why(daemon, f"odd/{name}"), cause, words, told):
                        failures.append(f"{name}: {failure}")
                for method in ("CreateContainer", "StartContainer"):
                    plugin.answers[method] = objection("not on my watch")
                    told = refusal(partial(pod.run, "sleep", "60", name=method))
                    if failure := wrong(why(daemon, f"odd/{method}"), "nri", ("05-strict", "not on my watch"), told):
                        failures.append(f"{method}: {failure}")
                    del plugin.answers[method]
    finally:
        subprocess.run(["umount", private], check=True)
    assert failures == []


def test_a_pod_whose_shim_was_killed_says_so(fresh_daemon: Daemon) -> None:
    with fresh_daemon.pod("lost") as pod:
        pod.run("sleep", "100000")
        (shim,) = (path for path in (fresh_daemon.state / "sandboxes" / pod.id).glob("shim.sock"))
        for pid in (parent_of(_peer(shim)), _peer(shim)):  # first its keeper, which would start a successor
            os.kill(pid, signal.SIGKILL)
        until(lambda: why(fresh_daemon, "lost").name != "none")
        assert wrong(why(fresh_daemon, "lost"), "pod-lost", ("lost its shim",)) == ""


def _peer(path: Path) -> int:
    """The process that listens on a socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def test_what_is_gone_is_told_of_over_a_crash_of_crispd(fresh_daemon: Daemon, tmp_path: Path) -> None:
    daemon = fresh_daemon
    with daemon.pod("gone") as pod:
        container = pod.run("sh", "-c", "echo out of tea; exit 3")
        daemon.wait_exited(container)
        for _ in range(3):
            refusal(lambda: pod.create("true"))  # the name is held
    until(lambda: any(b'"deleted"' in path.read_bytes() for path in (daemon.root / "recorder").iterdir()))
    with daemon.pod("stays"):
        daemon.kill9()
        daemon.start()
        assert any(one.text == "crispd has started again" for one in why(daemon, "stays").timeline)
    done = crisp(daemon, "why", container[:10])
    cause, evidence, remedy, _empty, subject, *timeline = done.stdout.splitlines()
    assert (done.returncode, subject) == (1, "container main of pod default/gone:")
    assert "is held by container" in cause
    assert "3 times since" in evidence
    assert "crisp rm -f" in remedy
    for words in ("start container: program runs", "network plugin bridge ADD", "out of tea", "exit code 3", "deleted"):
        assert any(words in line for line in timeline), words
    answer = json.loads(crisp(daemon, "why", "-o", "json", "default/gone").stdout)
    assert answer["name"] == "name-held"
    file = tmp_path / "trace.json"
    assert crisp(daemon, "trace", "default/gone", "-o", str(file)).returncode == 0
    events = [event for event in json.loads(file.read_text())["traceEvents"] if event["ph"] != "M"]
    whole = next(one for one in events if one["name"] == "RunPodSandbox answered")
    (plugin,) = (one for one in events if one["name"] == "network plugin bridge ADD")
    (step,) = (one for one in events if one["name"] == "run pod sandbox: network added")
    for inner in (plugin, step):  # one axis for what was asked, what the plugin did and what crisp did
        assert whole["ts"] <= inner["ts"]
        assert inner["ts"] + inner["dur"] <= whole["ts"] + whole["dur"]
        assert inner["tid"] != whole["tid"]
    assert {"start container: program runs", "StartContainer answered"} <= {event["name"] for event in events}
    done = crisp(daemon, "why", "never-was")
    assert "nothing is recorded of a pod, container or image 'never-was'" in done.stderr


def test_each_pod_of_one_name_is_told_of(daemon: Daemon) -> None:
    configs = [daemon.sandbox_config("twin") for _ in range(2)]
    configs[1].metadata.namespace = "other"
    with daemon.pod(config=configs[0]) as good, daemon.pod(config=configs[1]) as bad:
        good.run("sleep", "100000")
        daemon.wait_exited(bad.run("sh", "-c", "exit 3"))
        found = why(daemon, "twin")
        told = {one.subject: one.name for one in (found, *found.others)}
        assert told == {"pod default/twin": "none", "pod other/twin": "exit-code"}
        done = crisp(daemon, "why", "twin")
        assert done.returncode == 1
        assert f"also {found.others[0].subject}:" in done.stdout


def test_last_words_are_not_recorded_if_nobody_wants_them(tmp_path: Path) -> None:
    config = tmp_path / "crisp.toml"
    config.write_text("record_last_words = false\n")
    with Daemon.running(f"--config={config}") as daemon:
        daemon.import_busybox()
        with daemon.pod("quiet") as pod:
            daemon.wait_exited(pod.run("sh", "-c", "echo the password is tea; exit 3"))
        found = why(daemon, "quiet")
        assert found.name == "exit-code"
        assert "password" not in str(found)
