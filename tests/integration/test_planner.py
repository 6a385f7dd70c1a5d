"""Containers start whatever becomes of the process that makes the lists of their inits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon
from tests.processes import children_of, name_of
from tests.waiting import until


def _planner(daemon: Daemon) -> int:
    """The zygote's, 0 if it has none."""
    zygotes = [pid for pid in children_of(daemon.pid()) if name_of(pid) == "crisp-zygote"]
    planners = [pid for zygote in zygotes for pid in children_of(zygote) if name_of(pid) == "crisp-planner"]
    return planners[0] if planners else 0


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize("harm", [_kill, _stop])
def test_containers_start_without_the_planner(daemon: Daemon, harm: Callable[[int], None]) -> None:
    with daemon.pod("planned") as pod:
        container = pod.create("sleep", "1000", name="asked")
        until(lambda: _planner(daemon) > 0)
        planner = _planner(daemon)
        harm(planner)
        try:
            later = pod.run("sleep", "1000", name="later")
            assert pod.exec(later, "echo", "here").stdout == b"here\n"
            daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=60)
        finally:
            if harm is _stop:
                _kill(planner)
    with daemon.pod("next") as pod:  # a dead one has a successor
        pod.run("sleep", "1000", name="other")
        until(lambda: _planner(daemon) not in (0, planner))


def test_a_planner_that_is_asked_nothing_leaves(daemon: Daemon) -> None:
    with daemon.pod("planned") as pod:
        until(lambda: not _planner(daemon))
        pod.run("sleep", "1000")
        assert _planner(daemon)
