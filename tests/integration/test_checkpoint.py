"""CheckpointContainer where it cannot be: the guest (tests/vm) has a kernel that criu knows, and does it."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import re
import resource
import shutil
import stat
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from pods.checkpoint.changes import add_file, write_changes
from pods.directories import remove_tree
from tests.daemon import BUSYBOX, CALL_SECONDS, Daemon, Pod
from tests.images import build_image, entry, layer, write_layout
from tests.waiting import until


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
        for no_file in ("archive.tar", f"{tmp_path}/.", f"{tmp_path}/"):
            assert _refused(pod, created, no_file)[0] == "INVALID_ARGUMENT"
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
    assert write_changes(upper, tmp_path / "changes.tar") == ["etc/gone"]
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


def _exchange_for_ever(one: Path, other: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE, again and again."""
    libc = ctypes.CDLL(None)
    while True:
        libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2)


@pytest.mark.trial("checkpoint-by-descriptor", "a checkpoint holds the container's files and none of the host's")
def test_a_file_that_becomes_a_link_meanwhile_brings_nothing_of_the_hosts(tmp_path: Path) -> None:
    secret, upper = tmp_path / "secret", tmp_path / "upper"
    (upper / "directory").mkdir(parents=True)
    (tmp_path / "secrets").mkdir()
    for place in (secret, tmp_path / "secrets/secret"):
        place.write_text("of the host")
    for number in range(30):
        (upper / f"f{number}").write_text("the container's")
    (upper / "f-exchanged").write_text("the container's")
    (upper / "l-exchanged").symlink_to(secret)
    (upper / "directory-link").symlink_to(tmp_path / "secrets")
    context = multiprocessing.get_context("fork")
    pairs = (("f-exchanged", "l-exchanged"), ("directory", "directory-link"))
    others = [context.Process(target=_exchange_for_ever, args=(upper / a, upper / b)) for a, b in pairs]
    for other in others:
        other.start()
    try:
        for _ in range(60):
            write_changes(upper, tmp_path / "changes.tar")
            with tarfile.open(tmp_path / "changes.tar") as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isreg() else None
                    assert content is None or content.read() == b"the container's"
    finally:
        for other in others:
            other.kill()
            other.join()


@pytest.mark.trial("checkpoint-by-descriptor", "a checkpoint holds the container's files and none of the host's")
def test_what_is_no_file_holds_up_no_checkpoint_and_any_number_of_names_fits(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    os.mkfifo(upper / "pipe")
    os.mknod(upper / "device", stat.S_IFCHR | 0o600, os.makedev(1, 11))
    for number in range(1500):
        (upper / f"{number:0200}").touch()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 16, hard))
    tracemalloc.start()
    try:
        write_changes(upper, tmp_path / "changes.tar")
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert peak < 512 << 10
    with tarfile.open(tmp_path / "changes.tar") as archive:
        kinds = {member.name: member.type for member in archive}
    assert (kinds["pipe"], kinds["device"], len(kinds)) == (tarfile.FIFOTYPE, tarfile.CHRTYPE, 1502)
    (upper / "deep").mkdir()
    deep = os.open(upper / "deep", os.O_RDONLY)
    for _ in range(600):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    with pytest.raises(ValueError, match="deeper than 512 directories"):
        write_changes(upper, tmp_path / "changes.tar")
    remove_tree(upper)


def test_a_file_keeps_the_length_that_was_told(tmp_path: Path) -> None:
    growing, shrinking = tmp_path / "growing", tmp_path / "shrinking"
    growing.write_bytes(b"12345")
    shrinking.write_bytes(b"x" * 100_000)
    with tarfile.open(tmp_path / "two.tar", "w") as archive:
        for path in (growing, shrinking):
            with path.open("rb") as file:
                described = archive.gettarinfo

                def told(*args: Any, path: Path = path, described: Any = described, **kwargs: Any) -> tarfile.TarInfo:
                    member = described(*args, **kwargs)
                    os.truncate(path, 50_000)
                    return cast(tarfile.TarInfo, member)

                archive.gettarinfo = told  # type: ignore[method-assign]
                add_file(archive, path.name, file)
                archive.gettarinfo = described  # type: ignore[method-assign]
    with tarfile.open(tmp_path / "two.tar") as archive:
        assert [member.size for member in archive] == [5, 100_000]
        content = archive.extractfile("shrinking")
        assert content is not None
        assert content.read() == b"x" * 50_000 + bytes(50_000)


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
        until(lambda: not upper.parent.exists())


def test_an_image_that_holds_a_checkpoint_takes_leave(
    daemon: Daemon, parts: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = layer(entry("checkpoint/"), *(entry(name, value) for name, value in parts.items()))
    image = build_image([content], {}, annotations={"org.criu.checkpoint.container.name": "origin"})
    name = "localhost/checkpoint:1"
    daemon.import_image(write_layout(tmp_path / "layout", {name: image}))
    with daemon.pod("copy") as pod, pytest.raises(grpc.RpcError, match="checkpoint_images = true") as refused:
        pod.create(name="copy", image=name)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    (tmp_path / "crisp.toml").write_text('checkpoint_images = true\nimage_layers = "erofs"\n')
    (tmp_path / "criu").write_text("#!/bin/false\n")
    (tmp_path / "criu").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with Daemon.running(f"--config={tmp_path}/crisp.toml") as allowing:
        allowing.import_busybox()
        allowing.import_image(tmp_path / "layout")
        with allowing.pod("copy") as pod:
            container_id = pod.create(name="copy", image=name)
            assert (allowing.root / "containers" / container_id / "upper/etc/new").read_text() == "new"
            allowing.kill9()  # with it goes its mount of the image, which the next daemon has under another name
            allowing.start()
            with pytest.raises(grpc.RpcError, match=r"checkpoint/descriptors\.json`: No such file"):
                allowing.runtime.StartContainer(cri.StartContainerRequest(container_id=container_id), timeout=20)


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
        "not a checkpoint: it has no file spec.dump": lambda: _archive(path, _without(parts, "spec.dump")),
        "it has no file config.dump": lambda: _archive(path, _without(parts, "config.dump")),
        "no directory check": lambda: (path.write_bytes(layer(*(entry(n, c) for n, c in parts.items()))), str(path))[1],
        "it has no file spec.dump": lambda: _archive(path, _without(parts, "spec.dump"), (link, b"")),
        "descriptors.json' is not a regular file": lambda: _archive(path, parts, (outwards, b"")),
        "config.dump is not a JSON object": lambda: _archive(path, _without(parts, "config.dump", b"[" * 100_000)),
        "spec.dump: process": lambda: _archive(path, _without(parts, "spec.dump", json.dumps(wrong).encode())),
        "deleted.files is not a list": lambda: _archive(path, _without(parts, "deleted.files", b'{"a": 1}')),
        "whiteout without a name": lambda: _archive(path, _without(parts, "deleted.files", b'[".."]')),
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
        until(lambda: not list((daemon.root / "containers").iterdir()))
