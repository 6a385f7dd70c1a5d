"""Images in files as other tools leave them: compressed, with more than images in them, with links."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from image.errors import InvalidImage, NotAnImage, OtherPlatform
from tests.images import (
    ARCHITECTURE,
    BuiltImage,
    build_image,
    build_index,
    busybox_image,
    busybox_layout,
    digest,
    entry,
    layer,
    tar_of,
    write_layout,
)
from tests.integration.test_image_registries import opened

HERE = {"os": "linux", "architecture": ARCHITECTURE}
THERE = {"os": "linux", "architecture": "pdp11"}


def foreign(name: str) -> BuiltImage:
    """An image for another machine."""
    return build_image([layer(entry(name, b""))], architecture="pdp11")


def lay_out(directory: Path, entries: list[dict[str, Any]], *parts: BuiltImage) -> Path:
    """A layout with these entries in its index, and the blobs of `parts`."""
    write_layout(directory, {str(number): part for number, part in enumerate(parts)})
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": None, "manifests": entries}))
    return directory


SIGNATURE = build_image([b"{}"], compressed=False, layer_type="application/vnd.dev.cosign.simplesigning.v1+json")
ATTESTATION = build_image([b"{}"], compressed=False, layer_type="application/vnd.in-toto+json")
ARTIFACT = build_image(
    [b"x"], compressed=False, config_type="application/vnd.oci.empty.v1+json", layer_type="text/plain"
)
REFERRERS = build_index([(SIGNATURE, {"os": "unknown", "architecture": "unknown"})])
BESIDE = {
    "signature": [SIGNATURE.descriptor()],
    "attestation": [ATTESTATION.descriptor(platform={"os": "unknown", "architecture": "unknown"})],
    "artifact": [ARTIFACT.descriptor(artifactType="application/vnd.x")],
    "artifact without a type": [ARTIFACT.descriptor()],
    "another machine's": [foreign("a").descriptor()],
    "another machine's, said so": [foreign("b").descriptor(platform=THERE)],
    "several others'": [foreign("a").descriptor(), foreign("b").descriptor()],
    "an index of signatures": [REFERRERS.descriptor(annotations=None)],
    "something unheard of": [{"mediaType": "application/x-strange", "digest": digest(b"?"), "size": 1}],
    "everything": [SIGNATURE.descriptor(platform=None), ARTIFACT.descriptor(), foreign("a").descriptor()],
}
PARTS = (SIGNATURE, ATTESTATION, ARTIFACT, REFERRERS, foreign("a"), foreign("b"))


@pytest.mark.trial("layouts-with-more", "a layout's images are imported, whatever else lies beside them")
async def test_what_lies_beside_an_image_is_left(tmp_path: Path) -> None:
    image = build_image([layer(entry("here", b""))])
    named = {"annotations": {"io.containerd.image.name": "example.io/a:1"}}
    async with opened(tmp_path) as store:
        for beside, others in BESIDE.items():
            for entries in ([image.descriptor(**named), *others], [*others, image.descriptor(**named)]):
                layout = lay_out(tmp_path / "layout", entries, image, *PARTS)
                (imported,) = await store.import_archive(layout)
                assert (imported.id, imported.repo_tags) == (image.id, ("example.io/a:1",)), beside
                (again,) = await store.import_archive(layout, "example.io/b:2")
                assert again.id == image.id
                await store.remove(image.id)


@pytest.mark.trial("layouts-with-more", "a layout's images are imported, whatever else lies beside them")
async def test_layouts_without_an_image_for_this_machine(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        for number, (entries, kind, says) in enumerate(
            [
                ([SIGNATURE.descriptor()], NotAnImage, "unsupported type .*cosign"),
                ([ARTIFACT.descriptor()], NotAnImage, "artifact of type"),
                ([foreign("a").descriptor(platform=THERE)], OtherPlatform, "pdp11"),
                (BESIDE["several others'"], OtherPlatform, "no image for"),
                ([], OtherPlatform, "no image for"),
            ]
        ):
            with pytest.raises(kind, match=says):
                await store.import_archive(lay_out(tmp_path / f"none{number}", entries, *PARTS))
        # One alone is what somebody wants here, whatever it says of itself.
        (alone,) = await store.import_archive(lay_out(tmp_path / "alone", [foreign("a").descriptor()], *PARTS))
        assert alone.id == foreign("a").id
        two = [build_image([layer(entry(name, b""))]) for name in "xy"]
        entries = [one.descriptor(platform=HERE) for one in two]
        assert len(await store.import_archive(lay_out(tmp_path / "two", entries, *two))) == 2
        damaged = lay_out(tmp_path / "damaged", [two[0].descriptor(), SIGNATURE.descriptor()], *two, *PARTS)
        (damaged / "blobs/sha256" / two[0].id[7:]).write_bytes(b"{}")
        with pytest.raises(Exception, match="has digest"):
            await store.import_archive(damaged)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gz": lambda raw: gzip.compress(raw, 1),
    "zst": lambda raw: zstandard.compress(raw, 1),
    "members.gz": lambda raw: gzip.compress(raw[:10_000], 1) + gzip.compress(raw[10_000:], 1),
}


@pytest.mark.trial("compressed-archives", "archives compressed with gzip or zstd are imported")
@pytest.mark.parametrize("kind", COMPRESSORS)
async def test_compressed_archives(kind: str, tmp_path: Path) -> None:
    whole = tar_of(busybox_layout(tmp_path / "layout"), tmp_path / "layout.tar").read_bytes()
    path = tmp_path / "archive"  # what it is, is told by its content
    path.write_bytes(COMPRESSORS[kind](whole))
    async with opened(tmp_path) as store:
        (image,) = await store.import_archive(path)
        assert image.id == busybox_image().id
        await store.remove(image.id)
        for damaged in (
            path.read_bytes()[:-1000],
            path.read_bytes()[:50_000] + bytes(1000),
            COMPRESSORS[kind](b"no tar"),
        ):
            path.write_bytes(damaged)
            with pytest.raises(InvalidImage, match=f"read {path}: "):
                await store.import_archive(path)


@pytest.mark.trial("compressed-archives", "archives compressed with gzip or zstd are imported")
@pytest.mark.parametrize(("magic", "name"), [(b"BZh91AY", "bzip2"), (b"\xfd7zXZ\0\0", "xz")])
async def test_archives_compressed_otherwise_are_told_by_name(magic: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(magic + bytes(100))
    async with opened(tmp_path) as store:
        with pytest.raises(InvalidImage, match=f"compressed with {name}"):
            await store.import_archive(tmp_path / "a.tar")


def _docker_directory(directory: Path) -> tuple[Path, bytes]:
    """What `docker save` writes, unpacked, with a layer that is a link to another's; and its configuration."""
    tar = layer(entry("x", b"x"))
    raw = json.dumps({**HERE, "rootfs": {"type": "layers", "diff_ids": [digest(tar)] * 2}}).encode()
    (directory / "one").mkdir(parents=True)
    (directory / "two").mkdir()
    (directory / "one/layer.tar").write_bytes(tar)
    (directory / "two/layer.tar").symlink_to("../one/layer.tar")
    (directory / "config.json").write_bytes(raw)
    document = [{"Config": "config.json", "RepoTags": None, "Layers": ["one/layer.tar", "two/layer.tar"]}]
    (directory / "manifest.json").write_text(json.dumps(document))
    return directory, raw


