"""After an upgrade the pods' shims are of the new version, and nobody notices: no container, no caller, no log."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cri.admin.v1 import admin_pb2
from cri.v1 import api_pb2 as cri
from tests.daemon import REPOSITORY, Daemon, Pod
from tests.processes import kill_shim, parent_of, shim_of, shims_of, titled
from tests.sessions import attach_url
from tests.stream_clients import STDERR, STDIN, STDOUT, Command, closing
from tests.trees import changed
from tests.waiting import until

V4 = "v4.channel.k8s.io"
_CALL: dict[str, Any] = {"timeout": 60}
_COUNTER = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.01; done"


_OLD_KERNEL = "def exit_status(pidfd): return None\ndef tells_everybody(): return False\n"  # before Linux 6.15


def _tree(place: Path, module: str = "runtime/shim/shim.py", addition: str = "# of an earlier version\n") -> Path:
    """Another version of what zygotes and shims are."""
    return changed(place, module, addition, ("linux", "runtime"))


# Each kills once, at the step that the pod's name says: before a message to the new keeper, and in the successor.
_KILLS = """
import os
import signal
import sys

def _at(shim, step):
    mark = f"{shim._pod.directory}/killed"
    if shim._pod._hostname == f"step-{step}" and not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
"""
_KILLS_OF_EARLIER = f"""{_KILLS}
def _renew(self, call, request, renew=Shim._renew, take=NewKeeper.take):
    count = 0
    def taken(keeper, data, fds):
        nonlocal count
        count += 1
        _at(self, count)
        take(keeper, data, fds)
    NewKeeper.take = taken
    renew(self, call, request)

_HANDLERS[calls.Renew.call] = calls.Renew, _renew
"""
_KILLS_OF_SUCCESSOR = f"""{_KILLS}
def _succeed(self, deposit, succeed=Shim.succeed, deposit_all=Shim._deposit_all, settle=Parents.settle):
    def deposited():
        _at(self, "depositing")
        deposit_all(self)
    def settled():
        _at(self, "settling")
        settle(self._parents)
        _at(self, "settled")
    self._pod = Pod(read(PodEstate, deposit.entries[POD_KEY]).make, -1, -1)
    _at(self, "beginning")
    self._deposit_all, self._parents.settle = deposited, settled
    succeed(self, deposit)

Shim.succeed = _succeed
"""
_STEPS = (2, 7, "beginning", "depositing", "settling", "settled")


@pytest.fixture
def earlier(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of an earlier version, which `_upgrade` replaces by one of this."""
    with Daemon.running(tree=_tree(tmp_path / "tree")) as daemon:
        daemon.import_busybox()
        yield daemon


def _upgrade(daemon: Daemon, tree: Path = REPOSITORY, *, killed: bool = False) -> None:
    if killed:
        daemon.kill9()
    else:
        daemon.stop()
    daemon.tree = tree
    daemon.start()


def _is_renewed(pod: Pod) -> bool:
    """Whether the pod's shim was forked by a zygote that has the code of the present one."""
    with contextlib.suppress(OSError):  # it ends
        parents = [parent_of(pid) for pid in shims_of(pod.id)]
        return [_code(pid) for pid in parents] == [_code(max(titled("crisp zygote")))]
    return False


