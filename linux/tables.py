"""Tables of Linux's names and numbers: namespaces, capabilities, architectures, extended attributes."""

from __future__ import annotations

from linux.user_namespaces import STARTED_IN_ONE

# Kinds of namespaces: config.json's name (runtime-spec config-linux.md "Namespaces"), the file in /proc/PID/ns, and the
# flag of clone(2). They are joined in this order: the user namespace before those that need its capabilities, and
# after a PID namespace, which may be its parent's.
_NAMESPACES = (
    ("pid", "pid", 0x20000000),
    ("user", "user", 0x10000000),
    ("mount", "mnt", 0x00020000),
    ("ipc", "ipc", 0x08000000),
    ("uts", "uts", 0x04000000),
    ("network", "net", 0x40000000),
    ("cgroup", "cgroup", 0x02000000),
    ("time", "time", 0x00000080),
)
NAMESPACE_FLAGS = {kind: flag for kind, _file, flag in _NAMESPACES}
NAMESPACE_FILES = {kind: file for kind, file, _flag in _NAMESPACES}

HIGHEST_ID = 2**32 - 2  # of users and groups. (uid_t)-1 means "do not change": the process would stay root

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # used where no PATH is given

AUDIT_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h, by uname's machine

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

# Prefixes of overlayfs's extended attributes (overlayfs.rst): for root's overlays and for unprivileged users'.
SELINUX_LABEL = "security.selinux"  # the attribute of a file that has its label
OVERLAY_ATTRIBUTES = "trusted.overlay."
USERS_OVERLAY_ATTRIBUTES = "user.overlay."
# On a directory: "y" hides what the layers below have in it. In a user namespace overlays are mounted with userxattr.
OVERLAY_OPAQUE = f"{USERS_OVERLAY_ATTRIBUTES if STARTED_IN_ONE else OVERLAY_ATTRIBUTES}opaque"


def capability_names(mask: int) -> frozenset[str]:
    """Return the names of the capabilities in a bit mask. Bits without a name in the table are left out."""
    return frozenset(name for number, name in enumerate(CAPABILITIES) if mask >> number & 1)


def namespace_file(process: int | str, kind: str) -> str:
    """Return the path in /proc of a process's namespace; "self" is the caller."""
    return f"/proc/{process}/ns/{NAMESPACE_FILES[kind]}"
