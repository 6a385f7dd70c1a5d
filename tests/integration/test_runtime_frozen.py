"""Frozen containers: whoever froze them, and by whichever hierarchy, they can be ended, and nothing waits for them."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from runtime.cgroups import Hierarchies
from tests.daemon import Daemon
from tests.oci import PARENT, REPOSITORY, Bundle
from tests.waiting import until

HIERARCHIES = Hierarchies.detect()
FREEZER = HIERARCHIES.v1.get("freezer", "")
needs_freezer = pytest.mark.skipif(not FREEZER, reason="no version 1 freezer")
needs_unified = pytest.mark.skipif(not HIERARCHIES.unified, reason="no cgroup v2 mounted")


def freeze(path: str, version: int, *, on: bool = True) -> None:
    """By hand, as another program does; the directory is made if need be."""
    if version == 1:
        os.makedirs(FREEZER + path, exist_ok=True)
        Path(FREEZER + path, "freezer.state").write_text("FROZEN" if on else "THAWED")
        until(lambda: Path(FREEZER + path, "freezer.state").read_text().strip() == ("FROZEN" if on else "THAWED"))
    else:
        os.makedirs(HIERARCHIES.unified + path, exist_ok=True)
        Path(HIERARCHIES.unified + path, "cgroup.freeze").write_text("1" if on else "0")


@pytest.fixture(params=[pytest.param(1, marks=needs_freezer), pytest.param(2, marks=needs_unified)])
def version(request: pytest.FixtureRequest) -> int:
    """Of the hierarchy that freezes."""
    return int(request.param)


@pytest.fixture
def own(version: int) -> Iterator[str]:
    """A cgroup path that is not there, under a parent of its own; both are removed, thawed, afterwards."""
    top = f"{PARENT}-frozen"
    yield f"{top}/one"
    for path in (f"{top}/one", top):
        for mountpoint in HIERARCHIES.mountpoints():
            if os.path.isdir(mountpoint + path):
                os.rmdir(mountpoint + path)


@pytest.mark.trial("frozen-containers-end", "a frozen container is ended at once, by whichever freezer it is frozen")
@pytest.mark.parametrize("how", [["delete", "--force", "one"], ["kill", "one", "KILL"], ["kill", "--all", "one", "9"]])
def test_a_frozen_container_ends(bundle: Bundle, version: int, how: list[str]) -> None:
    bundle.configure("sleep", "100")
    pid = bundle.create()
    bundle.call("start", "one")
    freeze(f"{PARENT}/one", version)
    assert bundle.status() == "paused"
    assert "paused" in bundle.call("exec", "one", "true", check=False).stderr
    bundle.call(*how)
    if how[0] == "kill":
        until(lambda: bundle.status() == "stopped")
        bundle.call("delete", "one")
    assert not os.path.exists(f"/proc/{pid}/ns/mnt")


@needs_freezer
@pytest.mark.trial("frozen-containers-end", "a frozen container is ended at once, by whichever freezer it is frozen")
def test_what_is_frozen_within_a_container_ends_too(bundle: Bundle) -> None:
    bundle.configure("sh", "-c", "sleep 100 & exec sleep 100")
    bundle.create()
    bundle.call("start", "one")
    until(lambda: len(json.loads(bundle.call("ps", "-f", "json", "one").stdout)) == 2)
    inner = json.loads(bundle.call("ps", "-f", "json", "one").stdout)[-1]
    os.mkdir(f"{FREEZER}{PARENT}/one/inner")
    Path(f"{FREEZER}{PARENT}/one/inner/tasks").write_text(str(inner))
    freeze(f"{PARENT}/one/inner", 1)
    bundle.call("pause", "one")
    bundle.call("resume", "one")
    assert Path(f"{FREEZER}{PARENT}/one/inner/freezer.state").read_text() == "FROZEN\n", "resume is for its own only"
    bundle.call("delete", "--force", "one")


@pytest.mark.trial("frozen-containers-end", "a frozen container is ended at once, by whichever freezer it is frozen")
def test_both_freezers_are_thawed_and_a_created_container_is_paused_too(bundle: Bundle) -> None:
    bundle.configure("sleep", "100")
    bundle.create()
    versions = [number for number, there in ((1, FREEZER), (2, HIERARCHIES.unified)) if there]
    for number in versions:
        freeze(f"{PARENT}/one", number)
    assert bundle.status() == "paused"
    assert "paused" in bundle.call("start", "one", check=False).stderr
    bundle.call("resume", "one")
    assert bundle.status() == "created"
    bundle.call("start", "one")
    assert bundle.status() == "running"


@needs_freezer
@pytest.mark.trial("frozen-containers-end", "a frozen container is ended at once, by whichever freezer it is frozen")
def test_whose_freezer_keeps_a_container_from_dying_is_told(bundle: Bundle) -> None:
    """An ancestor is others' too: it is named instead of being waited for."""
    bundle.configure("sleep", "100")
    bundle.create()
    freeze(PARENT, 1)
    try:
        for words in (["delete", "--force", "one"], ["kill", "one", "KILL"]):
            assert f"thaw `{FREEZER}{PARENT}`" in bundle.call(*words, check=False).stderr
    finally:
        freeze(PARENT, 1, on=False)


