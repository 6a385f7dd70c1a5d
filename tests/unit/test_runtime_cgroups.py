"""Cgroups without a kernel: which hierarchies there are, which files get which values, and a fake tree for v2."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.cgroups import Cgroup, Hierarchies, files, systemd, tree, v1, v2
from runtime.cgroups import hierarchies as hierarchies_module
from runtime.cgroups.hierarchies import NO_HIERARCHIES
from runtime.cgroups.limits import Group
from runtime.errors import NotSupported, OperationFailed, RuntimeCoreError, SpecError
from runtime.spec import values as spec

V1 = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
34 31 0:31 / /sys/fs/cgroup/my\\040pids rw,relatime - cgroup cgroup rw,pids
35 31 0:32 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
36 31 0:30 / /mnt/again rw,relatime - cgroup cgroup rw,memory
"""
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"


def _tree(root: Path, mountinfo: str, unified: str = "") -> Hierarchies:
    for line in mountinfo.splitlines():
        (root / line.split(" ")[4].replace("\\040", " ").lstrip("/")).mkdir(parents=True, exist_ok=True)
    if unified:
        _file(root / unified / "cgroup.controllers", "cpu memory pids hugetlb\n")
        _file(root / unified / "cgroup.subtree_control", "")
    return Hierarchies.detect(mountinfo, root=str(root))


def _file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _flat(groups: list[Group]) -> list[tuple[str, str]]:
    return [(write.file, write.value) for group in groups for write in group]


def _fresh(_file: str) -> str:
    return "max 100000"


def test_v1_finds_comounted_controllers_once(tmp_path: Path) -> None:
    found = _tree(tmp_path, V1)
    assert found.v1["cpu"] == found.v1["cpuacct"] == f"{tmp_path}/sys/fs/cgroup/cpu,cpuacct"
    assert found.v1["memory"] == f"{tmp_path}/sys/fs/cgroup/memory"
    assert found.v1["pids"] == f"{tmp_path}/sys/fs/cgroup/my pids"
    assert (found.unified, found.pure_v2, len(found.mountpoints())) == ("", False, 4)


def test_v2_and_hybrid_are_told_apart(tmp_path: Path) -> None:
    v2_only = _tree(tmp_path / "v2", V2, "sys/fs/cgroup")
    assert v2_only.pure_v2
    assert v2_only.unified_controllers == {"cpu", "memory", "pids", "hugetlb"}
    hybrid = _tree(tmp_path / "hybrid", HYBRID, "sys/fs/cgroup/unified")
    assert not hybrid.pure_v2
    assert hybrid.home("memory") == hybrid.v1["memory"]
    assert hybrid.home("hugetlb") == hybrid.unified  # only version 2 has it
    assert hybrid.home("devices") == ""
    with pytest.raises(NotSupported, match="no cgroup hierarchy is mounted"):
        Hierarchies.detect("22 27 0:21 / /proc rw - proc proc rw\n")


@pytest.mark.parametrize("path", ["", "/", "/a/../../b", "../b"])
def test_a_path_that_leads_out_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"^linux\.cgroupsPath: "):
        Cgroup.at(_tree(tmp_path, V1), path)


