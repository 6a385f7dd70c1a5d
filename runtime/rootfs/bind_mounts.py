"""Makes bind mounts: detached clones of a tree with the attributes, owners and propagation of their plan."""

from __future__ import annotations

import os

from linux import syscalls as sys
from runtime.errors import NotSupported, failing
from runtime.namespaces.user import UserNamespaces, idmap
from runtime.rootfs.plan import RESTRICTIONS, MountPlan, cleared, cleared_exactly

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_WHOLE_TREE: Final = sys.AT_EMPTY_PATH | sys.AT_RECURSIVE
# statfs(2)'s flags, whose numbers differ from the mount attributes'.
_STATFS_FLAGS: Final = {"ro": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8, "nosymfollow": 0x2000}


def clone_source(plan: MountPlan, users: UserNamespaces) -> int:
    """Clone the plan's source in the caller's mount namespace. Raises OperationFailed."""
    with failing("open bind mount source", plan.source):
        flags = sys.OPEN_TREE_CLONE | (sys.AT_RECURSIVE if plan.recursive else 0)
        tree = sys.open_tree(sys.AT_FDCWD, plan.source, flags)
    return _owned(tree, plan, users)


def clone_inside(root: int, plan: MountPlan, users: UserNamespaces) -> int:
    """Clone the plan's source inside the container's root, with the mounts in it. Raises OperationFailed."""
    with failing("open bind mount source", plan.source):
        place = sys.open_in_root(root, plan.inside or "", os.O_PATH)
        try:
            flags = sys.AT_EMPTY_PATH | sys.OPEN_TREE_CLONE | (sys.AT_RECURSIVE if plan.recursive else 0)
            tree = sys.open_tree(place, "", flags)
        finally:
            os.close(place)
    return _owned(tree, plan, users)


def _owned(tree: int, plan: MountPlan, users: UserNamespaces) -> int:
    if plan.idmap is not None:
        idmap(tree, users.of_mounts[plan.idmap], recursive=plan.idmap_recursive, about=plan.source)
    return tree


def finish(plan: MountPlan, tree: int) -> None:
    """Set the clone's attributes and propagation. Raises OSError, NotSupported."""
    if plan.locked:
        _refuse_to_loosen(plan, tree)
    if plan.exact:
        _set_exactly(plan, tree)
    elif plan.attr_set or plan.attr_clear:
        sys.mount_setattr(tree, "", sys.AT_EMPTY_PATH, attr_set=plan.attr_set, attr_clr=cleared(plan))
    if plan.tree_attr_set or plan.tree_attr_clear:
        sys.mount_setattr(tree, "", _WHOLE_TREE, attr_set=plan.tree_attr_set, attr_clr=plan.tree_attr_clear)
    recursive = plan.propagation_recursive or not plan.propagation
    flags = _WHOLE_TREE if recursive else sys.AT_EMPTY_PATH
    sys.mount_setattr(tree, "", flags, propagation=plan.propagation or sys.MS_SLAVE)


def _set_exactly(plan: MountPlan, tree: int) -> None:
    try:
        sys.mount_setattr(tree, "", sys.AT_EMPTY_PATH, attr_set=plan.attr_set, attr_clr=cleared_exactly(plan))
    except PermissionError:  # locked: we are in a user namespace ourselves; change only the named attributes
        sys.mount_setattr(tree, "", sys.AT_EMPTY_PATH, attr_set=plan.attr_set, attr_clr=cleared(plan))


def _refuse_to_loosen(plan: MountPlan, tree: int) -> None:
    """Refuse to lift a restriction of the source. The container could not do it in its user namespace; we could."""
    has = os.fstatvfs(tree).f_flag
    for name, bits in RESTRICTIONS.items():
        if bits & plan.tree_attr_clear or (bits & plan.attr_clear and has & _STATFS_FLAGS[name]):
            raise NotSupported(
                "bind", plan.source, f"a mount in a user namespace must keep its source's {name!r}"
            )
