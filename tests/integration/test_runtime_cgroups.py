"""Cgroups in the kernel: limits that hold, processes that join, freeze, die and are counted, nothing left behind."""

from __future__ import annotations

import os
import secrets
import select
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

import pytest

from linux import syscalls
from runtime.cgroups import Cgroup, Hierarchies
from runtime.cgroups import device_filter as devices_bpf
from runtime.errors import OperationFailed
from runtime.spec import values as spec
from tests.waiting import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

HIERARCHIES = Hierarchies.detect()
needs_unified = pytest.mark.skipif(not HIERARCHIES.unified, reason="no cgroup v2 mounted")
needs_v1 = pytest.mark.skipif(HIERARCHIES.pure_v2, reason="no cgroup v1 controllers")


@pytest.fixture
def pod() -> Iterator[str]:
    """The path of a cgroup that does not exist; afterwards nothing of that name may be left in any hierarchy."""
    name = f"crisp-test-{secrets.token_hex(4)}"
    yield f"/{name}"
    left = [mountpoint for mountpoint in HIERARCHIES.mountpoints() if os.path.exists(f"{mountpoint}/{name}")]
    if left:
        whole = Cgroup.at(HIERARCHIES, name)
        whole.kill()
        _wait(lambda: not whole.pids())
        whole.remove()
    assert not left


@pytest.fixture
def cgroup(pod: str) -> Iterator[Cgroup]:
    """A cgroup without limits, with a parent it had to make."""
    cgroup = Cgroup.at(HIERARCHIES, f"{pod}/one")
    cgroup.create(spec.Resources())
    yield cgroup
    cgroup.kill()
    _wait(lambda: not cgroup.pids())
    cgroup.remove()
    cgroup.remove_made_parents()


class Child:
    """A process in the cgroup, cloned into its v2 directory where there is one; it does `work`, then sleeps."""

    def __init__(self, cgroup: Cgroup, work: Callable[[], object] = lambda: None) -> None:
        into = cgroup.clone_fd()
        reader, writer = os.pipe()
        self.pid, self.pidfd = syscalls.clone(0, into)
        if self.pid == 0:
            try:
                cgroup.join_self(unified=into is None)
                work()
                os.write(writer, b"ok")
            except BaseException as error:
                os.write(writer, str(error).encode())
            _sleep()
        if into is not None:
            os.close(into)
        os.close(writer)
        self._reader = reader

    def report(self) -> str:
        return os.read(self._reader, 1000).decode()

    def wait(self, timeout: float = 10) -> int:
        assert select.select([self.pidfd], [], [], timeout)[0], "the process did not end"
        os.close(self.pidfd)
        os.close(self._reader)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _sleep() -> NoReturn:
    while True:
        signal.pause()


_wait = partial(until, pause=0.002)


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


def _spin() -> None:
    while True:
        pass


def test_a_process_is_in_the_cgroup_everywhere_and_dies_with_it(cgroup: Cgroup) -> None:
    child = Child(cgroup, lambda: os.fork() or _sleep())
    assert child.report() == "ok"
    places = Path(f"/proc/{child.pid}/cgroup").read_text().splitlines()
    used = {"", *HIERARCHIES.v1} if HIERARCHIES.unified else set(HIERARCHIES.v1)
    for line in places:
        _, controllers, path = line.split(":", 2)
        if set(controllers.split(",")) & used:
            assert path == cgroup.path, line
    _wait(lambda: len(cgroup.pids()) == 2)
    cgroup.kill()
    assert child.wait() == -signal.SIGKILL
    assert cgroup.wait_empty(60)
    _wait(lambda: not cgroup.pids())


@needs_v1
def test_without_v2_a_kill_freezes_signals_and_thaws(pod: str) -> None:
    old = Cgroup.at(replace(HIERARCHIES, unified="", unified_controllers=frozenset()), f"{pod}/one")
    old.create(spec.Resources())
    forking = Child(old, lambda: [os.fork() for _ in range(4)])
    nested = replace(old, path=f"{pod}/one/nested")
    nested.create(spec.Resources())
    deeper = Child(nested)
    assert forking.report().startswith("ok")  # each of its forks reports
    assert deeper.report() == "ok"
    _wait(lambda: len(old.pids()) == 17)
    assert not old.wait_empty(0.01)
    old.kill()
    assert old.wait_empty(60)
    assert forking.wait() == deeper.wait() == -signal.SIGKILL
    old.remove()
    old.remove_made_parents()


def _frozen_stops(cgroup: Cgroup) -> None:
    child = Child(cgroup, _spin)
    _wait(lambda: _ticks(child.pid) > 1)
    cgroup.freeze()
    before = _ticks(child.pid)
    time.sleep(0.1)
    assert _ticks(child.pid) == before
    cgroup.thaw()
    _wait(lambda: _ticks(child.pid) > before)
    cgroup.kill()
    child.wait()


def test_frozen_processes_do_not_run(cgroup: Cgroup) -> None:
    _frozen_stops(cgroup)


@needs_unified
def test_v2_freezes_without_the_freezer_controller(cgroup: Cgroup) -> None:
    _frozen_stops(Cgroup.at(Hierarchies(MappingProxyType({}), HIERARCHIES.unified, frozenset()), cgroup.path))


@needs_unified
def test_v2_is_empty_when_its_last_process_has_ended(cgroup: Cgroup) -> None:
    v2 = Cgroup.at(Hierarchies(MappingProxyType({}), HIERARCHIES.unified, frozenset()), cgroup.path)
    child = Child(v2)
    assert child.report() == "ok"
    assert not v2.wait_empty(0.01)
    v2.kill()
    assert v2.wait_empty(60)
    child.wait()