@pytest.mark.oci("linux.resources.devices", "linux.resources.memory.limit", "linux.resources.memory.swap")
@pytest.mark.oci("linux.resources.memory.reservation", "linux.resources.memory.swappiness")
@pytest.mark.oci("linux.resources.cpu.shares", "linux.resources.cpu.quota", "linux.resources.cpu.period")
@pytest.mark.oci("linux.resources.cpu.cpus", "linux.resources.cpu.mems", "linux.resources.pids.limit")
@pytest.mark.oci("linux.resources.hugepageLimits", "linux.resources.blockIO.weight")
@pytest.mark.oci("linux.resources.blockIO.throttleReadBpsDevice", "linux.resources.network.classID")
@pytest.mark.oci("linux.resources.network.priorities")
def test_v1_writes_each_limit_to_its_file() -> None:
    resources = spec.Resources(
        devices=(
            spec.DeviceRule(False),
            spec.DeviceRule(True, "c", 1, 3, "rw"),
            spec.DeviceRule(True, "c", 136, None),
            spec.DeviceRule(True, "a", None, None, "m"),
        ),
        memory=spec.Memory(limit=64 << 20, swap=128 << 20, reservation=32 << 20, swappiness=0),
        cpu=spec.CPU(shares=512, quota=50000, period=100000, cpus="0", mems="0"),
        pids_limit=-1,
        block_io=spec.BlockIO(weight=500, throttle_read_bps_device=(spec.ThrottleDevice(8, 0, 1000),)),
        hugepage_limits=(spec.HugepageLimit("2MB", 0),),
        network=spec.NetworkClass(0x10001, (spec.InterfacePriority("eth0", 5),)),
    )
    assert _flat(v1.plan(resources)) == [
        ("devices.deny", "a"),
        ("devices.allow", "c 1:3 rw"),
        ("devices.allow", "c 136:* rwm"),
        ("devices.allow", "b *:* m"),
        ("devices.allow", "c *:* m"),
        ("memory.limit_in_bytes", "67108864"),
        ("memory.memsw.limit_in_bytes", "134217728"),
        ("memory.soft_limit_in_bytes", "33554432"),
        ("memory.swappiness", "0"),
        ("cpu.shares", "512"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "50000"),
        ("cpuset.cpus", "0"),
        ("cpuset.mems", "0"),
        ("pids.max", "max"),
        ("blkio.weight", "500"),
        ("blkio.throttle.read_bps_device", "8:0 1000"),
        ("hugetlb.2MB.limit_in_bytes", "0"),
        ("hugetlb.2MB.rsvd.limit_in_bytes", "0"),
        ("net_cls.classid", "65537"),
        ("net_prio.ifpriomap", "eth0 5"),
    ]
    assert _flat(v1.plan(spec.Resources(memory=spec.Memory(limit=-1)))) == [
        ("memory.limit_in_bytes", "-1"),
        ("memory.memsw.limit_in_bytes", "-1"),
    ]
    with pytest.raises(SpecError, match=r"^linux\.resources\.unified: needs cgroup v2"):
        v1.plan(spec.Resources(unified={"memory.high": "1"}))


@pytest.mark.oci("linux.resources.memory.kernel", "linux.resources.memory.kernelTCP")
@pytest.mark.oci("linux.resources.memory.useHierarchy", "linux.resources.memory.disableOOMKiller")
@pytest.mark.oci("linux.resources.cpu.burst", "linux.resources.cpu.idle", "linux.resources.rdma")
@pytest.mark.oci("linux.resources.cpu.realtimeRuntime", "linux.resources.cpu.realtimePeriod")
@pytest.mark.oci("linux.resources.blockIO.leafWeight", "linux.resources.blockIO.weightDevice")
@pytest.mark.oci("linux.resources.blockIO.throttleWriteBpsDevice", "linux.resources.blockIO.throttleReadIOPSDevice")
@pytest.mark.oci("linux.resources.blockIO.throttleWriteIOPSDevice")
def test_v1_writes_rarer_limits() -> None:
    device, throttle = spec.WeightDevice(8, 0, 200, 300), (spec.ThrottleDevice(8, 0, 9),)
    resources = spec.Resources(
        memory=spec.Memory(kernel=1, kernel_tcp=4096, disable_oom_killer=True, use_hierarchy=True),
        cpu=spec.CPU(burst=5, realtime_runtime=950, realtime_period=1000, idle=1),
        block_io=spec.BlockIO(
            leaf_weight=100, weight_device=(device,), throttle_write_bps_device=throttle,
            throttle_read_iops_device=throttle, throttle_write_iops_device=throttle,
        ),
        rdma=(spec.RdmaLimit("mlx5_1", 3, None),),
    )  # fmt: skip
    assert _flat(v1.plan(resources)) == [
        ("memory.kmem.tcp.limit_in_bytes", "4096"),
        ("memory.oom_control", "1"),
        ("cpu.idle", "1"),
        ("cpu.cfs_burst_us", "5"),
        ("cpu.rt_period_us", "1000"),
        ("cpu.rt_runtime_us", "950"),
        ("blkio.leaf_weight", "100"),
        ("blkio.weight_device", "8:0 200"),
        ("blkio.leaf_weight_device", "8:0 300"),
        ("blkio.throttle.write_bps_device", "8:0 9"),
        ("blkio.throttle.read_iops_device", "8:0 9"),
        ("blkio.throttle.write_iops_device", "8:0 9"),
        ("rdma.max", "mlx5_1 hca_handle=3 hca_object=max"),
    ]


