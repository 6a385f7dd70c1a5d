"""Opens what mounts take from the host, as detached mounts, before the container's mount namespace is entered."""

from __future__ import annotations

import os
import stat

from linux import syscalls as sys
from linux.tables import SELINUX_LABEL
from runtime.errors import failing
from runtime.light import dataclass, replace
from runtime.namespaces.user import UserNamespaces
from runtime.rootfs import bind_mounts
from runtime.rootfs.plan import MountPlan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Final

# File systems that can be mounted without a path of the host.
OF_NO_PATH: Final = frozenset({"tmpfs", "ramfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2"})


@dataclass(frozen=True, slots=True)
class CgroupView:
    """What a container sees at a `cgroup` mount: (name below the mount point, host directory), and links to names.

    A single directory with the name "" is a v2 tree, mounted at the mount point itself.
    """

    directories: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...] = ()


def open_sources(
    plans: Sequence[MountPlan], cgroups: CgroupView, trees: Mapping[str, int], users: UserNamespaces
) -> dict[int, list[int]]:
    """Open detached mounts of what the plans take from the host, by plan index; one per directory for cgroups.

    `trees` maps sources to detached mounts that are ready to use. Sources `inside` the container's root are skipped:
    they do not exist yet.
    """
    sources: dict[int, list[int]] = {}
    for index, plan in enumerate(plans):
        if plan.bind and plan.source in trees:
            sources[index] = [trees[plan.source]]
        elif plan.bind and plan.inside is None:
            sources[index] = [bind_mounts.clone_source(plan, users)]
        elif plan.type in ("cgroup", "cgroup2") and not plan.bind:
            with failing("open cgroups for", plan.destination):
                sources[index] = [
                    sys.open_tree(sys.AT_FDCWD, path, sys.OPEN_TREE_CLONE) for _name, path in cgroups.directories
                ]
        elif not plan.bind and plan.type not in OF_NO_PATH:
            with failing(f"mount `{plan.type or plan.source}` on", plan.destination):
                sources[index] = [_of_a_path(plan)]
    return sources


def _of_a_path(plan: MountPlan) -> int:
    """Make a new file system whose source or options may be host paths, such as a disk or an overlay."""
    read_only = (plan.attr_set | plan.tree_attr_set) & sys.MOUNT_ATTR_RDONLY
    if read_only and os.path.exists(plan.source) and stat.S_ISBLK(os.stat(plan.source).st_mode):
        # The device may be read-only; and the mount itself must not write to it.
        plan = replace(plan, data=(("ro", None), *plan.data))
    return new_filesystem(replace(plan, attr_set=0))


def new_filesystem(plan: MountPlan, context: int = -1) -> int:
    """Return a detached mount of a new instance of the plan's file system, owned by the caller's namespaces.

    `context` is a file system context that was opened before, or -1. It is closed.
    """
    if context < 0:
        context = sys.fsopen(plan.type)
    try:
        if plan.source:
            sys.fsconfig_string(context, "source", plan.source)
        for key, value in plan.data:
            if value is None:
                sys.fsconfig_flag(context, key)
            else:
                sys.fsconfig_string(context, key, value)
        sys.fsconfig_create(context)
        mount = sys.fsmount(context, plan.attr_set)
    finally:
        os.close(context)
    if plan.label:
        _label_root(mount, plan.label)
    return mount


def _label_root(mount: int, label: str) -> None:
    try:
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
        try:
            os.setxattr(root, SELINUX_LABEL, label.encode())
        finally:
            os.close(root)
    except OSError:
        os.close(mount)
        raise
