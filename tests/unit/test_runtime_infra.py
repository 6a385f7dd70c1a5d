"""The infra program: an executable made of bytes, that waits, reaps and ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
from pathlib import Path

import pytest

from linux.elf import in_memory
from linux.syscalls import PR_SET_PDEATHSIG, prctl
from runtime.process import infra
from tests.waiting import until

_BLOCKED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, infra.OUTLIVE}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_it_is_an_elf_file_whose_segment_holds_all_of_it(machine: str) -> None:
    program = infra.program(machine)
    assert program[:4] == b"\x7fELF"
    entry, program_headers = struct.unpack_from("<QQ", program, 24)
    kind, flags, offset, address, _, in_file, in_memory, _ = struct.unpack_from("<IIQQQQQQ", program, program_headers)
    assert (kind, flags, offset) == (1, 5, 0)
    assert in_file == in_memory == len(program)
    assert entry - address == 120
    assert len(infra.filter_program(machine)) % 8 == 0


@pytest.mark.parametrize("told", [False, True])
def test_it_dies_with_its_parent_unless_others_know_of_it(told: bool) -> None:
    program, (reader, writer) = infra.program_file(), os.pipe()
    parent = os.fork()
    if parent == 0:
        pid = os.fork()
        if pid == 0:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.pthread_sigmask(signal.SIG_SETMASK, _BLOCKED)
            os.execve(program, ["crisp-infra test"], {})
        until(lambda: Path(f"/proc/{pid}/cmdline").read_bytes() == b"crisp-infra test\0" and _waits(pid))
        if told:
            os.kill(pid, infra.OUTLIVE)
            until(lambda: _waits(pid))
        os.write(writer, b"%d" % pid)
        os._exit(0)
    os.close(writer)
    os.close(program)
    pid = int(os.read(reader, 20))
    os.close(reader)
    pidfd = os.pidfd_open(pid)
    os.waitpid(parent, 0)
    try:
        if told:
            assert not select.select([pidfd], [], [], 0.2)[0]
        else:
            assert select.select([pidfd], [], [], 60)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def test_nobody_can_change_it() -> None:
    """All pods' infra processes run the one program."""
    program = infra.program_file()
    try:
        with pytest.raises(PermissionError):
            _overwrite(program)
    finally:
        os.close(program)


def _overwrite(program: int) -> None:
    with open(f"/proc/self/fd/{program}", "r+b", buffering=0) as file:
        file.write(b"changed")


def _child(program: int, blocked: set[signal.Signals], lives: tuple[int, int]) -> int:
    """Start the program with a child of its own to reap, which ends when this process closes the pipe `lives`."""
    pid = os.fork()
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if os.fork() == 0:
            os.close(lives[1])
            os.read(lives[0], 1)
            os._exit(0)
        os.execve(program, ["crisp-infra test"], {})
    os.close(program)
    return pid


def _waits(pid: int) -> bool:
    """Whether it is in the system call that its loop begins with. Before, a signal may find nobody who wants it."""
    wanted = {"x86_64": "128", "aarch64": "137"}[os.uname().machine]  # rt_sigtimedwait
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] == wanted


def _children(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["infra", "pause"])
def test_it_reaps_waits_and_ends(number: signal.Signals, kind: str) -> None:
    """The pause program blocks its signals itself."""
    lives = os.pipe()
    if kind == "infra":
        pid = _child(infra.program_file(), _BLOCKED, lives)
    else:
        pid = _child(in_memory("pause", infra.pause_program(), 0o555), set(), lives)
    try:
        until(lambda: Path(f"/proc/{pid}/cmdline").read_bytes() == b"crisp-infra test\0")
        until(lambda: _waits(pid))
        os.close(lives[1])
        until(lambda: _children(pid) == "")
        os.kill(pid, infra.OUTLIVE)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        assert int(Path(f"/proc/{pid}/statm").read_text().split()[0]) < 100  # pages: no libc, no interpreter
        os.kill(pid, number)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(lives[0])
