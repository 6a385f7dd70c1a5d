"""crisp-oci --systemd-cgroup, with a systemd that does no more than make units' cgroups (tests/fake_systemd.py)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.cgroups import Cgroup, Hierarchies
from runtime.cgroups.systemd import INFINITY
from tests.fake_systemd import FakeSystemd
from tests.oci import Bundle
from tests.waiting import until

MIB = 1 << 20
SLICE = f"crisptest{os.getpid()}-oci.slice"
PATH = f"/crisptest{os.getpid()}.slice/{SLICE}"


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSystemd]:
    with FakeSystemd(tmp_path / "bus") as fake:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", fake.address)
        yield fake


def _create(bundle: Bundle, path: str = f"{SLICE}:crisp:one", **linux: object) -> int:
    bundle.configure("sleep", "100", linux={"cgroupsPath": path, **linux})
    return bundle.create(flags=["--systemd-cgroup"])


def _exists(path: str) -> bool:
    return any(Path(mountpoint + path).exists() for mountpoint in Hierarchies.detect().mountpoints())


def _file(path: str, controller: str, name: str) -> str:
    return (Path(Cgroup.at(Hierarchies.detect(), path).directory(controller)) / name).read_text().strip()


@pytest.mark.oci("linux.cgroupsPath")
def test_a_container_is_a_scope(bundle: Bundle, units: FakeSystemd) -> None:
    limits = {"cpu": {"period": 50000, "quota": 16666}, "memory": {"limit": 64 * MIB}}
    pid = _create(bundle, resources=limits)
    scope = f"{PATH}/crisp-one.scope"
    assert Cgroup.at(Hierarchies.detect(), scope).pids() == [pid]  # what held the scope is gone
    (call,) = units.called("StartTransientUnit", "crisp-one.scope")
    told = {name: call.properties[name] for name in ("Slice", "Delegate", "TasksMax", "CPUQuotaPerSecUSec")}
    assert told == {"Slice": SLICE, "Delegate": True, "TasksMax": INFINITY, "CPUQuotaPerSecUSec": 340_000}
    assert _file(scope, "cpu", "cpu.cfs_quota_us") == "16666"  # exactly, where systemd has whole percents
    bundle.call("start", "one")
    bundle.call("--systemd-cgroup", "update", "--cpu-quota", "33333", "--memory", "96m", "one")
    (call,) = units.called("SetUnitProperties", "crisp-one.scope")
    assert call.properties["CPUQuotaPerSecUSec"] == 340_000  # of the usual period: the update names none
    assert _file(scope, "cpu", "cpu.cfs_quota_us") == "33333"
    assert _file(scope, "memory", "memory.limit_in_bytes") == str(96 * MIB)
    bundle.delete()
    assert units.called("StopUnit", "crisp-one.scope")
    until(lambda: not _exists(PATH))
    _create(bundle)  # the name is free at once
    bundle.delete()


def test_what_systemd_refuses_is_told_and_undone(bundle: Bundle, units: FakeSystemd) -> None:
    units.refusal = "no more units"
    bundle.configure("true", linux={"cgroupsPath": f"{SLICE}:crisp:one"})
    done = bundle.call("--systemd-cgroup", "run", "one", check=False)
    assert done.returncode != 0
    assert "start unit crisp-one.scope: no more units" in done.stderr
    units.refusal = ""
    assert bundle.call("--systemd-cgroup", "run", "one", check=False).returncode == 0
    until(lambda: not _exists(PATH))


@pytest.mark.parametrize("member", ["process", "limit"])
def test_a_container_that_fails_later_leaves_no_scope(bundle: Bundle, units: FakeSystemd, member: str) -> None:
    linux = {"cgroupsPath": f"{SLICE}:crisp:one"}
    if member == "limit":
        bundle.configure("true", linux=linux | {"resources": {"memory": {"limit": 4096}}})
    else:
        bundle.configure("true", linux=linux, mounts=[{"destination": "/x", "type": "bind", "source": "/none-such"}])
    done = bundle.call("--systemd-cgroup", "run", "one", check=False)
    assert done.returncode != 0
    until(lambda: not _exists(PATH))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/a/path", "linux.cgroupsPath: expected slice:prefix:name with --systemd-cgroup, got '/a/path'"),
        ("a/b.slice:crisp:one", "linux.cgroupsPath: 'a/b.slice' is not the name of a systemd slice"),
        (f"{SLICE}:crisp:../one", "linux.cgroupsPath: a unit's name must not contain a slash"),
        (f"{SLICE}:crisp:one.slice", "linux.cgroupsPath: a container's unit is a scope, and 'one.slice' is a slice"),
    ],
)
def test_paths_that_are_none_of_systemds(bundle: Bundle, units: FakeSystemd, path: str, reason: str) -> None:
    bundle.configure("true", linux={"cgroupsPath": path})
    done = bundle.call("--systemd-cgroup", "run", "one", check=False)
    assert done.returncode != 0
    assert reason in done.stderr
    assert not units.calls


def test_a_users_systemd_has_its_own_tree(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = f"/crisptest{os.getpid()}-user"
    with FakeSystemd(tmp_path / "session", root) as fake:
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", fake.address)
        bundle.configure("cat", "/proc/self/cgroup", linux={"cgroupsPath": ":crisp:one"})
        done = bundle.call("--systemd-cgroup", "--rootless", "true", "run", "one")
        assert f"{root}/user.slice/crisp-one.scope" in done.stdout
        assert fake.called("StartTransientUnit", "crisp-one.scope")
        until(lambda: not fake.units)
    for mountpoint in Hierarchies.detect().mountpoints():
        if Path(mountpoint + root).exists():
            os.rmdir(mountpoint + root)


def test_systemds_own_socket_does_where_there_is_no_bus(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "systemd").mkdir()
    with FakeSystemd(tmp_path / "systemd/private", bus=False) as own:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", own.address)
        _create(bundle)
        assert own.called("StartTransientUnit", "crisp-one.scope")
        bundle.delete()
        until(lambda: not _exists(PATH))


def test_without_systemd_the_bus_is_named(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    bundle.configure("true", linux={"cgroupsPath": ""})
    done = bundle.call("--systemd-cgroup", "run", "one", check=False)
    assert done.returncode != 0
    assert f"connect to systemd at {tmp_path}/none: No such file or directory" in done.stderr
