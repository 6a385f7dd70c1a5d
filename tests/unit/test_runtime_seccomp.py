"""Seccomp filters: compiled by libseccomp, loaded into real child processes."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial

import pytest

from linux import syscalls
from runtime.errors import NotSupported, OperationFailed, SpecError
from runtime.light import replace
from runtime.seccomp import compile as seccomp
from runtime.seccomp import load as seccomp_load
from runtime.spec.values import Seccomp, SeccompArg, SeccompRule

pytest.importorskip("pyseccomp")


def _rule(name: str, action: str = "SCMP_ACT_ERRNO", errno_ret: int | None = None, *args: SeccompArg) -> SeccompRule:
    return SeccompRule((name,), action, errno_ret, args)


def _allowing(*rules: SeccompRule) -> Seccomp:
    return Seccomp("SCMP_ACT_ALLOW", syscalls=rules)


def _under(profile: Seccomp, attempt: Callable[[], object], flags: int = 0) -> int:
    """The wait status of a child that makes the attempt under the filter; it exits with the errno, 0 for none."""
    program = seccomp.compile_filter(profile)
    pid = os.fork()
    if not pid:
        try:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            seccomp_load.load_filter(program, flags)
            attempt()
        except OSError as error:
            os._exit(error.errno or 255)
        except BaseException:
            os._exit(254)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _raw(number: int) -> None:
    if syscalls.libc.syscall(ctypes.c_long(number), 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "")


@pytest.mark.oci("linux.seccomp.defaultAction", "linux.seccomp.syscalls[].names")
@pytest.mark.oci("linux.seccomp action: SCMP_ACT_ERRNO", "linux.seccomp action: SCMP_ACT_ALLOW")
def test_a_forbidden_call_gets_the_error_and_others_work() -> None:
    profile = _allowing(_rule("mkdir"), _rule("mkdirat"))
    assert _under(profile, lambda: os.mkdir("/nowhere/x")) == errno.EPERM
    assert _under(profile, lambda: os.rmdir("/nowhere/x")) == errno.ENOENT
    assert _under(profile, os.getpid) == 0


@pytest.mark.oci("linux.seccomp.syscalls[].errnoRet")
def test_the_profile_chooses_the_error() -> None:
    assert _under(_allowing(_rule("sync", "SCMP_ACT_ERRNO", errno.EXDEV)), lambda: _raw(162)) == errno.EXDEV


@pytest.mark.parametrize(
    ("action", "status"),
    [
        ("SCMP_ACT_KILL_PROCESS", -signal.SIGSYS),
        ("SCMP_ACT_KILL", -signal.SIGSYS),
        ("SCMP_ACT_KILL_THREAD", -signal.SIGSYS),
        ("SCMP_ACT_TRAP", -signal.SIGSYS),
        ("SCMP_ACT_LOG", 0),
        ("SCMP_ACT_TRACE", errno.ENOSYS),  # nobody traces
    ],
)
@pytest.mark.oci("linux.seccomp.syscalls[].action", "linux.seccomp action: SCMP_ACT_KILL_PROCESS")
@pytest.mark.oci("linux.seccomp action: SCMP_ACT_KILL", "linux.seccomp action: SCMP_ACT_KILL_THREAD")
@pytest.mark.oci("linux.seccomp action: SCMP_ACT_TRAP", "linux.seccomp action: SCMP_ACT_LOG")
@pytest.mark.oci("linux.seccomp action: SCMP_ACT_TRACE")
def test_every_action_does_what_it_says(action: str, status: int) -> None:
    assert _under(_allowing(_rule("getppid", action)), lambda: _raw(110)) == status


@pytest.mark.oci("linux.seccomp.syscalls[].args")
def test_arguments_are_compared() -> None:
    only_unix = _allowing(_rule("socket", "SCMP_ACT_ERRNO", None, SeccompArg(0, socket.AF_INET, "SCMP_CMP_EQ")))
    assert _under(only_unix, lambda: socket.socket(socket.AF_INET)) == errno.EPERM
    assert _under(only_unix, lambda: socket.socket(socket.AF_UNIX)) == 0
    no_dgram = _allowing(_rule("socket", "SCMP_ACT_ERRNO", None, SeccompArg(1, 0xF, "SCMP_CMP_MASKED_EQ", 2)))
    assert _under(no_dgram, lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) == errno.EPERM
    assert _under(no_dgram, lambda: socket.socket(socket.AF_UNIX)) == 0


def test_two_comparisons_of_one_argument_mean_either() -> None:
    either = _rule(
        "socket", "SCMP_ACT_ERRNO", None,
        SeccompArg(0, socket.AF_INET, "SCMP_CMP_EQ"), SeccompArg(0, socket.AF_INET6, "SCMP_CMP_EQ"),
    )  # fmt: skip
    for family, status in ((socket.AF_INET, errno.EPERM), (socket.AF_INET6, errno.EPERM), (socket.AF_UNIX, 0)):
        assert _under(_allowing(either), partial(socket.socket, family)) == status


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
def test_calls_newer_than_the_profile_get_enosys_so_that_c_libraries_fall_back() -> None:
    names = ("read", "write", "exit_group", "prctl", "seccomp", "faccessat2", "no_such_call")  # faccessat2 is 439
    denying = Seccomp(
        "SCMP_ACT_ERRNO",
        architectures=("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
        syscalls=(SeccompRule(names, "SCMP_ACT_ALLOW"),),
    )
    assert _under(denying, lambda: _raw(440)) == errno.ENOSYS
    assert _under(denying, lambda: _raw(438)) == errno.EPERM
    assert _under(_allowing(_rule("sync")), lambda: _raw(39)) == 0  # getpid: a permissive default stays one


@pytest.mark.oci("linux.seccomp.flags")
def test_the_log_flag_is_taken_by_the_kernel() -> None:
    profile = Seccomp("SCMP_ACT_ALLOW", flags=("SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"))
    assert seccomp.filter_flags(profile) == 3
    assert _under(profile, os.getpid, 3) == 0
    with pytest.raises(SpecError, match="unknown flag 'X'"):
        seccomp.filter_flags(Seccomp("SCMP_ACT_ALLOW", flags=("X",)))


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (Seccomp("SCMP_ACT_NO"), "linux.seccomp.defaultAction: unknown action 'SCMP_ACT_NO'"),
        (_allowing(_rule("sync", "ALLOW")), "linux.seccomp.syscalls[0].action: unknown action 'ALLOW'"),
        (
            _allowing(_rule("sync", "SCMP_ACT_ERRNO", None, SeccompArg(0, 1, "=="))),
            "linux.seccomp.syscalls[0].args: unknown operator '=='",
        ),
        (Seccomp("SCMP_ACT_ALLOW", architectures=("Z80",)), "linux.seccomp.architectures[0]: unknown architecture"),
    ],
)
@pytest.mark.oci("linux.seccomp.architectures")
def test_a_bad_profile_is_refused_by_name(profile: Seccomp, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        seccomp.compile_filter(profile)
    assert str(caught.value).startswith(message)


def test_notification_without_a_way_to_listen_is_refused() -> None:
    with pytest.raises(NotSupported, match="SCMP_ACT_NOTIFY needs a listener"):
        seccomp.compile_filter(_allowing(_rule("sync", "SCMP_ACT_NOTIFY")))


@pytest.mark.parametrize(
    ("profile", "path"),
    [
        (_allowing(_rule("sync", "SCMP_ACT_NOTIFY")), "listenerPath"),
        (replace(_allowing(_rule("sendmsg", "SCMP_ACT_NOTIFY")), listener_path="/x"), "syscalls[0].names"),
        (Seccomp("SCMP_ACT_NOTIFY", listener_path="/x"), "defaultAction"),
        (Seccomp("SCMP_ACT_ALLOW", listener_metadata="x"), "listenerMetadata"),
    ],
)
def test_a_listener_that_cannot_be(profile: Seccomp, path: str) -> None:
    with pytest.raises(SpecError) as caught:
        seccomp.compile_filter(profile, listener=True)
    assert caught.value.path == f"linux.seccomp.{path}"


def test_without_libseccomp_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(NotSupported, match="cannot load libseccomp"):
        seccomp.compile_filter(Seccomp("SCMP_ACT_ALLOW"))


def test_a_program_the_kernel_refuses_is_an_error() -> None:
    with pytest.raises(OperationFailed, match="load `seccomp filter`: Invalid argument"):
        seccomp_load.load_filter(b"", 0)