@pytest.mark.oci("linux.resources.cpu.burst", "linux.resources.cpu.idle", "linux.resources.rdma")
@pytest.mark.oci("linux.resources.blockIO.weightDevice")
def test_v2_writes_rarer_limits() -> None:
    throttle = (spec.ThrottleDevice(8, 0, 9),)
    resources = spec.Resources(
        cpu=spec.CPU(burst=5, idle=1, mems="0"),
        block_io=spec.BlockIO(
            weight_device=(spec.WeightDevice(8, 0, 200),), throttle_read_bps_device=throttle,
            throttle_write_bps_device=throttle, throttle_read_iops_device=throttle,
        ),
        rdma=(spec.RdmaLimit("mlx5_1", None, 4),),
    )  # fmt: skip
    assert _flat(v2.plan(resources, _fresh)) == [
        ("cpu.idle", "1"),
        ("cpu.max.burst", "5"),
        ("cpuset.mems", "0"),
        ("io.bfq.weight", "8:0 200"),
        ("io.max", "8:0 rbps=9"),
        ("io.max", "8:0 wbps=9"),
        ("io.max", "8:0 riops=9"),
        ("rdma.max", "mlx5_1 hca_handle=max hca_object=4"),
    ]


@pytest.mark.oci("linux.resources.memory.limit", "linux.resources.memory.swap", "linux.resources.memory.reservation")
@pytest.mark.oci("linux.resources.cpu.shares", "linux.resources.cpu.quota", "linux.resources.cpu.period")
@pytest.mark.oci("linux.resources.cpu.cpus", "linux.resources.pids.limit", "linux.resources.hugepageLimits")
@pytest.mark.oci("linux.resources.unified")
def test_v2_writes_each_limit_to_its_file() -> None:
    resources = spec.Resources(
        memory=spec.Memory(limit=64 << 20, swap=96 << 20, reservation=32 << 20),
        cpu=spec.CPU(shares=1024, quota=50000, period=100000, cpus="0-1"),
        pids_limit=100,
        block_io=spec.BlockIO(weight=10, throttle_write_iops_device=(spec.ThrottleDevice(8, 0, 7),)),
        hugepage_limits=(spec.HugepageLimit("1GB", 1 << 30),),
        unified={"memory.high": "60000000", "cgroup.max.depth": "3"},
    )
    assert _flat(v2.plan(resources, _fresh)) == [
        ("memory.swap.max", str(32 << 20)),
        ("memory.max", str(64 << 20)),
        ("memory.low", str(32 << 20)),
        ("cpu.weight", "100"),
        ("cpu.max", "50000 100000"),
        ("cpuset.cpus", "0-1"),
        ("pids.max", "100"),
        ("io.bfq.weight", "10"),
        ("io.max", "8:0 wiops=7"),
        ("hugetlb.1GB.max", str(1 << 30)),
        ("hugetlb.1GB.rsvd.max", str(1 << 30)),
        ("memory.high", "60000000"),
        ("cgroup.max.depth", "3"),
    ]


