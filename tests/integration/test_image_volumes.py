"""Images mounted as volumes (KEP-4639): what is seen of them, what cannot be, how long they stay."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon, Pod
from tests.images import BUSYBOX, build_image, entry, layer, write_layout

ONE, MANY = "localhost/one:1", "localhost/many:1"
LINES = [cri.IDMapping(host_id=1_000_000, container_id=0, length=65536)]

pytestmark = pytest.mark.cri("CreateContainer", "mounts.image", "mounts.image_sub_path")


@pytest.fixture(scope="module")
def daemon(daemon_of_each_kind: Daemon) -> Daemon:
    return daemon_of_each_kind


@pytest.fixture(scope="module")
def images(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An image of one layer and one of three, by name: their ids."""
    base = layer(
        entry("data/"), entry("data/a", b"a1", uid=7, gid=8), entry("data/gone", b"x"),
        entry("busybox", BUSYBOX.read_bytes(), mode=0o755),
        entry("out", type=tarfile.SYMTYPE, linkname="../../../../data"),
        entry("host", type=tarfile.SYMTYPE, linkname="/etc"),
    )  # fmt: skip
    over = layer(entry("data/b", b"b2"), entry("data/.wh.gone", b""))
    top = layer(entry("data/a", b"a3", uid=7, gid=8))
    layout = write_layout(
        tmp_path_factory.mktemp("layout"), {ONE: build_image([base]), MANY: build_image([base, over, top])}
    )
    daemon.import_image(layout)
    return {name: _image_id(daemon, name) for name in (ONE, MANY)}


def _image_id(daemon: Daemon, name: str) -> str:
    request = cri.ImageStatusRequest(image=cri.ImageSpec(image=name))
    return str(daemon.images.ImageStatus(request, timeout=30).image.id)


@pytest.fixture(scope="module")
def pod(daemon: Daemon, images: dict[str, str]) -> Iterator[Pod]:
    with daemon.pod("volumes") as running:
        daemon.wait_exited(running.run("true", name="first"))  # makes the pod's cgroup
        yield running


def _mount(image: str, sub_path: str = "", **fields: Any) -> cri.Mount:
    return cri.Mount(**{"container_path": "/v", "image": cri.ImageSpec(image=image), "image_sub_path": sub_path,
                        "readonly": True, **fields})  # fmt: skip


_names = iter(range(10**6))


def _output(pod: Pod, command: str, *mounts: cri.Mount, **fields: Any) -> list[str]:
    name = f"c{next(_names)}"
    container = pod.run("sh", "-c", f"exec 2>&1; {command}; true", name=name, mounts=mounts, **fields)
    status = pod.daemon.wait_exited(container)
    lines = [line.split(" ", 3)[3] for line in pod.log(name).splitlines()]
    assert status.exit_code == 0, lines
    pod.daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), timeout=30)
    return lines


@pytest.mark.parametrize(("image", "expected"), [(ONE, ["a1", "gone"]), (MANY, ["a3", "b"])])
def test_its_layers_are_merged_and_readonly(pod: Pod, image: str, expected: list[str]) -> None:
    look = "cat /v/data/a; echo; ls /v/data | tail -n 1; stat -c %u:%g /v/data/a; touch /v/x; /v/busybox echo runs"
    first, last, owner, refused, runs = _output(pod, look, _mount(image))
    assert [first, last, owner, runs] == [*expected, "7:8", "runs"]
    assert "Read-only file system" in refused
    assert not [line for line in Path("/proc/self/mounts").read_text().splitlines() if "/image/layers" in line]


@pytest.mark.parametrize("image", [ONE, MANY])
def test_sub_paths_stay_in_the_image(pod: Pod, image: str) -> None:
    assert "a" in _output(pod, "ls /v", _mount(image, "data"))
    assert "a" in _output(pod, "ls /v", _mount(image, "out"))
    assert _output(pod, "cat /v; echo", _mount(image, "data/a"))[0] in ("a1", "a3")
    for wrong in ("nowhere", "host", "data/a/below"):
        with pytest.raises(grpc.RpcError) as raised:
            pod.create("true", name="wrong", mounts=[_mount(image, wrong)])
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "image_sub_path" in raised.value.details()
        assert raised.value.details().startswith("ImageVolumeMountFailed: ")
        assert wrong in raised.value.details()


