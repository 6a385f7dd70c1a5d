"""CheckpointContainer where it cannot be: the guest (tests/vm) has a kernel that criu knows, and does it."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tarfile
from pathlib import Path

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from pods.checkpoints import _write_changes
from tests.daemon import BUSYBOX, CALL_SECONDS, Daemon, Pod
from tests.images import build_image, entry, layer, write_layout


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


@pytest.fixture
def parts(daemon: Daemon, tmp_path: Path) -> dict[str, bytes]:
    """What is in an archive of a container of busybox, but for criu's images."""
    with daemon.pod("origin") as pod:
        container_id = pod.run("sleep", "1000", name="origin")
        document = (daemon.state / "containers" / container_id / "config.json").read_bytes()
    changes = layer(
        entry("etc/", mode=0o755), entry("etc/new", b"new"), entry("../../outside", b"inside"),
        entry("hides/", pax_headers={"SCHILY.xattr.trusted.overlay.opaque": "y"}),
    )  # fmt: skip
    return {
        "spec.dump": document,
        "config.dump": json.dumps({"rootfsImageName": BUSYBOX, "id": container_id}).encode(),
        "deleted.files": json.dumps(["etc/passwd", "tmp/"]).encode(),
        "rootfs-diff.tar": changes,
    }


def _archive(path: Path, parts: dict[str, bytes], *more: tuple[tarfile.TarInfo, bytes]) -> str:
    path.write_bytes(layer(entry("checkpoint/"), *(entry(name, content) for name, content in parts.items()), *more))
    path.chmod(0o600)
    return str(path)


@pytest.mark.cri("CreateContainer", "config.image")
def test_a_container_of_a_checkpoint_has_its_changes(daemon: Daemon, parts: dict[str, bytes], tmp_path: Path) -> None:
    archive = _archive(tmp_path / "checkpoint.tar", parts)
    with daemon.pod("copy") as pod:
        container_id = pod.create(name="copy", image=archive)
        upper = daemon.root / "containers" / container_id / "upper"
        assert (upper / "etc/new").read_text() == "new"
        assert (upper / "outside").read_text() == "inside"
        assert os.getxattr(upper / "hides", "trusted.overlay.opaque") == b"y"
        for gone in ("etc/passwd", "tmp"):
            assert stat.S_ISCHR((upper / gone).lstat().st_mode)
        document = json.loads((daemon.state / "containers" / container_id / "config.json").read_bytes())
        assert document["process"]["args"] == ["sleep", "1000"]
        assert daemon.status(container_id).image.image == archive
        # The archive has no images of criu's: a machine with criu has something else to say than one without.
        said = "descriptors.json`: No such file" if shutil.which("criu") else "find `criu`: it is not installed"
        with pytest.raises(grpc.RpcError, match=said):
            daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container_id), timeout=20)
        assert daemon.status(container_id).reason == "StartError"
        daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id), timeout=20)
        assert not upper.parent.exists()


def test_an_image_that_holds_a_checkpoint_takes_leave(daemon: Daemon, parts: dict[str, bytes], tmp_path: Path) -> None:
    content = layer(entry("checkpoint/"), *(entry(name, value) for name, value in parts.items()))
    image = build_image([content], {}, annotations={"org.criu.checkpoint.container.name": "origin"})
    name = "localhost/checkpoint:1"
    daemon.import_image(write_layout(tmp_path / "layout", {name: image}))
    with daemon.pod("copy") as pod, pytest.raises(grpc.RpcError, match="checkpoint_images = true") as refused:
        pod.create(name="copy", image=name)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    (tmp_path / "crisp.toml").write_text("checkpoint_images = true\n")
    with Daemon.running(f"--config={tmp_path}/crisp.toml") as allowing:
        allowing.import_busybox()
        allowing.import_image(tmp_path / "layout")
        with allowing.pod("copy") as pod:
            container_id = pod.create(name="copy", image=name)
            assert (allowing.root / "containers" / container_id / "upper/etc/new").read_text() == "new"


def _without(parts: dict[str, bytes], name: str, content: bytes | None = None) -> dict[str, bytes]:
    changed = {key: value for key, value in parts.items() if key != name}
    return changed if content is None else {**changed, name: content}


def test_archives_that_are_none_are_refused(daemon: Daemon, parts: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.tar"
    link = tarfile.TarInfo("spec.dump")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    outwards = tarfile.TarInfo("checkpoint/descriptors.json")
    outwards.type, outwards.linkname = tarfile.SYMTYPE, "/dev/zero"
    elsewhere = json.dumps({"rootfsImageName": "registry.invalid/gone:1"}).encode()
    wrong = json.loads(parts["spec.dump"]) | {"process": {"args": 7}}
    bad = {
        "no spec.dump": lambda: _archive(path, _without(parts, "spec.dump")),
        "no config.dump": lambda: _archive(path, _without(parts, "config.dump")),
        "no checkpoint/": lambda: (path.write_bytes(layer(*(entry(n, c) for n, c in parts.items()))), str(path))[1],
        "no spec.dump in it": lambda: _archive(path, _without(parts, "spec.dump"), (link, b"")),
        "descriptors.json' is no plain file": lambda: _archive(path, parts, (outwards, b"")),
        "config.dump is no JSON object": lambda: _archive(path, _without(parts, "config.dump", b"[" * 100_000)),
        "spec.dump: process": lambda: _archive(path, _without(parts, "spec.dump", json.dumps(wrong).encode())),
        "deleted.files is no list": lambda: _archive(path, _without(parts, "deleted.files", b'{"a": 1}')),
        "whiteout of no name": lambda: _archive(path, _without(parts, "deleted.files", b'[".."]')),
        "registry.invalid/gone": lambda: _archive(path, _without(parts, "config.dump", elsewhere)),
        "checkpoint.tar': unpack archive": lambda: (path.write_bytes(b"x" * 10240), str(path))[1],
        "only root can write": lambda: (path.chmod(0o666), str(path))[1],
        "No such file": lambda: str(tmp_path / "nowhere.tar"),
    }
    with daemon.pod("refused") as pod:
        for said, make in bad.items():
            with pytest.raises(grpc.RpcError) as refused:
                pod.create(name="copy", image=make())
            assert re.search(said, str(refused.value.details())), (said, refused.value.details())
        assert not daemon.runtime.ListContainers(cri.ListContainersRequest(), timeout=20).containers
        assert not list((daemon.root / "containers").iterdir())