def test_v2_keeps_the_quota_when_only_the_period_changes() -> None:
    only_period = spec.Resources(cpu=spec.CPU(period=20000))
    assert _flat(v2.plan(only_period, lambda file: {"cpu.max": "7000 100000"}[file])) == [("cpu.max", "7000 20000")]
    only_quota = spec.Resources(cpu=spec.CPU(quota=-1))
    assert _flat(v2.plan(only_quota, _fresh)) == [("cpu.max", "max")]


@pytest.mark.parametrize("file", ["../memory.max", "memory/max", "memory..max", "memory", ".x", "x."])
def test_v2_refuses_unified_keys_that_are_no_file_names(file: str) -> None:
    with pytest.raises(SpecError, match="expected the name of a cgroup file"):
        v2.plan(spec.Resources(unified={file: "1"}), _fresh)


@pytest.mark.parametrize(
    ("limit", "swap", "expected"),
    [(9, 15, 6), (9, 9, 0), (9, -1, -1), (9, 0, None), (-1, 0, -1), (-1, -1, -1), (0, -1, -1), (0, 0, None)],
)
def test_v2_swap_is_what_is_left_of_the_sum(limit: int, swap: int, expected: int | None) -> None:
    assert v2.swap_max(limit, swap) == expected


@pytest.mark.parametrize(("limit", "swap"), [(100, 50), (0, 50), (-1, 50)])
def test_a_senseless_swap_limit_is_refused_by_both(limit: int, swap: int) -> None:
    resources = spec.Resources(memory=spec.Memory(limit=limit, swap=swap))
    for plan in (v1.plan, partial(v2.plan, current=_fresh)):
        with pytest.raises(SpecError, match=r"^linux\.resources\.memory\.swap: 50 is "):
            plan(resources)


def test_cpu_weight_goes_through_ends_and_default() -> None:
    assert [v2.cpu_weight(shares) for shares in (2, 102, 512, 1024, 2048, 262144)] == [1, 17, 59, 100, 174, 10000]


@given(st.integers(2, 262143))
def test_cpu_weight_grows_with_shares(shares: int) -> None:
    assert 1 <= v2.cpu_weight(shares) <= v2.cpu_weight(shares + 1) <= 10000


@given(st.integers(10, 999))
def test_io_weight_grows_with_weight(weight: int) -> None:
    assert 1 <= v2.io_weight(weight) < v2.io_weight(weight + 1) <= 10000


def test_zero_and_unset_limits_write_nothing() -> None:
    unset = spec.Resources((), spec.Memory(0, 0, 0), spec.CPU(0, 0, None, 0), None, spec.BlockIO(0))
    assert v1.plan(unset) == []
    assert v2.plan(unset, _fresh) == []


@pytest.mark.trial("least-pids-limit", "a pids limit of 0 is the smallest limit, one process; -1 is none")
@pytest.mark.parametrize(("limit", "value"), [(0, "1"), (1, "1"), (7, "7"), (-1, "max"), (-5, "max")])
def test_the_least_limit_of_processes_is_one(limit: int, value: str) -> None:
    for plan in (v1.plan(spec.Resources(pids_limit=limit)), v2.plan(spec.Resources(pids_limit=limit), _fresh)):
        assert [(write.file, write.value) for (write,) in plan] == [("pids.max", value)]
    told = systemd.limit_properties(spec.Resources(pids_limit=limit), pure_v2=True)
    assert told == [("TasksMax", "t", systemd.INFINITY if limit < 0 else max(limit, 1))]


def test_v2_create_enables_controllers_down_the_path_and_sets_limits(tmp_path: Path) -> None:
    hierarchies = _tree(tmp_path, V2, "sys/fs/cgroup")
    root = tmp_path / "sys/fs/cgroup"
    _file(root / "pods/cgroup.controllers", "cpu memory pids")
    _file(root / "pods/cgroup.subtree_control", "memory")
    _file(root / "pods/one/cgroup.controllers", "memory")
    for name in ("memory.max", "pids.max", "cpu.weight"):
        _file(root / "pods/one" / name, "")
    Cgroup.at(hierarchies, "pods/one").create(
        spec.Resources(memory=spec.Memory(limit=4096), pids_limit=7, cpu=spec.CPU(shares=1024))
    )
    assert (root / "cgroup.subtree_control").read_text() == "+cpu +hugetlb +memory +pids"
    assert (root / "pods/cgroup.subtree_control").read_text() == "+cpu +pids"
    assert [(root / "pods/one" / name).read_text() for name in ("memory.max", "pids.max", "cpu.weight")] == [
        "4096",
        "7",
        "100",
    ]


