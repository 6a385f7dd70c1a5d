"""What a cgroup has used, from files as kernels write them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.cgroups import Cgroup, Hierarchies
from runtime.cgroups import usage as usage_module
from runtime.cgroups.usage import (
    CpuUse,
    DeviceUse,
    HugePageUse,
    MemoryUse,
    Pressure,
    Stall,
    Usage,
    pressure,
    read_usage,
)

OPEN = os.open
TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
PRESSURE = """\
some avg10=1.50 avg60=2.25 avg300=3.00 total=1234
full avg10=0.50 avg60=0.25 avg300=0.00 total=567
"""
V1 = {
    "cpuacct/cpuacct.usage": "5000000001\n",
    "cpuacct/cpuacct.stat": "user 300\nsystem 100\n",
    "cpu/cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 123456\nnr_bursts 0\nburst_time 0\n",
    "memory/memory.usage_in_bytes": "10485760\n",
    "memory/memory.limit_in_bytes": "67108864\n",
    "memory/memory.memsw.limit_in_bytes": "134217728\n",
    "memory/memory.max_usage_in_bytes": "20971520\n",
    "memory/memory.failcnt": "7\n",
    "memory/memory.kmem.usage_in_bytes": "4096\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    "memory/memory.stat": "rss 1\ncache 2\npgfault 3\ntotal_rss 100\ntotal_cache 200\ntotal_mapped_file 50\n"
    "total_swap 64\ntotal_pgfault 40\ntotal_pgmajfault 2\ntotal_inactive_file 485760\ntotal_active_file 30\n",
    "pids/pids.current": "5\n",
    "pids/pids.max": "max\n",
    "blkio/blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 1\n8:0 Total 12288\n"
    "Total 12288\n",
    "blkio/blkio.throttle.io_serviced_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n",
    "unified/cpu.pressure": PRESSURE,
    "unified/hugetlb.2MB.current": "2097152\n",
    "unified/hugetlb.2MB.rsvd.current": "5\n",
}
V2 = {
    "cpu.stat": "usage_usec 5000001\nuser_usec 3000000\nsystem_usec 2000001\nnr_periods 10\nnr_throttled 4\n"
    "throttled_usec 123\n",
    "memory.current": "10485760\n",
    "memory.max": "max\n",
    "memory.peak": "20971520\n",
    "memory.events": "low 0\nhigh 0\nmax 7\noom 1\noom_kill 3\n",
    "memory.swap.current": "64\n",
    "memory.swap.max": "0\n",
    "memory.stat": "anon 100\nfile 200\nkernel 4096\nfile_mapped 50\ninactive_file 485760\nactive_file 30\n"
    "pgfault 40\npgmajfault 2\n",
    "pids.current": "5\n",
    "pids.max": "100\n",
    "io.stat": "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n254:0 rbytes=0 wbytes=0 rios=0 wios=0\n"
    "7:1 \n",
    "cpu.pressure": PRESSURE,
    "memory.pressure": PRESSURE,
    "io.pressure": PRESSURE,
    "hugetlb.2MB.current": "2097152\n",
}
STALLS = Pressure(Stall(1_234_000, 1.5, 2.25, 3.0), Stall(567_000, 0.5, 0.25, 0.0))


def _write(directory: Path, name: str, text: str) -> None:
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(text)


def _hybrid(root: Path) -> Cgroup:
    controllers = ("cpu", "cpuacct", "memory", "pids", "blkio")
    mounts = [f"{number} 1 0:1 / /{name} rw - cgroup cgroup rw,{name}" for number, name in enumerate(controllers)]
    _write(root, "unified/cgroup.controllers", "hugetlb\n")
    mounts.append("99 1 0:2 / /unified rw - cgroup2 cgroup2 rw")
    for name, text in V1.items():
        controller, _, file = name.partition("/")
        _write(root, f"{controller}/pod/c/{file}", text)
    return Cgroup.at(Hierarchies.detect("\n".join(mounts), root=str(root)), "/pod/c")


def _pure_v2(root: Path) -> Cgroup:
    _write(root, "cgroup/cgroup.controllers", "cpu memory pids io hugetlb\n")
    for name, text in V2.items():
        _write(root, f"cgroup/pod/c/{name}", text)
    return Cgroup.at(Hierarchies.detect("1 1 0:1 / /cgroup rw - cgroup2 cgroup2 rw", root=str(root)), "/pod/c")


def test_version_1_with_the_unified_hierarchy_beside_it(tmp_path: Path) -> None:
    usage = read_usage(_hybrid(tmp_path))
    assert usage is not None
    assert usage.cpu == CpuUse(5_000_000_001, 300 * TICK, 100 * TICK, 10, 4, 123456)
    assert usage.memory == MemoryUse(
        usage=10485760, limit=64 << 20, peak=20971520, failures=7, swap=64, swap_limit=64 << 20, anon=100, file=200,
        mapped=50, kernel=4096, active_file=30, inactive_file=485760, faults=40, major_faults=2,
    )  # fmt: skip
    assert usage.memory.working_set == 10000000
    assert (usage.tasks, usage.tasks_limit, usage.oom_kills) == (5, None, 3)
    assert usage.devices == (DeviceUse(8, 0, 4096, 8192, 1, 2),)
    assert usage.hugetlb == {"2MB": HugePageUse(2097152, 2097152)}
    assert (usage.cpu_pressure, usage.memory_pressure, usage.io_pressure) == (STALLS, None, None)


def test_version_2(tmp_path: Path) -> None:
    usage = read_usage(_pure_v2(tmp_path))
    assert usage is not None
    assert usage.cpu == CpuUse(5_000_001_000, 3_000_000_000, 2_000_001_000, 10, 4, 123_000)
    assert usage.memory == MemoryUse(
        usage=10485760, limit=None, peak=20971520, failures=7, swap=64, swap_limit=0, anon=100, file=200, mapped=50,
        kernel=4096, active_file=30, inactive_file=485760, faults=40, major_faults=2,
    )  # fmt: skip
    assert (usage.tasks, usage.tasks_limit, usage.oom_kills) == (5, 100, 3)
    assert usage.devices == (DeviceUse(8, 0, 4096, 8192, 1, 2),)
    assert usage.hugetlb == {"2MB": HugePageUse(2097152, 2097152)}
    assert (usage.cpu_pressure, usage.memory_pressure, usage.io_pressure) == (STALLS, STALLS, STALLS)


@pytest.mark.parametrize("make", [_hybrid, _pure_v2])
def test_what_cri_stats_tell_is_read_without_the_rest(
    make: Callable[[Path], Cgroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(usage_module.os, "open", lambda path, *flags: opened.append(path) or OPEN(path, *flags))
    cgroup = make(tmp_path)
    opened.clear()
    whole, files_of_whole = read_usage(cgroup), len(opened)
    opened.clear()
    brief = read_usage(cgroup, detailed=False)
    assert whole is not None
    assert whole.cpu is not None
    assert whole.memory is not None
    assert brief == Usage(
        cpu=CpuUse(whole.cpu.total) if make is _hybrid else whole.cpu,  # version 2 has all of it in one file
        memory=dataclasses.replace(whole.memory, peak=0, failures=0, kernel=brief.memory.kernel),
        tasks=whole.tasks, tasks_limit=None, oom_kills=0, devices=(), hugetlb={}, cpu_pressure=whole.cpu_pressure,
        memory_pressure=whole.memory_pressure, io_pressure=whole.io_pressure,
    )  # fmt: skip
    assert len(opened) <= files_of_whole * 2 / 3


def test_no_limit_reads_as_none_and_unused_cache_never_makes_the_working_set_negative(tmp_path: Path) -> None:
    cgroup = _hybrid(tmp_path)
    _write(tmp_path, "memory/pod/c/memory.limit_in_bytes", "9223372036854771712\n")
    _write(tmp_path, "memory/pod/c/memory.usage_in_bytes", "5\n")
    usage = read_usage(cgroup)
    assert usage is not None
    assert usage.memory is not None
    assert (usage.memory.limit, usage.memory.swap_limit, usage.memory.working_set) == (None, None, 0)


def test_a_cgroup_that_is_gone_has_no_usage(tmp_path: Path) -> None:
    hierarchies = _hybrid(tmp_path).hierarchies
    assert read_usage(Cgroup.at(hierarchies, "/pod/gone")) is None


def test_a_kernel_without_psi_has_no_pressure() -> None:
    assert pressure("") is None
    assert pressure("some avg10=0.00 avg60=0.00 avg300=0.00 total=2\n") == Pressure(
        Stall(2000, 0, 0, 0), Stall(0, 0, 0, 0)
    )
