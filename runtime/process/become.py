"""Turns a process that is root in a finished rootfs into the user's program: limits, labels, ids, filter, execve.

Shared by a container's init and by exec. Everything here runs in the single-threaded child that becomes the program. If
the program must be in a PID namespace with other processes, the child clones it into that namespace (`bear`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import stat
import struct

from linux import syscalls
from runtime.errors import ExecFailed, NotSupported, OperationFailed, failing
from runtime.light import contextlib, signal
from runtime.process import capabilities, scheduling, unexecutable
from runtime.process.gate import Gate
from runtime.process.labels import set_labels
from runtime.process.terminal import take_control
from runtime.seccomp.load import load_filter
from runtime.seccomp.passage import Passage
from runtime.spec import values as oci
from runtime.wire.reports import Born, Reporter, SeccompListener, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final, NoReturn

    Arguments = tuple[Any, Any]

_UNLIMITED: Final = 2**64 - 1
_NULL: Final = os.makedev(1, 3)


def become(
    process: oci.Process,
    filter_program: bytes,
    filter_flags: int,
    reporter: Reporter,
    before_exec: Callable[[], None] | None = None,
    *,
    gate: Gate | None = None,
    preserved: int = 0,
) -> NoReturn:
    """Turn the calling process into the container's program. Raises RuntimeCoreError; never returns.

    These descriptors stay open: the standard streams, the `preserved` next ones, the reporter's and the gate's.
    `before_exec` runs when only execve is left; it may use only what the filter allows (a send).
    """
    _let_go(reporter, gate, preserved)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 0)
    _use_own_null_device()
    own_streams(process.user.uid)
    for limit in process.rlimits:
        _set_rlimit(limit)
    set_labels(process, Passage())
    if filter_program and not process.no_new_privileges:
        # Loading a filter without no_new_privs needs CAP_SYS_ADMIN, which may be dropped below.
        _load_filter(filter_program, filter_flags, reporter)
    # As root first: only root may be able to reach the user's working directory.
    entered = _enter_directory(process.cwd)
    _set_identity(process)
    if not entered and not _enter_directory(process.cwd):
        raise OperationFailed("enter working directory", process.cwd, errno.EACCES)
    _give_up_privileges(process, filter_program, filter_flags, reporter)
    _execute(process, reporter, before_exec, gate)


def bear(
    process: oci.Process,
    filter_program: bytes,
    filter_flags: int,
    reporter: Reporter,
    before_exec: Callable[[], None] | None = None,
    *,
    gate: Gate | None = None,
    preserved: int = 0,
) -> NoReturn:
    """Become the program like `become`, but in a clone inside the PID namespace set for the caller's children.

    Processes in that namespace see the clone at once, and those with CAP_SYS_PTRACE can trace it (CVE-2016-9962). So it
    starts with the container's namespaces, user and capabilities, and nothing else. It is a child of the caller's
    parent, which gets a `reports.Born`. The caller exits. A terminal is open as standard input.
    """
    _let_go(reporter, gate, preserved)
    _use_own_null_device()
    own_streams(process.user.uid)
    raise_hard_limits(process.rlimits)
    # The caller is one process more than the program, and counts for the same user.
    later = [_attainable(limit) for limit in process.rlimits if limit.type == "RLIMIT_NPROC"]
    for limit in process.rlimits:
        if limit.type != "RLIMIT_NPROC":
            _set_rlimit(limit)
    entered = _enter_directory(process.cwd)
    # Without no_new_privs loading a filter needs CAP_SYS_ADMIN.
    early = bool(filter_program) and not process.no_new_privileges
    late = ("CAP_SYS_NICE",) if scheduling.ends_at_fork(process) else ()
    kept, left = _set_identity(process, more=(*late, *(("CAP_SYS_ADMIN",) if early else ())), until=late)
    if not entered and not _enter_directory(process.cwd):
        raise OperationFailed("enter working directory", process.cwd, errno.EACCES)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # the change of ids may have set it
    told, telling = os.pipe()
    passage = Passage()
    if early:
        passage = Passage.make()
        _load_filter(passage.before(filter_program), filter_flags, reporter)
    with failing("clone into", "PID namespace"):
        if kept is not None:
            passage.call("capset", *kept)
        pid, pidfd = passage.clone()
        if pid:
            passage.send(reporter.fileno(), encode(Born(pid, pidfd)), pidfd)
            passage.call("write", telling, b"0", 1)
            passage.call("exit_group", 0)
        # If the caller was killed before its report, the parent does not know this process: it must not go on.
        passage.call("close", telling)
        if passage.call("read", told, ctypes.create_string_buffer(1), 1) == 0:
            passage.call("exit_group", 1)
        passage.call("close", told)
        passage.call("setsid")
        if process.terminal:
            take_control(0, passage)
    for soft, hard in later:
        with failing("set", "RLIMIT_NPROC"):
            passage.call("prlimit64", 0, resource.RLIMIT_NPROC, struct.pack("=qq", soft, hard), 0)
    if late:
        scheduling.set_policy(process, passage)
        if left is not None:
            passage.call("capset", *left)
    set_labels(process, passage)
    _give_up_privileges(process, filter_program, filter_flags, reporter)
    _execute(process, reporter, before_exec, gate)


def _let_go(reporter: Reporter, gate: Gate | None, preserved: int) -> None:
    keep = [reporter.fileno(), *((gate.wait, gate.report, gate.program) if gate else ())]
    # Not by close-on-exec: until execve has resolved them, the working directory and the program's path may go through
    # /proc/self/fd, where a descriptor of a host directory leads to the host (CVE-2024-21626).
    with failing("close", "inherited descriptors"):
        syscalls.close_all_from(3 + preserved, keep=keep)


def _give_up_privileges(process: oci.Process, filter_program: bytes, filter_flags: int, reporter: Reporter) -> None:
    if process.no_new_privileges:
        with failing("set", "no_new_privs"):
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        if filter_program:
            _load_filter(filter_program, filter_flags, reporter)


def _load_filter(program: bytes, flags: int, reporter: Reporter) -> None:
    """Load the filter and pass its listener, if any, to the parent. From now on calls may block on the listener."""
    with failing("load", "seccomp filter"):
        listener = load_filter(program, flags)
    if listener >= 0:
        with failing("hand over", "seccomp listener"):
            reporter.say(SeccompListener(listener))
            os.close(listener)


def set_oom_score_adj(value: int) -> str:
    """Write the caller's /proc/self/oom_score_adj. Returns a warning if that needs CAP_SYS_RESOURCE."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM):
            raise
        with open("/proc/self/oom_score_adj") as file:
            kept = file.read().strip()
        return oom_score_warning(value, kept)
    return ""