def test_a_controller_the_machine_lacks_is_named_before_anything_is_made(tmp_path: Path) -> None:
    hierarchies = _tree(tmp_path, V1)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(NotSupported, match=r"set `hugetlb\.2MB\.limit_in_bytes` to `4096`: no hugetlb cgroup"):
        Cgroup.at(hierarchies, "/one").create(spec.Resources(hugepage_limits=(spec.HugepageLimit("2MB", 4096),)))
    with pytest.raises(NotSupported, match=r"set `devices\.deny` to `a`: no devices cgroup controller"):
        Cgroup.at(hierarchies, "/one").create(spec.Resources(devices=(spec.DeviceRule(False),)))
    assert sorted(tmp_path.rglob("*")) == before


def test_no_pages_of_a_size_nothing_accounts_for_is_no_error(tmp_path: Path) -> None:
    cgroup = Cgroup.at(_tree(tmp_path, V1), "/one")
    cgroup.create(spec.Resources(hugepage_limits=(spec.HugepageLimit("2MB", 0),)))
    assert len(list(tmp_path.rglob("one"))) == 4
    cgroup.remove()
    assert not list(tmp_path.rglob("one"))


def test_a_failed_create_leaves_nothing(tmp_path: Path) -> None:
    hierarchies = _tree(tmp_path, V1)
    with pytest.raises(RuntimeCoreError, match=r"`pids\.max` to `9`: no such file in"):  # a fake directory has no files
        Cgroup.at(hierarchies, "/a/b/c").create(spec.Resources(pids_limit=9))
    assert not list(tmp_path.rglob("a"))


def _leave(cgroup: Cgroup) -> None:
    cgroup.remove()
    cgroup.remove_made_parents()


def _directories(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir()}


def test_parents_still_used_are_kept(tmp_path: Path) -> None:
    hierarchies = _tree(tmp_path, V1)
    first, second = Cgroup.at(hierarchies, "/pod/one"), Cgroup.at(hierarchies, "/pod/two")
    first.create(spec.Resources())
    second.create(spec.Resources())
    _leave(first)
    assert len(list(tmp_path.rglob("pod"))) == 4
    second.remove()
    _leave(second)
    assert not list(tmp_path.rglob("pod"))


@pytest.mark.trial("made-parents", "Whoever leaves last removes the parent cgroups that crisp made, and no others.")
@pytest.mark.parametrize("mountinfo", [V1, V2, HYBRID], ids=["v1", "v2", "hybrid"])
def test_whoever_leaves_last_removes_what_was_made(mountinfo: str, tmp_path: Path) -> None:
    """Told anew each time, as after a restart; what somebody else made stays, in those hierarchies where he did."""
    hierarchies = _tree(tmp_path, mountinfo)
    mountpoints = hierarchies.mountpoints()
    before = _directories(tmp_path)
    Path(f"{mountpoints[0]}/kubepods/burstable").mkdir(parents=True)
    paths = [f"/kubepods/burstable/{below}" for below in ("made/by/us/one", "made/by/us/two", "made/three")]
    for path in paths:
        Cgroup.at(hierarchies, path).create(spec.Resources())
    for path in paths:
        _leave(Cgroup.at(Hierarchies.detect(mountinfo, root=str(tmp_path)), path))
    others = {f"{os.path.relpath(mountpoints[0], tmp_path)}/{path}" for path in ("kubepods", "kubepods/burstable")}
    assert _directories(tmp_path) == before | others


