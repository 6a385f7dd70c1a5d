"""What a container's mounts take from the host: detached mounts, made before its own mount namespace is entered."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence

from linux import syscalls as sys
from runtime.errors import failing
from runtime.light import dataclass, replace
from runtime.namespaces.user import UserNamespaces
from runtime.rootfs import bind_mounts
from runtime.rootfs.plan import MountPlan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# File systems that need no path of the host to be made.
_OF_NO_PATH: Final = frozenset({"tmpfs", "ramfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2"})


@dataclass(frozen=True, slots=True)
class CgroupView:
    """What a container sees at a `cgroup` mount: (name below the mount point, host directory), links to names.

    One directory with the name "" is a v2 tree mounted at the point itself.
    """

    directories: tuple[tuple[str, str], ...]
    links: tuple[tuple[str, str], ...] = ()


def open_sources(
    plans: Sequence[MountPlan], cgroups: CgroupView, trees: Mapping[str, int], users: UserNamespaces
) -> dict[int, list[int]]:
    """Detached mounts of what the plans take from the host, by the plan's index; of cgroups one for each directory.

    `trees` are detached mounts that stand for the paths which name them, ready as they are. What is `inside` the
    container's own root is not there yet.
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
        elif not plan.bind and plan.type not in _OF_NO_PATH:
            with failing(f"mount `{plan.type or plan.source}` on", plan.destination):
                sources[index] = [_of_a_path(plan)]
    return sources


def _of_a_path(plan: MountPlan) -> int:
    """A new file system whose source or options may be paths of the host, such as a disk's or an overlay's."""
    read_only = (plan.attr_set | plan.tree_attr_set) & sys.MOUNT_ATTR_RDONLY
    if read_only and os.path.exists(plan.source) and stat.S_ISBLK(os.stat(plan.source).st_mode):
        # The device may be read-only itself, and is not to be written to by the mounting either.
        plan = replace(plan, data=(("ro", None), *plan.data))
    return new_filesystem(replace(plan, attr_set=0))


def new_filesystem(plan: MountPlan, context: int = -1) -> int:
    """A detached mount of a new instance of the plan's file system type, bound to the caller's namespaces.

    Or of what was opened by others before: `context` is then closed.
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
        return sys.fsmount(context, plan.attr_set)
    finally:
        os.close(context)
