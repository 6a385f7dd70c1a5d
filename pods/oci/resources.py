"""Plans a container's resource limits (runtime-spec config-linux.md, "Control groups")."""

from __future__ import annotations

from typing import Any

import msgspec

from pods.errors import InvalidArgument
from pods.host import HostFacts
from pods.model import Resources

_FIELD = "config.linux.resources"
_LEAST_MEMORY = 2 << 20  # bytes: a container's init uses as much before it executes the program
_LEAST_PERIOD, _LONGEST_PERIOD = 1000, 1_000_000  # microseconds: the kernel's limits for period and quota


def linux_resources(resources: Resources, host: HostFacts, field: str = _FIELD) -> dict[str, Any]:
    """Return the limits as `linux.resources`, without device rules and without unset members.

    If the request sets no swap limit it equals the memory limit, so no swap is used (where the kernel can limit swap).
    Raises InvalidArgument naming the member of `field` that cannot work.
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
    """Return the limits that a config.json sets, as far as CRI has them."""
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
    """Return the limits after an update. Unset ones stay, but a memory limit without a swap limit resets the latter."""
    changes = {name: value for name in Resources.__struct_fields__ if (value := getattr(wanted, name))}
    if wanted.memory_limit_in_bytes and not wanted.memory_swap_limit_in_bytes:
        changes["memory_swap_limit_in_bytes"] = 0
    for name in ("hugepage_limits", "unified"):
        changes[name] = {**getattr(current, name), **getattr(wanted, name)}
    return msgspec.structs.replace(current, **changes)


def update_plan(wanted: Resources, after: Resources, host: HostFacts, field: str) -> dict[str, Any]:
    """Return the part of `linux.resources` that an update changes; `after` are the resulting limits.

    A memory limit below the present use will be refused. Raises InvalidArgument for contradictory limits.
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
            f"{field}.memory_limit_in_bytes: {limit} is less than a container's start takes, {_LEAST_MEMORY} bytes"
        )
    if swap > 0 >= limit and host.swap_limit:
        raise InvalidArgument(f"{field}.memory_swap_limit_in_bytes: {swap} needs a memory limit beside it")
    if 0 < swap < limit:
        raise InvalidArgument(
            f"{field}.memory_swap_limit_in_bytes: {swap} must be at least the memory limit, {limit}: it includes memory"
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
        raise InvalidArgument(f"{field}.unified: the node has cgroup v1, without {', '.join(sorted(unified))}")
    return dict(unified)