def oom_score_warning(value: int, kept: str) -> str:
    return f"oom_score_adj {value} needs CAP_SYS_RESOURCE, which crisp does not have: kept at {kept}"


def _set_rlimit(limit: oci.Rlimit) -> None:
    number = getattr(resource, limit.type, None)
    if number is None:
        raise NotSupported("set", limit.type, "unknown resource limit")
    with failing("set", limit.type):
        try:
            resource.setrlimit(number, _both(limit))
        except ValueError:  # Python's form of EPERM: above the hard limit, without CAP_SYS_RESOURCE
            resource.setrlimit(number, _attainable(limit))


def _both(limit: oci.Rlimit) -> tuple[int, int]:
    soft, hard = (resource.RLIM_INFINITY if value == _UNLIMITED else value for value in (limit.soft, limit.hard))
    return soft, hard


def _attainable(limit: oci.Rlimit) -> tuple[int, int]:
    """Return the soft and hard limits, lowered to the caller's hard limit."""
    ceiling = resource.getrlimit(getattr(resource, limit.type))[1]
    soft, hard = _both(limit)
    return _at_most(soft, ceiling), _at_most(hard, ceiling)


def raise_hard_limits(limits: Sequence[oci.Rlimit]) -> None:
    """Raise hard limits as far as needed now: inside a user namespace no capability allows it."""
    for limit in limits:
        number = getattr(resource, limit.type, None)
        if number is None:
            continue  # `become` reports it
        soft, hard = resource.getrlimit(number)
        wanted = resource.RLIM_INFINITY if limit.hard == _UNLIMITED else limit.hard
        if _at_most(wanted, hard) != wanted:
            with contextlib.suppress(ValueError, OSError):  # without CAP_SYS_RESOURCE: `become` lowers the limit
                resource.setrlimit(number, (soft, wanted))


def _at_most(value: int, ceiling: int) -> int:
    if ceiling == resource.RLIM_INFINITY:
        return value
    return ceiling if value == resource.RLIM_INFINITY else min(value, ceiling)


