"""Manages control groups: version 1, version 2 and the hybrid of both (kernel docs "cgroup-v1/", "cgroup-v2.rst")."""

from runtime.cgroups.cgroup import SHIM_CGROUP, WORKERS_CGROUP, Cgroup, CgroupInUse
from runtime.cgroups.hierarchies import Hierarchies

__all__ = ["SHIM_CGROUP", "WORKERS_CGROUP", "Cgroup", "CgroupInUse", "Hierarchies"]
