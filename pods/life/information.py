"""Builds the verbose part of status answers: `crictl inspect`, `inspectp`, and `crisp inspect`.

CRI leaves it to the runtime, but scripts around crictl read some of it by the names that the other two runtimes use
(`.info.pid`, `.info.runtimeSpec.linux.namespaces`, `.info.sandboxID`, `.info.snapshotKey`). So those names are here,
beside crisp's own.
"""

from __future__ import annotations

from typing import Any

from network.namespace import is_namespace
from pods import bundle, handlers
from pods.cgroups.places import pod_cgroup
from pods.model import Container, ContainerState, NamespaceMode, Sandbox, SandboxState
from pods.oci.namespaces import sandbox_namespaces
from pods.settings import NodeSettings
from pods.state.store import SandboxRecord


def of_sandbox(record: SandboxRecord, settings: NodeSettings) -> dict[str, Any]:
    """Describe a sandbox. `runtimeSpec` is what the config.json of a pause container would say; there is none."""
    sandbox, metadata = record.sandbox, record.sandbox.config.metadata
    resources = sandbox.resources or sandbox.config.resources
    own_network = sandbox.config.security.namespaces.network is not NamespaceMode.NODE
    return {
        "pid": sandbox.infra_pid,
        "processStatus": "running" if sandbox.state is SandboxState.READY else "deleted",
        "image": settings.pause_image,
        "netns": sandbox.netns,
        "netNamespaceClosed": own_network and not is_namespace(sandbox.netns),
        "stateDirectory": str(settings.sandbox_dir(sandbox.id)),
        "networkAttached": record.network,
        "stopped": record.stopped,
        "overhead": sandbox.overhead or sandbox.config.overhead,
        "resources": resources,
        "runtimeHandler": sandbox.runtime_handler,
        "runtimeType": _runtime_type(sandbox, settings),
        "runtimeSpec": {
            "ociVersion": "1.2.0",
            "hostname": sandbox.config.hostname,
            "annotations": {
                "io.kubernetes.cri.container-type": "sandbox",
                "io.kubernetes.cri.sandbox-id": sandbox.id,
                "io.kubernetes.cri.sandbox-name": metadata.name,
                "io.kubernetes.cri.sandbox-namespace": metadata.namespace,
                "io.kubernetes.cri.sandbox-uid": metadata.uid,
                "io.kubernetes.cri.sandbox-log-directory": sandbox.config.log_directory,
            },
            "linux": {
                "namespaces": sandbox_namespaces(sandbox),
                "cgroupsPath": pod_cgroup(sandbox),
                "sysctl": sandbox.config.sysctls,
            },
        },
    }


def of_container(container: Container, sandbox: Sandbox | None, settings: NodeSettings) -> dict[str, Any]:
    """Describe a container; its config.json is gone after a reboot."""
    info: dict[str, Any] = {
        "sandboxID": container.sandbox_id,
        "pid": container.pid if container.state is ContainerState.RUNNING else 0,
        "removing": False,
        "privileged": container.config.security.privileged,
        "snapshotKey": container.id,
        "snapshotter": "overlayfs",
        "writableLayer": str(settings.container_root(container.id) / "upper"),
    }
    if sandbox is not None:
        info["runtimeType"] = _runtime_type(sandbox, settings)
    if (document := bundle.read_config(settings.bundle_dir(container.id))) is not None:
        info["runtimeSpec"] = document
    return info


def _runtime_type(sandbox: Sandbox, settings: NodeSettings) -> str:
    """Return "crisp" for crisp's own runtime core, or the path of another runtime."""
    if sandbox.runtime_handler in handlers.BUILT_IN:
        return "crisp"
    handler = settings.runtime_handlers.get(sandbox.runtime_handler)
    return str(handler.path) if handler is not None else ""
