"""Plans which namespaces a container makes, joins, or shares with the host (CRI `NamespaceOption`)."""

from __future__ import annotations

from linux.tables import namespace_file
from network.namespace import is_namespace
from pods.host import HostFacts
from pods.model import ContainerConfig, NamespaceMode, Sandbox, SandboxState


def plan_namespaces(
    config: ContainerConfig, sandbox: Sandbox, host: HostFacts, *, infra_pid: int, target_pid: int
) -> list[dict[str, str]]:
    """Return the entries of `linux.namespaces`; a type that is not listed is the host's.

    Network, IPC and UTS are always the pod's, whatever the container's options say.
    """
    pod = sandbox.config.security.namespaces
    plan = [{"type": "mount"}]
    if pod.network is not NamespaceMode.NODE:
        # Kubernetes wants a pod on the host's network to have the host's name, too.
        plan += [_joined("network", infra_pid), _joined("uts", infra_pid)]
    if pod.ipc is not NamespaceMode.NODE:
        plan.append(_joined("ipc", infra_pid))
    plan += _pid(config, pod.pid, infra_pid, target_pid)
    if pod.userns is not None and pod.userns.mode is not NamespaceMode.NODE:
        plan.append(_joined("user", infra_pid))
    if _has_cgroup_namespace(config, host):
        plan.append({"type": "cgroup"})
    return plan


def _has_cgroup_namespace(config: ContainerConfig, host: HostFacts) -> bool:
    mode = config.security.namespaces.cgroup
    if mode is not None:
        return mode is NamespaceMode.CONTAINER
    return host.cgroup_v2 and not config.security.privileged


def sandbox_namespaces(sandbox: Sandbox) -> list[dict[str, str]]:
    """Return the pod's own present namespaces, as tools look for them in its configuration.

    The network namespace is listed while it is pinned, the others while the infra process lives.
    """
    options, found = sandbox.config.security.namespaces, list[dict[str, str]]()
    if sandbox.netns and is_namespace(sandbox.netns):
        found.append({"type": "network", "path": sandbox.netns})
    if not sandbox.infra_pid or sandbox.state is not SandboxState.READY:
        return found
    if options.network is not NamespaceMode.NODE:
        found.append(_joined("uts", sandbox.infra_pid))
    if options.ipc is not NamespaceMode.NODE:
        found.append(_joined("ipc", sandbox.infra_pid))
    if options.pid is NamespaceMode.POD:
        found.append(_joined("pid", sandbox.infra_pid))
    if options.userns is not None and options.userns.mode is not NamespaceMode.NODE:
        found.append(_joined("user", sandbox.infra_pid))
    return found


def _pid(config: ContainerConfig, pod: NamespaceMode, infra_pid: int, target_pid: int) -> list[dict[str, str]]:
    wanted = config.security.namespaces.pid
    if wanted is NamespaceMode.TARGET:
        return [_joined("pid", target_pid)]
    if pod is NamespaceMode.NODE and wanted is not NamespaceMode.CONTAINER:
        return []
    if pod is NamespaceMode.POD and wanted is NamespaceMode.POD:
        return [_joined("pid", infra_pid)]
    # If the pod has no PID namespace, its infra process is in the host's, which must not be joined.
    return [{"type": "pid"}]


def _joined(kind: str, pid: int) -> dict[str, str]:
    return {"type": kind, "path": namespace_file(pid, kind)}
