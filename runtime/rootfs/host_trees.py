"""Clones of the host's devices and /sys, for a root that can neither make nor mount them: that of a user namespace."""

from __future__ import annotations

from linux import syscalls
from runtime.errors import OperationFailed
from runtime.spec.devices import DEFAULT_DEVICES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def host_trees(devices: Iterable[str]) -> dict[str, int]:
    """Clone the default devices, these devices, and /sys as detached mounts, by path. Raises OperationFailed."""
    trees = {}
    for path in dict.fromkeys((*(device.path for device in DEFAULT_DEVICES), *devices, "/sys")):
        try:
            recursive = syscalls.AT_RECURSIVE if path == "/sys" else 0
            trees[path] = syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE | recursive)
        except OSError as error:
            raise OperationFailed.of("clone", path, error) from error
    return trees
