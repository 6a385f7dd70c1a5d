"""What an earlier crisp started, in the hands of this one: the pods' old shims live on and serve the new daemon.

Four old daemons: an earlier commit's that is stopped, the same that is killed, and two copies of the present tree. One
has other code, so that its shims are renewed. Each one's files are then replaced by modules that raise, as those of a
package are by other ones: a shim loads nothing late.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.nri.v1alpha1 import api_pb2 as nri
from cri.v1 import api_pb2 as cri
from runtime.cgroups import Cgroup, Hierarchies
from tests import trees
from tests.daemon import BUSYBOX, CALL_SECONDS, REPOSITORY, Daemon, DaemonFailed, Pod
from tests.fake_systemd import FakeSystemd
from tests.nri_plugin import Plugin
from tests.stream_clients import RESIZE, STDERR, STDIN, STDOUT, Command, SpdyClient, closing
from tests.waiting import until

# The last tree before modules moved into packages and the wire to the shims got types.
BEFORE = "28a2b99"
RUNC = shutil.which("runc", path="/usr/sbin:/usr/bin") or "/usr/sbin/runc"
CRIU = Path(__file__).parents[1] / "criu.sh"
KINDS = ("plain", "shared", "users", "runc")
# Without a fork: tests are asked what processes they left.
_PAUSE = "read -t 0.05 x <&3"
_NEVER = "mkfifo /never; exec 3<>/never"
COUNT = f"{_NEVER}; i=0; while :; do i=$((i+1)); echo $i; {_PAUSE}; done"
LEAVE = f"{_NEVER}; trap 'exit 9' TERM; echo ready; while :; do {_PAUSE}; done"
ECHO = "while read line; do echo out $line; echo err $line >&2; done; exit 6"
V4 = "v4.channel.k8s.io"
MIB = 1 << 20
_CALL = {"timeout": CALL_SECONDS}
_LINES = [cri.IDMapping(host_id=1_000_000, container_id=0, length=65536)]
_OPTIONS = {
    "shared": cri.NamespaceOption(pid=cri.POD),
    "users": cri.NamespaceOption(
        pid=cri.CONTAINER, userns_options=cri.UserNamespace(mode=cri.POD, uids=_LINES, gids=_LINES)
    ),
}


@dataclass(frozen=True, slots=True)
class Upgraded:
    """A new daemon with the pods of an old one, by their kinds; their containers by kind and name."""

    daemon: Daemon
    same: bool  # as the old one, but for its place
    place: Path
    pods: dict[str, Pod]
    containers: dict[tuple[str, str], str]
    before: dict[str, Any]
    after: dict[str, Any]

    def hooks_said(self) -> list[str]:
        """The stage and the container of each hook that ran, whoever's the container was."""
        return (self.place / "said").read_text().splitlines()


# -- trees ------------------------------------------------------------------------------------------------------------


