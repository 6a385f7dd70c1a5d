"""The shim of a quiet pod gives its memory back, and is there again when it is needed: nobody notices."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import REPOSITORY, Daemon, Pod
from tests.processes import shim_of, shims_of, titled
from tests.sessions import ask, attach_url
from tests.stream_clients import STDERR, STDIN, STDOUT, Command, closing
from tests.trees import changed
from tests.waiting import until

_CALL: dict[str, Any] = {"timeout": 60}
_KEEPER = "^crisp-keeper"


@pytest.fixture
def config(tmp_path: Path) -> str:
    settings = tmp_path / "crisp.toml"
    settings.write_text("shim_sleep = 1\n")
    return f"--config={settings}"


@pytest.fixture
def sleepy(config: str) -> Iterator[Daemon]:
    with Daemon.running(config) as daemon:
        daemon.import_busybox()
        yield daemon


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists())


def _asleep(pod: Pod) -> None:
    until(lambda: not shims_of(pod.id))


def _end(program: str) -> None:
    subprocess.run(["pkill", "-f", f"^{program}"], check=True)


def _infra(daemon: Daemon, pod: Pod) -> int:
    request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True)
    return int(json.loads(daemon.runtime.PodSandboxStatus(request, **_CALL).info["info"])["pid"])


def test_whatever_needs_the_shim_wakes_it(sleepy: Daemon) -> None:
    with sleepy.pod("sleeper") as pod:
        talks = pod.run("sh", "-c", "sleep 98660; echo after; sleep 98661", name="talks")
        leaves = pod.run("sh", "-c", "sleep 98662; exit 9", name="leaves")
        reads = pod.run("sh", "-c", "while read line; do echo got $line; done; exit 6", name="reads", stdin=True)
        done = pod.run("sh", "-c", "exit 4", name="done")
        made = pod.create("sleep", "50", name="made")
        _asleep(pod)
        assert sleepy.status(done).exit_code == 4
        assert sleepy.status(talks).state == cri.CONTAINER_RUNNING
        assert not shims_of(pod.id)
        assert pod.exec(talks, "sh", "-c", "echo here; exit 3") == cri.ExecSyncResponse(stdout=b"here\n", exit_code=3)
        _asleep(pod)
        _end("sleep 98660")
        until(lambda: "after" in pod.log("talks"))
        _asleep(pod)
        _end("sleep 98662")
        assert sleepy.wait_exited(leaves).exit_code == 9
        _asleep(pod)
        session = Command.over("spdy", attach_url(sleepy, reads), "v4.channel.k8s.io", STDIN, STDOUT, STDERR)
        with closing(session):
            ask(session, "tea")
        _asleep(pod)
        sleepy.runtime.StartContainer(cri.StartContainerRequest(container_id=made), **_CALL)
        _asleep(pod)
        more = pod.run("sh", "-c", "echo more", name="more")
        assert sleepy.wait_exited(more).exit_code == 0
        _asleep(pod)
        sleepy.runtime.StopContainer(cri.StopContainerRequest(container_id=reads, timeout=0), **_CALL)
        _asleep(pod)
        sleepy.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=done), **_CALL)
        _asleep(pod)


@pytest.mark.parametrize("keeper_died", [False, True])
def test_the_end_of_the_pause_process_is_noticed(sleepy: Daemon, keeper_died: bool) -> None:
    """Also when the keeper is not its parent."""
    with sleepy.pod("sleeper") as pod:
        pod.run("sleep", "98663")
        if keeper_died:
            _kill_zygote(sleepy, pod)
            until(lambda: titled("crisp zygote"))
        _asleep(pod)
        _kill(_infra(sleepy, pod))
        until(lambda: pod.status().state == cri.SANDBOX_NOTREADY)


def _kill_zygote(_daemon: Daemon, _pod: Pod) -> None:
    (zygote,) = titled("crisp zygote")
    _kill(zygote)


def _kill_zygote_before_it_sleeps(daemon: Daemon, pod: Pod) -> None:
    """Its processes are the new zygote's no more: their ends are noticed all the same."""
    _end("sleep 98666")
    until(lambda: "a line" in pod.log("talks"))
    _kill_zygote(daemon, pod)
    _asleep(pod)


def _stop_keeper(_daemon: Daemon, pod: Pod) -> None:
    """Nothing sleeps with a second keeper that takes no deposit: it is killed."""
    (keeper,) = titled(_KEEPER)
    os.kill(keeper, signal.SIGSTOP)
    _end("sleep 98666")
    until(lambda: "a line" in pod.log("talks"))
    until(lambda: keeper not in titled(_KEEPER))
    _asleep(pod)


def _kill_keeper(_daemon: Daemon, _pod: Pod) -> None:
    until(lambda: titled(_KEEPER))  # it is about to get its name
    (keeper,) = titled(_KEEPER)
    _kill(keeper)


