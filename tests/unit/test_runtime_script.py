"""A list of system calls, worked off by the program that is executed for it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from linux import syscalls
from runtime.process.joining import leave_if_orphaned
from runtime.process.script import BASE, CHANNEL, EVERY_ERROR, Runner, Script
from runtime.wire.reports import Undone, decode, encode
from tests.waiting import until

_READ, _WRITE = 4, 5  # where the ends of a pipe are in a list's process


class _Run(NamedTuple):
    status: int
    said: bytes
    reports: list[bytes]


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    made = Runner()
    assert made.can_run
    yield made
    os.close(made.program)


def _script() -> Script:
    """One that reports failures, and can say something."""
    script = Script()
    script.on_failure()
    script.call("write", CHANNEL, BASE, len(encode(Undone(0, 0))), about=None)
    script.call("exit_group", 1, about=None)
    script.end()
    script.put(24)
    return script


def _numbers(*names: str) -> list[int]:
    """The numbers of system calls on this machine."""
    script = Script()
    entries = [script.call(name, about=None) for name in names]
    return [int.from_bytes(script.image[entry : entry + 8], "little") for entry in entries]


def _say(script: Script, word: bytes) -> None:
    script.call("write", _WRITE, script.data(word), len(word), about=None)


def _run(runner: Runner, script: Script, *, listens: bool = True) -> _Run:
    script.call("exit_group", 7, about=None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    with ours:
        with theirs:
            ours.send(script.finished())
            if not listens:
                ours.shutdown(socket.SHUT_WR)
            pid, pidfd = runner.spawn((null, null, null, theirs.fileno(), read, write))
        for fd in (pidfd, write, null):
            os.close(fd)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with open(read, "rb") as file:
            said = file.read()
        return _Run(status, said, list(iter(lambda: ours.recv(100), b"")))


def _files(pid: int) -> dict[int, str]:
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def test_a_result_is_a_later_ones_argument(runner: Runner) -> None:
    script = _script()
    opened = script.call("openat", syscalls.AT_FDCWD, script.text("/proc/self/comm"), os.O_RDONLY, about=None)
    buffer = script.room(16)
    read = script.call("read", opened, buffer, 16, about=None)
    script.call("write", _WRITE, buffer, read, about=None)
    assert _run(runner, script)[:2] == (7, b"%d\n" % runner.program)


def test_what_is_looked_at_decides_the_way(runner: Runner) -> None:
    script = _script()
    word = script.data(b"\x12\x34\0\0\0\0\0\0")
    for mask, expected in ((0xFFFF, 0x3412), (0xFF, 0x12), (0xFFFF, 0x12)):
        unlike = script.take(script.look(word, mask, expected).positive)
        _say(script, b"like ")
        ways = script.open_ways()
        script.put(unlike)
        _say(script, b"unlike ")
        script.put(*ways)
    assert _run(runner, script)[:2] == (7, b"like like unlike ")


def test_a_word_is_cut_out(runner: Runner) -> None:
    lines = (b"/bin/sh -x\n", b" \t/bin/sh\t-x", b"/bin/sh\n", b"/bin/sh\r\n", b"\xff\0x", b"\n/bin/sh\n", b"")
    script = _script()
    for line in lines:
        copy = script.room(64)
        length = script.cut(script.data(line + b"\0"), copy)
        script.call("write", _WRITE, copy, length, about=None)
        _say(script, b"|")
    assert _run(runner, script)[:2] == (7, b"/bin/sh|/bin/sh|/bin/sh|/bin/sh\r|\xff|||")


@pytest.mark.parametrize("allowed", [(errno.ENOENT,), (errno.EPERM, errno.ENOENT, 127), EVERY_ERROR])
def test_an_allowed_error_has_a_way_of_its_own(runner: Runner, allowed: tuple[int, ...]) -> None:
    script = _script()
    missing = script.call("chdir", script.text("/not/there"), about=None, allow=allowed)
    elsewhere = script.take(missing.error)
    _say(script, b"entered")
    script.end()
    script.put(elsewhere)
    _say(script, b"missing")
    assert _run(runner, script)[:2] == (7, b"missing")


@pytest.mark.parametrize(("allowed", "status"), [(EVERY_ERROR, 7), ((errno.EPERM,), 1)])
def test_a_filter_s_own_errors_are_allowed_with_all_others(
    runner: Runner, allowed: tuple[int, ...], status: int
) -> None:
    """A filter can answer with any number up to 4095; a list whose reports were refused so would never end."""
    script = _script()
    for number in _numbers("chdir", "sendmsg"):
        filter_ = struct.pack(
            "=HBBIHBBIHBBIHBBI",
            0x20, 0, 0, 0,  # the call's number
            0x15, 0, 1, number,
            0x06, 0, 0, 0x00050000 | 3000,  # SECCOMP_RET_ERRNO
            0x06, 0, 0, 0x7FFF0000,  # SECCOMP_RET_ALLOW
        )  # fmt: skip
        described = script.data(struct.pack("=H6xQ", 4, script.data(filter_)))
        script.call("prctl", 38, 1, about=None)  # PR_SET_NO_NEW_PRIVS
        script.call("seccomp", 1, 0, described, about=None)
    script.call("chdir", script.text("/"), about="enter", allow=allowed)
    script.call("sendmsg", CHANNEL, 0, 0, about="send", allow=allowed)
    assert _run(runner, script).status == status


@pytest.mark.parametrize("allowed", [(), (errno.EPERM, 127)])
def test_another_error_is_reported_with_its_place(runner: Runner, allowed: tuple[int, ...]) -> None:
    script = _script()
    _say(script, b"before")
    failing = script.call("chdir", script.text("/not/there"), about="enter", allow=allowed)
    _say(script, b"after")
    status, said, reports = _run(runner, script)
    assert (status, said) == (1, b"before")
    assert [decode(report) for report in reports] == [Undone(errno.ENOENT, BASE + failing)]
    assert script.names[BASE + failing] == "enter"


def test_a_call_is_made_again_so_often(runner: Runner) -> None:
    calls = {}
    reader, writer = os.pipe2(os.O_NONBLOCK)
    for times in (0, 3):
        script = Script()
        script.on_failure()
        if times:
            script.repeat_on(errno.EAGAIN, times)
        script.call("write", CHANNEL, BASE, len(encode(Undone(0, 0))), about=None)
        script.call("exit_group", 1, about=None)
        script.end()
        script.put(24)
        failing = script.call("read", _WRITE + 1, script.room(8), 8, about=None)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs, open("/dev/null", "rb") as null:
            streams = (null.fileno(),) * 3
            pid, pidfd = runner.spawn((*streams, theirs.fileno(), null.fileno(), null.fileno(), reader), "again")
            os.close(pidfd)
            ours.send(script.finished())
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            with open(f"/proc/{pid}/io") as file:
                calls[times] = next(int(line.split()[1]) for line in file if line.startswith("syscr"))
            os.waitpid(pid, 0)
            assert decode(ours.recv(100)) == Undone(errno.EAGAIN, BASE + failing)
    assert calls[3] - calls[0] == 3
    os.close(reader)
    os.close(writer)


def test_a_call_that_succeeds_when_it_is_made_again_has_not_failed(runner: Runner) -> None:
    script = Script()
    script.on_failure()
    script.call("write", _WRITE, script.data(b"again "), 6, about=None)  # what the call below then finds
    script.repeat_on(errno.EAGAIN, 2)
    script.call("exit_group", 1, about=None)
    script.end()
    script.put(24)
    script.call("fcntl", _READ, fcntl.F_SETFL, os.O_NONBLOCK, about=None)
    buffer = script.room(8)
    script.call("read", _READ, buffer, 6, about=None)
    script.call("write", _WRITE, buffer, 6, about=None)
    assert _run(runner, script)[:2] == (7, b"again ")


def test_what_has_to_be_so_is_required(runner: Runner) -> None:
    for expected, status in ((5, 7), (6, 1)):
        script = _script()
        script.require(script.data((5).to_bytes(8, "little")), 0xFF, expected, about="no")
        assert _run(runner, script).status == status


def test_a_child_goes_on_in_a_copy(runner: Runner) -> None:
    script = _script()
    number = script.room(8)
    clone = script.call("clone", 17, about=None, store=number)  # SIGCHLD
    child = script.take(clone.zero)
    mine = script.take(script.look(number).positive)
    script.put(child)
    script.require(number, 2**64 - 1, 0, about="shared")
    _say(script, b"child")
    script.call("exit_group", 0, about=None)
    script.end()
    script.put(mine)
    assert _run(runner, script)[:2] == (7, b"child")


@pytest.mark.parametrize(("lives", "expected"), [(True, (7, b"on")), (False, (1, b""))])
def test_who_is_left_alone_ends(runner: Runner, lives: bool, expected: tuple[int, bytes]) -> None:
    script = _script()
    leave_if_orphaned(script)
    _say(script, b"on")
    assert _run(runner, script, listens=lives)[:2] == expected


def test_its_process_has_nothing_of_the_callers_but_its_descriptors(runner: Runner) -> None:
    os.environ["SECRET_OF_THE_CALLER"] = "1"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    with ours, theirs, open("/etc/passwd", "rb"):
        # In each other's places.
        pid, pidfd = runner.spawn((write, read, ours.fileno(), theirs.fileno()))
        try:
            until(lambda: "/etc/passwd" not in _files(pid).values())  # a moment after posix_spawn returned
            files = _files(pid)
            expected = [os.readlink(f"/proc/self/fd/{fd}") for fd in (write, read, ours.fileno(), theirs.fileno())]
            assert files.items() >= dict(enumerate(expected)).items()
            with open(f"/proc/{pid}/environ", "rb") as environment, open(f"/proc/{pid}/maps") as maps:
                assert environment.read() == b""
                assert {line.split()[5] for line in maps if len(line.split()) > 5} <= {
                    "/memfd:crisp-script", "[stack]", "[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]",
                }  # fmt: skip
            with open(f"/proc/{pid}/status") as status:
                lines = dict(line.split(":\t") for line in status if line.startswith("Sig"))
            assert int(lines["SigBlk"], 16) == 0
            # glibc leaves one before 2.41, and a list takes it back.
            assert int(lines["SigIgn"], 16) & 0xFFFF_FFFF in (0, 1 << 31)
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            for fd in (pidfd, read, write):
                os.close(fd)
            del os.environ["SECRET_OF_THE_CALLER"]


def test_who_reaches_its_program_changes_nothing_for_others(runner: Runner) -> None:
    """A container's root who may trace reaches it by /proc/PID/exe, and all shims of the machine execute it."""
    if not fcntl.fcntl(runner.program, fcntl.F_GET_SEALS) & 0x20:
        pytest.skip("F_SEAL_EXEC needs Linux 6.3")
    for mode in (0, 0o400, 0o777):
        with pytest.raises(PermissionError):
            os.chmod(f"/proc/self/fd/{runner.program}", mode)
    with open(f"/proc/self/fd/{runner.program}", "r+b", buffering=0) as file, pytest.raises(PermissionError):
        file.write(b"x")
    assert _run(runner, _script()).status == 7


def test_a_process_that_cannot_be_followed_is_ended(runner: Runner) -> None:
    """It would run the program, and whoever has the error would have it run once more."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kept = [os.open("/dev/null", os.O_RDWR) for _ in range(8)]  # the last is in nobody's place
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    with ours, theirs:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                runner.spawn((kept[-1],))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in kept:
                os.close(fd)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
