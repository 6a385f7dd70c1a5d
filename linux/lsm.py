"""Which security modules are on."""

from __future__ import annotations

import os


def apparmor_is_on(sys: str | os.PathLike[str] = "/sys") -> bool:
    """Whether the kernel applies AppArmor profiles. `sys` is where sysfs is."""
    try:
        with open(os.path.join(sys, "module/apparmor/parameters/enabled")) as file:
            return file.read().strip() == "Y"
    except OSError:
        return False


def selinux_is_on(sys: str | os.PathLike[str] = "/sys") -> bool:
    """Whether the kernel has a policy of SELinux's, enforced or not."""
    return os.path.exists(os.path.join(sys, "fs/selinux/enforce"))
