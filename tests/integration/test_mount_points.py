"""Volumes of pods whose kind is not that of what the image has in their place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import CALL_SECONDS, Daemon, Pod
from tests.integration.test_user_namespaces import OPTIONS

_WORDS = "Are you trying to mount a directory onto a file (or vice-versa)?"


@pytest.fixture(scope="module", params=[cri.NamespaceOption(), OPTIONS], ids=["plain", "user namespace"])
def pod(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[Pod]:
    config = daemon.sandbox_config("kinds")
    config.linux.security_context.namespace_options.CopyFrom(request.param)
    with daemon.pod(config=config) as pod:
        daemon.wait_exited(pod.run("true", name="first", linux=_linux(pod)))  # makes the pod's cgroup
        yield pod


def _linux(pod: Pod) -> cri.LinuxContainerConfig:
    options = pod.config.linux.security_context.namespace_options
    return cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(namespace_options=options))


def _create(pod: Pod, *places: tuple[Path, str]) -> str:
    mounts = [cri.Mount(host_path=str(source), container_path=place) for source, place in places]
    return pod.create("true", name="main", mounts=mounts, linux=_linux(pod))


def _remove(pod: Pod, container: str) -> None:
    pod.daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), timeout=CALL_SECONDS)


@pytest.mark.trial("mounts-kinds", "A file over a directory, or the other way round, is refused saying which is what.")
def test_what_the_image_has_there_is_of_another_kind(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    cases = (
        ("file", "/bin", "file"),
        ("link", "/bin/", "file"),
        ("", "/bin/busybox", "directory"),
        ("made/here", "/bin/sh", "directory"),  # by a link of the image's, from what is missing on the host
    )
    for name, place, kind in cases:
        source = tmp_path / name
        with pytest.raises(grpc.RpcError) as raised:
            _create(pod, (tmp_path, "/fine"), (source, place))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        said = str(raised.value.details())
        assert f"config.mounts[1]: mount `{source.resolve()}` on" in said
        assert f"not a directory: the source is a {kind}" in said
        assert _WORDS in said
    left = pod.daemon.runtime.ListContainers(cri.ListContainersRequest(), timeout=CALL_SECONDS).containers
    assert [container.metadata.name for container in left] == ["first"]


@pytest.mark.trial("mounts-kinds", "A file over a directory, or the other way round, is refused saying which is what.")
def test_what_another_volume_has_there(pod: Pod, tmp_path: Path) -> None:
    """The image is not asked about what a volume covers; a start says what does not fit."""
    (tmp_path / "tree/busybox").mkdir(parents=True)
    (tmp_path / "tree/file").touch()
    container = _create(pod, (tmp_path / "tree", "/bin"), (tmp_path, "/bin/file"))
    with pytest.raises(grpc.RpcError) as raised:
        pod.daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=CALL_SECONDS)
    assert f"mount `{tmp_path}` on `/bin/file`: not a directory: the source is a directory" in raised.value.details()
    assert _WORDS in raised.value.details()
    _remove(pod, container)
    container = _create(pod, (tmp_path / "tree", "/usr"), (tmp_path, "/usr/busybox"), (tmp_path / "tree/file", "/new"))
    pod.daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=CALL_SECONDS)
    assert pod.daemon.wait_exited(container).exit_code == 0
    _remove(pod, container)


@pytest.mark.trial("mounts-at-links", "Where an image's link leads to nothing, a mount point is made there, inside.")
def test_links_that_lead_to_nothing(pod: Pod, tmp_path: Path) -> None:
    """As images' /etc/resolv.conf often is one; here they are a volume's, for any image's are followed alike."""
    (tmp_path / "links").mkdir()
    (tmp_path / "file").write_text("mounted")
    (tmp_path / "links/up").symlink_to(f"../../../../../../../../{tmp_path}/made")
    (tmp_path / "links/run").symlink_to("/run/systemd/resolve/stub.conf")
    tmp_path.chmod(0o755)
    container = _create(pod, (tmp_path / "links", "/l"), (tmp_path / "file", "/l/run"), (tmp_path / "links", "/l/up/x"))
    pod.daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=CALL_SECONDS)
    assert pod.daemon.wait_exited(container).exit_code == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "links"]
    _remove(pod, container)