@pytest.mark.trial("archive-members", "what an archive's documents name is looked for in the archive and nowhere else")
@pytest.mark.parametrize(
    "member", ["..", "absolute", "link", "directory link", "absolute link", "fifo", "directory", "magic link", "NUL"]
)
async def test_members_stay_in_the_directory(member: str, tmp_path: Path) -> None:
    directory, raw = _docker_directory(tmp_path / "archive")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/config.json").write_bytes(raw)
    config = directory / "config.json"
    async with opened(tmp_path) as store:
        (image,) = await store.import_archive(directory, "example.io/a:1")
        assert image.id == digest(raw)
        named = {"..": "../outside/config.json", "absolute": f"{tmp_path}/outside/config.json", "NUL": "config\0.json"}
        name = named.get(member, "config.json")
        if member not in named:
            config.unlink()
        if member == "link":
            config.symlink_to("../outside/config.json")
        elif member == "absolute link":
            config.symlink_to(tmp_path / "outside/config.json")
        elif member == "directory link":
            (directory / "sub").symlink_to("../outside")
            name = "sub/config.json"
        elif member == "fifo":
            os.mkfifo(config)
        elif member == "directory":
            config.mkdir()
        elif member == "magic link":
            config.symlink_to("/proc/self/environ")
        manifest = json.loads((directory / "manifest.json").read_text())
        manifest[0]["Config"] = name
        (directory / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(InvalidImage, match="config"):
            await store.import_archive(directory, "example.io/b:1")


async def test_a_docker_archive_in_other_words(tmp_path: Path) -> None:
    """Nulls, a claim of another machine, and a tar that is a link to a sibling."""
    directory, raw = _docker_directory(tmp_path / "archive")
    other = raw.replace(ARCHITECTURE.encode(), b"pdp11")
    (directory / "config.json").write_bytes(other)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(directory, ".")
    async with opened(tmp_path) as store:
        for path in (directory, tmp_path / "a.tar"):
            (image,) = await store.import_archive(path)
            assert (image.id, image.repo_tags) == (digest(other), ())