def _earlier_tree(directory: Path, commit: str = BEFORE) -> Path:
    """The rooms of a commit out of the repository's history; skips the test where there is none."""
    archive = directory / "tree.tar"
    git = ["git", "-c", "safe.directory=*", "-C", str(REPOSITORY), "archive", f"--output={archive}", commit]
    try:
        subprocess.run(git, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        pytest.skip(f"commit {commit} is not in this repository's history: {reason}")
    tree = directory / "tree"
    tree.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", tree], check=True)
    archive.unlink()
    return tree


def _replace_modules(tree: Path) -> None:
    """What an upgrade does to files that a living process has loaded, or has not."""
    for module in tree.rglob("*.py"):
        module.unlink()
        module.write_text(f"raise SystemExit('{module} is of another version')\n")
    for compiled in tree.rglob("__pycache__"):
        shutil.rmtree(compiled)


# -- what the old one makes -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def criu() -> Iterator[None]:
    """On crispd's PATH."""
    done = subprocess.run([CRIU], check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{done.stdout.strip()}:{os.environ['PATH']}")
        yield


@pytest.fixture(scope="module", params=["stopped", "killed", "copied", "renewed"])
def upgraded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, criu: None
) -> Iterator[Upgraded]:
    place = tmp_path_factory.mktemp("old")
    made = {"copied": trees.copied, "renewed": trees.changed}.get(request.param)
    tree = made(place / "tree") if made else _earlier_tree(place)
    with Daemon.running(*_settings(place), tree=tree) as daemon:
        daemon.import_busybox()
        with Plugin.connected(place / "nri.sock"):
            pods = {kind: _pod(daemon, kind) for kind in KINDS}
            containers = {(kind, name): one for kind in KINDS for name, one in _containers(pods[kind], kind).items()}
        containers["plain", "restored"] = _checkpointed(pods["plain"], containers["plain", "counter"], place)
        pods["over"] = _pod(daemon, "over")
        daemon.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pods["over"].id), **_CALL)
        before = _seen(daemon, pods, containers)
        if request.param == "stopped":
            daemon.stop()
        else:
            daemon.kill9()
        daemon.tree = REPOSITORY
        _replace_modules(tree)
        _end_leavers()
        for kind in KINDS:
            exits = daemon.state / "sandboxes" / pods[kind].id / "exits"
            until((exits / containers[kind, "leaver"]).exists)
        daemon.start()
        if request.param == "renewed":
            until(lambda: daemon.log().count("shim renewed") == len(KINDS))
        after = _seen(daemon, pods, containers)
        yield Upgraded(daemon, request.param in ("copied", "renewed"), place, pods, containers, before, after)


def _settings(place: Path) -> tuple[str, ...]:
    hooks = place / "hooks.d"
    hooks.mkdir()
    stages = ("createContainer", "poststart", "poststop")
    for stage in stages:
        said = f"echo {stage} $(grep -o '[0-9a-f]\\{{64\\}}' | head -1) >>{place}/said"
        hook = {"path": "/bin/sh", "args": ["sh", "-c", said]}
        document = {"version": "1.0.0", "hook": hook, "when": {"always": True}, "stages": [stage]}
        (hooks / f"{stage}.json").write_text(json.dumps(document))
    (place / "said").touch()
    file = place / "crisp.toml"
    file.write_text(f'hooks_dirs = ["{hooks}"]\n[runtime_handlers.runc]\npath = "{RUNC}"\n')
    return f"--config={file}", f"--nri-socket={place}/nri.sock"


def _pod(daemon: Daemon, kind: str) -> Pod:
    config = daemon.sandbox_config(kind)
    if kind in _OPTIONS:
        config.linux.security_context.namespace_options.CopyFrom(_OPTIONS[kind])
    request = cri.RunPodSandboxRequest(config=config, runtime_handler="runc" if kind == "runc" else "")
    return Pod(daemon, daemon.runtime.RunPodSandbox(request, **_CALL).pod_sandbox_id, config)


def _linux(kind: str) -> cri.LinuxContainerConfig:
    security = cri.LinuxContainerSecurityContext(
        namespace_options=_OPTIONS.get(kind, cri.NamespaceOption(pid=cri.CONTAINER)),
        seccomp=cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault),
    )
    limits = cri.LinuxContainerResources(cpu_shares=512, memory_limit_in_bytes=64 * MIB)
    return cri.LinuxContainerConfig(security_context=security, resources=limits)


def _containers(pod: Pod, kind: str) -> dict[str, str]:
    linux = _linux(kind)
    made = {
        "counter": pod.run("sh", "-c", COUNT, name="counter", linux=linux),
        "echo": pod.run("sh", "-c", ECHO, name="echo", stdin=True, linux=linux),
        "terminal": pod.run("sh", name="terminal", stdin=True, tty=True, linux=linux),
        "leaver": pod.run("sh", "-c", LEAVE, name="leaver", linux=linux),
        "done": pod.run("sh", "-c", "exit 4", name="done", linux=linux),
        "created": pod.create("sh", "-c", COUNT, name="created", linux=linux),
        "never": pod.create("sleep", "50", name="never", linux=linux),
    }  # fmt: skip
    assert pod.daemon.wait_exited(made["done"]).exit_code == 4
    until(lambda: "ready" in pod.log("leaver"))
    return made