@pytest.mark.trial("made-parents", "Whoever leaves last removes the parent cgroups that crisp made, and no others.")
def test_a_creation_that_fails_is_last_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hierarchies = _tree(tmp_path, V1)
    first = Cgroup.at(hierarchies, "/a/b/one")
    first.create(spec.Resources())
    second = Cgroup.at(hierarchies, "/a/b/two")

    def refuse(*_: object) -> None:
        _leave(first)
        raise OperationFailed("set", "`pids.max` to `9`", errno.EINVAL)

    monkeypatch.setattr(Cgroup, "_apply", refuse)
    with pytest.raises(OperationFailed):
        second.create(spec.Resources())
    assert not list(tmp_path.rglob("a"))


@pytest.mark.trial("made-parents", "Whoever leaves last removes the parent cgroups that crisp made, and no others.")
@pytest.mark.parametrize("mountinfo", [V1, V2], ids=["v1", "v2"])
def test_many_that_come_and_go_at_once_leave_nothing(mountinfo: str, tmp_path: Path) -> None:
    hierarchies = _tree(tmp_path, mountinfo)
    before = _directories(tmp_path)

    def come_and_go(number: int) -> None:
        for turn in range(20):
            cgroup = Cgroup.at(hierarchies, f"/a/b/{number % 2}/c/{number}-{turn}")
            cgroup.create(spec.Resources())
            _leave(cgroup)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(come_and_go, range(16)))
    assert _directories(tmp_path) == before


def test_cpusets_are_handed_down_from_the_nearest_that_has_them(tmp_path: Path) -> None:
    for directory, cpus in (("", "0-3"), ("a", "0-1"), ("a/b", "\n"), ("a/b/c", "")):
        _file(tmp_path / directory / "cpuset.cpus", cpus)
        _file(tmp_path / directory / "cpuset.mems", "0" if not directory else "")
    tree.inherit_cpuset(str(tmp_path), "/a/b/c")
    assert (tmp_path / "a/b/cpuset.cpus").read_text() == "0-1"
    assert (tmp_path / "a/b/c/cpuset.cpus").read_text() == "0-1"
    assert (tmp_path / "a/cpuset.mems").read_text() == (tmp_path / "a/b/c/cpuset.mems").read_text() == "0"


def test_a_file_longer_than_a_page_is_read_to_its_end() -> None:
    """The kernel gives at most a page of such a file at once, whatever is asked for."""
    text = files.read("/proc/self/smaps")
    assert len(text) > 8192
    assert text.splitlines()[-1].startswith("VmFlags:")
    assert "[stack]" in text