@pytest.mark.trial("frozen-cgroups-are-refused", "run and create in a frozen cgroup, or below one, are refused at once")
@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("command", ["run", "create"])
def test_a_frozen_cgroup_is_refused(bundle: Bundle, own: str, version: int, command: str, *, below: bool) -> None:
    where = os.path.dirname(own) if below else own
    freeze(where, version)
    try:
        bundle.configure("true", linux={"cgroupsPath": own})
        done = bundle.call(command, "one", check=False)
        assert (done.returncode, "container's cgroup unexpectedly frozen" in done.stderr) == (1, True), done.stderr
        assert bundle.call("state", "one", check=False).returncode == 1
        assert os.path.isdir((FREEZER if version == 1 else HIERARCHIES.unified) + where), "it is not ours to remove"
    finally:
        freeze(where, version, on=False)


@pytest.mark.trial("kill-without-a-pid-namespace", "kill ID KILL without a PID namespace of its own ends all of it")
@pytest.mark.parametrize("namespace", ["none", "joined"])
@pytest.mark.parametrize("gone", [False, True])
def test_all_of_a_container_without_a_pid_namespace_is_killed(bundle: Bundle, namespace: str, *, gone: bool) -> None:
    kinds = [{"type": kind} for kind in ("mount", "ipc", "uts", "network")]
    if namespace == "joined":
        kinds.append({"type": "pid", "path": "/proc/self/ns/pid"})
    bundle.configure("sleep", "100", linux={"namespaces": kinds})
    pid = bundle.create()
    bundle.call("start", "one")
    pid_file = bundle.directory / "pid"
    subprocess.run(bundle.command("exec", "-d", "--pid-file", str(pid_file), "one", "sleep", "100"),
                   check=True, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip
    other = int(pid_file.read_text())
    if gone:
        os.kill(pid, 9)
        until(lambda: bundle.status() == "stopped")
    bundle.call("kill", "one", "KILL")
    until(lambda: not os.path.exists(f"/proc/{other}/ns/mnt"))
    until(lambda: bundle.status() == "stopped")
    assert bundle.call("kill", "one", "TERM", check=False).stderr == "crisp-oci: container not running: one\n"


@pytest.mark.trial("kill-asks", "signal 0 only asks whether the container runs")
def test_signal_0_asks(bundle: Bundle) -> None:
    bundle.configure("sleep", "100")
    pid = bundle.create()
    for number in ("0", "CONT", "SIGCONT", "18"):
        bundle.call("kill", "one", number)
    for wrong in ("NOSUCH", "", "99", "_DFL"):
        assert "unknown signal" in bundle.call("kill", "one", wrong, check=False).stderr
    assert bundle.status() == "created"
    os.kill(pid, 9)
    until(lambda: bundle.status() == "stopped")
    assert "container not running" in bundle.call("kill", "one", "0", check=False).stderr


@pytest.mark.trial("frozen-containers-end", "a frozen container is ended at once, by whichever freezer it is frozen")
@pytest.mark.parametrize("of_pod", [False, True])
def test_pods_with_frozen_containers_can_be_stopped_and_removed(daemon: Daemon, version: int, *, of_pod: bool) -> None:
    with daemon.pod("frozen") as pod:
        first, second = (pod.run("sleep", "100", name=name) for name in ("first", "second"))
        path = f"/crisp/{pod.id}"
        for each in [path] if of_pod else [f"{path}/{first}", f"{path}/{second}"]:
            freeze(each, version)
        if version == 2:
            events = Path(f"{HIERARCHIES.unified}{path}/{first}/cgroup.events")
            until(lambda: "frozen 1" in events.read_text())
        with pytest.raises(grpc.RpcError, match="it is paused"):
            pod.exec(first, "true", timeout=0)
        daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=first, timeout=0), timeout=20)
        assert daemon.status(first).exit_code == 128 + 9
        pod.remove()