def _code(zygote: int) -> bytes:
    """The words that it was started with, of which one tells its code."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{zygote}/cmdline").read_bytes().partition(b"main(")[2].partition(b")")[0]
    return b""


def _stop(daemon: Daemon, container: str) -> int:
    daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=container, timeout=5), **_CALL)
    return daemon.wait_exited(container).exit_code


@pytest.mark.parametrize("killed", [False, True])
def test_nobody_notices(earlier: Daemon, killed: bool) -> None:
    daemon = earlier
    with daemon.pod("upgraded") as pod:
        counts = pod.run("sh", "-c", _COUNTER, name="counter")
        leaves = pod.run("sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done", name="leaver")
        reads = pod.run("sh", "-c", "while read line; do echo got $line; done; exit 6", name="reader", stdin=True)
        done = pod.run("sh", "-c", "exit 4", name="done")
        created = pod.create("sleep", "50", name="created")
        daemon.wait_exited(done)
        before = {container: daemon.status(container) for container in (counts, leaves, reads, done, created)}
        shim = shim_of(pod.id)
        _upgrade(daemon, killed=killed)
        with _execs(pod, counts):
            until(lambda: _is_renewed(pod))
        assert shim_of(pod.id) != shim
        assert {container: daemon.status(container) for container in before} == before
        daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=created), **_CALL)
        assert pod.exec(created, "echo", "as well").stdout == b"as well\n"
        assert _says(daemon, reads, b"tea") == b"got tea\n"
        assert _stop(daemon, leaves) == 9
        assert _stop(daemon, counts) == 143
        _is_whole(pod)
        until(lambda: len(titled("crisp zygote")) == 1)  # the earlier one has nothing to keep
        kill_shim(pod.id)  # the new one is kept as any other
        assert pod.exec(created, "echo", "still").stdout == b"still\n"


@contextlib.contextmanager
def _execs(pod: Pod, container: str) -> Iterator[None]:
    """Execs in a container meanwhile, one after another; none may fail."""
    over, outputs = threading.Event(), set[bytes]()

    def run() -> None:
        while True:
            outputs.add(pod.exec(container, "echo", "here").stdout)
            if over.wait(0.01):
                return

    with concurrent.futures.ThreadPoolExecutor() as others:
        running = others.submit(run)
        try:
            yield
        finally:
            over.set()
        running.result()
    assert outputs == {b"here\n"}


def _says(daemon: Daemon, container: str, line: bytes) -> bytes:
    """What a container answers to a client that attaches itself and types a line."""
    client = _attached(daemon, container)
    with closing(client):
        client.send(line + b"\n")
        client.until(b"\n")
        return client.output()


def _attached(daemon: Daemon, container: str) -> Command:
    return Command.over("spdy", attach_url(daemon, container), V4, STDIN, STDOUT, STDERR)


def test_a_shim_with_work_stays_until_that_is_done(earlier: Daemon) -> None:
    with earlier.pod("busy") as pod:
        container = pod.run("sh", "-c", "while read line; do echo got $line; done", name="reader", stdin=True)
        shim = shim_of(pod.id)
        client = _attached(earlier, container)
        with closing(client):
            client.send(b"one\n")
            client.until(b"got one\n")
            _upgrade(earlier)
            until(lambda: "stays for now" in earlier.log())
            client.send(b"two\n")
            client.until(b"got two\n")
            assert shim_of(pod.id) == shim
        until(lambda: _is_renewed(pod))
        assert _says(earlier, container, b"three") == b"got three\n"


def test_a_version_that_fails_changes_nothing(fresh_daemon: Daemon, tmp_path: Path) -> None:
    """The successor dies at once: the first keeper, which has everything too, starts one of its own version."""
    bad = _tree(
        tmp_path / "bad",
        addition="def _fail(self, deposit):\n    raise SystemExit('a fault of this version')\nShim.succeed = _fail\n",
    )
    daemon = fresh_daemon
    with daemon.pod("pod") as pod:
        container = pod.run("sh", "-c", _COUNTER, name="counter")
        shim = shim_of(pod.id)
        _upgrade(daemon, bad)
        until(lambda: shims_of(pod.id) not in ([], [shim]))
        until(lambda: "no more shims are renewed" in daemon.log())
        assert pod.exec(container, "echo", "here").stdout == b"here\n"
        _upgrade(daemon)
        assert _stop(daemon, container) == 143
        _is_whole(pod)


def test_the_first_keeper_tells_how_processes_end_where_the_kernel_does_not(tmp_path: Path) -> None:
    additions = [f"{_OLD_KERNEL}# {number}\n" for number in range(3)]
    trees = [_tree(tmp_path / str(number), "linux/exit_status.py", one) for number, one in enumerate(additions)]
    program = "trap 'exit $CODE' TERM; echo ready; while :; do sleep 0.05; done"
    with Daemon.running(tree=trees[0]) as daemon:
        daemon.import_busybox()
        with daemon.pod("pod") as pod:
            containers = {}
            for number, tree in enumerate(trees, start=1):
                envs = [cri.KeyValue(key="CODE", value=str(number).encode())]
                containers[number] = pod.run("sh", "-c", program, name=str(number), envs=envs)
                until(lambda number=number: "ready" in pod.log(str(number)))
                if number > 1:
                    _upgrade(daemon, tree)
                    until(lambda: _is_renewed(pod))
            assert len(titled("crisp zygote")) == len(trees)
            daemon.kill9()
            kill_shim(pod.id)  # its successor hears of them too
            daemon.start()
            for number, container in reversed(containers.items()):
                assert _stop(daemon, container) == number
        until(lambda: len(titled("crisp zygote")) == 1)


@pytest.mark.parametrize("old_kernel", [False, True])
def test_kills_at_every_step(tmp_path: Path, old_kernel: bool) -> None:
    places = [
        _tree(tmp_path / "old", addition=_KILLS_OF_EARLIER),
        _tree(tmp_path / "new", addition=_KILLS_OF_SUCCESSOR),
    ]
    if old_kernel:
        for place in places:
            with (place / "linux/exit_status.py").open("a") as module:
                module.write(_OLD_KERNEL)
    with Daemon.running(tree=places[0]) as daemon, contextlib.ExitStack() as ends:
        daemon.import_busybox()
        pods = [ends.enter_context(daemon.pod(f"step-{step}")) for step in _STEPS]
        containers = [pod.run("sh", "-c", _COUNTER, name="counter") for pod in pods]
        for _ in range(len(pods) + 1):  # a daemon that has lost a shim renews no more
            kills = len(_killed(daemon))
            _upgrade(daemon, places[1])
            until(lambda kills=kills: len(_killed(daemon)) > kills or all(map(_is_renewed, pods)))
        assert len(_killed(daemon)) == len(pods)
        assert all(map(_is_renewed, pods))
        assert not daemon.admin.Check(admin_pb2.CheckRequest(), **_CALL).disagreements
        for pod, container in zip(pods, containers, strict=True):
            assert pod.exec(container, "echo", "here").stdout == b"here\n"
            assert _stop(daemon, container) == 143
            _is_whole(pod)


def _killed(daemon: Daemon) -> list[Path]:
    return list(daemon.state.glob("sandboxes/*/killed"))


def _is_whole(pod: Pod) -> None:
    """Whether the log of the counter has all numbers, once."""
    numbers = [int(line.rsplit(" ", 1)[1]) for line in pod.log("counter").splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