@pytest.mark.parametrize("image", [ONE, MANY])
def test_in_a_user_namespace_its_files_are_the_containers(daemon: Daemon, images: object, image: str) -> None:
    options = cri.NamespaceOption(userns_options=cri.UserNamespace(mode=cri.POD, uids=LINES, gids=LINES))
    config = daemon.sandbox_config("users")
    config.linux.security_context.namespace_options.CopyFrom(options)
    linux = cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(namespace_options=options))
    with daemon.pod(config=config) as pod:
        look = "stat -c %u:%g /v /v/a"
        assert _output(pod, look, _mount(image, "data", uidMappings=LINES, gidMappings=LINES), linux=linux) == [
            "0:0", "7:8",
        ]


@pytest.mark.cri("ContainerStatus", "mounts.image")
@pytest.mark.cri("RemoveImage")
def test_it_is_told_and_stays_as_long_as_the_container(fresh_daemon: Daemon, tmp_path: Path) -> None:
    daemon = fresh_daemon
    daemon.import_image(write_layout(tmp_path, {ONE: build_image([layer(entry("f", b"1"))])}))
    image_id = _image_id(daemon, ONE)
    remove = cri.RemoveImageRequest(image=cri.ImageSpec(image=ONE))
    with daemon.pod("held") as pod:
        container = pod.run("sleep", "100", mounts=[_mount(ONE)])
        (mount,) = daemon.status(container).mounts
        assert (mount.container_path, mount.image.image, mount.image.image_ref) == ("/v", image_id, image_id)
        daemon.restart()
        with pytest.raises(grpc.RpcError) as raised:
            daemon.images.RemoveImage(remove, timeout=30)
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert pod.exec(container, "cat", "/v/f").stdout == b"1"
    daemon.images.RemoveImage(remove, timeout=30)


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"readonly": False}, grpc.StatusCode.INVALID_ARGUMENT, "readonly"),
        ({"propagation": cri.PROPAGATION_HOST_TO_CONTAINER}, grpc.StatusCode.INVALID_ARGUMENT, "propagation"),
        ({"image_sub_path": "../x"}, grpc.StatusCode.INVALID_ARGUMENT, "image_sub_path"),
        (
            {"image": cri.ImageSpec(image="localhost/absent:1")},
            grpc.StatusCode.NOT_FOUND,
            "ImageVolumeMountFailed: config.mounts[0].image: 'localhost/absent:1'",
        ),
    ],
)
def test_what_cannot_be(pod: Pod, fields: dict[str, Any], code: grpc.StatusCode, words: str) -> None:
    mount = cri.Mount(**{"container_path": "/v", "image": cri.ImageSpec(image=ONE), "readonly": True, **fields})
    with pytest.raises(grpc.RpcError) as raised:
        pod.create("true", name="refused", mounts=[mount])
    assert raised.value.code() is code
    assert words in raised.value.details()


@pytest.mark.parametrize(("kind", "file"), [("unpacked", "f"), ("erofs", "index")])
def test_one_that_cannot_be_mounted_is_known_by_its_word(kind: str, file: str, tmp_path: Path) -> None:
    """kubelet counts those in its metrics."""
    built = build_image([layer(entry("f", b"1"))])
    with Daemon.running("--image-layers", kind) as daemon:
        daemon.import_image(write_layout(tmp_path / "layout", {ONE: built}))
        daemon.import_busybox()
        with daemon.pod("unmountable") as pod:
            first = pod.create("true", name="first", mounts=[_mount(ONE)])
            daemon.restart()  # what is mounted stays usable
            (found,) = Path(daemon.root, "image/layers").glob(f"1/{file}")
            place = found.parent if kind == "unpacked" else found
            away = place.rename(tmp_path / "away")
            if kind == "erofs":
                place.write_bytes(away.read_bytes() + bytes(512))
            try:
                with pytest.raises(grpc.RpcError) as raised:
                    pod.create("true", name="second", mounts=[_mount(ONE)])
            finally:
                away.rename(place)
            assert raised.value.code() is grpc.StatusCode.INTERNAL
            assert raised.value.details().startswith("ImageVolumeMountFailed: ")
            assert daemon.status(first).state == cri.CONTAINER_CREATED
