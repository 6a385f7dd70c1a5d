"""GetContainerEvents of a real daemon."""

from __future__ import annotations

import time

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from cri.v1 import api_pb2_grpc
from tests.daemon import Daemon

_CALL = {"timeout": 120}


def _read(stream: object, count: int) -> list[cri.ContainerEventResponse]:
    return [next(stream) for _ in range(count)]  # type: ignore[call-overload]


@pytest.mark.cri("GetContainerEvents", "created", "started", "stopped", "deleted", "statuses")
def test_the_life_of_a_pod_is_told_as_it_goes(daemon: Daemon) -> None:
    stream = daemon.runtime.GetContainerEvents(cri.GetEventsRequest(), timeout=120)
    stream.initial_metadata()
    with daemon.pod("told") as pod:
        container = pod.run("sh", "-c", "exit 3")
        daemon.wait_exited(container)
    told = _read(stream, 8)
    assert [(event.container_id, cri.ContainerEventType.Name(event.container_event_type)) for event in told] == [
        (pod.id, "CONTAINER_CREATED_EVENT"),
        (pod.id, "CONTAINER_STARTED_EVENT"),
        (container, "CONTAINER_CREATED_EVENT"),
        (container, "CONTAINER_STARTED_EVENT"),
        (container, "CONTAINER_STOPPED_EVENT"),
        (pod.id, "CONTAINER_STOPPED_EVENT"),
        (container, "CONTAINER_DELETED_EVENT"),
        (pod.id, "CONTAINER_DELETED_EVENT"),
    ]
    assert all(event.pod_sandbox_status.metadata == pod.config.metadata for event in told)
    assert told[1].pod_sandbox_status.network.ip.startswith("10.200.")
    stopped = told[4].containers_statuses[0]
    assert (stopped.id, stopped.state, stopped.exit_code, stopped.reason) == (
        container, cri.CONTAINER_EXITED, 3, "Error",
    )  # fmt: skip
    assert told[5].pod_sandbox_status.state == cri.SANDBOX_NOTREADY
    assert abs(told[-1].created_at - time.time_ns()) < 200e9
    stream.cancel()


@pytest.mark.cri("GetContainerEvents", "end")
def test_a_daemon_that_stops_ends_its_streams_at_once(fresh_daemon: Daemon) -> None:
    with grpc.insecure_channel(fresh_daemon.listen) as channel:
        stream = api_pb2_grpc.RuntimeServiceStub(channel).GetContainerEvents(cri.GetEventsRequest(), timeout=120)
        stream.initial_metadata()
        fresh_daemon.stop()  # which does not wait for the stream's reader
        with pytest.raises(grpc.RpcError) as failure:
            next(stream)
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "crispd is stopping" in failure.value.details()
