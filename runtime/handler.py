"""Describes a runtime handler of the configuration: another OCI runtime's program, and how it is to be driven."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

OCI: Final = "oci"  # containers are processes of the host, as runc's and crun's are
GVISOR: Final = "gvisor"  # containers are in a sandbox with a kernel of its own, as runsc's are
KINDS: Final = (OCI, GVISOR)


@dataclass(frozen=True, slots=True)
class Handler:
    """A program with runc's command line. `options` go before the command."""

    path: Path
    kind: str = OCI
    options: tuple[str, ...] = ()

    @property
    def has_sandboxes(self) -> bool:
        """Whether a pod needs a container for its sandbox before its first one."""
        return self.kind == GVISOR
