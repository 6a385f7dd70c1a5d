"""Where cgroups of pods are, by each cgroup driver."""

from __future__ import annotations

import logging
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from pods import model
from pods.cgroups.driver import Cgroups
from pods.cgroups.places import CGROUPFS, SYSTEMD, container_cgroup, places_of, pod_cgroup
from pods.errors import InvalidArgument
from pods.handlers import runtime_of
from runtime.cgroups.hierarchies import NO_HIERARCHIES, Hierarchies
from runtime.handler import Handler


def _sandbox(driver: str, parent: str = "", **fields: Any) -> model.Sandbox:
    config = model.SandboxConfig(
        metadata=model.SandboxMetadata(name="web", uid="u-1", namespace="prod"), cgroup_parent=parent
    )
    given = {"runtime_handler": "", "state": model.SandboxState.READY, "created_at": 1, **fields}
    return model.Sandbox(id="S", config=config, cgroup_driver=driver, **given)


@pytest.mark.parametrize(
    ("parent", "path"),
    [("", "/crisp/S/C"), ("/", "/C"), ("/kubepods/pod1/", "/kubepods/pod1/C"), ("//a/./b", "/a/b/C")],
)
def test_cgroup_path(parent: str, path: str) -> None:
    sandbox = _sandbox(CGROUPFS, parent)
    assert container_cgroup(sandbox, "C") == path
    assert places_of(CGROUPFS).oci_path(sandbox, "C") == path


@pytest.mark.parametrize("parent", ["kubepods", "..", "kubepods-pod1.slice", "/system.slice"])
def test_cgroup_parents_that_cannot_be(parent: str) -> None:
    with pytest.raises(InvalidArgument, match="cgroupDriver: cgroupfs" if "slice" in parent else "absolute path"):
        pod_cgroup(_sandbox(CGROUPFS, parent))


@pytest.mark.parametrize(
    ("parent", "pod", "slice"),
    [
        ("", "/crisp.slice/crisp-S.slice", "crisp-S.slice"),
        ("/-.slice", "", "-.slice"),
        ("/kubepods.slice/kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice"),
    ],
)
def test_a_container_is_a_scope_in_its_pods_slice(parent: str, pod: str, slice: str) -> None:
    sandbox = _sandbox(SYSTEMD, parent)
    assert pod_cgroup(sandbox) == pod
    assert container_cgroup(sandbox, "C") == f"{pod}/crisp-C.scope"
    assert places_of(SYSTEMD).oci_path(sandbox, "C") == f"{slice}:crisp:C"  # as runc reads it


@pytest.mark.parametrize("parent", ["/kubepods/pod1", "a--b.slice"])
def test_parents_that_are_no_slice(parent: str) -> None:
    with pytest.raises(InvalidArgument, match="cgroupDriver: systemd"):
        pod_cgroup(_sandbox(SYSTEMD, parent))


def test_a_pod_keeps_the_driver_that_it_was_made_with(tmp_path: Any) -> None:
    cgroups = Cgroups(CGROUPFS)
    assert cgroups.driver is cgroups.of(_sandbox(CGROUPFS))
    assert cgroups.driver is not cgroups.of(_sandbox(SYSTEMD))
    assert (cgroups.driver.hold, cgroups.of(_sandbox(SYSTEMD)).hold) == (False, True)
    for driver, systemd in ((CGROUPFS, False), (SYSTEMD, True)):
        other = runtime_of(_sandbox(driver, runtime_handler="runc"), Handler(tmp_path / "runc"), tmp_path)
        assert other is not None
        assert other.systemd is systemd


async def test_memory_of_image_workers_is_limited_on_version_2(tmp_path: Path) -> None:
    place = tmp_path / "crisp-layers"
    place.mkdir()
    for path, text in ((tmp_path, "cpu memory"), (place, "memory")):
        (path / "cgroup.controllers").write_text(text)
    for file in (tmp_path / "cgroup.subtree_control", place / "memory.max", place / "memory.swap.max"):
        file.write_text("")
    (place / "cgroup.procs").write_text("")
    cgroups = Cgroups(CGROUPFS)
    cgroups._hierarchies = Hierarchies(MappingProxyType({}), str(tmp_path), frozenset({"cpu", "memory"}))
    await cgroups.place_workers(4711, 5 << 20)
    files = ("memory.max", "memory.swap.max", "cgroup.procs")
    assert [(place / name).read_text() for name in files] == [str(5 << 20), "0", "4711"]
    assert "+memory" in (tmp_path / "cgroup.subtree_control").read_text()


async def test_pulls_without_a_memory_controller_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    cgroups = Cgroups(CGROUPFS)
    cgroups._hierarchies = NO_HIERARCHIES
    with caplog.at_level(logging.WARNING):
        await cgroups.place_workers(4711, 1 << 30)
        await cgroups.place_workers(4712, 1 << 30)
    (warning,) = caplog.records
    assert "pull_memory_limit" in warning.getMessage()
    assert "no memory cgroup controller" in str(warning.__dict__["error"])
