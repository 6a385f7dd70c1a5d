"""Lists, freezes, kills and waits for the processes of a cgroup and of all cgroups below it."""

from __future__ import annotations

import errno
import os
import select
import time

from runtime.cgroups import files, tree
from runtime.errors import OperationFailed
from runtime.light import contextlib, signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_FREEZE_TIMEOUT = 2.0  # seconds; a task in uninterruptible sleep never freezes


def pids(directory: str) -> list[int]:
    """Return process ids in this PID namespace. Processes outside it, which the kernel shows as 0, are left out."""
    found: set[int] = set()
    for each in tree.descendants(directory):
        with contextlib.suppress(OperationFailed):  # removed meanwhile
            found.update(map(int, files.read(each + "/cgroup.procs").split()))
    return sorted(found - {0})


def populated(unified: str) -> bool:
    """Return whether a version 2 cgroup or one below it has a process. False if the directory is gone."""
    return files.counter(unified + "/cgroup.events", "populated") == 1


def kill(unified: str, v1: str, freezer: str) -> None:
    """Send SIGKILL to every process; they may still be exiting on return. "" stands for a missing directory.

    If the kernel has cgroup.kill (5.14) and the processes are in the version 2 hierarchy, one write does it. Else all
    are frozen, so that none can fork away, then signalled and thawed to die. Finally every version 1 freezer at and
    below the cgroup is thawed, since killed processes do not die while frozen by version 1.
    """
    if unified and populated(unified):
        try:
            files.write(unified + "/cgroup.kill", "1")
        except OperationFailed:
            _kill_frozen(lambda: pids(unified), lambda: freeze_v2(unified), lambda: thaw_v2(unified))
    elif v1:
        _kill_frozen(lambda: pids(v1), lambda: freeze_v1(freezer), lambda: thaw_v1(freezer))
    for each in reversed(tree.descendants(freezer) if freezer else []):
        if is_frozen_v1(each):
            with contextlib.suppress(OperationFailed):
                thaw_v1(each)


def _kill_frozen(listed: Callable[[], list[int]], freeze: Callable[[], None], thaw: Callable[[], None]) -> None:
    if not listed():
        return
    # A task in uninterruptible sleep makes the freeze time out; signal the processes all the same.
    with contextlib.suppress(OperationFailed):
        freeze()
    try:
        signalled: set[int] = set()
        while new := set(listed()) - signalled:
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            signalled |= new
    finally:
        with contextlib.suppress(OperationFailed):
            thaw()


def set_oom_score_adj(directory: str, path: str, value: int) -> bool:
    """Set /proc/PID/oom_score_adj of each process. `path` is the cgroup's path as in /proc/PID/cgroup.

    False if lowering the score needs CAP_SYS_RESOURCE, which the caller lacks; such a score is not changed.
    """
    allowed = True
    for pid in pids(directory):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            process = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # The pid may have been reused since it was listed. The open directory refers to one process or to none.
                if any(line.partition("/")[2].startswith(path[1:]) for line in _lines(process, "cgroup")):
                    allowed &= _write_score(process, value)
            finally:
                os.close(process)
    return allowed


def _lines(process: int, name: str) -> list[str]:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)) as file:
        return file.read().splitlines()


def _write_score(process: int, value: int) -> bool:
    fd = os.open("oom_score_adj", os.O_WRONLY | os.O_CLOEXEC, dir_fd=process)
    try:
        os.write(fd, str(value).encode())
    except (PermissionError, ProcessLookupError) as error:
        return not isinstance(error, PermissionError)
    finally:
        os.close(fd)
    return True