def test_oom_kills_are_read_from_either_version(tmp_path: Path) -> None:
    old = _tree(tmp_path / "v1", V1)
    _file(Path(old.v1["memory"], "one/memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    assert Cgroup.at(old, "/one").oom_kills() == 2
    new = _tree(tmp_path / "v2", V2, "sys/fs/cgroup")
    _file(Path(new.unified, "one/memory.events"), "low 0\noom 5\noom_kill 3\noom_group_kill 1\n")
    assert Cgroup.at(new, "/one").oom_kills() == 3
    assert Cgroup.at(new, "/gone").oom_kills() == 0


def test_values_that_constrain_each_other_go_in_either_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"memory.limit_in_bytes": 100, "memory.memsw.limit_in_bytes": 100}

    def kernel_write(path: str, value: str) -> None:
        wanted = state | {os.path.basename(path): int(value)}
        if wanted["memory.limit_in_bytes"] > wanted["memory.memsw.limit_in_bytes"]:
            raise OperationFailed("write", path, 22)
        state.update(wanted)

    monkeypatch.setattr(files, "write", kernel_write)
    cgroup = Cgroup.at(_tree(tmp_path, V1), "/one")
    for limit in (200, 50, 400):
        cgroup.update(spec.Resources(memory=spec.Memory(limit=limit, swap=limit)))
        assert list(state.values()) == [limit, limit]


def _limited(tmp_path: Path) -> tuple[Cgroup, Path]:
    """A version 2 cgroup with the files that limits are in, and its directory."""
    cgroup = Cgroup.at(_tree(tmp_path, V2, "sys/fs/cgroup"), "/one")
    directory = Path(cgroup.unified)
    _file(directory / "cgroup.controllers", "cpu memory pids hugetlb\n")
    values = {"cpu.max": "max 100000", "memory.max": "8192", "memory.swap.max": "1000", "pids.max": "9"}
    for name, value in values.items():
        _file(directory / name, f"{value}\n")
    _file(directory / "memory.current", "5000\n")
    return cgroup, directory


def test_a_refused_update_puts_back_what_it_had_changed(tmp_path: Path) -> None:
    cgroup, directory = _limited(tmp_path)
    before = {file.name: file.read_text().strip() for file in directory.iterdir()}
    new = spec.Resources(
        memory=spec.Memory(limit=4096, swap=8192), cpu=spec.CPU(quota=5000), unified={"pids.max": "1", "cpu.no": "1"}
    )
    with pytest.raises(NotSupported, match=r"cpu\.no"):
        cgroup.update(new)
    assert {file.name: file.read_text().strip() for file in directory.iterdir()} == before
    take_back = cgroup.update(replace(new, unified={"pids.max": "1"}))
    assert [(directory / name).read_text() for name in ("memory.max", "pids.max")] == ["4096\n", "1\n"]
    take_back()
    assert {file.name: file.read_text().strip() for file in directory.iterdir()} == before


@pytest.mark.oci("linux.resources.memory.checkBeforeUpdate")
def test_memory_in_use_is_reclaimed_or_keeps_the_limit_up(tmp_path: Path) -> None:
    """Version 2 kills processes until a new limit holds: what cannot be reclaimed must have it refused."""
    cgroup, directory = _limited(tmp_path)
    _file(directory / "memory.reclaim", "")
    memory = spec.Memory(limit=4096, check_before_update=True)
    with pytest.raises(OperationFailed, match="to `4096` below the `5000` in use"):
        cgroup.update(spec.Resources(memory=memory))
    assert (directory / "memory.reclaim").read_text() == "904"
    assert (directory / "memory.max").read_text() == "8192\n"
    _file(directory / "memory.current", "4096\n")
    cgroup.update(spec.Resources(memory=memory))
    assert (directory / "memory.max").read_text().strip() == "4096"


_EVERY_LIMIT = spec.Resources(
    memory=spec.Memory(limit=4096, swap=8192, reservation=1024),
    cpu=spec.CPU(shares=1024, period=50000, cpus="0", mems="0"),  # a period whose quota is left alone
    pids_limit=7,
    hugepage_limits=(spec.HugepageLimit("2MB", 0),),
    block_io=spec.BlockIO(weight=500),
)
_V1_FILES = {
    "memory": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.soft_limit_in_bytes"),
    "cpu": ("cpu.shares", "cpu.cfs_period_us"),
    "cpuset": ("cpuset.cpus", "cpuset.mems"),
    "pids": ("pids.max",),
    "hugetlb": ("hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.rsvd.limit_in_bytes"),
    "blkio": ("blkio.weight",),
}
_V2_FILES = {
    "memory": ("memory.max", "memory.swap.max", "memory.low"),
    "cpu": ("cpu.weight", "cpu.max"),
    "cpuset": ("cpuset.cpus", "cpuset.mems"),
    "pids": ("pids.max",),
    "hugetlb": ("hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"),
    "blkio": ("io.bfq.weight",),
}
_OLD = "max 100000"


@pytest.mark.trial("hybrid-update", "An update on a machine with both cgroup versions asks each only for its own files")
@pytest.mark.parametrize("moved", [{name} for name in _V1_FILES] + [{"cpuset", "hugetlb"}, set(_V1_FILES) - {"memory"}])
def test_an_update_of_a_hybrid_touches_each_controllers_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: set[str]
) -> None:
    lines = [
        f"{number} 31 0:{number} / /{name} rw - cgroup cgroup rw,{name}"
        for number, name in enumerate(_V1_FILES, 32)
        if name not in moved
    ]
    hierarchies = _tree(tmp_path, "\n".join([*lines, "90 31 0:90 / /unified rw - cgroup2 cgroup2 rw"]))
    given = {"io" if name == "blkio" else name for name in moved}
    hierarchies = replace(hierarchies, unified_controllers=frozenset(given | {"memory"}))
    _file(tmp_path / "unified/cgroup.subtree_control", "")
    _file(tmp_path / "unified/one/cgroup.controllers", " ".join(given))
    for name, names in _V1_FILES.items():
        for file in _V2_FILES[name] if name in moved else names:
            _file(tmp_path / ("unified" if name in moved else name) / "one" / file, _OLD)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(files, "write", lambda path, value: Path(path).write_text(value))  # as a cgroup's file: whole
    take_back = Cgroup.at(hierarchies, "/one").update(_EVERY_LIMIT)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is made in the wrong hierarchy
    assert (tmp_path / ("unified/one/cpu.max" if "cpu" in moved else "cpu/one/cpu.cfs_period_us")).read_text() == (
        "max 50000" if "cpu" in moved else "50000"
    )
    limits = [file for file in before if file.parent.name == "one" and file.name != "cgroup.controllers"]
    assert not [file for file in limits if file.read_text() == _OLD]
    take_back()
    assert {file.read_text() for file in limits} == {_OLD}


