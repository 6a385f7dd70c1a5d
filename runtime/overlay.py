"""The overlay file system of a container's rootfs, as a detached mount (overlayfs.rst, fsopen(2)).

A detached mount is in no mount table: whoever holds its descriptor holds it up, and it is gone with the last one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Callable, Sequence
from typing import Final

from runtime import syscalls
from runtime.errors import failing

_OLD_VALUE_LIMIT: Final = 255  # bytes in one fsconfig string


def mount_overlay(lower: Sequence[str], upper: str, work: str) -> int:
    """A descriptor of a detached overlay mount: `lower` topmost first, `upper` and `work` on one file system.

    Mounted `volatile` where the kernel can (5.10): a container's writable layer is never mounted again after a
    crash of the machine, so nothing is lost by not syncing it at unmount. Single-threaded callers only: the working
    directory changes for a moment.
    """
    ways: list[Callable[[], int]] = [
        lambda: _mount_joined(lower, upper, work, volatile=True),
        lambda: _mount_joined(lower, upper, work, volatile=False),
    ]
    if layers_can_be_appended():
        ways.insert(0, lambda: _configure([("lowerdir+", layer) for layer in lower], upper, work, volatile=True))
    with failing("mount overlay on", upper):
        for way in ways[:-1]:
            try:
                return way()
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        return ways[-1]()


@functools.cache
def layers_can_be_appended() -> bool:
    """Whether the kernel has `lowerdir+` (6.5). Asked once, by the zygote: those without it log every attempt."""
    context = syscalls.fsopen("overlay")
    try:
        for layer in ("/usr", "/etc"):
            syscalls.fsconfig_string(context, "lowerdir+", layer)
        syscalls.fsconfig_create(context)  # only here does an old kernel say what it does not know
    except OSError:
        return False
    finally:
        os.close(context)
    return True


def _configure(lower: Sequence[tuple[str, str]], upper: str, work: str, *, volatile: bool) -> int:
    context = syscalls.fsopen("overlay")
    try:
        syscalls.fsconfig_string(context, "source", "overlay")
        for key, value in (*lower, ("upperdir", upper), ("workdir", work)):
            syscalls.fsconfig_string(context, key, value)
        if volatile:
            syscalls.fsconfig_flag(context, "volatile")
        syscalls.fsconfig_create(context)
        return syscalls.fsmount(context)
    finally:
        os.close(context)


def _mount_joined(lower: Sequence[str], upper: str, work: str, *, volatile: bool) -> int:
    """All lower layers in one string, named relative to their common parent to be short."""
    base = os.path.commonpath([os.path.dirname(directory) for directory in lower])
    joined = ":".join(os.path.relpath(directory, base) for directory in lower)
    with contextlib.chdir(base):
        if len(joined) <= _OLD_VALUE_LIMIT:
            return _configure([("lowerdir", joined)], upper, work, volatile=volatile)
        return _mount_and_detach(f"lowerdir={joined},upperdir={upper},workdir={work}" + ",volatile" * volatile, upper)


def _mount_and_detach(options: str, upper: str) -> int:
    """mount(2) takes a page of options; the mount is attached for a moment, then only its clone is left."""
    point = upper + ".mount"
    os.mkdir(point, 0o700)
    try:
        syscalls.mount("overlay", point, "overlay", 0, options)
        try:
            return syscalls.open_tree(syscalls.AT_FDCWD, point, syscalls.OPEN_TREE_CLONE)
        finally:
            syscalls.umount2(point, syscalls.MNT_DETACH)
    finally:
        os.rmdir(point)