def _checkpointed(pod: Pod, container_id: str, place: Path) -> str:
    """A container that was restored from another's checkpoint in the same pod; the archive stays."""
    until(lambda: len(pod.log("counter").splitlines()) > 3)
    request = cri.CheckpointContainerRequest(container_id=container_id, location=f"{place}/old.tar", timeout=60)
    pod.daemon.runtime.CheckpointContainer(request, **_CALL)
    return pod.run(name="restored", image=f"{place}/old.tar", linux=_linux("plain"))


def _end_leavers() -> None:
    """While no daemon listens."""
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (directory / "cmdline").read_bytes().split(b"\0")[-2:-1] == [LEAVE.encode()]:
                os.kill(int(directory.name), signal.SIGTERM)


def _cgroup_of(daemon: Daemon, container_id: str) -> str:
    document = json.loads((daemon.state / "containers" / container_id / "config.json").read_bytes())
    return str(document["linux"]["cgroupsPath"])


def _seen(daemon: Daemon, pods: dict[str, Pod], containers: dict[tuple[str, str], str]) -> dict[str, Any]:
    """What the calls that tell of pods, containers and images answer."""
    left = {one for (_, name), one in containers.items() if name == "leaver"}
    runtime, images = daemon.runtime, daemon.images
    return {
        "sandboxes": sorted(map(str, runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL).items)),
        "containers": sorted(
            str(one) for one in runtime.ListContainers(cri.ListContainersRequest(), **_CALL).containers
            if one.id not in left
        ),
        "pods": {kind: str(pod.status()) for kind, pod in pods.items()},
        "statuses": {key: str(daemon.status(one)) for key, one in containers.items() if one not in left},
        "images": [str(one) for one in images.ListImages(cri.ListImagesRequest(), **_CALL).images],
        "image": str(images.ImageStatus(cri.ImageStatusRequest(image=cri.ImageSpec(image=BUSYBOX)), **_CALL).image),
    }  # fmt: skip


# -- what the new one does with it ------------------------------------------------------------------------------------


def _numbers(pod: Pod, name: str) -> list[int]:
    return [int(line.split(" ", 3)[3]) for line in pod.log(name).splitlines()]


def _goes_on(pod: Pod, name: str) -> None:
    """Its log does, with no number missing."""
    counted = len(_numbers(pod, name))
    until(lambda: len(_numbers(pod, name)) > counted)
    numbers = _numbers(pod, name)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _start(daemon: Daemon, container_id: str) -> None:
    daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container_id), **_CALL)


def _stop(daemon: Daemon, container_id: str, timeout: int = 0) -> None:
    daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id, timeout=timeout), **_CALL)


def _remove(daemon: Daemon, container_id: str) -> None:
    daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id), **_CALL)


def _end(upgraded: Upgraded, kind: str, container_id: str) -> None:
    """Stop and remove one that has run, with its last hook."""
    _stop(upgraded.daemon, container_id)
    if kind == "runc":  # it deletes a container at its end, and the earlier shim does not have a removal wait for that
        until(lambda: f"poststop {container_id}" in upgraded.hooks_said())
    _remove(upgraded.daemon, container_id)
    until(lambda: f"poststop {container_id}" in upgraded.hooks_said())


def test_all_is_listed_as_before(upgraded: Upgraded) -> None:
    assert upgraded.after == upgraded.before
    assert upgraded.pods["over"].status().state == cri.SANDBOX_NOTREADY
    for kind in KINDS:
        status = upgraded.daemon.status(upgraded.containers[kind, "leaver"])
        assert (status.state, status.exit_code) == (cri.CONTAINER_EXITED, 9)


