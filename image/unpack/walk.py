"""Opens directories below a root that nothing can lead out of. Linux 5.6.

Existing ones are opened with openat2(2). If directories are missing it walks component by component and expands
symlinks itself.
"""

from __future__ import annotations

import errno
import os
import stat

from image.unpack.inodes import Inodes
from image.unpack.overlay import PLAIN_DIRECTORY, is_whiteout
from linux import syscalls

_SYMLINK_LIMIT = 40  # the kernel's own
_DEPTH_LIMIT = 512  # nesting of directories to make, through symlinks
_ENTERED_LIMIT = 4096  # nesting of existing directories: bounds descriptors and memory

_IN_ROOT = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_XDEV
_BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS


def open_directory(root: int, path: bytes, *, links: bool = True) -> int:
    """Open the directory `path` as if `root` were "/". Raises OSError; ELOOP for any symlink unless `links`."""
    resolve = _IN_ROOT if links else _IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS
    return syscalls.openat2(root, path, os.O_RDONLY | os.O_DIRECTORY, resolve)


def open_beneath(root: int, path: bytes) -> int:
    """Open `path` for reading, unless it or a link on the way leads out of `root`. Raises OSError, ValueError."""
    if b"\0" in path:
        raise ValueError("the path contains a NUL")
    return syscalls.openat2(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY, _BENEATH)


class Walk:
    """Walks below `root`, making missing directories by `inodes`, each relative to its parent's descriptor.

    `made` has the paths of new directories; `replaced` is True if one replaced a whiteout.
    """

    def __init__(self, root: int, inodes: Inodes) -> None:
        self._inodes = inodes
        self._stack = [os.dup(root)]
        self._names: list[bytes] = []
        self._symlinks = 0
        self.made: list[bytes] = []
        self.replaced = False

    @property
    def path(self) -> bytes:
        """The path of the present directory, without symlinks."""
        return b"/".join(self._names)

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *exc: object) -> None:
        for descriptor in self._stack:
            os.close(descriptor)

    def descend(self, path: bytes) -> int:
        """Walk `path` and return a new descriptor of its directory. Raises OSError."""
        pending = path.split(b"/")[::-1]
        while pending:
            name = pending.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                self._up()
            elif (target := self._enter(name)) is not None:
                if target.startswith(b"/"):
                    while self._names:
                        self._up()
                pending += target.split(b"/")[::-1]
        return os.dup(self._stack[-1])

    def go(self, path: bytes) -> int:
        """Go to an existing directory without symlinks on the way; return its descriptor, valid until the next move.

        It starts at the present directory, so that visiting a tree costs one open per directory, and the depth may
        exceed the length of a path. Raises OSError.
        """
        names = path.split(b"/") if path else []
        common = 0
        for here, there in zip(self._names, names, strict=False):
            if here != there:
                break
            common += 1
        while len(self._names) > common:
            self._up()
        for name in names[common:]:
            self._push(name)
        return self._stack[-1]

    def _up(self) -> None:
        if self._names:
            os.close(self._stack.pop())
            self._names.pop()

    def _enter(self, name: bytes) -> bytes | None:
        """Enter the directory `name`, making it if missing; or return the target if it is a symlink."""
        here = self._stack[-1]
        try:
            there = os.lstat(name, dir_fd=here)
        except FileNotFoundError:
            self._make(name)
            return None
        if stat.S_ISLNK(there.st_mode):
            self._symlinks += 1
            if self._symlinks > _SYMLINK_LIMIT:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            return os.readlink(name, dir_fd=here)
        if is_whiteout(there):
            os.unlink(name, dir_fd=here)
            self.replaced = True
            self._make(name)
            self._inodes.mark_opaque(self._stack[-1])
        else:
            self._push(name)
        return None

    def _make(self, name: bytes) -> None:
        if len(self._names) >= _DEPTH_LIMIT:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        self._inodes.imply(self._stack[-1], name)
        self.made.append(b"/".join((*self._names, name)))
        self._push(name)

    def _push(self, name: bytes) -> None:
        if len(self._names) >= _ENTERED_LIMIT:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        self._stack.append(os.open(name, PLAIN_DIRECTORY, dir_fd=self._stack[-1]))
        self._names.append(name)
