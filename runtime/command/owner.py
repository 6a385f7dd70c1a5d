"""Who runs crisp-oci: the machine's root, root of less, or an ordinary user."""

from __future__ import annotations

import os


def in_user_namespace() -> bool:
    """Whether we are in a user namespace of less than the machine: its root makes no device and may mount little."""
    with open("/proc/self/uid_map", "rb") as file:
        return file.read().split() != [b"0", b"0", b"4294967295"]


def name() -> str:
    """The user's name, its number where it has none."""
    if os.geteuid() == 0:
        return "root"
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