@pytest.mark.oci("linux.resources.pids.limit")
def test_pids_are_limited_and_the_limit_can_be_raised(cgroup: Cgroup) -> None:
    cgroup.update(spec.Resources(pids_limit=2))
    child = Child(cgroup, lambda: [os.fork() or _sleep() for _ in range(3)])
    assert "Resource temporarily unavailable" in child.report()
    cgroup.kill()
    child.wait()
    _wait(lambda: not cgroup.pids())
    cgroup.update(spec.Resources(pids_limit=8))
    assert Path(cgroup.directory("pids"), "pids.max").read_text() == "8\n"


@pytest.mark.oci("linux.resources.memory.limit", "linux.resources.memory.swap")
def test_memory_beyond_the_limit_is_an_oom_kill_that_is_counted(cgroup: Cgroup) -> None:
    cgroup.update(spec.Resources(memory=spec.Memory(limit=16 << 20, swap=16 << 20)))
    assert cgroup.oom_kills() == 0
    child = Child(cgroup, lambda: bytearray(64 << 20))
    assert child.wait() == -signal.SIGKILL
    assert cgroup.oom_kills() == 1


@needs_v1
@pytest.mark.oci("linux.resources.cpu.quota", "linux.resources.cpu.period", "linux.resources.cpu.shares")
def test_v1_limits_can_be_raised_and_lowered_together(cgroup: Cgroup) -> None:
    memory, cpu = cgroup.directory("memory"), cgroup.directory("cpu")
    for mebibytes, quota, period in ((64, 50000, 100000), (16, 5000, 10000), (128, 900000, 1000000)):
        size = mebibytes << 20
        bandwidth = spec.CPU(quota=quota, period=period, shares=99)
        cgroup.update(spec.Resources(memory=spec.Memory(limit=size, swap=size), cpu=bandwidth))
        assert int(Path(memory, "memory.memsw.limit_in_bytes").read_text()) == size
        assert int(Path(cpu, "cpu.cfs_quota_us").read_text()) == quota
    assert int(Path(cpu, "cpu.shares").read_text()) == 99
    cgroup.update(spec.Resources(memory=spec.Memory(limit=-1), cpu=spec.CPU(quota=-1)))
    assert int(Path(memory, "memory.limit_in_bytes").read_text()) > 1 << 60


def _open(path: str) -> str:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        return error.strerror or "?"
    return "opened"


def _opens(cgroup: Cgroup) -> str:
    """What a process of the cgroup is told when it opens /dev/null and /dev/zero."""
    outcome: list[str] = []

    def work() -> None:
        outcome.extend(_open(path) for path in ("/dev/null", "/dev/zero"))
        raise RuntimeError(", ".join(outcome))

    child = Child(cgroup, work)
    report = child.report()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    return report


def _only(minor: int) -> tuple[spec.DeviceRule, ...]:
    return (spec.DeviceRule(False), spec.DeviceRule(True, "c", 1, minor, "rw"))


NULL_ONLY, ZERO_ONLY = "opened, Operation not permitted", "Operation not permitted, opened"


@pytest.mark.oci("linux.resources.devices")
def test_devices_are_filtered(cgroup: Cgroup) -> None:
    cgroup.update(spec.Resources(devices=_only(3)))
    assert _opens(cgroup) == NULL_ONLY
    cgroup.update(spec.Resources(devices=_only(5)))
    assert _opens(cgroup) == ZERO_ONLY


@needs_unified
def test_v2_devices_are_filtered_by_one_program_at_a_time(cgroup: Cgroup) -> None:
    v2 = Cgroup.at(Hierarchies(MappingProxyType({}), HIERARCHIES.unified, frozenset()), cgroup.path)
    directory = os.open(v2.unified, os.O_RDONLY | os.O_DIRECTORY)
    for minor, outcome in ((3, NULL_ONLY), (5, ZERO_ONLY), (3, NULL_ONLY)):
        v2.update(spec.Resources(devices=_only(minor)))
        assert _opens(v2) == outcome
        assert len(devices_bpf.attached(directory)) == 1
    v2.update(spec.Resources(devices=(spec.DeviceRule(True),)))
    assert _opens(v2) == "opened, opened"
    os.close(directory)


def test_a_limit_the_kernel_refuses_is_named_and_the_cgroup_is_gone(pod: str) -> None:
    with pytest.raises(OperationFailed, match=r"^write `77` to `/.*/cpuset\.cpus`: "):
        Cgroup.at(HIERARCHIES, f"{pod}/one").create(spec.Resources(cpu=spec.CPU(cpus="77")))


def test_a_cgroup_in_use_is_not_removed(cgroup: Cgroup) -> None:
    child = Child(cgroup)
    assert child.report() == "ok"
    with pytest.raises(OperationFailed, match=r"^rmdir .*: Device or resource busy$"):
        cgroup.remove()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


@pytest.mark.skipif("hugetlb" not in HIERARCHIES.unified_controllers, reason="hugetlb is not on v2")
@pytest.mark.oci("linux.resources.hugepageLimits")
def test_hugepages_are_limited_by_the_hierarchy_that_has_them(cgroup: Cgroup) -> None:
    cgroup.update(spec.Resources(hugepage_limits=(spec.HugepageLimit("2MB", 4 << 20),)))
    assert Path(cgroup.directory("hugetlb"), "hugetlb.2MB.max").read_text() == f"{4 << 20}\n"
