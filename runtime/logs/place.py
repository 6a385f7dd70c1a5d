"""Opens a container's log in directories that pods may write to, as log shippers with a /var/log volume can.

Such a pod can put a link, a pipe or a device in place of a log or a log directory. A link leads the shim, which is
root, to any file. A pipe blocks whoever opens it. Some devices act when opened (a watchdog starts its countdown to a
reset). So every path component after `trusted` is opened by name, without following links, and is checked before it is
opened.

`trusted` is a directory above the log. Links on the way to it are the administrator's, who may keep /var/log elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_MODE: Final = 0o640
_DIRECTORY_MODE: Final = 0o755
_STEP: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_QUIET: Final = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_RACES: Final = 8  # attempts, if the file is removed after it was seen
_KINDS: Final = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
}


def open_to_append(path: str, trusted: str = "", *, make: bool = False) -> int:
    """Open a log for appending and create it if missing; with `make` also the directories below `trusted`.

    `trusted` defaults to the log's own directory. Raises OSError, whose text says what is in the way.
    """
    directory, name = _directory_of(path, trusted, make=make)
    try:
        for _ in range(_RACES):
            try:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | _QUIET
                return os.open(name, flags, _MODE, dir_fd=directory)
            except FileExistsError:
                pass
            try:
                return _open_seen(directory, name, os.O_WRONLY | os.O_APPEND)
            except FileNotFoundError:
                continue
        raise OSError(errno.EAGAIN, "it keeps being removed", path)
    finally:
        os.close(directory)


def set_aside(path: str, trusted: str, fd: int) -> None:
    """Rename the log that is open as `fd` to `path`.1, over an earlier one. Does nothing if `path` is another file now.

    Raises OSError as `open_to_append` does.
    """
    directory, name = _directory_of(path, trusted, make=False)
    try:
        with contextlib.suppress(FileNotFoundError):
            there, ours = os.stat(name, dir_fd=directory, follow_symlinks=False), os.fstat(fd)
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                os.rename(name, f"{name}.1", src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(directory)


def open_to_read(path: str, trusted: str = "") -> int:
    """Open an existing log for reading. Raises OSError, whose text says what is in the way."""
    directory, name = _directory_of(path, trusted, make=False)
    try:
        return _open_seen(directory, name, os.O_RDONLY)
    finally:
        os.close(directory)


def make_directory(path: str, trusted: str) -> None:
    """Make a log directory below `trusted`. No error if it exists. Raises OSError as `open_to_append` does."""
    if _plain(path) != _plain(trusted):
        os.close(_directory_of(f"{path}/log", trusted, make=True)[0])


def _directory_of(path: str, trusted: str, *, make: bool) -> tuple[int, str]:
    """Open the log's directory. Returns it and the log's name in it."""
    path = _plain(path)
    trusted = _plain(trusted) if trusted else os.path.dirname(path)
    if ".." in path.split("/") or not path.startswith(trusted.rstrip("/") + "/"):
        raise OSError(errno.EINVAL, f"not below {trusted}", path)
    *parts, name = path[len(trusted) :].strip("/").split("/")
    directory = os.open(trusted, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts:
        try:
            below = _step(directory, part, make=make)
        finally:
            os.close(directory)
        directory = below
    return directory, name


def _plain(path: str) -> str:
    return os.path.normpath("/" + path.lstrip("/"))


def _step(directory: int, name: str, *, make: bool) -> int:
    for _ in range(_RACES):
        try:
            below = os.open(name, _STEP, dir_fd=directory)
        except FileNotFoundError:
            if not make:
                raise
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, _DIRECTORY_MODE, dir_fd=directory)
            continue
        mode = os.fstat(below).st_mode
        if stat.S_ISDIR(mode):
            return below
        os.close(below)
        raise OSError(errno.ENOTDIR, f"{name!r} on the path is {_kind(mode)}", name)
    raise OSError(errno.EAGAIN, f"{name!r} on the path keeps being removed", name)


def _open_seen(directory: int, name: str, access: int) -> int:
    """Open exactly the file that was checked, whatever has its name by now."""
    seen = os.open(name, _STEP, dir_fd=directory)
    try:
        found = os.fstat(seen)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, f"it is {_kind(found.st_mode)}, not a file", name)
        if found.st_nlink > 1:  # a link to a file that its creator may be unable to write
            raise OSError(errno.EMLINK, "it is a file with other hard links", name)
        return os.open(f"/proc/self/fd/{seen}", access | _QUIET)
    finally:
        os.close(seen)


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "a file")
