"""Tells whether this process has the machine's own ids, or those of a user namespace."""

from __future__ import annotations


def in_user_namespace() -> bool:
    """Return whether we are in a user namespace. Its root cannot make devices and may mount only some file systems."""
    with open("/proc/self/uid_map", "rb") as file:
        return file.read().split() != [b"0", b"0", b"4294967295"]


# Of the interpreter's start: crisp-oci enters one later. It is known where no /proc is mounted, too.
STARTED_IN_ONE = in_user_namespace()
