"""Rules for single strings of a request, independent of its other fields.

The doors (`cri/convert` for CRI, `cri/nri` for plugins) check strings against these rules and name the field in their
errors; the code below the doors trusts them. Where the kernel defines the syntax the rule is the kernel's: digits are
ASCII. What depends on the machine (online CPUs, page sizes) is not checked here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from linux.tables import CAPABILITIES


@dataclass(frozen=True, slots=True)
class Form:
    """What a whole string must look like."""

    pattern: re.Pattern[str]
    expected: str  # completes the sentence "must be ..."

    def fits(self, text: str) -> bool:
        return self.pattern.fullmatch(text) is not None


# cpuset(7), "List format", for CPUs and memory nodes.
CPU_LIST: Final = Form(re.compile(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*"), "a list such as 0-3,6")
PAGE_SIZE: Final = Form(re.compile(r"[1-9][0-9]{0,8}[KMG]B"), "a size such as 2MB")
# It becomes a file name in a cgroup's directory and must not lead out of it.
CGROUP_FILE: Final = Form(
    re.compile(r"[a-z][a-z0-9_]*(\.[A-Za-z0-9_-]+)+"), "the name of a cgroup v2 file such as memory.high"
)
SYSCTL: Final = Form(
    re.compile(r"[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)+"), "the name of a sysctl such as net.ipv4.ip_forward"
)
SYSCTL_VALUE: Final = Form(  # /proc/sys takes a page at most
    re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]{0,4095}"), "printable text of at most 4095 characters"
)
HOST_NAME: Final = Form(re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"), "a host name")
HOST_NAME_BYTES: Final = 64  # sethostname(2)
WORD: Final = Form(re.compile(r"\S+"), "one word")  # of a line of resolv.conf(5)
DEVICE_ACCESS: Final = Form(re.compile(r"[rwm]{1,3}"), "made of r, w and m")
CDI_DEVICE: Final = Form(
    re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*=[A-Za-z0-9][A-Za-z0-9._:-]*"),
    "of the form vendor/class=device",
)
PINNED: Final = Form(  # a pull of it always gives the same content
    re.compile(r"[^\s@]+@[a-z0-9+._-]+:[0-9a-f]{32,}"), "a reference with its digest: registry/name@sha256:..."
)
OOM_SCORES: Final = (-1000, 1000)  # proc_pid_oom_score_adj(5)
UNLIMITED: Final = -1  # as a limit of memory or CPU time
BELOW_ROOT: Final = "an absolute path below '/' without '..'"
LOCALHOST: Final = "localhost/"  # prefix of a profile on the node's disk
PATH_BYTES: Final = 4095  # PATH_MAX without its NUL
_COMPONENT_BYTES: Final = 255  # NAME_MAX


def is_text(text: str) -> bool:
    """Return whether a string can be passed to the kernel: it has no NUL."""
    return "\0" not in text


def is_variable(name: str) -> bool:
    """Return whether an environment variable can have this name."""
    return bool(name) and "=" not in name and is_text(name)


def fault_of_path(path: str) -> str:
    """Return why the kernel would reject a path as too long; "" if it would not."""
    encoded = path.encode(errors="surrogateescape")
    if len(encoded) > PATH_BYTES:
        return f"is longer than {PATH_BYTES} bytes"
    if any(len(component) > _COMPONENT_BYTES for component in encoded.split(b"/")):
        return f"has a component of more than {_COMPONENT_BYTES} bytes"
    return ""


def stays_inside(path: str) -> bool:
    """Return whether a relative path stays below the directory that it is joined to."""
    return ".." not in path.split("/")


def names_file(path: str) -> bool:
    """Return whether the path's last component can be a file's name."""
    return path.rpartition("/")[2] not in ("", ".")


def is_below_root(path: str) -> bool:
    """Return whether a path is absolute, has no "..", and is not the root: a valid mount point in a container."""
    return path.startswith("/") and stays_inside(path) and any(part not in ("", ".") for part in path.split("/"))


def capability(name: str) -> str:
    """Return the kernel's name of a capability in any of CRI's spellings, or "ALL"; "" if there is none."""
    upper = name.upper()
    full = upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"
    return full if full == "ALL" or full in CAPABILITIES else ""
