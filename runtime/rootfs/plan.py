"""Parses the mount options of the OCI configuration for the mount API (runtime-spec config.md, "Mounts").

Nothing here touches the kernel: `tree` carries the plans out.
"""

from __future__ import annotations

import os

from linux import syscalls as sys
from runtime.errors import SpecError
from runtime.light import dataclass, replace
from runtime.namespaces.user import IDMappings
from runtime.spec import values as oci

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

# option -> (bits to set, bits to clear) of mount_setattr(2)
_ATTRIBUTES: Final[Mapping[str, tuple[int, int]]] = {
    "ro": (sys.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, sys.MOUNT_ATTR_RDONLY),
    "nosuid": (sys.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, sys.MOUNT_ATTR_NOSUID),
    "nodev": (sys.MOUNT_ATTR_NODEV, 0),
    "dev": (0, sys.MOUNT_ATTR_NODEV),
    "noexec": (sys.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, sys.MOUNT_ATTR_NOEXEC),
    "noatime": (sys.MOUNT_ATTR_NOATIME, sys.MOUNT_ATTR_ATIME),
    "atime": (0, sys.MOUNT_ATTR_ATIME),
    "relatime": (0, sys.MOUNT_ATTR_ATIME),
    "norelatime": (0, sys.MOUNT_ATTR_ATIME),
    "strictatime": (sys.MOUNT_ATTR_STRICTATIME, sys.MOUNT_ATTR_ATIME),
    "nostrictatime": (0, sys.MOUNT_ATTR_ATIME),
    "nodiratime": (sys.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, sys.MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (sys.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, sys.MOUNT_ATTR_NOSYMFOLLOW),
}
_PROPAGATION: Final[Mapping[str, int]] = {
    "private": sys.MS_PRIVATE,
    "slave": sys.MS_SLAVE,
    "shared": sys.MS_SHARED,
    "unbindable": sys.MS_UNBINDABLE,
}
_COPY_UP: Final = "tmpcopyup"
_KEPT_BY_REMOUNT: Final = "remount"  # as in mount(8): flags that are not named stay
# Flags that a bind mount can lose or gain. As in runc, a flag that is not named is off.
RESTRICTIONS: Final[Mapping[str, int]] = {
    "ro": sys.MOUNT_ATTR_RDONLY,
    "nosuid": sys.MOUNT_ATTR_NOSUID,
    "nodev": sys.MOUNT_ATTR_NODEV,
    "noexec": sys.MOUNT_ATTR_NOEXEC,
    "nosymfollow": sys.MOUNT_ATTR_NOSYMFOLLOW,
}
_RESTRICTIONS: Final = sum(RESTRICTIONS.values())
# File systems that SELinux labels itself or by its own rules.
_LABELLED_BY_SELINUX: Final = frozenset({"proc", "sysfs", "cgroup", "cgroup2"})
IGNORED: Final = frozenset({"defaults", "async", "auto", "remount", "user", "nouser", "silent", "loud"})


@dataclass(frozen=True, slots=True)
class MountPlan:
    """How to make one mount. Attributes of the mount itself and of its whole tree are separate."""

    destination: str
    type: str
    source: str
    bind: bool = False
    recursive: bool = False
    attr_set: int = 0
    attr_clear: int = 0
    tree_attr_set: int = 0
    tree_attr_clear: int = 0
    propagation: int = 0
    propagation_recursive: bool = False
    data: tuple[tuple[str, str | None], ...] = ()
    idmap: IDMappings | None = None  # maps the owners of files in a bind mount
    idmap_recursive: bool = False
    copy_up: bool = False  # a tmpfs that starts with a copy of what it covers
    exact: bool = False  # a bind mount loses all restrictions that are not named, if the kernel allows it
    locked: bool = False  # a bind mount for a user namespace keeps all restrictions of its source
    label: str = ""  # SELinux label of its root directory, where the whole file system cannot have one
    inside: str | None = None  # the bind mount's source, if it is inside the container's root


def plan_mount(
    mount: oci.Mount, path: str, container: IDMappings | None = None, *, exact: bool = False
) -> MountPlan:
    """Parse one entry of `mounts`. `path` is its JSON path, for errors; `container` maps its user namespace's ids.

    `exact`: as in runc, a bind mount with any named flag has exactly the named ones. Otherwise it keeps its source's
    flags too. Raises SpecError.
    """
    bind = mount.type == "bind"
    recursive = False
    attr_set = attr_clear = tree_set = tree_clear = propagation = 0
    propagation_recursive = copy_up = False
    idmap = ""
    data: list[tuple[str, str | None]] = []
    for option in mount.options:
        name = option[1:] if option.startswith("r") else option
        if option in ("bind", "rbind"):
            bind, recursive = True, option == "rbind"
        elif option in _ATTRIBUTES:
            set_bits, clear_bits = _ATTRIBUTES[option]
            attr_set = attr_set & ~clear_bits | set_bits
            attr_clear = attr_clear & ~set_bits | clear_bits
        elif option in _PROPAGATION or (option.startswith("r") and name in _PROPAGATION):
            propagation_recursive = option not in _PROPAGATION
            propagation = _PROPAGATION[option] if option in _PROPAGATION else _PROPAGATION[name]
        elif option.startswith("r") and name in _ATTRIBUTES:
            set_bits, clear_bits = _ATTRIBUTES[name]
            tree_set = tree_set & ~clear_bits | set_bits
            tree_clear = tree_clear & ~set_bits | clear_bits
        elif option in ("idmap", "ridmap"):
            idmap = option
        elif option == _COPY_UP:
            copy_up = True
        elif option not in IGNORED:
            key, equals, value = option.partition("=")
            data.append((key, value if equals else None))
    if copy_up and (bind or mount.type != "tmpfs"):
        raise SpecError(f"{path}.options", f"{_COPY_UP!r} works only for a tmpfs")
    if bind and not mount.source:
        raise SpecError(f"{path}.source", "is required for a bind mount")
    named = bool(attr_set or attr_clear) and _KEPT_BY_REMOUNT not in mount.options
    return MountPlan(
        destination=absolute(mount.destination),
        type=mount.type,
        source=mount.source,
        bind=bind,
        recursive=recursive,
        attr_set=attr_set,
        attr_clear=attr_clear,
        tree_attr_set=tree_set,
        tree_attr_clear=tree_clear,
        propagation=propagation,
        propagation_recursive=propagation_recursive,
        data=() if bind else tuple(data),
        idmap=_idmap(mount, path, container, asked=bool(idmap), bind=bind),
        idmap_recursive=idmap == "ridmap",
        copy_up=copy_up,
        exact=bind and exact and named and container is None,
        locked=bind and container is not None,
    )


def absolute(destination: str) -> str:
    """Return the destination normalised and absolute. As in runc, a relative one (deprecated) starts at `/`."""
    return "/" + os.path.normpath("/" + destination).lstrip("/")


def cleared(plan: MountPlan) -> int:
    """Return the attributes to clear when `attr_set` is set."""
    # The access-time bits are one field: to set any of them the kernel requires clearing all.
    return plan.attr_clear | (sys.MOUNT_ATTR_ATIME if plan.attr_set & sys.MOUNT_ATTR_ATIME else 0)


def cleared_exactly(plan: MountPlan) -> int:
    """Return the attributes to clear for an `exact` plan."""
    return cleared(plan) | _RESTRICTIONS & ~plan.attr_set


def _idmap(
    mount: oci.Mount, path: str, container: IDMappings | None, *, asked: bool, bind: bool
) -> IDMappings | None:
    """Return the mount's own mappings, or the user namespace's if only an option asks for id-mapping."""
    listed = bool(mount.uid_mappings), bool(mount.gid_mappings)
    if not asked and not any(listed):
        return None
    if not bind:
        raise SpecError(f"{path}.uidMappings", "only a bind mount can be id-mapped")
    if all(listed):
        return IDMappings(mount.uid_mappings, mount.gid_mappings)
    if any(listed):
        raise SpecError(f"{path}.uidMappings", "uidMappings and gidMappings must be given together")
    if container is None:
        raise SpecError(f"{path}.options", "idmap needs uidMappings and gidMappings, or a user namespace")
    return container


def _owned(plan: MountPlan, container: IDMappings) -> MountPlan:
    """Convert ids in the file system's own options to the host's, since the host's root mounts it."""
    ids = {"uid": container.uid, "gid": container.gid}
    data = tuple(
        (key, str(ids[key](int(value))) if key in ids and value is not None and value.isdecimal() else value)
        for key, value in plan.data
    )
    given = {key for key, _value in data}
    if plan.type == "tmpfs":
        data += tuple((key, str(of(0))) for key, of in ids.items() if key not in given)
    return replace(plan, data=data)


def plan_mounts(spec: oci.Spec, container: IDMappings | None = None, *, exact: bool = False) -> list[MountPlan]:
    """Plan all mounts of the configuration in order. `container` maps the ids of its user namespace, if it has one.

    For `exact` see `plan_mount`. Raises SpecError, which names the entry.
    """
    plans = [plan_mount(mount, f"mounts[{index}]", container, exact=exact) for index, mount in enumerate(spec.mounts)]
    if container is not None:
        plans = [_owned(plan, container) for plan in plans]
    label = spec.linux.mount_label
    return [_labelled(plan, label) for plan in plans] if label else plans


def _labelled(plan: MountPlan, label: str) -> MountPlan:
    if plan.bind or plan.type in _LABELLED_BY_SELINUX:
        return plan
    if plan.type == "mqueue":  # there is one for each IPC namespace, made with it
        return replace(plan, label=label)
    return replace(plan, data=(*plan.data, ("context", label)))


ROOTFS_PROPAGATION: Final[Mapping[str, tuple[int, bool]]] = {
    **{name: (bits, False) for name, bits in _PROPAGATION.items()},
    **{"r" + name: (bits, True) for name, bits in _PROPAGATION.items()},
}


def known_options() -> list[str]:
    """Return the mount options that crisp parses itself. Others are passed to the file system."""
    names = {*_ATTRIBUTES, *_PROPAGATION, *IGNORED, "bind", "idmap", "ridmap", _COPY_UP}
    return sorted(names | {f"r{name}" for name in (*_ATTRIBUTES, *_PROPAGATION, "bind")})