@pytest.mark.parametrize("kind", KINDS)
def test_what_runs_goes_on(upgraded: Upgraded, kind: str) -> None:
    daemon, pod, container = upgraded.daemon, upgraded.pods[kind], upgraded.containers[kind, "counter"]
    _goes_on(pod, "counter")
    answer = pod.exec(container, "sh", "-c", "echo in; echo err >&2; exit 4")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"in\n", b"err\n", 4)
    with pytest.raises(grpc.RpcError, match="nosuch"):
        pod.exec(container, "nosuch")
    with pytest.raises(grpc.RpcError) as raised:
        pod.exec(container, "sleep", "777", timeout=1)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: b"sleep 777" not in pod.exec(container, "ps", "-o", "args").stdout)
    log = Path(pod.config.log_directory, "counter.log")
    log.rename(log.with_suffix(".1"))
    daemon.runtime.ReopenContainerLog(cri.ReopenContainerLogRequest(container_id=container), **_CALL)
    _goes_on(pod, "counter")
    update = cri.UpdateContainerResourcesRequest(container_id=container)
    update.linux.memory_limit_in_bytes = 96 * MIB
    update.linux.cpu_shares = 256
    daemon.runtime.UpdateContainerResources(update, **_CALL)
    memory = Path(Cgroup.at(Hierarchies.detect(), _cgroup_of(daemon, container)).directory("memory"))
    limit = next(memory / name for name in ("memory.limit_in_bytes", "memory.max") if (memory / name).exists())
    assert limit.read_text().strip() == str(96 * MIB)
    assert daemon.status(container).resources.linux.memory_limit_in_bytes == 96 * MIB
    stats = daemon.runtime.ContainerStats(cri.ContainerStatsRequest(container_id=container), **_CALL).stats
    assert stats.memory.usage_bytes.value > 0
    assert stats.writable_layer.timestamp > 0
    stats_of_pod = daemon.runtime.PodSandboxStats(cri.PodSandboxStatsRequest(pod_sandbox_id=pod.id), **_CALL).stats
    assert stats_of_pod.linux.network.default_interface.name == "eth0"


@pytest.mark.parametrize("kind", KINDS)
def test_streams(upgraded: Upgraded, kind: str) -> None:
    daemon, container = upgraded.daemon, upgraded.containers[kind, "echo"]
    tty = {"tty": True, "stdin": True, "stdout": True}
    exec_request = cri.ExecRequest(container_id=upgraded.containers[kind, "counter"], cmd=["sh"], **tty)
    url = daemon.runtime.Exec(exec_request, **_CALL).url
    command = Command.over("websocket", url, V4, STDIN, STDOUT, RESIZE)
    with closing(command):
        _try_terminal(command)
        assert command.exit_code() == 3
    request = cri.AttachRequest(container_id=container, stdin=True, stdout=True, stderr=True)
    attached = Command.over("spdy", daemon.runtime.Attach(request, **_CALL).url, V4, STDIN, STDOUT, STDERR)
    with closing(attached):
        attached.send(b"one\n")
        attached.until(b"out one\n")
        attached.until(b"err one\n", STDERR)
    request = cri.AttachRequest(container_id=upgraded.containers[kind, "terminal"], **tty)
    terminal = Command.over("spdy", daemon.runtime.Attach(request, **_CALL).url, V4, STDIN, STDOUT, RESIZE)
    with closing(terminal):
        _try_terminal(terminal)
        assert terminal.exit_code() == 0
    assert daemon.wait_exited(upgraded.containers[kind, "terminal"]).exit_code == 3


def _try_terminal(command: Command) -> None:
    command.resize(99, 33)
    command.send(b"until [ \"$(stty size)\" = \"33 99\" ]; do :; done; echo re''sized\n")
    command.until(b"resized")
    command.send(b"exit 3\n")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_created_starts_and_what_is_new_joins(upgraded: Upgraded, kind: str) -> None:
    daemon, pod, created = upgraded.daemon, upgraded.pods[kind], upgraded.containers[kind, "created"]
    _start(daemon, created)
    _goes_on(pod, "created")
    hooked = [f"{stage} {created}" for stage in ("createContainer", "poststart")]
    until(lambda: set(hooked) <= set(upgraded.hooks_said()))
    _remove(daemon, upgraded.containers[kind, "never"])
    script = "hostname; ip -4 -o address show eth0; grep Seccomp: /proc/self/status; readlink /proc/self/ns/net; exit 5"
    new = pod.run("sh", "-c", script, name="new", linux=_linux(kind))
    assert daemon.wait_exited(new).exit_code == 5
    host, address, seccomp, network = [line.split(" ", 3)[3] for line in pod.log("new").splitlines()]
    assert (host, seccomp.split()) == (kind, ["Seccomp:", "2"])
    assert pod.status().network.ip in address
    theirs = pod.exec(created, "readlink", "/proc/self/ns/net").stdout.decode().strip()
    assert network == theirs
    for container in (new, created):
        _end(upgraded, kind, container)


