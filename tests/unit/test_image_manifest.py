"""Manifests, indexes and configurations: what is taken, what is refused, what is chosen."""

from __future__ import annotations

import contextlib
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from image.archive.members import open_archive
from image.archive.read import archived_images
from image.configuration import Configuration, doubt, parse_configuration
from image.documents import Malformed, decode
from image.errors import InvalidImage, NotAnImage, OtherPlatform
from image.manifest import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    choose,
    parse_manifest,
)
from image.platforms import Platform, node_platforms
from image.pull.one import Resolved, choose_manifest
from image.reference import digest_of, parse_reference
from tests.images import OCI_LAYER, build_image, digest

Reading = Callable[[Descriptor], bytes]

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
        (b"[" * 100_000, "nested too deep"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(raw: bytes, says: str) -> None:
    with pytest.raises(InvalidImage, match=says):
        parse_manifest(raw, OCI_MANIFEST, "the thing")


def index_of(platforms: dict[str, dict[str, str] | None]) -> tuple[Index, dict[str, str], Reading]:
    """An index of images by name, their digests, and what reads any of them."""
    images = {name: build_image([name.encode()]) for name in platforms}
    for name, image in images.items():
        config = json.loads(image.blobs.pop(image.id))
        raw = json.dumps({**config, "architecture": name.partition(" ")[0]}).encode()
        manifest = json.loads(image.manifest)
        manifest["config"].update(digest=digest(raw), size=len(raw))
        image.id, image.manifest, image.blobs[digest(raw)] = digest(raw), json.dumps(manifest).encode(), raw
    entries = [
        image.descriptor() if platforms[name] is None else image.descriptor(platform=platforms[name])
        for name, image in images.items()
    ]
    index = parse_manifest(json.dumps({"schemaVersion": 2, "manifests": entries}).encode(), DOCKER_LIST, "x")
    assert isinstance(index, Index)
    content = {digest(raw): raw for image in images.values() for raw in (image.manifest, *image.blobs.values())}
    return index, {image.digest: name for name, image in images.items()}, lambda one: content[one.digest]


def chosen(index: Index, machine: str, read: Reading) -> str:
    """The digest of the manifest that is chosen for a machine."""
    steps = choose(index, node_platforms(machine), "x")
    try:
        wanted = next(steps)
        while True:
            wanted = steps.send(read(wanted))
    except StopIteration as end:
        return str(end.value.digest)


def test_the_best_variant_of_this_machine_is_chosen() -> None:
    index, names, read = index_of(
        {
            "v6": {"os": "linux", "architecture": "arm", "variant": "v6"},
            "v7": {"os": "linux", "architecture": "arm", "variant": "v7"},
            "amd64": {"os": "linux", "architecture": "amd64"},
            "windows": {"os": "windows", "architecture": "amd64", "os.version": "10.0"},
            "attestation": {"os": "unknown", "architecture": "unknown"},
        }
    )
    for machine, name in (("armv7l", "v7"), ("armv6l", "v6"), ("x86_64", "amd64"), ("aarch64", "v7")):
        assert names[chosen(index, machine, read)] == name
    with pytest.raises(OtherPlatform, match=r"no image for linux/riscv64; the index has .*linux/arm/v6"):
        chosen(index, "riscv64", read)


@pytest.mark.trial("image-platforms", "platforms are compared as containerd does, and claims only doubted")
@pytest.mark.parametrize(
    ("machine", "offered", "expected"),
    [
        ("x86_64", ["linux/386", "linux/arm64"], "linux/386"),
        ("x86_64", ["linux/386", "linux/amd64"], "linux/amd64"),
        ("x86_64", ["linux/amd64/v3", "Linux/X86_64"], "Linux/X86_64"),
        ("x86_64", ["linux/x86-64"], "linux/x86-64"),
        ("x86_64", ["linux/AMD64/v1"], "linux/AMD64/v1"),
        ("x86_64", ["linux/i386"], "linux/i386"),
        ("x86_64", ["windows/amd64", "linux/i686"], "linux/i686"),
        ("x86_64", ["linux/amd64/v3"], ""),
        ("i686", ["linux/amd64", "linux/386/softfloat"], "linux/386/softfloat"),
        ("aarch64", ["linux/arm/v7", "linux/aarch64"], "linux/aarch64"),
        ("aarch64", ["linux/arm/v6", "linux/arm64/8"], "linux/arm64/8"),
        ("aarch64", ["linux/arm/v5", "linux/arm/v6", "linux/arm/7"], "linux/arm/7"),
        ("aarch64", ["linux/arm/v6", "linux/arm"], "linux/arm"),
        ("aarch64", ["linux/armel"], "linux/armel"),
        ("armv7l", ["linux/arm/v8", "linux/armhf"], "linux/armhf"),
        ("armv7l", ["linux/arm/v8"], ""),
        ("armv6l", ["linux/arm/v7", "linux/arm/v6"], "linux/arm/v6"),
        ("ppc64le", ["linux/ppc64", "linux/ppc64el"], "linux/ppc64el"),
        ("pdp11", ["linux/vax", "linux/PDP11"], "linux/PDP11"),
    ],
)
def test_platforms_in_other_words(machine: str, offered: list[str], expected: str) -> None:
    platforms = [dict(zip(("os", "architecture", "variant"), one.split("/"), strict=False)) for one in offered]
    index, names, read = index_of(dict(zip(offered, platforms, strict=True)))
    if expected:
        assert names[chosen(index, machine, read)] == expected
    else:
        with pytest.raises(OtherPlatform):
            chosen(index, machine, read)


@pytest.mark.trial("image-platforms", "platforms are compared as containerd does, and claims only doubted")
def test_entries_without_a_platform_are_what_their_configurations_say() -> None:
    index, names, read = index_of({"arm64": None, "amd64": None, "s390x": {"os": "linux", "architecture": "s390x"}})
    assert names[chosen(index, "x86_64", read)] == "amd64"
    assert names[chosen(index, "aarch64", read)] == "arm64"
    assert names[chosen(index, "s390x", read)] == "s390x"
    with pytest.raises(OtherPlatform):
        chosen(index, "riscv64", read)
    alone, names, read = index_of({"arm64": {}})
    assert names[chosen(alone, "x86_64", read)] == "arm64"


@pytest.mark.trial("image-platforms", "platforms are compared as containerd does, and claims only doubted")
@pytest.mark.parametrize("architecture", ["", "amd64", "386", "i386", "x86_64", "AMD64", None])
def test_what_a_configuration_says_of_this_machine(architecture: str | None) -> None:
    raw = json.dumps({"architecture": architecture, "os": "Linux", "rootfs": {"type": "layers"}}).encode()
    assert doubt(parse_configuration(raw, "x"), node_platforms("x86_64"), "x") == ""


@given(st.builds(Platform, st.text(), st.text(), st.text()))
def test_normalised_twice_is_normalised_once(platform: Platform) -> None:
    assert platform.normalised.normalised == platform.normalised


def test_a_configuration_with_nothing_in_it_and_one_with_everything() -> None:
    empty = parse_configuration(b'{"rootfs": {"type": "layers", "diff_ids": null}, "config": null}', "x")
    assert (empty.diff_ids, empty.chain_ids, empty.created, empty.config.cmd) == ((), (), 0, ())
    assert doubt(empty, node_platforms("x86_64"), "x") == ""
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
    doubtful = "its configuration is for linux/arm64, this node runs linux/amd64"
    assert doubt(full, node_platforms("x86_64"), "x") == doubtful
    windows = parse_configuration(b'{"os": "windows", "architecture": "amd64", "rootfs": {}}', "x")
    with pytest.raises(OtherPlatform, match="is for windows/amd64"):
        doubt(windows, node_platforms("x86_64"), "x")


@pytest.mark.trial("lists-have-an-end", "a list whose entries cost something, of a request or an image, has a bound")
def test_an_image_with_too_many_volumes_is_refused_when_it_comes() -> None:
    def configuration(count: int) -> Configuration:
        volumes = {f"/v{number}": {} for number in range(count)}
        return parse_configuration(json.dumps({"rootfs": {}, "config": {"Volumes": volumes}}).encode(), "x")

    doubt(configuration(1000), node_platforms(), "x")
    with pytest.raises(InvalidImage, match="pull x: it has 1001 volumes, more than 1000"):
        doubt(configuration(1001), node_platforms(), "x")


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"rootfs": {"diff_ids": ["sha256:1"]}}', b'{"rootfs": 3}', b"\xff"])
def test_a_damaged_configuration_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidImage, match="parse configuration of the thing"):
        parse_configuration(raw, "the thing")


