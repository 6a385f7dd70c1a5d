"""Mounts the overlay of a container's rootfs as a detached mount (overlayfs.rst, fsopen(2)).

A detached mount is in no mount table. It lives as long as a process has its descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from linux import syscalls
from linux.syscalls import open_in_root
from linux.user_namespaces import STARTED_IN_ONE
from runtime.errors import OPEN_IN_IMAGE, failing
from runtime.namespaces import user as userns
from runtime.rootfs.mount_sources import new_filesystem
from runtime.rootfs.plan import MountPlan
from runtime.rootfs.tree import ATTACH_POINT

_OF_A_THREAD: Final = re.compile(r"(/proc/[0-9]+/task/[0-9]+)/root(/.+)")
_OLD_VALUE_LIMIT: Final = 255  # bytes in one fsconfig string
_VOLUME_ATTRS: Final = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV


def mount_overlay(lower: Sequence[str], upper: str = "", work: str = "", label: str = "") -> int:
    """Return a descriptor of a detached overlay. `lower` is topmost first; `upper` and `work` share a file system.

    Without `upper` it needs at least two lower layers and is read-only. `label` is the SELinux label of all its files.

    The mount is `volatile` where the kernel supports it (5.10), i.e. not synced at unmount: after a crash of the
    machine a container's writable layer is never mounted again. Only for single-threaded callers: the working directory
    changes meanwhile.
    """
    ways: list[Callable[[], int]] = [
        lambda: _mount_joined(lower, upper, work, label, volatile=bool(upper)),
        lambda: _mount_joined(lower, upper, work, label, volatile=False),
    ]
    if layers_can_be_appended():
        layers = [("lowerdir+", layer) for layer in lower]
        if _are_of_several([*lower, *filter(None, (upper,))]):  # as mounted layers are
            layers.append(("xino", "on"))  # all files have one device number then
        ways.insert(0, lambda: _configure(layers, upper, work, label, volatile=bool(upper)))
    with failing("mount overlay on", upper or lower[0]):
        for way in ways[:-1]:
            try:
                return way()
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        return ways[-1]()


def are_elsewhere(lower: Sequence[str]) -> bool:
    """Return whether layers are mounted in the namespace of a thread of crispd's (image/erofs/attached.py)."""
    return any(map(_OF_A_THREAD.fullmatch, lower))


def mount_cloned_overlay(
    lower: Sequence[str], upper: str, work: str, namespace: int, template: int, label: str = ""
) -> int:
    """Mount an overlay of clones of its layers' mounts, which may be in another namespace.

    The user namespace open at `namespace` maps their owners (Linux 5.19), unless it is -1. An overlay cannot be
    id-mapped, but its layers' mounts can. The upper layer is not mapped: the overlay makes its own files there as the
    host's root, and the container's files have the ids of the host. In a copy of `template`, the empty mount namespace,
    the layers get paths.
    """
    with contextlib.ExitStack() as undo:
        trees = _layer_trees(lower, namespace, undo)
        trees["container"] = _clone(os.path.dirname(upper), undo)
        own = f"{ATTACH_POINT}/container"
        with _attached(trees, template):
            return mount_overlay(
                [f"{ATTACH_POINT}/{number}" for number in range(len(lower))],
                f"{own}/{os.path.basename(upper)}",
                f"{own}/{os.path.basename(work)}",
                label,
            )


def mount_image(lower: Sequence[str], sub_path: str, namespace: int, template: int, label: str = "") -> int:
    """Return a descriptor of a detached read-only mount of an image's files, or of `sub_path` in them.

    `namespace` is a user namespace that maps the owners, -1 for none, and `label` the SELinux label of all files.
    Symbolic links in `sub_path` cannot leave the image. Raises OperationFailed, with ENOENT if the path does not exist.
    """
    with contextlib.ExitStack() as undo:
        trees = _layer_trees(lower, namespace, undo)
        if len(lower) == 1 and not label:
            image = os.dup(trees["0"])
        else:
            with _attached(trees, template):
                layers = [f"{ATTACH_POINT}/{number}" for number in range(len(lower))]
                if len(layers) == 1:  # an overlay that nobody can write to has two
                    layers.append(f"{ATTACH_POINT}/nothing")
                    os.mkdir(layers[-1])
                image = mount_overlay(layers, label=label)
        if sub_path:
            undo.callback(os.close, image)
            image = _sub_tree(image, sub_path, template)
    try:
        syscalls.mount_setattr(
            image, "", syscalls.AT_EMPTY_PATH, attr_set=_VOLUME_ATTRS, propagation=syscalls.MS_PRIVATE
        )
    except OSError:
        os.close(image)
        raise
    return image


