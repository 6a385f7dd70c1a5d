"""Limits of containers' own files where the file system has no quotas: they are refused. The guest has them."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from tests.daemon import Daemon, DaemonFailed
from tests.disk_limits import enforced, look_at_limits, look_at_removal


def test_a_limit_is_kept_or_refused(daemon: Daemon) -> None:
    if enforced(daemon.root):
        look_at_limits(daemon)
        look_at_removal(daemon)
        return
    annotations = {"crisp/disk-limit": "1000000", "disk-limit.crisp/any": "0"}
    with daemon.pod(config=daemon.sandbox_config("limited", annotations=annotations)) as pod:
        with pytest.raises(grpc.RpcError, match=r"'crisp/disk-limit': .* mount that with prjquota") as refused:
            pod.create("true", name="main")
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert daemon.wait_exited(pod.run("true", name="any")).exit_code == 0


def test_a_node_that_cannot_keep_its_limit_does_not_start(daemon: Daemon, tmp_path: Path) -> None:
    if enforced(daemon.root):
        pytest.skip("the file system enforces limits")
    settings = tmp_path / "crisp.toml"
    settings.write_text("container_disk_limit = 1000000\n")
    told = r"container_disk_limit in crisp\.toml: the file system of"
    with pytest.raises(DaemonFailed, match=told), Daemon.running(f"--config={settings}"):
        pass