def _set_identity(
    process: oci.Process, more: Sequence[str] = (), until: Sequence[str] = ()
) -> tuple[Arguments | None, Arguments | None]:
    """Take on the process's user and capabilities, and keep the capabilities `more` for a while.

    Returns two arguments for capset(2): to drop `more` except `until`, and to drop `until` too. None where nothing is
    to be dropped.
    """
    user, caps = process.user, process.capabilities
    if caps is not None:
        capabilities.drop_bounding(caps.bounding)
    if caps is None and more and user.uid:
        caps = oci.Capabilities()  # none, as after the change of user
    if caps is not None:
        capabilities.set_keepcaps()
    with failing("set groups", ",".join(map(str, user.additional_gids)) or "none"):
        try:
            os.setgroups(list(user.additional_gids))
        except PermissionError:
            if user.additional_gids:
                raise
            # A user namespace made without newgidmap denies setgroups (proc_pid_uid_map(5)); the caller's groups stay.
    with failing("set gid", str(user.gid)):
        os.setresgid(user.gid, user.gid, user.gid)
    with failing("set uid", str(user.uid)):
        os.setresuid(user.uid, user.uid, user.uid)
    os.umask(0o022 if user.umask is None else user.umask)
    if caps is None:
        return None, None
    capabilities.apply(caps, more=more)
    return (
        capabilities.only(caps, more=until) if more else None,
        capabilities.only(caps) if until else None,
    )


def _use_own_null_device() -> None:
    """Replace standard streams that are the host's /dev/null, whose mode and owner a container's root could change."""
    for stream in (0, 1, 2):
        if not _is_null_device(stream):
            continue
        with failing("open", "/dev/null"):
            seen = os.stat("/dev/null", follow_symlinks=False)  # check first: some devices act when opened
            if not stat.S_ISCHR(seen.st_mode) or seen.st_rdev != _NULL:
                raise OperationFailed("use", "/dev/null", errno.EINVAL)
            own = os.open("/dev/null", os.O_RDWR | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
        if not _is_null_device(own):
            raise OperationFailed("use", "/dev/null", errno.EINVAL)
        os.dup2(own, stream)
        os.close(own)


def own_streams(uid: int) -> None:
    """Give the standard streams to the process's user, who could not open /dev/stdout or the terminal otherwise."""
    for stream in (0, 1, 2) if uid else ():
        if not _is_null_device(stream):  # /dev/null stays as it is
            with contextlib.suppress(OSError):  # a read-only file system, or a file from outside the user namespace
                os.fchown(stream, uid, -1)


def _is_null_device(fd: int) -> bool:
    status = os.fstat(fd)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL


def new_keyring(container_id: str) -> None:
    """Give the caller its own session keyring; otherwise it would share that of the user who started crispd."""
    try:
        syscalls.join_new_session_keyring(f"_ses.{container_id}")
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EDQUOT):
            raise


def _enter_directory(cwd: str) -> bool:
    """Change to the directory. Returns False if the caller has no permission; raises on other failures."""
    with failing("enter working directory", cwd):
        try:
            os.chdir(cwd)
        except PermissionError:
            return False
        # A working directory outside the rootfs leads to the host (CVE-2024-21626).
        if not os.getcwd().startswith("/"):
            raise OSError(errno.ENOENT, "outside of the rootfs")
    return True


def _execute(
    process: oci.Process, reporter: Reporter, before_exec: Callable[[], None] | None, gate: Gate | None
) -> NoReturn:
    program = _find_program(process)
    environment = dict(entry.partition("=")[::2] for entry in process.env)
    # CPython ignores these two signals, and ignored signals survive execve.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if before_exec is not None:
        before_exec()
    if gate is not None:
        gate.pass_through(program, process.args, environment, reporter.fileno())
    try:
        os.execve(program, process.args, environment)
    except OSError as error:
        raise _refused(process.args[0], program, error.errno or 0) from error


def _find_program(process: oci.Process) -> str:
    name = process.args[0]
    if "/" in name:
        try:
            mode = os.stat(name).st_mode
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            added = unexecutable.one_word(name)
            raise ExecFailed(f'exec: "{name}": stat {name}: {reason}{added}', error.errno or 0) from error
        if stat.S_ISDIR(mode) or not mode & 0o111:
            raise _refused(name, name, errno.EACCES)
        return name
    path = next((entry[5:] for entry in reversed(process.env) if entry.startswith("PATH=")), "")  # as execve's
    refused = ""
    for directory in path.split(":"):
        candidate = os.path.join(directory or ".", name)
        if os.path.isfile(candidate):
            if os.access(candidate, os.X_OK):
                return candidate
            refused = candidate
    if refused:
        raise _refused(name, refused, errno.EACCES)
    added = unexecutable.one_word(name)
    raise ExecFailed(f'exec: "{name}": executable file not found in $PATH{added}', errno.ENOENT)


def _refused(name: str, path: str, number: int) -> ExecFailed:
    """The kernel's refusal to execute `path`, in runc's words, and what the file itself adds."""
    why = unexecutable.reason(path, number)
    return ExecFailed(f'exec: "{name}": {os.strerror(number).lower()}{": " if why else ""}{why}', number)
