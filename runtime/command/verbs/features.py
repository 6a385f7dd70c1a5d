"""Implements `crisp-oci features`: prints what runtime and machine support (runtime-spec features.md)."""

from __future__ import annotations

import importlib.util
import json

from linux import lsm
from linux.tables import CAPABILITIES, NAMESPACE_FLAGS
from runtime.command.flags import Options
from runtime.command.invocation import Context
from runtime.errors import RuntimeCoreError
from runtime.process.scheduling import MEMORY_FLAGS, MEMORY_MODES
from runtime.rootfs.plan import known_options
from runtime.seccomp import compile as seccomp
from runtime.spec.values import HOOK_KINDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

FLAGS: Final = ()
ARGUMENTS: Final = ""


def run(context: Context, options: Options, operands: list[str]) -> int:
    print(json.dumps(document(context), indent=4))
    return 0


def document(context: Context) -> dict[str, Any]:
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": list(HOOK_KINDS),
        "mountOptions": known_options(),
        "linux": {
            "namespaces": sorted(NAMESPACE_FLAGS),
            "capabilities": list(CAPABILITIES),
            "cgroup": _cgroup(context),
            "seccomp": _seccomp(),
            "apparmor": {"enabled": lsm.apparmor_is_on()},
            "selinux": {"enabled": lsm.selinux_is_on()},
            "intelRdt": {"enabled": False},
            "memoryPolicy": {"modes": sorted(MEMORY_MODES), "flags": sorted(MEMORY_FLAGS)},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
        },
    }


def _cgroup(context: Context) -> dict[str, bool]:
    try:
        hierarchies = context.hierarchies()
    except RuntimeCoreError:
        return {"v1": False, "v2": False, "systemd": False, "systemdUser": False, "rdma": False}
    limits = {name for name in hierarchies.v1 if not name.startswith("name=")}
    rdma = bool(hierarchies.home("rdma"))
    systemd = importlib.util.find_spec("jeepney") is not None
    return {
        "v1": bool(limits), "v2": bool(hierarchies.unified), "systemd": systemd, "systemdUser": systemd, "rdma": rdma
    }  # fmt: skip


def _seccomp() -> dict[str, Any]:
    if importlib.util.find_spec("pyseccomp") is None:
        return {"enabled": False}
    return {
        "enabled": True,
        "actions": sorted(seccomp.ACTIONS),
        "operators": sorted(seccomp.OPERATORS),
        "knownFlags": sorted(seccomp.FLAGS),
        "supportedFlags": sorted(seccomp.FLAGS),
    }