# --- what is inert in them


@pytest.mark.trial("inert-in-images", "what is inert in an image does not refuse it")
@pytest.mark.parametrize("config", ["application/octet-stream", "", DOCKER_CONFIG])
@pytest.mark.parametrize(
    "layer",
    [
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ],
)
def test_types_that_change_nothing(config: str, layer: str) -> None:
    raw = changed(config=pointer(config), layers=[pointer(layer, urls=["https://evil.example/x"])])
    manifest = parse_manifest(raw, OCI_MANIFEST, "x")
    assert isinstance(manifest, Manifest)
    assert manifest.layers[0].foreign
    with pytest.raises(NotAnImage, match="artifact of type application/x"):
        parse_manifest(changed(config=pointer("application/octet-stream"), artifactType="application/x"), "", "x")


def with_nulls(document: Any) -> Any:
    """The same with a null for each of some members that are not there."""
    if isinstance(document, dict):
        absent = {name: None for name in ABSENT if name not in document}
        return {**{key: with_nulls(value) for key, value in document.items()}, **absent}
    return [with_nulls(one) for one in document] if isinstance(document, list) else document


ABSENT = (
    "mediaType", "artifactType", "annotations", "platform", "subject", "urls", "variant", "os", "os.version",
    "os.features", "history", "author", "created", "User", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir",
    "Labels", "StopSignal", "ExposedPorts", "config", "type",
)  # fmt: skip


