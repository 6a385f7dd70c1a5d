"""A container's limits (runtime-spec config-linux.md, "Control groups")."""

from __future__ import annotations

from typing import Any

import msgspec

from pods.errors import InvalidArgument
from pods.host import HostFacts
from pods.model import Resources

_FIELD = "config.linux.resources"
_LEAST_MEMORY = 2 << 20  # bytes: what a container's init touches before its program replaces it
_LEAST_PERIOD, _LONGEST_PERIOD = 1000, 1_000_000  # microseconds, the kernel's for both period and quota


def linux_resources(resources: Resources, host: HostFacts, field: str = _FIELD) -> dict[str, Any]:
    """The limits as `linux.resources` has them, without device rules; what is not set is not there.

    Swap is as large as the memory limit, that is none at all, unless the request says otherwise or the kernel cannot
    limit it. Raises InvalidArgument naming the member of `field` that cannot work.
    """
    plan: dict[str, Any] = {}
    if memory := _memory(resources, host, field):
        plan["memory"] = memory
    if cpu := _cpu(resources, field):
        plan["cpu"] = cpu
    if resources.hugepage_limits:
        plan["hugepageLimits"] = [
            {"pageSize": size, "limit": limit} for size, limit in resources.hugepage_limits.items()
        ]
    if resources.unified:
        plan["unified"] = _unified(resources.unified, host, field)
    return plan


def limits_of(document: dict[str, Any]) -> Resources:
    """The limits that a config.json sets, of those that CRI knows."""
    resources = document["linux"].get("resources", {})
    memory, cpu = resources.get("memory", {}), resources.get("cpu", {})
    return Resources(
        cpu_period=cpu.get("period", 0),
        cpu_quota=cpu.get("quota", 0),
        cpu_shares=cpu.get("shares", 0),
        cpuset_cpus=cpu.get("cpus", ""),
        cpuset_mems=cpu.get("mems", ""),
        memory_limit_in_bytes=memory.get("limit", 0),
        memory_swap_limit_in_bytes=memory.get("swap", 0),
        oom_score_adj=document["process"].get("oomScoreAdj", 0),
        hugepage_limits={limit["pageSize"]: limit["limit"] for limit in resources.get("hugepageLimits", ())},
        unified=resources.get("unified", {}),
    )


def updated(current: Resources, wanted: Resources) -> Resources:
    """The limits after an update: what `wanted` does not set stays. New memory without new swap means none of that."""
    changes = {name: value for name in Resources.__struct_fields__ if (value := getattr(wanted, name))}
    if wanted.memory_limit_in_bytes and not wanted.memory_swap_limit_in_bytes:
        changes["memory_swap_limit_in_bytes"] = 0
    for name in ("hugepage_limits", "unified"):
        changes[name] = {**getattr(current, name), **getattr(wanted, name)}
    return msgspec.structs.replace(current, **changes)


def update_plan(wanted: Resources, after: Resources, host: HostFacts, field: str) -> dict[str, Any]:
    """What of `linux.resources` an update changes, given the limits `after` it.

    Memory is refused below what is in use. Raises InvalidArgument for limits that do not go together.
    """
    linux_resources(after, host, field)
    if wanted.memory_limit_in_bytes or wanted.memory_swap_limit_in_bytes:
        wanted = msgspec.structs.replace(
            wanted,
            memory_limit_in_bytes=after.memory_limit_in_bytes,
            memory_swap_limit_in_bytes=after.memory_swap_limit_in_bytes,
        )
    plan = linux_resources(wanted, host, field)
    if "memory" in plan:
        plan["memory"]["checkBeforeUpdate"] = True
    return plan


def _memory(resources: Resources, host: HostFacts, field: str) -> dict[str, int]:
    limit, swap = resources.memory_limit_in_bytes, resources.memory_swap_limit_in_bytes
    if 0 < limit < _LEAST_MEMORY:
        raise InvalidArgument(
            f"{field}.memory_limit_in_bytes: {limit} is less than the {_LEAST_MEMORY} that starting a container takes"
        )
    if swap > 0 >= limit and host.swap_limit:
        raise InvalidArgument(f"{field}.memory_swap_limit_in_bytes: {swap} is given without a memory limit")
    if 0 < swap < limit:
        raise InvalidArgument(
            f"{field}.memory_swap_limit_in_bytes: {swap} counts memory too and is less than the memory limit, {limit}"
        )
    memory = {"limit": limit} if limit else {}
    if host.swap_limit and (swap or limit):
        memory["swap"] = swap or limit
    return memory


def _cpu(resources: Resources, field: str) -> dict[str, Any]:
    if resources.cpu_period and not _LEAST_PERIOD <= resources.cpu_period <= _LONGEST_PERIOD:
        raise InvalidArgument(
            f"{field}.cpu_period: {resources.cpu_period} is not between {_LEAST_PERIOD} and {_LONGEST_PERIOD} us"
        )
    if 0 < resources.cpu_quota < _LEAST_PERIOD:
        raise InvalidArgument(f"{field}.cpu_quota: {resources.cpu_quota} is less than {_LEAST_PERIOD} us")
    wanted = {
        "shares": resources.cpu_shares,
        "quota": resources.cpu_quota,
        "period": resources.cpu_period,
        "cpus": resources.cpuset_cpus,
        "mems": resources.cpuset_mems,
    }
    return {name: value for name, value in wanted.items() if value}


def _unified(unified: dict[str, str], host: HostFacts, field: str) -> dict[str, str]:
    if not host.cgroup_v2:
        raise InvalidArgument(f"{field}.unified: the node has cgroup v1, which has no {', '.join(sorted(unified))}")
    return dict(unified)
