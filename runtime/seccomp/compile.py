"""Seccomp filters (seccomp(2), runtime-spec config-linux.md "Seccomp"): compiled by libseccomp, loaded without it.

`compile_filter` runs where pyseccomp can be imported: the daemon or the OCI command, never the zygote and its children,
which only get the program's bytes for `load_filter`.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator

from linux.syscalls import SECCOMP_NEW_LISTENER
from runtime.errors import NotSupported, OperationFailed, SpecError
from runtime.spec.values import Seccomp, SeccompArg, SeccompRule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
}
_KILL_THREAD, _KILL_PROCESS, _TRAP, _ERRNO = 0x00000000, 0x80000000, 0x00030000, 0x00050000
_NOTIFY, _TRACE, _LOG, _ALLOW = 0x7FC00000, 0x7FF00000, 0x7FFC0000, 0x7FFF0000
ACTIONS = {
    "SCMP_ACT_KILL": _KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": _KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": _KILL_PROCESS,
    "SCMP_ACT_TRAP": _TRAP,
    "SCMP_ACT_ERRNO": _ERRNO,
    "SCMP_ACT_TRACE": _TRACE,
    "SCMP_ACT_LOG": _LOG,
    "SCMP_ACT_ALLOW": _ALLOW,
    "SCMP_ACT_NOTIFY": _NOTIFY,
}
_ACTION_BITS = 0xFFFF0000
_REFERRING = "SCMP_ACT_NOTIFY"
_DENYING = (_KILL_THREAD, _KILL_PROCESS, _TRAP, _ERRNO)
OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_HANDING_OVER = "sendmsg"  # the call by which a container's process gives its listener away
_UNKNOWN_SYSCALL = -1
_X32_BIT = 0x40000000  # x32's system calls share x86_64's audit architecture and have this bit



def compile_filter(seccomp: Seccomp, *, listener: bool = False) -> bytes:
    """The profile as a classic BPF program, an array of struct sock_filter.

    `listener` says that the caller takes the filter's listener to where the profile wants it (SCMP_ACT_NOTIFY).

    System calls that libseccomp does not know are left out. Those newer than all that the profile names get ENOSYS
    instead of a denying default, for C libraries try new calls first and fall back only on that answer.
    Raises `SpecError` for a bad profile, `NotSupported` without libseccomp or a way for a listener.
    """
    _check_listener(seccomp, listener)
    library = _libseccomp()
    default = _action("defaultAction", seccomp.default_action, seccomp.default_errno_ret)
    program = library.SyscallFilter(default)
    architectures = [_architecture(library, name, index) for index, name in enumerate(seccomp.architectures)]
    for architecture in architectures:
        try:
            program.add_arch(architecture)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise OperationFailed.of("add seccomp architecture", f"{architecture:#x}", error) from error
    program.set_attr(library.Attr.CTL_NNP, 0)
    for index, rule in enumerate(seccomp.syscalls):
        _add(library, program, default, rule, f"linux.seccomp.syscalls[{index}]")
    if default & _ACTION_BITS not in _DENYING:
        return _export(program)
    newest = _newest(library, {library.system_arch(), *architectures}, seccomp)
    return _answer_enosys(newest) + _export(program)


def filter_flags(seccomp: Seccomp) -> int:
    """The profile's flags for seccomp(2). Raises `SpecError` for one that does not exist."""
    flags = 0
    for index, name in enumerate(seccomp.flags):
        if name not in FLAGS:
            raise SpecError(f"linux.seccomp.flags[{index}]", f"unknown flag {name!r}")
        flags |= FLAGS[name]
    if not notifies(seccomp):
        return flags
    # The kernel cannot give both answers in one number, and there is one thread.
    return flags & ~FLAGS["SECCOMP_FILTER_FLAG_TSYNC"] | SECCOMP_NEW_LISTENER


def notifies(seccomp: Seccomp) -> bool:
    """Whether some call is referred to a listener."""
    return any(rule.action == _REFERRING for rule in seccomp.syscalls)


def _check_listener(seccomp: Seccomp, possible: bool) -> None:
    if seccomp.default_action == _REFERRING:
        raise SpecError("linux.seccomp.defaultAction", f"{_REFERRING} is for single calls, not for all")
    if seccomp.listener_metadata and not seccomp.listener_path:
        raise SpecError("linux.seccomp.listenerMetadata", "linux.seccomp.listenerPath is needed with it")
    for index, rule in enumerate(seccomp.syscalls):
        if rule.action != _REFERRING:
            continue
        if not possible:
            raise NotSupported("compile", "seccomp filter", f"{_REFERRING} needs a listener, which crispd has none for")
        if not seccomp.listener_path:
            raise SpecError("linux.seccomp.listenerPath", f"is required with {_REFERRING}")
        if _HANDING_OVER in rule.names:
            name = f"linux.seccomp.syscalls[{index}].names"
            raise SpecError(name, f"{_HANDING_OVER} cannot be {_REFERRING}: the listener is handed over by it")