@pytest.mark.trial("null-is-missing", "null is taken for a member that is missing, as Go's programs take it")
def test_nulls_in_manifests_and_configurations() -> None:
    layers = json.loads(TREE.manifest)["layers"]
    manifest = with_nulls({"schemaVersion": 2, "config": {"digest": TREE.id, "size": 2}, "layers": layers})
    parsed = parse_manifest(json.dumps(manifest).encode(), OCI_MANIFEST, "x")
    assert isinstance(parsed, Manifest)
    assert len(parsed.layers) == 1
    for nothing in (changed(layers="null"), changed(layers=None)):
        empty = parse_manifest(nothing.replace(b'"null"', b"null"), OCI_MANIFEST, "x")
        assert isinstance(empty, Manifest)
        assert empty.layers == ()
    index = with_nulls({"schemaVersion": 2, "manifests": [TREE.descriptor(platform={"architecture": "arm"})]})
    listed = parse_manifest(json.dumps(index).encode(), OCI_INDEX, "x")
    assert isinstance(listed, Index)
    assert listed.manifests[0].platform == Platform(architecture="arm")
    assert parse_manifest(b'{"schemaVersion": 2, "manifests": null}', OCI_INDEX, "x") == Index(())
    raw = json.dumps(with_nulls({"rootfs": {"diff_ids": []}, "config": {"Env": ["A=b", None]}, "architecture": "arm"}))
    config = parse_configuration(raw.encode(), "x").config
    assert (config.env, config.volumes, config.os, config.architecture) == (("A=b", ""), (), "", "arm")
    volumes = parse_configuration(b'{"rootfs": {}, "config": {"Volumes": {"/v": null}, "Labels": {"l": null}}}', "x")
    assert (volumes.config.volumes, volumes.config.labels) == (("/v",), {"l": ""})


@pytest.mark.trial("null-is-missing", "null is taken for a member that is missing, as Go's programs take it")
def test_text_that_is_no_text() -> None:
    """Go's programs read such bytes as U+FFFD, and so does whoever shows them."""
    raw = b'{"rootfs": {}, "config": {"Env": ["A=caf\xe9"], "Labels": {"l": "half \\ud83d", "m": "\\ud83d\\ude00"}}}'
    config = parse_configuration(raw, "x").config
    assert config.env == ("A=caf\ufffd",)
    assert config.labels == {"l": "half \ufffd", "m": "\U0001f600"}


@pytest.mark.parametrize("filler", ["[[[]]]", '{"a":1}', '"caf\\u00e9"', "null"])
def test_members_that_nobody_asked_for_are_not_made_values_of(filler: str) -> None:
    """Nor when a null has the document looked into: they can be most of its 8 MiB, and took seconds."""
    many = ",".join([filler] * 100_000)
    manifest = changed()[:-1] + f', "artifactType": null, "unknown": [{many}]}}'.encode()
    configuration = f'{{"rootfs": {{}}, "os": null, "config": {{"Unknown": [{many}]}}, "x": [{many}]}}'.encode()
    readings: list[tuple[bytes, Callable[[bytes], object]]] = [
        (manifest, lambda raw: parse_manifest(raw, OCI_MANIFEST, "x")),
        (configuration, lambda raw: parse_configuration(raw, "x")),
    ]
    for raw, parse in readings:
        tracemalloc.start()
        parse(raw)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * len(raw)


def test_more_nulls_than_a_document_has_are_not_looked_for() -> None:
    layer = json.dumps(pointer(OCI_LAYER, artifactType=None))
    for count, says in ((400, ""), (501, "501 layers"), (20_001, "null")):
        raw = changed(layers="x").replace(b'"x"', f"[{','.join([layer] * count)}]".encode())
        if not says:
            assert isinstance(parse_manifest(raw, OCI_MANIFEST, "x"), Manifest)
            continue
        with pytest.raises(InvalidImage, match=says):
            parse_manifest(raw, OCI_MANIFEST, "x")