def _kill_keeper_then_zygote(daemon: Daemon, pod: Pod) -> None:
    _kill_keeper(daemon, pod)
    until(lambda: len(titled(_KEEPER)) == 1)
    time.sleep(0.5)  # it has the deposit: two at once are too many
    assert not shims_of(pod.id)
    _kill_zygote(daemon, pod)


def _kill_crispd(daemon: Daemon, _pod: Pod) -> None:
    daemon.kill9()
    daemon.start()


def _stop_crispd(daemon: Daemon, pod: Pod) -> None:
    daemon.stop()
    _asleep(pod)  # again: the connection's end has woken it
    daemon.start()


def _kill_crispd_then_zygote(daemon: Daemon, pod: Pod) -> None:
    daemon.kill9()
    _kill_zygote(daemon, pod)
    until(lambda: shims_of(pod.id))
    daemon.start()


def _kill_crispd_then_keeper_then_zygote(daemon: Daemon, pod: Pod) -> None:
    daemon.kill9()
    _kill_keeper_then_zygote(daemon, pod)
    until(lambda: shims_of(pod.id))
    daemon.start()


def _kill_crispd_and_wake(daemon: Daemon, pod: Pod) -> None:
    daemon.kill9()
    _end("sleep 98666")
    until(lambda: "a line" in pod.log("talks"))
    daemon.start()


@pytest.mark.parametrize(
    "kill",
    [
        _kill_zygote,
        _kill_zygote_before_it_sleeps,
        _stop_keeper,
        _kill_keeper,
        _kill_keeper_then_zygote,
        _kill_crispd,
        _stop_crispd,
        _kill_crispd_then_zygote,
        _kill_crispd_then_keeper_then_zygote,
        _kill_crispd_and_wake,
    ],
)
def test_a_pod_whose_shim_sleeps_outlives_its_keepers(sleepy: Daemon, kill: Callable[[Daemon, Pod], None]) -> None:
    with sleepy.pod("sleeper") as pod:
        leaves = pod.run("sh", "-c", "sleep 98664; exit 9", name="leaves")
        stays = pod.run("sleep", "98665", name="stays")
        pod.run("sh", "-c", "sleep 98666; echo a line; sleep 98667", name="talks")
        _asleep(pod)
        kill(sleepy, pod)
        assert sleepy.status(stays).state == cri.CONTAINER_RUNNING
        assert pod.exec(stays, "echo", "still here").stdout == b"still here\n"
        _asleep(pod)
        _end("sleep 98664")
        assert sleepy.wait_exited(leaves).exit_code == 9
        assert pod.exec(stays, "echo", "again").stdout == b"again\n"
        _asleep(pod)
        until(lambda: len(titled(_KEEPER)) == 1)


def test_many_turns_leave_nothing(sleepy: Daemon) -> None:
    """Neither descriptors in the keepers, nor processes."""
    with sleepy.pod("sleeper") as pod:
        container = pod.run("sleep", "98668")

        def turn() -> None:
            pod.exec(container, "true")
            shim_of(pod.id)
            _asleep(pod)

        turn()
        turn()  # of a successor, which has a copy of each pidfd
        time.sleep(0.5)  # both keepers have received everything
        held = _held()
        for _ in range(5):
            turn()
        until(lambda: _held() <= held)


def _held() -> int:
    """How many descriptors the keepers have."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in titled(f"crisp zygote|{_KEEPER}"))


def test_an_upgrade_renews_what_sleeps(tmp_path: Path, config: str) -> None:
    tree = changed(tmp_path / "tree", "runtime/shim/shim.py", "# of an earlier version\n", ("linux", "runtime"))
    with Daemon.running(config, tree=tree) as daemon:
        daemon.import_busybox()
        with daemon.pod("sleeper") as pod:
            leaves = pod.run("sh", "-c", "sleep 98669; exit 9", name="leaves")
            _asleep(pod)
            daemon.stop()
            daemon.tree = REPOSITORY
            daemon.start()
            until(lambda: len(titled("crisp zygote")) == 1)
            _asleep(pod)
            _end("sleep 98669")
            assert daemon.wait_exited(leaves).exit_code == 9


def test_a_keeper_that_is_stopped_is_killed_for_who_calls(sleepy: Daemon) -> None:
    with sleepy.pod("sleeper") as pod:
        container = pod.run("sleep", "98670")
        _asleep(pod)
        until(lambda: titled(_KEEPER))
        (zygote,) = titled("crisp zygote")
        os.kill(zygote, signal.SIGSTOP)
        with pytest.raises(grpc.RpcError) as refused:
            pod.exec(container, "true", timeout=0)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        until(lambda: _answers(pod, container))
        assert zygote not in titled("crisp zygote")


def _answers(pod: Pod, container: str) -> bool:
    try:
        return pod.exec(container, "echo", "here").stdout == b"here\n"
    except grpc.RpcError:  # the shim is still set apart
        return False
