"""Implements `crisp-oci spec`: writes a sample config.json."""

from __future__ import annotations

import json
import os

from linux.tables import DEFAULT_PATH
from runtime.command.flags import Flag, Options
from runtime.command.invocation import Context
from runtime.errors import RuntimeCoreError, failing
from runtime.spec.values import TERM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

FLAGS: Final = (
    Flag("bundle", short="b", argument="DIR", help="the directory to write to (default: the current one)"),
    Flag("rootless", help="for an ordinary user: a user namespace with one user and group"),
)
ARGUMENTS: Final = ""
_CAPABILITIES: Final = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
_MASKED: Final = [
    *(f"/proc/{name}" for name in ("acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug")),
    *(f"/proc/{name}" for name in ("scsi", "timer_list", "timer_stats")),
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
]
_READONLY: Final = [f"/proc/{name}" for name in ("bus", "fs", "irq", "sys", "sysrq-trigger")]


def run(context: Context, options: Options, operands: list[str]) -> int:
    path = os.path.join(options.text("bundle", "."), "config.json")
    if os.path.exists(path):
        raise RuntimeCoreError(f"File {path} exists. Remove it first")
    pure_v2 = _pure_v2(context)
    with failing("write", path), open(path, "x") as file:
        json.dump(document(rootless=options.switch("rootless"), pure_v2=pure_v2), file, indent="\t")
        file.write("\n")
    return 0


def _pure_v2(context: Context) -> bool:
    try:
        return context.hierarchies().pure_v2
    except RuntimeCoreError:
        return False


def document(*, rootless: bool, pure_v2: bool) -> dict[str, Any]:
    """Return a configuration that runs a shell on a terminal, with few capabilities, on a read-only `rootfs`.

    Like runc's: callers edit it. There is no cgroup namespace on version 1; callers add one themselves.
    """
    kinds = ["pid", "ipc", "uts", "mount", *(["cgroup"] if pure_v2 else []), "user" if rootless else "network"]
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in kinds],
        "maskedPaths": _MASKED,
        "readonlyPaths": _READONLY,
    }
    if rootless:
        linux["uidMappings"] = [{"containerID": 0, "hostID": os.getuid(), "size": 1}]
        linux["gidMappings"] = [{"containerID": 0, "hostID": os.getgid(), "size": 1}]
    else:
        linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    return {
        "ociVersion": "1.2.0",
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [f"PATH={DEFAULT_PATH}", f"TERM={TERM}"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "crisp",
        "mounts": _mounts(rootless=rootless),
        "linux": linux,
    }


def _mounts(*, rootless: bool) -> list[dict[str, Any]]:
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    harmless = ["nosuid", "noexec", "nodev"]
    table: list[tuple[str, str, str, list[str]]] = [
        ("/proc", "proc", "proc", []),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", terminals if rootless else [*terminals, "gid=5"]),
        ("/dev/shm", "tmpfs", "shm", [*harmless, "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", "mqueue", harmless),
        ("/sys", "sysfs", "sysfs", [*harmless, "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", [*harmless, "relatime", "ro"]),
    ]
    if rootless:
        # The user namespace does not own the host's network namespace, so sysfs cannot be mounted, only bind-mounted.
        table[5] = ("/sys", "none", "/sys", ["rbind", *harmless, "ro"])
    keys = ("destination", "type", "source", "options")
    return [{key: value for key, value in zip(keys, row, strict=True) if value} for row in table]
