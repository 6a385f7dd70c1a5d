"""What one text of a request may look like, whatever the rest of the request says.

The doors hold texts against these, CRI's messages in `cri/convert` and plugins' in `cri/nri`, and name the field in
words of their own; what is below the doors trusts them. Where the kernel has a language it is the kernel's: digits are
ASCII's. What only the machine can tell (which processors are online, which sizes of pages there are) is not here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from linux.tables import CAPABILITIES


@dataclass(frozen=True, slots=True)
class Form:
    """What a whole text must look like."""

    pattern: re.Pattern[str]
    expected: str  # completes the sentence "must be ..."

    def fits(self, text: str) -> bool:
        return self.pattern.fullmatch(text) is not None


# cpuset(7), "List format": of CPUs and of memory nodes.
CPU_LIST: Final = Form(re.compile(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*"), "a list such as 0-3,6")
PAGE_SIZE: Final = Form(re.compile(r"[1-9][0-9]{0,8}[KMG]B"), "a size such as 2MB")
# It becomes the name of a file in a cgroup's directory: it must not lead out of there.
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
PINNED: Final = Form(  # of what is pulled once and for all
    re.compile(r"[^\s@]+@[a-z0-9+._-]+:[0-9a-f]{32,}"), "a reference with its digest: registry/name@sha256:..."
)
OOM_SCORES: Final = (-1000, 1000)  # proc_pid_oom_score_adj(5)
UNLIMITED: Final = -1  # as a limit of memory or of processor time
BELOW_ROOT: Final = "an absolute path below '/' without '..'"
LOCALHOST: Final = "localhost/"  # before the name of a profile that is on the node
PATH_BYTES: Final = 4095  # PATH_MAX without its NUL
_COMPONENT_BYTES: Final = 255  # NAME_MAX


def is_text(text: str) -> bool:
    """Whether the kernel can be given it."""
    return "\0" not in text


def is_variable(name: str) -> bool:
    """Whether a variable of an environment can have that name."""
    return bool(name) and "=" not in name and is_text(name)


def fault_of_path(path: str) -> str:
    """Why the kernel would find a path too long, "" if it does not."""
    encoded = path.encode(errors="surrogateescape")
    if len(encoded) > PATH_BYTES:
        return f"is longer than {PATH_BYTES} bytes"
    if any(len(component) > _COMPONENT_BYTES for component in encoded.split(b"/")):
        return f"has a component of more than {_COMPONENT_BYTES} bytes"
    return ""


def stays_inside(path: str) -> bool:
    """Whether it leads nowhere but below what it is joined to."""
    return ".." not in path.split("/")


def names_file(path: str) -> bool:
    """Whether its end is the name of something, which a file can have."""
    return path.rpartition("/")[2] not in ("", ".")


def is_below_root(path: str) -> bool:
    """Whether it is absolute, has no "..", and is not the root itself: where something can be put in a container."""
    return path.startswith("/") and stays_inside(path) and any(part not in ("", ".") for part in path.split("/"))


def capability(name: str) -> str:
    """The kernel's name of a capability that is spelled as CRI lets one, or "ALL"; "" for none."""
    upper = name.upper()
    full = upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"
    return full if full == "ALL" or full in CAPABILITIES else ""