def _libseccomp() -> Any:
    try:
        return __import__("pyseccomp")
    except (ImportError, RuntimeError, OSError) as error:
        reason = f"libseccomp cannot be used: {error} (a crisp-oci outside the environment that crisp is installed in?)"
        raise NotSupported("compile", "seccomp filter", reason) from error


def _action(member: str, name: str, errno_ret: int | None) -> int:
    if name not in ACTIONS:
        raise SpecError(f"linux.seccomp.{member}", f"unknown action {name!r}")
    action = ACTIONS[name]
    if action in (_ERRNO, _TRACE):
        action |= (errno.EPERM if errno_ret is None else errno_ret) & 0xFFFF
    return action


def _architecture(library: Any, name: str, index: int) -> int:
    architecture = getattr(library.Arch, name.removeprefix("SCMP_ARCH_"), None)
    if not name.startswith("SCMP_ARCH_") or not isinstance(architecture, int):
        raise SpecError(f"linux.seccomp.architectures[{index}]", f"unknown architecture {name!r}")
    return architecture


def _add(library: Any, program: Any, default: int, rule: SeccompRule, path: str) -> None:
    action = _action(path.removeprefix("linux.seccomp.") + ".action", rule.action, rule.errno_ret)
    if action == default:
        return  # libseccomp refuses a rule that changes nothing
    alternatives = [[_comparison(library, arg, path) for arg in group] for group in _alternatives(rule.args)]
    for name in rule.names:
        number = library.resolve_syscall(library.Arch.NATIVE, name)
        if number == _UNKNOWN_SYSCALL:
            continue
        for comparisons in alternatives:
            try:
                program.add_rule(action, number, *comparisons)
            except OSError as error:
                raise OperationFailed.of("add seccomp rule for", name, error) from error


def _alternatives(args: tuple[SeccompArg, ...]) -> Iterable[tuple[SeccompArg, ...]]:
    """Comparisons that must all hold, or sets of them of which one must.

    libseccomp compares an argument once in a rule. A profile with more comparisons of one argument means any of them:
    the runtimes that Kubernetes profiles were written for read it so.
    """
    if len({arg.index for arg in args}) < len(args):
        return [(arg,) for arg in args]
    return [args]


def _comparison(library: Any, arg: SeccompArg, path: str) -> object:
    if arg.op not in OPERATORS:
        raise SpecError(f"{path}.args", f"unknown operator {arg.op!r}")
    return library.Arg(arg.index, OPERATORS[arg.op], arg.value, arg.value_two)


def _newest(library: Any, architectures: set[int], seccomp: Seccomp) -> dict[int, int]:
    """The highest system call number that the profile names, by architecture."""
    names = {name for rule in seccomp.syscalls for name in rule.names}
    newest = {}
    for architecture in architectures - {library.Arch.X32}:
        numbers = [library.resolve_syscall(architecture, name) for name in names]
        if numbers and max(numbers) >= 0:
            newest[architecture] = max(numbers)
    return newest


def _answer_enosys(newest: dict[int, int]) -> bytes:
    """Instructions to run before the filter's own; jumps of classic BPF are relative, so those stay right."""
    return b"".join(instruction for each in sorted(newest.items()) for instruction in _enosys_above(*each))


def _enosys_above(architecture: int, number: int) -> Iterator[bytes]:
    load, jump_equal, jump_greater, jump_greater_equal, return_ = 0x20, 0x15, 0x25, 0x35, 0x06
    yield struct.pack("=HBBI", load, 0, 0, 4)  # seccomp_data.arch
    yield struct.pack("=HBBI", jump_equal, 0, 4, architecture)
    yield struct.pack("=HBBI", load, 0, 0, 0)  # seccomp_data.nr
    yield struct.pack("=HBBI", jump_greater, 0, 2, number)
    yield struct.pack("=HBBI", jump_greater_equal, 1, 0, _X32_BIT)
    yield struct.pack("=HBBI", return_, 0, 0, _ERRNO | errno.ENOSYS)


def _export(program: Any) -> bytes:
    with os.fdopen(os.memfd_create("seccomp", os.MFD_CLOEXEC), "w+b") as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()
