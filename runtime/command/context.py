"""What the global flags say, for every command."""

from __future__ import annotations

from runtime.cgroups import Hierarchies
from runtime.command.log import Log
from runtime.command.store import Store
from runtime.light import dataclass


@dataclass(frozen=True, slots=True)
class Context:
    """`own_root`: the caller chose where containers are kept. `rootless`: does without cgroups that may not be used."""

    store: Store
    own_root: bool
    log: Log
    rootless: bool
    systemd_cgroup: bool

    def hierarchies(self) -> Hierarchies:
        """The machine's cgroup hierarchies."""
        return Hierarchies.detect()