def freeze_v1(freezer: str) -> None:
    """Stop all tasks with the version 1 freezer. Raises `OperationFailed`; ETIMEDOUT after 2 s, thawed again."""
    deadline = time.monotonic() + _FREEZE_TIMEOUT
    pause = 0.0005
    files.write(freezer + "/freezer.state", "FROZEN")
    # The version 1 freezer sends no notification, and only advances when its state is read.
    while files.read(freezer + "/freezer.state") != "FROZEN":
        if time.monotonic() > deadline:
            thaw_v1(freezer)
            raise OperationFailed("freeze", freezer, errno.ETIMEDOUT)
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def thaw_v1(freezer: str) -> None:
    """Let the tasks continue."""
    files.write(freezer + "/freezer.state", "THAWED")


def is_frozen_v1(freezer: str) -> bool:
    """Return whether the version 1 freezer stops or has stopped the tasks. False if the cgroup is gone."""
    try:
        return files.read(freezer + "/freezer.state") != "THAWED"
    except OperationFailed:
        return False


def frozen_at_v1(mountpoint: str, path: str) -> str:
    """Return the directory, at `path` or above, whose version 1 freezer stops the cgroup's tasks, "" if none does."""
    while path:
        directory = mountpoint + path
        path = path.rpartition("/")[0]
        with contextlib.suppress(OperationFailed):  # does not exist yet: its parent decides
            if files.read(directory + "/freezer.state") == "THAWED":
                return ""
            if files.read(directory + "/freezer.self_freezing") == "1":
                return directory
    return ""


def frozen_at_v2(mountpoint: str, path: str) -> str:
    """Return the directory, at `path` or above, whose cgroup.freeze is 1, "" if there is none."""
    while path:
        directory = mountpoint + path
        path = path.rpartition("/")[0]
        with contextlib.suppress(OperationFailed):
            if files.read(directory + "/cgroup.freeze") == "1":
                return directory
    return ""


def is_frozen_v2(mountpoint: str, path: str) -> bool:
    """Return whether cgroup.freeze here or above stops the processes, or is about to. False if the cgroup is gone."""
    try:
        own = files.read(mountpoint + path + "/cgroup.freeze") == "1"
    except OperationFailed:
        return False
    # After a thaw the kernel still reports "frozen" until the processes have noticed.
    frozen = files.counter(mountpoint + path + "/cgroup.events", "frozen") == 1
    return own or (frozen and bool(frozen_at_v2(mountpoint, path)))


def freeze_v2(unified: str) -> None:
    """Stop all processes with cgroup.freeze. Raises `OperationFailed`; ETIMEDOUT after 2 s, thawed again."""
    files.write(unified + "/cgroup.freeze", "1")
    if not wait_for(unified, "frozen", 1, _FREEZE_TIMEOUT):
        thaw_v2(unified)
        raise OperationFailed("freeze", unified, errno.ETIMEDOUT)


def thaw_v2(unified: str) -> None:
    """Let the processes continue."""
    files.write(unified + "/cgroup.freeze", "0")


def wait_gone(listed: Callable[[], list[int]], timeout: float) -> bool:
    """Sleep until no process is listed, at most `timeout` seconds. Waits on pidfds: no version 2, no notification."""
    deadline = time.monotonic() + timeout
    while found := listed():
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                try:
                    poll = select.poll()
                    poll.register(pidfd, select.POLLIN)
                    left = deadline - time.monotonic()
                    if left <= 0 or not poll.poll(left * 1000):
                        return False
                finally:
                    os.close(pidfd)
        time.sleep(0.0005)  # the pidfd is readable before the process has left its cgroup
    return True


def wait_for(unified: str, event: str, value: int, timeout: float) -> bool:
    """Sleep until cgroup.events shows that value, at most `timeout` seconds. The kernel notifies; no polling."""
    deadline = time.monotonic() + timeout
    try:
        fd = os.open(unified + "/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise OperationFailed.of("open", unified + "/cgroup.events", error) from error
    try:
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        while f"{event} {value}\n" not in os.pread(fd, 4096, 0).decode():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll.poll(left * 1000)
        return True
    except OSError as error:
        raise OperationFailed.of("read", unified + "/cgroup.events", error) from error
    finally:
        os.close(fd)
