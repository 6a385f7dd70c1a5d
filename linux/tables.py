"""Names that the kernel's headers have, in the order of their numbers."""

from __future__ import annotations

# linux/capability.h; the position is the number.
CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
    "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
    "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
)  # fmt: skip

# overlayfs.rst: what it keeps in extended attributes, its own and those of ordinary users' overlays.
OVERLAY_ATTRIBUTES = "trusted.overlay."
USERS_OVERLAY_ATTRIBUTES = "user.overlay."
OVERLAY_OPAQUE = f"{OVERLAY_ATTRIBUTES}opaque"  # on a directory: "y" hides what the layers below have in it


def capability_names(mask: int) -> frozenset[str]:
    """The capabilities of a kernel bit mask; bits without a name here are left out."""
    return frozenset(name for number, name in enumerate(CAPABILITIES) if mask >> number & 1)
