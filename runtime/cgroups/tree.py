"""Creates and removes cgroup directories, and passes settings down that a new directory lacks."""

from __future__ import annotations

import errno
import os

from runtime.cgroups import files
from runtime.errors import OperationFailed
from runtime.light import contextlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_RACES = 64  # attempts: a parent may vanish meanwhile, when another container leaves as its last
# Extended attribute on each parent that was created on the way. It lives as long as the cgroup, so the last user can
# tell it from a cgroup made by kubelet or an administrator. Cgroups support it since Linux 5.7.
_MADE = "user.crisp.made"


def make(mountpoint: str, path: str, made: list[str], *, parent: bool = False) -> None:
    """Create the directory and its parents, and append each new one to `made`. An existing one is fine.

    New parents, and the directory itself if `parent` is set, are marked for `remove_made`.
    """
    directory = mountpoint + path
    for _ in range(_RACES):
        try:
            os.mkdir(directory, 0o755)
        except FileExistsError:
            return
        except FileNotFoundError as error:
            above = os.path.dirname(path)
            if above == "/":
                raise OperationFailed.of("mkdir", directory, error) from error
            make(mountpoint, above, made, parent=True)
        except OSError as error:
            raise OperationFailed.of("mkdir", directory, error) from error
        else:
            made.append(directory)
            if parent:
                with contextlib.suppress(OSError):  # removed meanwhile, or an old kernel: then nobody removes it
                    os.setxattr(directory, _MADE, b"1")
            return
    raise OperationFailed("mkdir", directory, errno.ENOENT)


def remove_made(mountpoint: str, path: str) -> None:
    """Remove the directory and those above it while they are empty and have the mark of `make`."""
    while path not in ("", "/"):
        try:
            os.getxattr(mountpoint + path, _MADE)
            os.rmdir(mountpoint + path)
        except FileNotFoundError:
            pass  # another container removed this one, but perhaps not those above
        except OSError:
            return  # in use, or without the mark
        path = os.path.dirname(path)


def inherit_cpuset(mountpoint: str, path: str) -> None:
    """Copy CPUs and memory nodes down to a version 1 cpuset: a new one has none, so that no process can join it."""
    for name in ("/cpuset.cpus", "/cpuset.mems"):
        empty = []
        place = path
        while not (value := files.read(mountpoint + place + name)) and place:
            empty.append(place)
            place = place.rpartition("/")[0]
        for place in reversed(empty):
            files.write(mountpoint + place + name, value)


def enable_controllers(mountpoint: str, path: str, wanted: frozenset[str]) -> None:
    """Enable version 2 controllers for the cgroup at `path`, in every ancestor's cgroup.subtree_control.

    A controller that cannot be enabled (cgroup-v2.rst "No Internal Process Constraint") is skipped without an error.
    Only setting a limit that needs it fails, and then the error names the limit.
    """
    if wanted <= _controllers(mountpoint + path):
        return
    ancestor = mountpoint
    for part in path[1:].split("/"):
        missing = sorted((wanted & _controllers(ancestor)) - _words(ancestor + "/cgroup.subtree_control"))
        try:
            if missing:
                files.write(ancestor + "/cgroup.subtree_control", " ".join("+" + controller for controller in missing))
        except OperationFailed:
            _enable_each(ancestor, missing)
        ancestor += "/" + part


def _enable_each(directory: str, controllers: Iterable[str]) -> None:
    for controller in controllers:
        try:
            files.write(directory + "/cgroup.subtree_control", "+" + controller)
        except OperationFailed:
            continue


def _controllers(directory: str) -> frozenset[str]:
    return _words(directory + "/cgroup.controllers")


def _words(path: str) -> frozenset[str]:
    return frozenset(files.read(path).split())


def descendants(directory: str) -> list[str]:
    """Return the directory and all directories below it, children before parents; empty if it is gone.

    Not recursive: a container with write access to its cgroups can nest them deeper than Python's stack allows.
    """
    found = []
    pending = [directory]
    while pending:
        parent = pending.pop()
        try:
            with os.scandir(parent) as entries:
                pending += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            continue
        found.append(parent)
    return found[::-1]


def remove(directory: str) -> None:
    """Remove the directory and everything below it. A missing one is fine. Raises `OperationFailed`."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        below = descendants(directory)
        if len(below) < 2:
            raise OperationFailed.of("rmdir", directory, error) from error
        for child in below[:-1]:
            remove(child)
        remove(directory)


def remove_unused(directories: Iterable[str]) -> None:
    """Remove the unused ones of the directories, which are listed parents first, as `make` does."""
    for directory in reversed(list(directories)):
        try:
            os.rmdir(directory)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
                raise OperationFailed.of("rmdir", directory, error) from error
