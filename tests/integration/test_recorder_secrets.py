"""What must not be in a recording, which is kept longer than its pod is there."""

from __future__ import annotations

import grpc
import pytest

from cri.admin.v1 import admin_pb2
from cri.v1 import api_pb2 as cri
from tests.daemon import CALL_SECONDS, Daemon
from tests.waiting import until

SECRET = "hunter2-in-a-recording"


def test_secrets_of_a_pod_are_not_recorded(fresh_daemon: Daemon) -> None:
    """Neither where all goes well, nor in the words of what fails."""
    daemon = fresh_daemon
    config = daemon.sandbox_config("discreet", annotations={"password": SECRET}, labels={"password": SECRET})
    secret = cri.KeyValue(key="PASSWORD", value=SECRET.encode())
    auth = cri.AuthConfig(username="me", password=SECRET, identity_token=SECRET, registry_token=SECRET)
    image = cri.ImageSpec(image="127.0.0.1:1/no/such:1", annotations={"password": SECRET})
    with daemon.pod("discreet", config) as pod:
        container = pod.run("sleep", "100", envs=[secret], annotations={"password": SECRET})
        for command in (("true", SECRET), ("sh", "-c", f"exit 3 # {SECRET}")):
            pod.exec(container, *command)
        with pytest.raises(grpc.RpcError):
            pod.exec(container, "/no/such", f"--password={SECRET}")
        with pytest.raises(grpc.RpcError):
            pod.exec(container, "sh", "-c", f"sleep 100; : {SECRET}", timeout=1)
        with pytest.raises(grpc.RpcError):
            pod.run("/no/such", SECRET, name="missing", envs=[secret])
        with pytest.raises(grpc.RpcError):  # the environment is more than the kernel takes
            pod.create("true", name="large", envs=[cri.KeyValue(key="LARGE", value=(SECRET * 20_000).encode())])
        request = cri.PullImageRequest(image=image, auth=auth, sandbox_config=config)
        with pytest.raises(grpc.RpcError):
            daemon.images.PullImage(request, timeout=CALL_SECONDS)
        answer = daemon.admin.Why(admin_pb2.WhyRequest(query="discreet"), timeout=CALL_SECONDS)
    recorder = daemon.root / "recorder"
    until(lambda: any(b'"deleted"' in path.read_bytes() for path in recorder.iterdir()))
    recorded = b"".join(path.read_bytes() for path in recorder.iterdir())
    assert {path.stat().st_mode & 0o777 for path in (recorder, *recorder.iterdir())} == {0o700, 0o600}
    for expected in (b"ExecSync", b"CreateContainer", b"PullImage", b"sh (arguments: 2)", b"no/such"):
        assert expected in recorded
    assert SECRET not in str(answer)
    assert SECRET.encode() not in recorded
