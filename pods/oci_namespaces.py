"""Which namespaces a container joins, makes, or shares with the host (CRI `NamespaceOption`)."""

from __future__ import annotations

from pods.host import HostFacts
from pods.model import ContainerConfig, NamespaceMode, Sandbox


def plan_namespaces(
    config: ContainerConfig, sandbox: Sandbox, host: HostFacts, *, infra_pid: int, target_pid: int
) -> list[dict[str, str]]:
    """The entries of `linux.namespaces`; a type that is not listed is the host's.

    Network, IPC and UTS are the pod's, whatever the container says of them: they are one for all of a pod.
    """
    pod = sandbox.config.security.namespaces
    plan = [{"type": "mount"}]
    if pod.network is not NamespaceMode.NODE:
        # A pod on the host's network has the host's name too, as Kubernetes wants it.
        plan += [_joined("network", "net", infra_pid), _joined("uts", "uts", infra_pid)]
    if pod.ipc is not NamespaceMode.NODE:
        plan.append(_joined("ipc", "ipc", infra_pid))
    plan += _pid(config, pod.pid, infra_pid, target_pid)
    if pod.userns is not None and pod.userns.mode is not NamespaceMode.NODE:
        plan.append(_joined("user", "user", infra_pid))
    if _has_cgroup_namespace(config, host):
        plan.append({"type": "cgroup"})
    return plan


def _has_cgroup_namespace(config: ContainerConfig, host: HostFacts) -> bool:
    mode = config.security.namespaces.cgroup
    if mode is not None:
        return mode is NamespaceMode.CONTAINER
    return host.cgroup_v2 and not config.security.privileged


def _pid(config: ContainerConfig, pod: NamespaceMode, infra_pid: int, target_pid: int) -> list[dict[str, str]]:
    wanted = config.security.namespaces.pid
    if wanted is NamespaceMode.TARGET:
        return [_joined("pid", "pid", target_pid)]
    if pod is NamespaceMode.NODE and wanted is not NamespaceMode.CONTAINER:
        return []
    if pod is NamespaceMode.POD and wanted is NamespaceMode.POD:
        return [_joined("pid", "pid", infra_pid)]
    # Without a PID namespace of the pod's own, its infra process is in the host's, which must not be joined.
    return [{"type": "pid"}]


def _joined(type: str, name: str, pid: int) -> dict[str, str]:
    return {"type": type, "path": f"/proc/{pid}/ns/{name}"}