def _layer_trees(lower: Sequence[str], namespace: int, undo: contextlib.ExitStack) -> dict[str, int]:
    trees = {str(number): _clone(layer, undo) for number, layer in enumerate(lower)}
    if namespace >= 0:
        for tree, layer in zip(trees.values(), lower, strict=True):
            userns.idmap(tree, namespace, recursive=False, about=layer)
    return trees


def _clone(path: str, undo: contextlib.ExitStack) -> int:
    with failing("clone mount of", path), _reaching(path) as own:
        tree = syscalls.open_tree(syscalls.AT_FDCWD, own, syscalls.OPEN_TREE_CLONE)
    undo.callback(os.close, tree)
    return tree


@contextlib.contextmanager
def _reaching(path: str) -> Iterator[str]:
    """Enter the mount namespace of a path below the root of a thread, and provide the path's name there.

    The kernel clones only what is mounted in the caller's namespace.
    """
    named = _OF_A_THREAD.fullmatch(path)
    if named is None:
        yield path
        return
    namespace = os.open(f"{named[1]}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with userns.inside(namespace, syscalls.CLONE_NEWNS):
            yield named[2]
    finally:
        os.close(namespace)


@contextlib.contextmanager
def _attached(trees: Mapping[str, int], template: int) -> Iterator[None]:
    """Enter a mount namespace where the detached mounts have paths below ATTACH_POINT that nobody else sees.

    Before Linux 6.14 overlayfs takes no detached mounts as layers, and the kernel cannot clone a part of one.
    """
    with failing("attach", "image layers"), userns.inside(template, syscalls.CLONE_NEWNS):
        syscalls.unshare(syscalls.CLONE_NEWNS)
        base = new_filesystem(MountPlan(ATTACH_POINT, "tmpfs", "tmpfs"))
        try:
            syscalls.move_mount(base, syscalls.AT_FDCWD, ATTACH_POINT)
            for name, tree in trees.items():
                os.mkdir(name, 0o700, dir_fd=base)
                syscalls.move_mount(tree, base, name)
        finally:
            os.close(base)
        yield


def _sub_tree(image: int, sub_path: str, template: int) -> int:
    with _attached({"image": image}, template), failing(OPEN_IN_IMAGE, sub_path):
        place = open_in_root(image, sub_path, os.O_PATH)
        try:
            return syscalls.open_tree(place, "", syscalls.AT_EMPTY_PATH | syscalls.OPEN_TREE_CLONE)
        finally:
            os.close(place)


@functools.cache
def layers_can_be_appended() -> bool:
    """Return whether the kernel has `lowerdir+` (6.5). Asked once, by the zygote: older kernels log each attempt."""
    context = syscalls.fsopen("overlay")
    try:
        for layer in ("/usr", "/etc"):
            syscalls.fsconfig_string(context, "lowerdir+", layer)
        syscalls.fsconfig_create(context)  # an old kernel refuses only here
    except OSError:
        return False
    finally:
        os.close(context)
    return True


def _configure(lower: Sequence[tuple[str, str]], upper: str, work: str, label: str, *, volatile: bool) -> int:
    context = syscalls.fsopen("overlay")
    try:
        syscalls.fsconfig_string(context, "source", "overlay")
        own = (("upperdir", upper), ("workdir", work)) if upper else ()
        labels = (("context", label),) if label else ()
        for key, value in (*lower, *own, *labels):
            syscalls.fsconfig_string(context, key, value)
        if volatile:
            syscalls.fsconfig_flag(context, "volatile")
        if STARTED_IN_ONE:  # where nobody may read or write attributes of the kind "trusted"
            syscalls.fsconfig_flag(context, "userxattr")
        syscalls.fsconfig_create(context)
        return syscalls.fsmount(context)
    finally:
        os.close(context)


def _are_of_several(directories: Sequence[str]) -> bool:
    """Return whether they are on several file systems. If they are not, overlayfs logs that `xino` is useless."""
    return len({os.stat(directory).st_dev for directory in directories}) > 1


def _mount_joined(lower: Sequence[str], upper: str, work: str, label: str, *, volatile: bool) -> int:
    """Mount with all lower layers in one string, relative to their common parent to keep it short."""
    base = os.path.commonpath([os.path.dirname(directory) for directory in lower])
    joined = ":".join(os.path.relpath(directory, base) for directory in lower)
    with contextlib.chdir(base):
        if len(joined) <= _OLD_VALUE_LIMIT:
            return _configure([("lowerdir", joined)], upper, work, label, volatile=volatile)
        own = f",upperdir={upper},workdir={work}" if upper else ""
        own += f',context="{label}"' if label else ""  # labels contain commas
        own += ",userxattr" * STARTED_IN_ONE
        return _mount_and_detach(f"lowerdir={joined}{own}" + ",volatile" * volatile, upper or lower[0])


def _mount_and_detach(options: str, upper: str) -> int:
    """Mount with mount(2), which takes a page of options: attach the mount, clone it, and unmount it."""
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
