"""Manifests, indexes and configurations: what is taken, what is refused, what is chosen."""

from __future__ import annotations

import json
from typing import Any

import pytest

from image.errors import InvalidImage
from image.manifest import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    Manifest,
    choose,
    node_platforms,
    parse_configuration,
    parse_manifest,
    require_platform,
)
from tests.images import build_image, build_index, digest

TREE = build_image([b"x"])


def changed(**changes: Any) -> bytes:
    document = json.loads(TREE.manifest)
    for key, value in changes.items():
        if value is None:
            del document[key]
        else:
            document[key] = value
    return json.dumps(document).encode()


def pointer(media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": TREE.id, "size": 1, **more}


def test_both_kinds_of_manifest_are_taken() -> None:
    docker = build_image(
        [b"x"], media_type=DOCKER_MANIFEST, layer_type=DOCKER_LAYER + ".gzip", config_type=DOCKER_CONFIG
    )
    for image in (TREE, docker):
        manifest = parse_manifest(image.manifest, image.media_type, "x")
        assert isinstance(manifest, Manifest)
        assert manifest.digest == image.digest
        assert manifest.config.digest == image.id
    assert isinstance(parse_manifest(changed(mediaType=None), "application/json; charset=utf-8", "x"), Manifest)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"{", "parse manifest of the thing"),
        (b"\xff\xfe", "parse manifest of the thing"),
        (b"[]", "parse manifest of the thing"),
        (b'{"schemaVersion": 1, "fsLayers": []}', "schema 1 is not supported"),
        (b'{"schemaVersion": 2}', "neither an image manifest nor an index"),
        (changed(manifests=[]), "both an image manifest and an index"),
        (changed(mediaType=OCI_INDEX), "not supported"),
        (changed(config=pointer("application/vnd.cncf.helm.config.v1+json")), "artifact of type .*helm"),
        (changed(layers=[pointer(DOCKER_LAYER, digest="sha256:../../x")]), "not a sha256 digest"),
        (changed(layers=[pointer(DOCKER_LAYER, size=-1)]), "size -1"),
        (changed(layers=[pointer("text/html")]), "unsupported type text/html"),
        (changed(layers=[pointer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")]), "foreign"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(raw: bytes, says: str) -> None:
    with pytest.raises(InvalidImage, match=says):
        parse_manifest(raw, OCI_MANIFEST, "the thing")


def test_the_best_variant_of_this_machine_is_chosen() -> None:
    images = {name: build_image([name.encode()]) for name in ("v6", "v7", "amd64", "windows", "attestation")}
    platforms: list[dict[str, str]] = [
        {"os": "linux", "architecture": "arm", "variant": "v6"},
        {"os": "linux", "architecture": "arm", "variant": "v7"},
        {"os": "linux", "architecture": "amd64"},
        {"os": "windows", "architecture": "amd64", "os.version": "10.0"},
        {"os": "unknown", "architecture": "unknown"},
    ]
    built = build_index(zip(images.values(), platforms, strict=True), DOCKER_LIST)
    index = parse_manifest(built.manifest, DOCKER_LIST, "x")
    assert isinstance(index, Index)
    for machine, name in (("armv7l", "v7"), ("armv6l", "v6"), ("x86_64", "amd64")):
        assert choose(index, node_platforms(machine), "x").digest == images[name].digest
    with pytest.raises(InvalidImage, match=r"no image for linux/riscv64; the index has .*linux/arm/v6"):
        choose(index, node_platforms("riscv64"), "x")


def test_an_entry_without_platform_is_the_last_resort() -> None:
    one, other = build_image([b"1"]), build_image([b"2"])
    document = {"schemaVersion": 2, "manifests": [one.descriptor(), other.descriptor(platform={"os": "linux"})]}
    index = parse_manifest(json.dumps(document).encode(), OCI_INDEX, "x")
    assert isinstance(index, Index)
    assert choose(index, node_platforms("x86_64"), "x").digest == one.digest


def test_a_configuration_with_nothing_in_it_and_one_with_everything() -> None:
    empty = parse_configuration(b'{"rootfs": {"type": "layers", "diff_ids": null}, "config": null}', "x")
    assert (empty.diff_ids, empty.chain_ids, empty.created, empty.config.cmd) == ((), (), 0, ())
    require_platform(empty, node_platforms("x86_64"), "x")
    full = parse_configuration(
        json.dumps(
            {
                "architecture": "arm64", "os": "linux", "created": "2024-02-03T04:05:06.000000007+01:00",
                "config": {"User": "1:2", "Env": ["A=b"], "Entrypoint": ["e"], "Cmd": None, "WorkingDir": "/w",
                           "Volumes": {"/v": {}}, "ExposedPorts": {"80/tcp": {}}, "Labels": {"l": "m"},
                           "StopSignal": "SIGQUIT"},
                "rootfs": {"type": "layers", "diff_ids": [digest(b"1"), digest(b"2")]},
            }
        ).encode(),
        "x",
    )  # fmt: skip
    assert full.created == 1706929506_000000007
    assert (full.config.volumes, full.config.exposed_ports) == (("/v",), ("80/tcp",))
    # The chain id of the image-spec: sha256 of "<lower> <diff id>".
    assert full.chain_ids == (digest(b"1"), digest(f"{digest(b'1')} {digest(b'2')}".encode()))
    with pytest.raises(InvalidImage, match="it is for linux/arm64, this node runs linux/amd64"):
        require_platform(full, node_platforms("x86_64"), "x")


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"rootfs": {"diff_ids": ["sha256:1"]}}', b'{"rootfs": 3}', b"\xff"])
def test_a_damaged_configuration_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidImage, match="parse configuration of the thing"):
        parse_configuration(raw, "the thing")
