"""What systemd is told of a container: names, and limits as properties of its scope."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.cgroups import systemd_bus
from runtime.cgroups.systemd import INFINITY, Scope, limit_properties, scope_properties, slice_path
from runtime.errors import SpecError
from runtime.spec.values import CPU, DeviceRule, Memory, Resources

DEVICES = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("-.slice", ""),
        ("system.slice", "/system.slice"),
        ("kubelet-pods-podx_y.slice", "/kubelet.slice/kubelet-pods.slice/kubelet-pods-podx_y.slice"),
    ],
)
def test_dashes_of_a_slice_are_its_parents(name: str, path: str) -> None:
    assert slice_path(name) == path


@pytest.mark.parametrize("name", ["", "a", ".slice", "-a.slice", "a--b.slice", "a-.slice", "a/b.slice", "..slice/"])
def test_what_is_no_slice(name: str) -> None:
    with pytest.raises(SpecError, match=r"^linux\.cgroupsPath: "):
        slice_path(name)


def _limits(resources: Resources, *, pure_v2: bool) -> dict[str, Any]:
    return {name: value for name, _, value in limit_properties(resources, pure_v2=pure_v2)}


def test_limits_of_version_2() -> None:
    resources = Resources(
        memory=Memory(limit=100, swap=150, reservation=50),
        cpu=CPU(shares=1024, quota=33_333, period=50_000, cpus="0-1,9", mems="0"),
        pids_limit=-1,
        unified={"memory.high": "max", "pids.max": "7", "hugetlb.2MB.max": "1"},
    )
    assert limit_properties(resources, pure_v2=True) == [
        ("MemoryMax", "t", 100),
        ("MemoryLow", "t", 50),
        ("MemorySwapMax", "t", 50),
        ("CPUWeight", "t", 100),
        ("CPUQuotaPeriodUSec", "t", 50_000),
        ("CPUQuotaPerSecUSec", "t", 670_000),  # never less than asked for, in the whole percents that systemd keeps
        ("AllowedCPUs", "ay", b"\x03\x02"),
        ("AllowedMemoryNodes", "ay", b"\x01"),
        ("TasksMax", "t", INFINITY),
        ("MemoryHigh", "t", INFINITY),
        ("TasksMax", "t", 7),
    ]
    unlimited = Resources(memory=Memory(limit=-1), cpu=CPU(quota=-1), unified={"cpu.max": "max 20000"})
    assert _limits(unlimited, pure_v2=True) == {
        "MemoryMax": INFINITY, "MemorySwapMax": INFINITY, "CPUQuotaPerSecUSec": INFINITY, "CPUQuotaPeriodUSec": 20_000
    }  # fmt: skip
    assert _limits(Resources(cpu=CPU(shares=2, idle=1)), pure_v2=True) == {"CPUWeight": 0}
    with pytest.raises(SpecError, match=r"linux\.resources\.unified\.pids\.max: 'many' is not a number"):
        _limits(Resources(unified={"pids.max": "many"}), pure_v2=True)
    with pytest.raises(SpecError, match=r"linux\.resources\.unified\.cpuset\.cpus: expected a list such as"):
        _limits(Resources(unified={"cpuset.cpus": "0-99999999999"}), pure_v2=True)
    with pytest.raises(SpecError, match=r"linux\.resources\.cpu\.mems: expected a list such as"):
        _limits(Resources(cpu=CPU(mems="all")), pure_v2=True)


def test_limits_of_version_1() -> None:
    resources = Resources(memory=Memory(limit=100, swap=150), cpu=CPU(shares=512, quota=10_000, cpus="0"))
    assert _limits(resources, pure_v2=False) == {"MemoryLimit": 100, "CPUShares": 512, "CPUQuotaPerSecUSec": 100_000}


def test_a_scope_is_delegated_and_has_no_limits_of_systemds_own() -> None:
    scope = Scope("a-b.slice", "crisp-1.scope")
    assert scope.path == "/a.slice/a-b.slice/crisp-1.scope"
    found = {name: value for name, _, value in scope_properties(scope, "one", [7], Resources(), pure_v2=True)}
    assert found == {
        "Description": "one", "Slice": "a-b.slice", "PIDs": [7], "Delegate": True, "DefaultDependencies": False,
        "CollectMode": "inactive-or-failed", "CPUAccounting": True, "MemoryAccounting": True, "IOAccounting": True,
        "TasksAccounting": True, "TasksMax": INFINITY,
    }  # fmt: skip


def test_device_rules_are_told_where_systemd_would_drop_them() -> None:
    rules = (
        DeviceRule(False),
        DeviceRule(True, "c", None, None, "m"),
        DeviceRule(True, "c", 1, 3),
        DeviceRule(True, "c", 136, None),
        DeviceRule(True, "b", 99, None),  # nobody's number
    )
    scope = Scope("a.slice", "x.scope")

    def told(rules: tuple[DeviceRule, ...], *, pure_v2: bool) -> dict[str, Any]:
        resources = Resources(devices=rules)
        properties = scope_properties(scope, "", [1], resources, pure_v2=pure_v2, devices=DEVICES)
        return {name: value for name, _, value in properties if name.startswith("Device")}

    assert told(rules, pure_v2=False) == {
        "DevicePolicy": "strict",
        "DeviceAllow": [("char-*", "m"), ("/dev/char/1:3", "rwm"), ("char-pts", "rwm")],
    }
    assert told((DeviceRule(True),), pure_v2=False) == {}
    assert told(rules, pure_v2=True) == {}


BUS, OWN = "/var/run/dbus/system_bus_socket", "/run/systemd/private"


@pytest.mark.parametrize(
    ("there", "named", "path"),
    [
        ({BUS, OWN}, "", BUS),
        ({OWN}, "", OWN),
        (set(), "", BUS),  # so that the error names what people know
        ({OWN}, "unix:path=/x/bus", "/x/bus"),
    ],
)
def test_where_systemd_is(there: set[str], named: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", named)
    assert systemd_bus.system_socket(there.__contains__) == path
    assert systemd_bus.is_bus(path) == (path != OWN)
