"""Labels of SELinux's on files. No SELinux is on here: the attributes are, which are all that relabelling is about."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from cri.v1 import api_pb2 as cri
from pods import model
from pods.directories import remove_tree
from pods.errors import InvalidArgument
from pods.host import HostFacts
from pods.oci import mount_sources
from pods.oci.document import find_host_objects
from pods.security.selinux import relabel
from tests.daemon import Daemon

_NOT_LOADED = model.SecurityProfile(model.ProfileType.LOCALHOST, localhost_ref="not-loaded")
SANDBOX = model.Sandbox(
    id="s" * 64,
    config=model.SandboxConfig(metadata=model.SandboxMetadata(name="pod", uid="u", namespace="n")),
    runtime_handler="",
    state=model.SandboxState.READY,
    created_at=0,
)
LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


def _label(path: Path) -> str:
    try:
        return os.getxattr(path, "security.selinux", follow_symlinks=False).decode()
    except OSError:
        return ""


def test_a_volume_is_labelled_and_nothing_outside_of_it(tmp_path: Path) -> None:
    volume, outside = tmp_path / "volume", tmp_path / "outside"
    (volume / "a/b").mkdir(parents=True)
    (volume / "a/b/file").write_text("")
    outside.mkdir()
    (outside / "file").write_text("")
    (volume / "link").symlink_to(outside)
    (volume / "a/file").symlink_to(outside / "file")
    os.mkfifo(volume / "pipe")
    relabel(str(volume), LABEL, "field")
    inside = [volume, *volume.rglob("*")]
    assert {_label(path) for path in inside} == {LABEL}
    assert (_label(outside), _label(outside / "file")) == ("", "")
    relabel(str(outside / "file"), LABEL, "field")
    assert (_label(outside), _label(outside / "file")) == ("", LABEL)


def test_the_system_and_what_is_too_deep_are_refused(tmp_path: Path) -> None:
    for path in ("/", "/etc", "/usr/", "/var/lib"):
        with pytest.raises(InvalidArgument, match=r"field: .* is a directory of the system"):
            relabel(path, LABEL, "field")
    before = len(os.listdir("/proc/self/fd"))
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(600):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    with pytest.raises(InvalidArgument, match="deeper than 512"):
        relabel(str(tmp_path), LABEL, "field")
    assert len(os.listdir("/proc/self/fd")) == before
    remove_tree(tmp_path / "d")


@pytest.mark.cri("CreateContainer", "mounts.selinux_relabel")
def test_mounts_that_ask_for_it_are_relabelled_where_selinux_is(daemon: Daemon, tmp_path: Path) -> None:
    wanted, other = tmp_path / "wanted", tmp_path / "other"
    wanted.mkdir()
    other.mkdir()
    options = cri.LinuxContainerSecurityContext(selinux_options=cri.SELinuxOption(level="s0:c1,c2"))
    mounts = [
        cri.Mount(container_path="/wanted", host_path=str(wanted), selinux_relabel=True),
        cri.Mount(container_path="/other", host_path=str(other)),
    ]
    with daemon.pod("labels") as pod:  # a machine without SELinux takes it, and does nothing
        pod.create("true", mounts=mounts, linux=cri.LinuxContainerConfig(security_context=options))
    assert _label(wanted) == ""
    config = model.ContainerConfig(
        metadata=model.ContainerMetadata(name="labelled"),
        image=model.ImageSpec(image="image"),
        security=model.ContainerSecurity(selinux=model.SELinuxOptions(level="s0:c1,c2")),
        mounts=(
            model.Mount(container_path="/wanted", host_path=str(wanted), selinux_relabel=True),
            model.Mount(container_path="/other", host_path=str(other)),
        ),
    )
    found = find_host_objects(config, SANDBOX, replace(HostFacts.detect(), selinux=True))
    refused = structs.replace(
        config, security=structs.replace(config.security, apparmor=_NOT_LOADED)
    )
    with pytest.raises(InvalidArgument, match="apparmor"):
        find_host_objects(refused, SANDBOX, replace(HostFacts.detect(), selinux=True))
    assert _label(wanted) == ""
    mount_sources.prepare(config.mounts, found.mount_sources, found.labels.files)
    assert (_label(wanted), _label(other)) == (LABEL, "")
