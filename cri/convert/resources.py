"""Converts limits between CRI `LinuxContainerResources` and `pods.model.Resources`."""

from __future__ import annotations

from cri.convert import fields
from cri.v1 import api_pb2
from pods import rules
from pods.model import Resources


def resources(path: str, message: api_pb2.LinuxContainerResources) -> Resources:
    """Convert a request's limits; -1 is accepted where the kernel takes it as "no limit"."""
    return Resources(
        cpu_period=fields.at_least(f"{path}.cpu_period", message.cpu_period, 0),
        cpu_quota=fields.at_least(f"{path}.cpu_quota", message.cpu_quota, rules.UNLIMITED),
        cpu_shares=fields.at_least(f"{path}.cpu_shares", message.cpu_shares, 0),
        memory_limit_in_bytes=fields.at_least(
            f"{path}.memory_limit_in_bytes", message.memory_limit_in_bytes, rules.UNLIMITED
        ),
        memory_swap_limit_in_bytes=fields.at_least(
            f"{path}.memory_swap_limit_in_bytes", message.memory_swap_limit_in_bytes, rules.UNLIMITED
        ),
        oom_score_adj=fields.between(f"{path}.oom_score_adj", message.oom_score_adj, *rules.OOM_SCORES),
        cpuset_cpus=_cpuset(f"{path}.cpuset_cpus", message.cpuset_cpus),
        cpuset_mems=_cpuset(f"{path}.cpuset_mems", message.cpuset_mems),
        hugepage_limits=_hugepages(f"{path}.hugepage_limits", message),
        unified=_unified(f"{path}.unified", message),
    )


def _cpuset(path: str, value: str) -> str:
    return fields.matching(path, value, rules.CPU_LIST) if value else ""


def _hugepages(path: str, message: api_pb2.LinuxContainerResources) -> dict[str, int]:
    limits: dict[str, int] = {}
    for index, limit in enumerate(fields.few(path, message.hugepage_limits)):
        size = fields.matching(f"{path}[{index}].page_size", limit.page_size, rules.PAGE_SIZE)
        limits[size] = limit.limit
    return limits


def _unified(path: str, message: api_pb2.LinuxContainerResources) -> dict[str, str]:
    for key, value in fields.few(path, message.unified).items():
        fields.matching(f"{path} key", key, rules.CGROUP_FILE)
        fields.text(f"{path}[{key!r}]", value)
    return dict(message.unified)


def resources_message(value: Resources) -> api_pb2.LinuxContainerResources:
    """Convert limits for a status, as kubelet reads them."""
    return api_pb2.LinuxContainerResources(
        cpu_period=value.cpu_period,
        cpu_quota=value.cpu_quota,
        cpu_shares=value.cpu_shares,
        memory_limit_in_bytes=value.memory_limit_in_bytes,
        memory_swap_limit_in_bytes=value.memory_swap_limit_in_bytes,
        oom_score_adj=value.oom_score_adj,
        cpuset_cpus=value.cpuset_cpus,
        cpuset_mems=value.cpuset_mems,
        hugepage_limits=[
            api_pb2.HugepageLimit(page_size=size, limit=limit) for size, limit in value.hugepage_limits.items()
        ],
        unified=value.unified,
    )
