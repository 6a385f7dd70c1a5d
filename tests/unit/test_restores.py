"""What is unpacked of a checkpoint's archive is foreign: none of it is followed, waited for or read without bounds."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from image.model import Image, ImageConfig
from image.registry.authfile import kept_credentials
from image.store import ImageStore
from pods.checkpoint import restore as restores
from pods.errors import InvalidArgument

_PROCESS: dict[str, object] = {"args": ["sh"], "cwd": "/"}
_SPEC: dict[str, object] = {"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": _PROCESS}
_TOO_LARGE = (16 << 20) + 1


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, _TOO_LARGE)


def _link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    (tmp_path / "config.dump").write_text(json.dumps({"rootfsImageName": "localhost/base:1"}))
    (tmp_path / "spec.dump").write_text(json.dumps(_SPEC))
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/descriptors.json").write_text("[]")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("checkpoint/descriptors.json", _link_to("/dev/zero"), "'descriptors.json' is not a regular file"),
        ("checkpoint/descriptors.json", os.mkfifo, "'descriptors.json' is not a regular file"),
        ("checkpoint/descriptors.json", _sparse, "descriptors.json is larger than"),
        ("checkpoint/inventory.img", _link_to("/etc/hostname"), "'inventory.img' is not a regular file"),
        ("checkpoint/core-1.img", os.mkfifo, "'core-1.img' is not a regular file"),
        ("checkpoint/parent", _link_to("../.."), "'parent' is not a regular file"),
        ("checkpoint/deeper", Path.mkdir, "'deeper' is not a regular file"),
        ("config.dump", os.mkfifo, "it has no file config.dump"),
        ("config.dump", _sparse, "config.dump is not a JSON object"),
        ("spec.dump", _link_to("/etc/hostname"), "it has no file spec.dump"),
    ],
)
def test_a_hostile_archive_is_refused(unpacked: Path, name: str, make: Callable[[Path], None], said: str) -> None:
    (unpacked / name).unlink(missing_ok=True)
    make(unpacked / name)
    with pytest.raises(InvalidArgument, match=said):
        asyncio.run(restores.read(unpacked, cast(ImageStore, None)))  # refused before an image is looked for


@pytest.mark.parametrize(
    ("process", "linux", "said"),
    [
        (None, {}, "spec.dump: process: is required"),
        ({"args": [""]}, {}, r"spec.dump: process.args\[0\]: expected the name of a program"),
        ({"env": ["A"]}, {}, r"spec.dump: process.env\[0\]: expected NAME=VALUE"),
        ({"env": ["A=\0"]}, {}, r"spec.dump: process.env\[0\]: expected a string without NUL"),
        ({"cwd": "here"}, {}, "spec.dump: process.cwd: expected an absolute path"),
        ({}, {"maskedPaths": ["proc"]}, r"spec.dump: linux.maskedPaths\[0\]: expected an absolute path"),
        ({}, {"readonlyPaths": ["proc"]}, r"spec.dump: linux.readonlyPaths\[0\]: expected an absolute path"),
    ],
)
def test_what_a_start_could_not_be_made_of_is_refused(
    unpacked: Path, process: dict[str, object] | None, linux: dict[str, object], said: str
) -> None:
    spec = {**_SPEC, "process": None if process is None else {**_PROCESS, **process}, "linux": linux}
    (unpacked / "spec.dump").write_text(json.dumps(spec))
    with pytest.raises(InvalidArgument, match=said):
        asyncio.run(restores.read(unpacked, cast(ImageStore, None)))


def test_only_what_is_taken_of_it_has_to_be_right(unpacked: Path) -> None:
    """The rest is the new container's; and members may be spelled in any case, or be absent."""
    linux = {"sysctl": {"vm.swappiness": "1"}, "intelRdt": {}, "Namespaces": [{"Type": "network"}]}
    spec = {**_SPEC, "hostname": "theirs", "Linux": linux, "Process": {**_PROCESS, "scheduler": {"policy": "SCHED_X"}}}
    del spec["process"]
    (unpacked / "spec.dump").write_text(json.dumps(spec))
    base = Image(id="sha256:1", repo_tags=(), repo_digests=(), size=0, config=ImageConfig(), created=0)

    class Images:
        def find(self, name: str) -> Image:
            return base

    found = asyncio.run(restores.read(unpacked, cast(ImageStore, Images())))
    assert (found.document["process"]["args"], found.document["mounts"]) == (["sh"], [])
    assert found.document["linux"]["namespaces"] == [{"type": "network"}]


@pytest.mark.parametrize("user", [None, {}, {"UID": 0}, {"uid": 0, "gid": 0, "additionalGids": None}])
def test_what_is_kept_of_it_is_spelled_as_it_is_looked_at(unpacked: Path, user: object) -> None:
    rlimit = {"Type": "RLIMIT_NOFILE", "hard": 9, "Soft": 9, "more": 1}
    spec = {**_SPEC, "process": {**_PROCESS, "user": user, "env": None, "rlimits": [rlimit]}}
    (unpacked / "spec.dump").write_text(json.dumps(spec))
    base = Image(id="sha256:1", repo_tags=(), repo_digests=(), size=0, config=ImageConfig(), created=0)

    class Images:
        def find(self, name: str) -> Image:
            return base

    process = asyncio.run(restores.read(unpacked, cast(ImageStore, Images()))).document["process"]
    assert process["user"] == {"uid": 0, "gid": 0}
    assert process["rlimits"] == [{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 9}]
    assert "env" not in process


@pytest.mark.trial("checkpoint-base", "an image's checkpoint has its base pulled without the node's logins")
@pytest.mark.parametrize("image_id", ["", "sha256:0"])
def test_the_base_of_an_images_checkpoint_is_pulled_without_logins(unpacked: Path, image_id: str) -> None:
    """Whoever makes images may not read with the node's logins what is not theirs; a file is root's alone."""
    asked: list[tuple[str, Path | None]] = []

    class Images:
        def find(self, name: str) -> None:
            assert name in ("", "localhost/base:1")

        async def pull(self, name: str, auth_file: Path | None = None) -> Image:
            asked.append((name, auth_file))
            return cast(Image, None)

    asyncio.run(restores.read(unpacked, cast(ImageStore, Images()), image_id))
    ((name, logins),) = asked
    assert name == "localhost/base:1"
    assert (logins is None) == (not image_id)
    if logins is not None:
        assert asyncio.run(kept_credentials("localhost/base", [logins])) is None


def test_a_directory_of_images_that_is_a_link_is_refused(unpacked: Path) -> None:
    (unpacked / "checkpoint").rename(unpacked / "elsewhere")
    (unpacked / "checkpoint").symlink_to("elsewhere")
    with pytest.raises(InvalidArgument, match="it has no directory checkpoint/"):
        asyncio.run(restores.read(unpacked, cast(ImageStore, None)))
