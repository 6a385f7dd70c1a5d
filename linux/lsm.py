"""Tells which Linux security modules are enabled."""

from __future__ import annotations

import os


def apparmor_is_on(sys: str | os.PathLike[str] = "/sys") -> bool:
    """Return whether the kernel applies AppArmor profiles. `sys` is the mount point of sysfs."""
    try:
        with open(os.path.join(sys, "module/apparmor/parameters/enabled")) as file:
            return file.read().strip() == "Y"
    except OSError:
        return False


def selinux_is_on(sys: str | os.PathLike[str] = "/sys") -> bool:
    """Return whether an SELinux policy is loaded, enforcing or not."""
    try:
        os.stat(os.path.join(sys, "fs/selinux/enforce"))
    except FileNotFoundError:
        return False
    except PermissionError:  # by that policy
        pass
    return True
