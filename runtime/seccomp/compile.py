"""Compiles seccomp filters with libseccomp (seccomp(2), runtime-spec config-linux.md "Seccomp").

`compile_filter` runs where pyseccomp can be imported: in the daemon and in crisp-oci. The zygote and its children get
only the program's bytes, for `load_filter`.
"""

from __future__ import annotations

import errno
import os
import struct

from linux.syscalls import SECCOMP_NEW_LISTENER
from runtime.errors import NotSupported, OperationFailed, SpecError
from runtime.spec.values import Seccomp, SeccompArg, SeccompRule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
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
_NOTIFYING = "SCMP_ACT_NOTIFY"
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
_PASSING_CALL = "sendmsg"  # the call that passes the listener on
_UNKNOWN_SYSCALL = -1
_X32_BIT = 0x40000000  # x32's system calls share x86_64's audit architecture and have this bit



def compile_filter(seccomp: Seccomp, *, listener: bool = False) -> bytes:
    """Compile the profile to a classic BPF program, an array of struct sock_filter.

    `listener`: the caller will pass the filter's listener to listenerPath (SCMP_ACT_NOTIFY).

    System calls that libseccomp does not know are left out. If the default denies, calls newer than all in the profile
    get ENOSYS instead, because C libraries try new calls first and fall back only on ENOSYS. Raises `SpecError` for an
    invalid profile, `NotSupported` without libseccomp or if a listener is needed and not possible.
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
    """Return the profile's flags for seccomp(2). Raises `SpecError` for an unknown flag."""
    flags = 0
    for index, name in enumerate(seccomp.flags):
        if name not in FLAGS:
            raise SpecError(f"linux.seccomp.flags[{index}]", f"unknown flag {name!r}")
        flags |= FLAGS[name]
    if not notifies(seccomp):
        return flags
    # The kernel cannot return both a listener and a thread id. TSYNC is not needed: there is one thread.
    return flags & ~FLAGS["SECCOMP_FILTER_FLAG_TSYNC"] | SECCOMP_NEW_LISTENER


def notifies(seccomp: Seccomp) -> bool:
    """Return whether a rule refers calls to a listener."""
    return any(rule.action == _NOTIFYING for rule in seccomp.syscalls)


def _check_listener(seccomp: Seccomp, possible: bool) -> None:
    if seccomp.default_action == _NOTIFYING:
        raise SpecError("linux.seccomp.defaultAction", f"{_NOTIFYING} cannot be the default action, only a rule's")
    if seccomp.listener_metadata and not seccomp.listener_path:
        raise SpecError("linux.seccomp.listenerMetadata", "needs linux.seccomp.listenerPath")
    for index, rule in enumerate(seccomp.syscalls):
        if rule.action != _NOTIFYING:
            continue
        if not possible:
            raise NotSupported("compile", "seccomp filter", f"{_NOTIFYING} needs a listener, not supported by crispd")
        if not seccomp.listener_path:
            raise SpecError("linux.seccomp.listenerPath", f"is required with {_NOTIFYING}")
        if _PASSING_CALL in rule.names:
            name = f"linux.seccomp.syscalls[{index}].names"
            raise SpecError(name, f"{_PASSING_CALL} cannot be {_NOTIFYING}: the listener itself is passed on with it")


def syscall_name(architecture: int, number: int) -> str:
    """Return the name of a system call; "" if libseccomp does not know it. `architecture` is an AUDIT_ARCH constant."""
    try:
        name = _libseccomp().resolve_syscall(architecture, number)
    except (ValueError, NotSupported):
        return ""
    return name.decode() if isinstance(name, bytes) else str(name)


def _libseccomp() -> Any:
    try:
        return __import__("pyseccomp")
    except (ImportError, RuntimeError, OSError) as error:
        reason = f"cannot load libseccomp: {error}; run the crisp-oci of crisp's own environment"
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
        return  # libseccomp refuses a rule with the default's action
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
    """Return groups of comparisons: in a group all must hold, and one group suffices.

    libseccomp compares each argument only once per rule. If a profile has several comparisons of one argument, any of
    them suffices: the runtimes that Kubernetes profiles were written for read it so.
    """
    if len({arg.index for arg in args}) < len(args):
        return [(arg,) for arg in args]
    return [args]


def _comparison(library: Any, arg: SeccompArg, path: str) -> object:
    if arg.op not in OPERATORS:
        raise SpecError(f"{path}.args", f"unknown operator {arg.op!r}")
    return library.Arg(arg.index, OPERATORS[arg.op], arg.value, arg.value_two)


def _newest(library: Any, architectures: set[int], seccomp: Seccomp) -> dict[int, int]:
    """Return the highest system call number in the profile, by architecture."""
    names = {name for rule in seccomp.syscalls for name in rule.names}
    newest = {}
    for architecture in architectures - {library.Arch.X32}:
        numbers = [library.resolve_syscall(architecture, name) for name in names]
        if numbers and max(numbers) >= 0:
            newest[architecture] = max(numbers)
    return newest


def _answer_enosys(newest: dict[int, int]) -> bytes:
    """Return instructions to put before the filter's own. Jumps of classic BPF are relative and stay valid."""
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