@pytest.mark.trial("deep-cgroups", "cgroups in each other, as deep as a path reaches, are found and removed")
def test_cgroups_deeper_than_pythons_stack_are_removed(tmp_path: Path) -> None:
    top = f"{tmp_path}/top"
    deepest = top + "/d" * 1500
    os.makedirs(f"{top}/beside")
    for end in range(len(top) + 2, len(deepest) + 1, 2):
        os.mkdir(deepest[:end])
    found = tree.descendants(top)
    assert len(found) == 1502
    assert found[-1] == top
    assert found.index(deepest) < found.index(deepest[:-2])
    tree.remove(top)
    assert os.listdir(tmp_path) == []
    assert tree.descendants(top) == []


def test_without_hierarchies_limits_are_left_out_and_nothing_fails() -> None:
    """As in a user namespace that no cgroups were delegated to."""
    cgroup = Cgroup.at(NO_HIERARCHIES, "/pods/one")
    memory = spec.Memory(limit=1 << 20, check_before_update=True)
    limited = spec.Resources(pids_limit=9, devices=(spec.DeviceRule(False),), memory=memory)
    cgroup.create(limited)
    cgroup.update(limited)()
    cgroup.join_self()
    cgroup.kill()
    cgroup.thaw()
    cgroup.remove()
    cgroup.remove_made_parents()
    assert (cgroup.pids(), cgroup.is_populated(), cgroup.oom_kills(), cgroup.is_frozen()) == ([], False, 0, False)
    assert not cgroup.set_oom_score_adj(-5)
    with pytest.raises(NotSupported, match="freeze"):
        cgroup.freeze()


def test_in_a_user_namespace_only_what_is_delegated_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, kept = tmp_path / "given", tmp_path / "kept"
    for directory in (theirs, kept):
        directory.mkdir()
    found = Hierarchies({"memory": str(theirs), "devices": str(theirs), "cpu": str(kept)}, str(kept), frozenset({"io"}))
    monkeypatch.setattr(hierarchies_module, "STARTED_IN_ONE", True)
    monkeypatch.setattr(Hierarchies, "detect", lambda: found)
    monkeypatch.setattr(os, "access", lambda path, _mode: path == str(theirs))
    usable = Hierarchies.usable()
    assert (dict(usable.v1), usable.unified, usable.restricted) == ({"memory": str(theirs)}, "", True)
