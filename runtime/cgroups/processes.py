"""The processes of a cgroup and of all cgroups below it: listing, freezing, killing, waiting until they are gone."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections.abc import Callable

from runtime.cgroups import files, tree
from runtime.errors import OperationFailed
from runtime.light import signal

_FREEZE_TIMEOUT = 2.0  # seconds; a task in uninterruptible sleep never freezes


def pids(directory: str) -> list[int]:
    """Process ids, as this PID namespace numbers them (0 for those it cannot see is left out)."""
    found: set[int] = set()
    for each in tree.descendants(directory):
        with contextlib.suppress(OperationFailed):  # removed meanwhile
            found.update(map(int, files.read(each + "/cgroup.procs").split()))
    return sorted(found - {0})


def populated(unified: str) -> bool:
    """Whether a version 2 cgroup or one below it has a process. A directory that is gone has none."""
    return files.counter(unified + "/cgroup.events", "populated") == 1


def kill(unified: str, v1: str, freezer: str) -> None:
    """Sends SIGKILL to every process; they may still be exiting on return. "" for directories there are none of.

    One write where the kernel has cgroup.kill (5.14) and the processes are in the version 2 hierarchy. Else all are
    frozen, so that none forks away, signalled, and thawed to die. In the end nothing stays frozen by version 1, where
    the frozen do not even die: neither by this cgroup's freezer nor by one below it.
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
    # A task that sleeps uninterruptibly keeps the others from counting as frozen; they are signalled all the same.
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
    """Sets /proc/PID/oom_score_adj of each process; `path` is what /proc/PID/cgroup has for the directory and below.

    False where it takes CAP_SYS_RESOURCE, which the caller lacks, to lower a score that far: it stays as it was.
    """
    allowed = True
    for pid in pids(directory):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            process = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # The number may have become another's since it was listed; what is open is one process or none.
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
    """Stops all tasks by the version 1 freezer. Raises `OperationFailed`; ETIMEDOUT after 2 s, thawed again."""
    deadline = time.monotonic() + _FREEZE_TIMEOUT
    pause = 0.0005
    files.write(freezer + "/freezer.state", "FROZEN")
    # The version 1 freezer has no notification, and reading its state is what makes it advance.
    while files.read(freezer + "/freezer.state") != "FROZEN":
        if time.monotonic() > deadline:
            thaw_v1(freezer)
            raise OperationFailed("freeze", freezer, errno.ETIMEDOUT)
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def thaw_v1(freezer: str) -> None:
    """Lets the tasks go on."""
    files.write(freezer + "/freezer.state", "THAWED")


def is_frozen_v1(freezer: str) -> bool:
    """Whether the version 1 freezer stops, or has stopped, the tasks. False where it is gone."""
    try:
        return files.read(freezer + "/freezer.state") != "THAWED"
    except OperationFailed:
        return False


def frozen_at_v1(mountpoint: str, path: str) -> str:
    """The directory at `path` or the ancestor whose version 1 freezer stops what is in there, "" if none does."""
    while path:
        directory = mountpoint + path
        path = path.rpartition("/")[0]
        with contextlib.suppress(OperationFailed):  # not made yet: its parent's tells
            if files.read(directory + "/freezer.state") == "THAWED":
                return ""
            if files.read(directory + "/freezer.self_freezing") == "1":
                return directory
    return ""


def frozen_at_v2(mountpoint: str, path: str) -> str:
    """The same by cgroup.freeze."""
    while path:
        directory = mountpoint + path
        path = path.rpartition("/")[0]
        with contextlib.suppress(OperationFailed):
            if files.read(directory + "/cgroup.freeze") == "1":
                return directory
    return ""


def is_frozen_v2(mountpoint: str, path: str) -> bool:
    """Whether cgroup.freeze here or above stops the processes, or is about to. False where the cgroup is gone."""
    try:
        own = files.read(mountpoint + path + "/cgroup.freeze") == "1"
    except OperationFailed:
        return False
    # After a thaw the kernel still says "frozen" until the processes have noticed.
    frozen = files.counter(mountpoint + path + "/cgroup.events", "frozen") == 1
    return own or (frozen and bool(frozen_at_v2(mountpoint, path)))


def freeze_v2(unified: str) -> None:
    """Stops all processes by cgroup.freeze. Raises `OperationFailed`; ETIMEDOUT after 2 s, thawed again."""
    files.write(unified + "/cgroup.freeze", "1")
    if not wait_for(unified, "frozen", 1, _FREEZE_TIMEOUT):
        thaw_v2(unified)
        raise OperationFailed("freeze", unified, errno.ETIMEDOUT)


def thaw_v2(unified: str) -> None:
    """Lets the processes go on."""
    files.write(unified + "/cgroup.freeze", "0")


def wait_gone(listed: Callable[[], list[int]], timeout: float) -> bool:
    """Sleeps until no process is listed or `timeout` seconds passed, where no cgroup notifies: each process does."""
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
        time.sleep(0.0005)  # a process is told of before it has left its cgroup
    return True


def wait_for(unified: str, event: str, value: int, timeout: float) -> bool:
    """Sleeps until cgroup.events shows that value or `timeout` seconds passed; the kernel notifies, nothing polls."""
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
