"""A shim that dies takes nothing with it: its keeper starts a successor, and containers do not notice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon, Pod
from tests.processes import shim_of, shims_of, titled
from tests.waiting import until

_CALL: dict[str, Any] = {"timeout": 60}
_KILLS = 4  # a keeper starts no more successors in a minute
_COUNTER = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.01; done"


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists())


def _has_all(pod: Pod) -> bool:
    """Whether the zygote has what the shim of a pod with two running containers deposits."""
    held = [link for pid in titled("crisp zygote") for link in _links(pid)]
    return sum("pidfd" in link for link in held) == 3


def _links(pid: int) -> list[str]:
    places = Path(f"/proc/{pid}/fd")
    found = []
    with contextlib.suppress(OSError):  # it has ended
        for fd in os.listdir(places):
            with contextlib.suppress(OSError):
                found.append(os.readlink(places / fd))
    return found


def _pid(daemon: Daemon, container: str) -> int:
    request = cri.ContainerStatusRequest(container_id=container, verbose=True)
    return int(json.loads(daemon.runtime.ContainerStatus(request, **_CALL).info["info"])["pid"])


def _kill_shim(daemon: Daemon, pod: Pod) -> None:
    _kill(shim_of(pod.id))


def _kill_shim_without_crispd(daemon: Daemon, pod: Pod) -> None:
    daemon.kill9()
    _kill(shim_of(pod.id))
    daemon.start()


def _kill_zygote_then_shim(daemon: Daemon, pod: Pod) -> None:
    (before,) = titled("crisp zygote")
    _kill(before)
    until(lambda: _has_all(pod))
    _kill(shim_of(pod.id))


def _kill_crispd_and_zygote_then_shim(daemon: Daemon, pod: Pod) -> None:
    (zygote,) = titled("crisp zygote")
    daemon.kill9()
    _kill(zygote)
    daemon.start()
    until(lambda: _has_all(pod))
    _kill(shim_of(pod.id))


def _kill_shim_twice(daemon: Daemon, pod: Pod) -> None:
    _kill(shim_of(pod.id))
    until(lambda: len(shims_of(pod.id)) == 1)
    _kill(shim_of(pod.id))


@pytest.mark.parametrize(
    "kill",
    [
        _kill_shim,
        _kill_shim_without_crispd,
        _kill_zygote_then_shim,
        _kill_crispd_and_zygote_then_shim,
        _kill_shim_twice,
    ],
)
def test_containers_do_not_notice(fresh_daemon: Daemon, kill: Callable[[Daemon, Pod], None]) -> None:
    daemon = fresh_daemon
    with daemon.pod("survivor") as pod:
        runs = pod.run("sh", "-c", _COUNTER, name="counter")
        leaves = pod.run("sh", "-c", "sleep 98643; exit 9", name="leaver")
        done = pod.run("sh", "-c", "exit 4", name="done")
        created = pod.create("sleep", "50", name="created")
        daemon.wait_exited(done)
        pid = _pid(daemon, runs)
        before = {container: daemon.status(container) for container in (done, created)}
        address = pod.status().network.ip
        kill(daemon, pod)
        assert pod.exec(runs, "echo", "still here").stdout == b"still here\n"
        assert _pid(daemon, runs) == pid
        assert pod.status().state == cri.SANDBOX_READY
        assert pod.status().network.ip == address
        assert {container: daemon.status(container) for container in before} == before
        subprocess.run(["pkill", "-f", "^sleep 98643"], check=True)
        assert daemon.wait_exited(leaves).exit_code == 9
        daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=created), **_CALL)
        assert pod.exec(created, "echo", "as well").stdout == b"as well\n"
        daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=runs, timeout=0), **_CALL)
        numbers = [int(line.rsplit(" ", 1)[1]) for line in pod.log("counter").splitlines()]
        assert numbers == list(range(1, len(numbers) + 1))


def test_no_byte_of_a_log_is_lost_or_torn_or_written_twice(fresh_daemon: Daemon) -> None:
    """Of lines that come as fast as a shim reads, on two streams, some of them in two halves."""
    program = (
        "(i=0; while [ $i -lt 30000 ]; do i=$((i+1)); echo $i; done) & "
        "i=0; while [ $i -lt 6000 ]; do i=$((i+1)); printf $i >&2; printf '.\\n' >&2; done; "
        "wait; printf 'the beginning of a line '; sleep 98645; echo and its end"
    )
    with fresh_daemon.pod("talks") as pod:
        container = pod.run("sh", "-c", program, name="talks")
        log = Path(pod.config.log_directory, "talks.log")
        for _ in range(_KILLS):
            size = log.stat().st_size
            until(lambda size=size: log.stat().st_size > size + 1000 or _lines(log, "stdout")[-1:] == ["30000"])
            _kill(shim_of(pod.id))
            until(lambda: len(shims_of(pod.id)) == 1)
        until(lambda: _lines(log, "stderr")[-1:] == ["6000."] and _lines(log, "stdout")[-1:] == ["30000"])
        _kill(shim_of(pod.id))  # which has read the beginning of a line
        subprocess.run(["pkill", "-f", "^sleep 98645"], check=True)
        fresh_daemon.wait_exited(container)
        expected = [*map(str, range(1, 30001)), "the beginning of a line and its end"]
        assert _lines(log, "stdout") == expected
        # After them the shell tells of the end of `sleep`.
        assert _lines(log, "stderr")[:6000] == [f"{number}." for number in range(1, 6001)]


def _lines(log: Path, stream: str) -> list[str]:
    """The lines of a stream; every record must be whole."""
    text = log.read_text()
    found = [line.split(" ", 3) for line in text[: text.rfind("\n") + 1].splitlines()]
    assert all(len(words) == 4 and words[2] == "F" for words in found), found
    return [words[3] for words in found if words[1] == stream]
