"""Converts sandboxes and containers to NRI's messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cri.nri.resources import resources_message
from cri.nri.v1alpha1 import api_pb2 as nri
from pods.cgroups.places import pod_cgroup
from pods.model import Container, ContainerState, Sandbox
from pods.oci.namespaces import sandbox_namespaces
from pods.octets import shown

_STATES = {
    ContainerState.CREATED: nri.CONTAINER_CREATED,
    ContainerState.RUNNING: nri.CONTAINER_RUNNING,
    ContainerState.EXITED: nri.CONTAINER_STOPPED,
}


def pod(sandbox: Sandbox) -> nri.PodSandbox:
    """Convert a sandbox."""
    config = sandbox.config
    message = nri.PodSandbox(
        id=sandbox.id,
        name=config.metadata.name,
        uid=config.metadata.uid,
        namespace=config.metadata.namespace,
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=sandbox.runtime_handler,
        pid=sandbox.infra_pid,
        ips=sandbox.ips,
    )
    linux = message.linux
    linux.cgroup_parent = config.cgroup_parent
    # No process is in a sandbox's own cgroup: this is the cgroup above all of the pod's.
    linux.cgroups_path = pod_cgroup(sandbox)
    for namespace in sandbox_namespaces(sandbox):
        linux.namespaces.add(**namespace)
    if overhead := sandbox.overhead or config.overhead:
        linux.pod_overhead.CopyFrom(resources_message(overhead))
    if resources := sandbox.resources or config.resources:
        linux.pod_resources.CopyFrom(resources_message(resources))
        linux.resources.CopyFrom(linux.pod_resources)
    return message


def container(it: Container, document: Mapping[str, Any]) -> nri.Container:
    """Convert a container, with its config.json; {} if that no longer exists."""
    process, linux = document.get("process", {}), document.get("linux", {})
    message = nri.Container(
        id=it.id,
        pod_sandbox_id=it.sandbox_id,
        name=it.config.metadata.name,
        state=_STATES[it.state],
        labels=it.config.labels,
        annotations=document.get("annotations", it.config.annotations),
        args=process.get("args", ()),
        env=[shown(entry) for entry in process.get("env", ())],  # protobuf's strings must be UTF-8
        mounts=[
            nri.Mount(
                destination=mount["destination"],
                type=mount.get("type", ""),
                source=mount.get("source", ""),
                options=mount.get("options", ()),
            )
            for mount in document.get("mounts", ())
        ],
        rlimits=[nri.POSIXRlimit(**limit) for limit in process.get("rlimits", ())],
        pid=it.pid,
        created_at=it.created_at,
        started_at=it.started_at,
        finished_at=it.finished_at,
        exit_code=it.exit_code,
        status_reason=it.reason,
        status_message=it.message,
    )
    user = process.get("user", {"uid": it.user.uid, "gid": it.user.gid, "additionalGids": it.user.additional_gids})
    message.user.uid, message.user.gid = user["uid"], user["gid"]
    message.user.additional_gids.extend(user.get("additionalGids", ()))
    message.linux.cgroups_path = linux.get("cgroupsPath", "")
    if "oomScoreAdj" in process:
        message.linux.oom_score_adj.value = process["oomScoreAdj"]
    for namespace in linux.get("namespaces", ()):
        message.linux.namespaces.add(type=namespace["type"], path=namespace.get("path", ""))
    _fill_resources(message.linux.resources, linux.get("resources", {}))
    return message


def _fill_resources(message: nri.LinuxResources, resources: Mapping[str, Any]) -> None:
    memory, cpu = resources.get("memory", {}), resources.get("cpu", {})
    for name in ("limit", "reservation", "swap"):
        if name in memory:
            getattr(message.memory, name).value = memory[name]
    for name in ("shares", "quota", "period"):
        if name in cpu:
            getattr(message.cpu, name).value = cpu[name]
    message.cpu.cpus, message.cpu.mems = cpu.get("cpus", ""), cpu.get("mems", "")
    for limit in resources.get("hugepageLimits", ()):
        message.hugepage_limits.add(page_size=limit["pageSize"], limit=limit["limit"])
    message.unified.update(resources.get("unified", {}))
    if "limit" in resources.get("pids", {}):
        message.pids.limit = resources["pids"]["limit"]