@pytest.mark.parametrize("kind", KINDS)
def test_ports_are_forwarded(upgraded: Upgraded, kind: str) -> None:
    daemon, pod = upgraded.daemon, upgraded.pods[kind]
    server = pod.run("nc", "-ll", "-p", "7000", "-e", "cat", name="server", linux=_linux(kind))
    url = daemon.runtime.PortForward(cri.PortForwardRequest(pod_sandbox_id=pod.id, port=[7000]), **_CALL).url
    listening = "netstat -ltn | grep -q :7000"
    until(lambda: pod.exec(server, "sh", "-c", listening).exit_code == 0)
    with SpdyClient(url, "portforward.k8s.io") as client:
        client.open(streamtype="error", port="7000", requestid="0")
        data = client.open(streamtype="data", port="7000", requestid="0")
        client.send(data, b"there and back")
        client.until(lambda: bytes(client.data[data]) == b"there and back")
    _end(upgraded, kind, server)


def test_a_plugin_is_told_of_all_and_changes_what_is_new(upgraded: Upgraded) -> None:
    daemon, pod = upgraded.daemon, upgraded.pods["plain"]
    adjust = nri.ContainerAdjustment(env=[nri.KeyValue(key="FROM", value="plugin")])
    answer = nri.CreateContainerResponse(adjust=adjust)
    socket = upgraded.place / "nri.sock"
    with _interface("upgrade0") as name, Plugin.connected(socket, CreateContainer=answer) as plugin:
        if upgraded.same:  # the earlier one's shims forget it
            adjust.linux.net_devices[name].name = "moved0"
            plugin.answers["CreateContainer"] = nri.CreateContainerResponse(adjust=adjust)
        told = plugin.request("Synchronize")
        assert {one.id for one in told.pods} >= {upgraded.pods[kind].id for kind in KINDS}
        assert {one.id for one in told.containers} >= {
            upgraded.containers[kind, name] for kind in KINDS for name in ("counter", "echo")
        }
        container = pod.run("sleep", "1000", name="adjusted")
        assert pod.exec(container, "sh", "-c", "echo $FROM").stdout == b"plugin\n"
        assert (b" moved0@" in pod.exec(container, "ip", "link").stdout) == upgraded.same
        limits = nri.LinuxResources(memory=nri.LinuxMemory(limit=nri.OptionalInt64(value=80 * MIB)))
        wanted = nri.ContainerUpdate(
            container_id=upgraded.containers["plain", "echo"], linux=nri.LinuxContainerUpdate(resources=limits)
        )
        assert not plugin.update(wanted).failed
        _stop(daemon, container)
        _remove(daemon, container)
        plugin.wait(lambda: plugin.methods()[-1] == "RemoveContainer")


@contextmanager
def _interface(name: str) -> Iterator[str]:
    """One of the host, whose other end goes with it wherever it is."""
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", "other0"], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "link", "delete", "other0"], check=True)


def test_checkpoints_and_what_was_restored(upgraded: Upgraded) -> None:
    daemon, pod = upgraded.daemon, upgraded.pods["plain"]
    restored = upgraded.containers["plain", "restored"]
    _goes_on(pod, "restored")
    assert pod.exec(restored, "echo", "here").stdout == b"here\n"
    location = upgraded.place / "new.tar"
    request = cri.CheckpointContainerRequest(
        container_id=upgraded.containers["plain", "counter"], location=str(location), timeout=60
    )
    daemon.runtime.CheckpointContainer(request, **_CALL)
    for archive in ("old", "new"):
        again = pod.run(name=f"from-{archive}", image=f"{upgraded.place}/{archive}.tar", linux=_linux("plain"))
        _goes_on(pod, f"from-{archive}")
        _stop(daemon, again)
        _remove(daemon, again)
    _stop(daemon, restored)
    assert daemon.status(restored).exit_code == 137
    _remove(daemon, restored)


