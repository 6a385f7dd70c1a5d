"""Making and removing cgroup directories, and handing down to them what a new directory lacks."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress

from runtime.cgroups import files
from runtime.errors import OperationFailed

_RACES = 64  # how often a parent may vanish under us: another container, the last one in it, has left
# An extended attribute of each parent that was made for what is below it. It lives as long as the cgroup does, so that
# whoever leaves last can tell it from one that kubelet or an administrator made. cgroups have had them since Linux 5.7.
_MADE = "user.crisp.made"


def make(mountpoint: str, path: str, made: list[str], *, parent: bool = False) -> None:
    """Makes the directory and its parents, appending each new one to `made`. An existing one is fine.

    New parents, and the directory itself if it is one (`parent`), are marked for `remove_made`.
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
                with suppress(OSError):  # gone again, or an older kernel's: then it stays behind
                    os.setxattr(directory, _MADE, b"1")
            return
    raise OperationFailed("mkdir", directory, errno.ENOENT)


def remove_made(mountpoint: str, path: str) -> None:
    """Removes the directory and those above it, as long as they are marked by `make` and nothing is in them."""
    while path not in ("", "/"):
        try:
            os.getxattr(mountpoint + path, _MADE)
            os.rmdir(mountpoint + path)
        except FileNotFoundError:
            pass  # another one that left was quicker here, and may not have been further up
        except OSError:
            return  # in use, or not of our making
        path = os.path.dirname(path)


def inherit_cpuset(mountpoint: str, path: str) -> None:
    """Copies cpus and memory nodes down to a version 1 cpuset: a new one has none, and no process can join it."""
    for name in ("/cpuset.cpus", "/cpuset.mems"):
        empty = []
        place = path
        while not (value := files.read(mountpoint + place + name)) and place:
            empty.append(place)
            place = place.rpartition("/")[0]
        for place in reversed(empty):
            files.write(mountpoint + place + name, value)


def enable_controllers(mountpoint: str, path: str, wanted: frozenset[str]) -> None:
    """Lets version 2 controllers into the cgroup at `path` by way of every ancestor's cgroup.subtree_control.

    A controller that cannot be enabled (cgroup-v2.rst "No Internal Process Constraint") is left out without an error:
    only a limit that needs it makes that one, and then the limit's own name is in it.
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
    """The directory and all below it, each after all that is in it; empty where it is gone.

    Without recursion: a container that may write to its cgroups makes more in each other than Python's stack holds.
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
    """Removes the directory with everything below it; one that is gone is fine. Raises `OperationFailed`."""
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
    """Removes those of the directories, parents before children as `make` lists them, which nothing uses any more."""
    for directory in reversed(list(directories)):
        try:
            os.rmdir(directory)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
                raise OperationFailed.of("rmdir", directory, error) from error
