"""Builds the config.json of the container by which a runtime with sandboxes (gVisor) makes a pod's."""

from __future__ import annotations

from typing import Any

from linux.tables import DEFAULT_PATH, namespace_file
from pods.cgroups.places import places_of
from pods.host import HostFacts
from pods.model import NamespaceMode, Resources, Sandbox
from pods.oci.resources import linux_resources

_VERSION = "1.0.2"
_PREFIX = "io.kubernetes.cri"


def sandbox_document(sandbox: Sandbox, infra_pid: int, hostname: str, host: HostFacts) -> dict[str, Any]:
    """Return the configuration. Its program is the file `pause` in the root, which the shim writes.

    The limits are the pod's, if the request has them: all containers are in the sandbox's cgroup.
    """
    config, metadata = sandbox.config, sandbox.config.metadata
    resources = linux_resources(config.resources or Resources(), host, "config.linux.resources")
    resources.pop("hugepageLimits", None)
    return {
        "ociVersion": _VERSION,
        "process": {
            "user": {"uid": 65535, "gid": 65535},
            "args": ["/pause"],
            "env": [f"PATH={DEFAULT_PATH}"],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": {},
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": hostname,
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "namespaces": _namespaces(sandbox, infra_pid),
            "cgroupsPath": places_of(sandbox.cgroup_driver).oci_path(sandbox, sandbox.id),
            "resources": resources,
        },
        "annotations": {
            f"{_PREFIX}.container-type": "sandbox",
            f"{_PREFIX}.sandbox-id": sandbox.id,
            f"{_PREFIX}.sandbox-name": metadata.name,
            f"{_PREFIX}.sandbox-namespace": metadata.namespace,
            f"{_PREFIX}.sandbox-uid": metadata.uid,
            f"{_PREFIX}.sandbox-log-directory": config.log_directory,
        },
    }


def _namespaces(sandbox: Sandbox, infra_pid: int) -> list[dict[str, str]]:
    """Name the pod's network, which the sandbox takes over, and a PID namespace that its containers may share.

    The runtime has the other namespaces inside the sandbox, and tells them apart by these paths.
    """
    options = sandbox.config.security.namespaces
    plan = [{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]
    if options.network is not NamespaceMode.NODE:
        plan.append({"type": "network", "path": sandbox.netns})
    pid = {"type": "pid"}
    if options.pid is NamespaceMode.POD:
        pid["path"] = namespace_file(infra_pid, "pid")
    return [*plan, pid]
