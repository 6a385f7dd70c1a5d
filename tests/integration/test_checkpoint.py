"""CheckpointContainer where it cannot be: the guest (tests/vm) has a kernel that criu knows, and does it."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from pods.checkpoints import _write_changes
from tests.daemon import CALL_SECONDS, Daemon, Pod


def _refused(pod: Pod, container_id: str, location: str, timeout: int = 5) -> tuple[str, str]:
    request = cri.CheckpointContainerRequest(container_id=container_id, location=location, timeout=timeout)
    with pytest.raises(grpc.RpcError) as raised:
        pod.daemon.runtime.CheckpointContainer(request, timeout=CALL_SECONDS)
    return raised.value.code().name, str(raised.value.details())


@pytest.mark.cri("CheckpointContainer", "container_id", "timeout")
def test_a_checkpoint_that_cannot_be(daemon: Daemon, tmp_path: Path) -> None:
    with daemon.pod("checkpoint") as pod:
        created = pod.create("sleep", "100", name="created")
        target = str(tmp_path / "archive.tar")
        code, said = _refused(pod, created, target)
        assert code == "FAILED_PRECONDITION"
        assert said.endswith("is created, not running")
        assert _refused(pod, created, "archive.tar")[0] == "INVALID_ARGUMENT"
        assert _refused(pod, created, str(tmp_path / "nowhere/archive.tar"))[0] == "INVALID_ARGUMENT"
        assert _refused(pod, created, target, timeout=-1)[0] == "INVALID_ARGUMENT"
        assert _refused(pod, "none-of-that-id", target)[0] == "NOT_FOUND"
        assert os.listdir(tmp_path) == []


def test_changes_of_a_writable_layer(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    (upper / "etc").mkdir(parents=True)
    (upper / "etc/new").write_text("new")
    (upper / "etc/new").chmod(0o640)
    os.link(upper / "etc/new", upper / "again")
    os.mknod(upper / "etc/gone", 0o020000, os.makedev(0, 0))
    (upper / "hides").mkdir()
    os.setxattr(upper / "hides", "trusted.overlay.opaque", b"y")
    os.setxattr(upper / "hides", "trusted.overlay.origin", b"of no use elsewhere")
    (upper / "link").symlink_to("/etc/new")
    assert _write_changes(upper, tmp_path / "changes.tar") == ["etc/gone"]
    with tarfile.open(tmp_path / "changes.tar") as archive:
        members = {member.name: member for member in archive}
        assert set(members) == {"again", "etc", "etc/new", "hides", "link"}
        content = archive.extractfile("etc/new")
        assert content is not None
        assert content.read() == b"new"
        assert members["etc/new"].mode & 0o777 == 0o640
    assert members["again"].islnk() or members["etc/new"].islnk()
    kept = {key for key in members["hides"].pax_headers if key.startswith("SCHILY")}
    assert kept == {"SCHILY.xattr.trusted.overlay.opaque"}
    assert members["link"].linkname == "/etc/new"