class Thing(msgspec.Struct, frozen=True):
    """Of every kind of member."""

    needed: int
    text: str = ""
    number: int = 7
    maybe: str | None = None
    things: tuple[str, ...] = ()
    named: dict[str, int] = msgspec.field(default_factory=dict)
    inner: tuple[Platform, ...] | None = None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(Thing.__struct_fields__), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.trial("null-is-missing", "null is taken for a member that is missing, as Go's programs take it")
@given(st.dictionaries(st.sampled_from(Thing.__struct_fields__), _JSON))
def test_with_nulls_a_document_is_what_it_is_without(document: dict[str, Any]) -> None:
    def read(one: dict[str, Any]) -> Thing | str:
        try:
            return decode(json.dumps(one).encode(), Thing)
        except Malformed:
            return "malformed"

    assert read(document) == read({key: value for key, value in document.items() if value is not None})


@pytest.mark.parametrize("number", ["1e999", "9" * 5000, "-1e400"])
def test_a_document_that_is_only_shown_may_have_numbers_that_are_none(number: str) -> None:
    assert decode(f'{{"a": {number}, "b": [1, 2.5]}}'.encode(), dict) == {"a": None, "b": [1, 2.5]}


@given(st.binary(max_size=60) | _JSON.map(lambda one: json.dumps(one).encode()))
def test_any_bytes_are_a_document_or_malformed(raw: bytes) -> None:
    with contextlib.suppress(Malformed):
        decode(raw, Thing)


@pytest.mark.trial("too-many-layers", "An image that no overlay can be made of is refused before any layer is fetched.")
def test_more_layers_than_the_kernel_mounts(tmp_path: Path) -> None:
    layer = json.loads(TREE.manifest)["layers"][0]
    manifest = parse_manifest(changed(layers=[layer] * 500), OCI_MANIFEST, "x")
    assert isinstance(manifest, Manifest)
    assert len(manifest.layers) == 500
    with pytest.raises(InvalidImage, match=r"x: it has 501 layers, .* at most 500"):
        parse_manifest(changed(layers=[layer] * 501), OCI_MANIFEST, "x")
    (tmp_path / "config").write_bytes(TREE.blobs[TREE.id])
    (tmp_path / "manifest.json").write_text(json.dumps([{"Config": "config", "Layers": ["l"] * 501}]))
    here = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.closing(open_archive(tmp_path, here)) as archive, pytest.raises(InvalidImage, match="501 layers"):
        archived_images(archive, node_platforms())


@pytest.mark.trial("deep-json", "A document of an image that is nested without end is the image's fault, and said so.")
@pytest.mark.parametrize("shape", ['{"a":', "["])
def test_documents_without_end(shape: str) -> None:
    deep = shape * 100_000
    for text in (deep, f'{{"schemaVersion": 2, "x": {deep}', f'{{"rootfs": {{}}, "x": {deep}'):
        with pytest.raises(InvalidImage):
            parse_manifest(text.encode(), OCI_MANIFEST, "x")
        with pytest.raises(InvalidImage):
            parse_configuration(text.encode(), "x")
    closing = deep + "1" + ("}" if shape == '{"a":' else "]") * 100_000
    with pytest.raises(InvalidImage, match="deep"):
        parse_manifest(b'{"schemaVersion": 2, "x": ' + closing.encode() + b"}", OCI_MANIFEST, "x")
    with pytest.raises(InvalidImage, match="deep"):
        parse_configuration(b'{"rootfs": {}, "config": {"Labels": ' + closing.encode() + b"}}", "x")


async def test_a_choice_among_indexes_without_end_has_one() -> None:
    """Indexes of indexes that name no platform: each of their manifests would have to be looked into."""
    configuration = json.dumps({"architecture": "s390x", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}})
    documents: dict[str, bytes] = {}

    def kept(document: bytes, media_type: str) -> dict[str, Any]:
        documents[digest_of(document)] = document
        return {"mediaType": media_type, "digest": digest_of(document), "size": len(document)}

    config = kept(configuration.encode(), OCI_CONFIG)
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}
    entry = kept(json.dumps(manifest).encode(), OCI_MANIFEST)
    for _ in range(3):
        entry = kept(json.dumps({"schemaVersion": 2, "manifests": [entry] * 8}).encode(), OCI_INDEX)
    top = parse_manifest(documents[entry["digest"]], OCI_INDEX, "x")
    asked = []

    class Places:
        async def manifest(self, digest: str, read: Any) -> Any:
            asked.append(digest)
            return read(documents[digest], "")

        async def document(self, descriptor: Descriptor, limit: int) -> bytes:
            asked.append(descriptor.digest)
            return documents[descriptor.digest]

    resolved = Resolved(parse_reference("r.test/x"), entry["digest"], top)
    with pytest.raises(InvalidImage, match="more than 32 manifests and configurations"):
        await choose_manifest(Places(), resolved, node_platforms("x86_64"))  # type: ignore[arg-type]
    assert len(asked) == 32
