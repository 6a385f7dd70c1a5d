"""Images on this machine's kernel: the kind of their layers, and what containers see of them. Run inside by run.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import CALL_SECONDS, Pod
from tests.images import BUSYBOX, build_image, entry, layer, write_layout
from tests.vm.inside.node import MACHINE, Service
from tests.waiting import until

IMAGE = "localhost/layered:1"
LAYERS = Path("/var/lib/crisp/image/layers")
LOOK = "cd $0; b=/busybox; $b cat data/a; $b stat -c %u:%g data/a; $b tail -c 4 data/big; $b ls data opaque"
SEEN = "a3\n7:8\nend\ndata:\na\nb\nbig\n\nopaque:\nnew\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With an image of three layers: files, whiteouts of some, and others in their places."""
    service = Service()
    service.start()
    base = layer(
        entry("busybox", BUSYBOX.read_bytes(), mode=0o755), entry("data/"), entry("opaque/"), entry("opaque/old", b"o"),
        entry("data/a", b"a1\n", uid=7, gid=8), entry("data/gone", b"x"), entry("data/big", bytes(5000) + b"end\n"),
    )  # fmt: skip
    over = layer(entry("data/b", b"b2\n"), entry("data/.wh.gone"), entry("opaque/"), entry("opaque/.wh..wh..opq"))
    top = layer(entry("data/a", b"a3\n", uid=7, gid=8), entry("opaque/new", b"n\n"))
    service.import_image(write_layout(tmp_path_factory.mktemp("layout"), {IMAGE: build_image([base, over, top])}))
    yield service
    service.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=IMAGE)), timeout=CALL_SECONDS)
    until(lambda: not _kinds())


@pytest.fixture(scope="module", params=["root", *["user namespace"] * MACHINE["user_namespaces"]])
def pod(service: Service, request: pytest.FixtureRequest) -> Iterator[Pod]:
    """One whose main container is of the image, and has it again as volumes."""
    options = cri.NamespaceOption(pid=cri.CONTAINER)
    if request.param != "root":
        lines = [cri.IDMapping(container_id=0, host_id=1 << 20, length=65536)]
        options.userns_options.CopyFrom(cri.UserNamespace(mode=cri.POD, uids=lines, gids=lines))
    of_pod = cri.LinuxSandboxSecurityContext(namespace_options=options)
    config = service.sandbox_config("layered", linux=cri.LinuxPodSandboxConfig(security_context=of_pod))
    volumes = [
        cri.Mount(container_path=place, image=cri.ImageSpec(image=IMAGE), image_sub_path=part, readonly=True)
        for place, part in (("/all", ""), ("/part", "data"))
    ]
    with service.pod("layered", config) as pod:
        security = cri.LinuxContainerSecurityContext(namespace_options=options)
        linux = cri.LinuxContainerConfig(security_context=security)
        pod.run("/busybox", "sleep", "1000", image=IMAGE, linux=linux, mounts=volumes)
        yield pod


def test_they_are_of_the_kind_that_the_kernel_mounts(service: Service) -> None:
    assert _kinds() == {MACHINE["layers"]}


def test_a_container_and_its_volumes_see_the_same(service: Service, pod: Pod) -> None:
    """Also once crispd, which held mounts of them, was killed; the next one finds them undamaged."""
    for killed in (False, True):
        if killed:
            service.kill9()
        [main] = service.runtime.ListContainers(
            cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=pod.id)), timeout=CALL_SECONDS
        ).containers
        for root in ("/", "/all"):
            seen = pod.exec(main.id, "/busybox", "sh", "-c", LOOK, root)
            assert (seen.stdout.decode(), seen.stderr) == (SEEN, b"")
        assert pod.exec(main.id, "/busybox", "cat", "/part/b").stdout == b"b2\n"
        written = pod.exec(main.id, "/busybox", "touch", "/all/new", "/mine")
        assert b"/all/new: Read-only file system" in written.stderr
        assert b"/mine" not in written.stderr
    crisp = Path(sys.executable).with_name("crisp")
    verified = subprocess.run([crisp, "image", "verify"], capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def _kinds() -> set[str]:
    """Of the image's layers, of which each has something of that name."""
    kinds = set()
    for place in LAYERS.iterdir():
        if (place / "tar").is_file() and b"opaque/" in (place / "tar").read_bytes():
            kinds.add("tar+erofs")
        elif (place / "opaque").is_dir():
            kinds.add("unpacked")
    return kinds
