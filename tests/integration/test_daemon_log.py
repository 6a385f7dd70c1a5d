"""crispd's log, as an operator reads it who has a pod's name or a container's id."""

from __future__ import annotations

import re

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon


def test_a_pods_life_is_found_by_its_ids(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    with daemon.pod("told") as pod:
        good = pod.run("true", name="good")
        daemon.wait_exited(good)
        bad = pod.create("/nonexistent", name="bad")
        with pytest.raises(grpc.RpcError):
            daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=bad), timeout=10)
        with pytest.raises(grpc.RpcError):
            pod.create("true", name="imageless", image="localhost/none:1")
    lines = [line for line in daemon.log().splitlines() if "level=debug" not in line]

    def said(*fields: str) -> list[str]:
        found = [line for line in lines if all(field in line.split() for field in fields)]
        return [re.findall(r'msg=("[^"]*"|\S+)', line)[0].strip('"') for line in found]

    (made,) = [line for line in lines if "pod=default/told/told-uid/0" in line and "pod sandbox made" in line]
    assert f"sandbox={pod.id}" in made
    assert said(f"container={good}", f"sandbox={pod.id}", "container_name=good") == [
        "container created",
        "container started",
        "container exited",
        "container removed",
    ]
    assert said(f"container={bad}") == [
        "container created",
        "could not start container",
        "call refused",
        "container removed",
    ]
    assert said("call=CreateContainer", f"sandbox={pod.id}", "container_name=imageless") == ["call refused"]
    ends = ["pod sandbox stopped", "pod sandbox removed"]
    assert said(f"sandbox={pod.id}", "pod=default/told/told-uid/0")[-2:] == ends
