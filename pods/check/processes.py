"""Finds processes of crisp's that nobody has any more."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from linux.processes import name, pids, title
from runtime.wire.calls import SECOND_KEEPER_NAME, ZYGOTE_NAME

if TYPE_CHECKING:
    from pods.settings import NodeSettings

_SHIM: Final = "crisp-shim"
_PROGRAM: Final = "/memfd:crisp-infra (deleted)"
_ORPHANS: Final = {"crisp-infra": "infra process", "crisp-scope": "placeholder of a scope"}
# A container's process cannot get there: cgroupfs has a cgroup for all shims, systemd a scope.
_SHIMS_CGROUP: Final = re.compile(r":/(?:.*/)?crisp-shims[^/]*$", re.MULTILINE)
_SCOPE: Final = re.compile(r"/crisp-[0-9a-f]{64}\.scope$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Orphan:
    """A process that dies with its shim, and has none. `sandbox_id` is "" if it does not say whose it is."""

    pid: int
    what: str
    sandbox_id: str


def shims(settings: NodeSettings) -> Iterator[tuple[int, str]]:
    """Yield pid and sandbox of the shims that belong to this state directory, which another daemon's do not."""
    for pid in pids():
        if sandbox_id := shim_of(pid, settings):
            yield pid, sandbox_id


def shim_of(pid: int, settings: NodeSettings) -> str:
    """Return the sandbox whose shim the process is; "" if it is none of this state directory's."""
    below = f"{settings.state / 'sandboxes'}/"
    with contextlib.suppress(OSError):
        if name(pid) == _SHIM:
            log = os.readlink(f"/proc/{pid}/fd/1")
            if log.startswith(below):
                return log.removeprefix(below).partition("/")[0]
    return ""


def orphans() -> Iterator[Orphan]:
    """Yield the infra processes and placeholders without a shim, of any daemon."""
    for pid in pids():
        if (found := orphan(pid)) is not None:
            yield found


def orphan(pid: int) -> Orphan | None:
    """Return what the process is, if it is an orphan."""
    with contextlib.suppress(OSError):
        if os.readlink(f"/proc/{pid}/exe") != _PROGRAM:
            return None
        called, _, sandbox_id = title(pid).partition(" ")
        cgroups = Path(f"/proc/{pid}/cgroup").read_text()
        placed = _SHIMS_CGROUP.search(cgroups) or (called == "crisp-scope" and _SCOPE.search(cgroups))
        if called in _ORPHANS and placed and not _has_shim(pid):
            return Orphan(pid, _ORPHANS[called], sandbox_id)
    return None


def _has_shim(pid: int) -> bool:
    """Whether its parent is a shim, or the keeper of one."""
    parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])
    return name(parent) in (_SHIM, ZYGOTE_NAME, SECOND_KEEPER_NAME)