def test_images_of_the_old_store(upgraded: Upgraded) -> None:
    daemon = upgraded.daemon
    assert daemon.images.ImageFsInfo(cri.ImageFsInfoRequest(), **_CALL).image_filesystems[0].used_bytes.value > 0
    with daemon.pod("of-now") as pod:  # by a shim of this tree, of layers that the old one has unpacked
        assert pod.exec(pod.run("sleep", "100"), "echo", "new").stdout == b"new\n"


@pytest.mark.parametrize("kind", KINDS)
def test_what_stops_is_gone(upgraded: Upgraded, kind: str) -> None:
    """Last, since it takes the pods away."""
    daemon, pod, containers = upgraded.daemon, upgraded.pods[kind], upgraded.containers
    echo, counter = containers[kind, "echo"], containers[kind, "counter"]
    _stop(daemon, counter)
    assert daemon.status(counter).exit_code == 137
    _end(upgraded, kind, counter)
    until(lambda: not (daemon.root / "containers" / counter).exists())
    _remove(daemon, containers[kind, "done"])
    pod.remove()
    assert not (daemon.state / "sandboxes" / pod.id).exists()
    until(lambda: f"poststop {echo}" in upgraded.hooks_said())


@pytest.fixture
def earlier_tree(tmp_path: Path) -> Path:
    return _earlier_tree(tmp_path)


@contextmanager
def _with_scopes(directory: Path, tree: Path) -> Iterator[Daemon]:
    with FakeSystemd(directory / "bus") as units, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBUS_SYSTEM_BUS_ADDRESS", units.address)
        with Daemon.running("--cgroup-driver=systemd", tree=tree) as daemon:
            daemon.import_busybox()
            yield daemon


def test_scopes_of_systemds(earlier_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with _with_scopes(tmp_path_factory.mktemp("b"), earlier_tree) as daemon:
        config = daemon.sandbox_config("scoped")
        config.linux.cgroup_parent = "/kubelet.slice/kubelet-podcrisp.slice"
        with daemon.pod(config=config) as pod:
            counter = pod.run("sh", "-c", COUNT, name="counter")
            created = pod.create("sh", "-c", COUNT, name="created")
            daemon.kill9()
            daemon.tree = REPOSITORY
            daemon.start()
            _goes_on(pod, "counter")
            _start(daemon, created)
            _goes_on(pod, "created")
            update = cri.UpdateContainerResourcesRequest(container_id=counter)
            update.linux.memory_limit_in_bytes = 96 * MIB
            daemon.runtime.UpdateContainerResources(update, **_CALL)
            assert pod.exec(pod.run("sleep", "100", name="new"), "echo", "new").stdout == b"new\n"
            _stop(daemon, created)
            _remove(daemon, created)


def test_the_way_back(earlier_tree: Path, fresh_daemon: Daemon) -> None:
    """An earlier daemon on this one's state either serves it, or says that it cannot and leaves it alone."""
    daemon = fresh_daemon
    with daemon.pod("newer") as pod:
        counter = pod.run("sh", "-c", COUNT, name="counter")
        daemon.stop()
        daemon.tree = earlier_tree
        try:
            daemon.start()
        except DaemonFailed as failure:
            refused = str(failure)
        else:
            refused = ""
        if refused:
            assert "schema version" in refused
        else:
            _goes_on(pod, "counter")
            assert pod.exec(counter, "echo", "back").stdout == b"back\n"
            _stop(daemon, counter)
            _remove(daemon, counter)
            daemon.stop()
        daemon.tree = REPOSITORY
        daemon.start()
        assert pod.status().state == cri.SANDBOX_READY
