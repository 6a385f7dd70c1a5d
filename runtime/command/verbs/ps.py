"""Implements `crisp-oci ps`: lists a container's processes with the host's pids."""

from __future__ import annotations

import json
import subprocess

from runtime.command.flags import Flag, Options, UsageError
from runtime.command.invocation import Context, first
from runtime.errors import NotSupported, RuntimeCoreError, failing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FLAGS: Final = (Flag("format", short="f", argument="FORMAT", help="table (default) or json"),)
ARGUMENTS: Final = "ID [ps OPTIONS]"


def run(context: Context, options: Options, operands: list[str]) -> int:
    id, others = first(operands, "ID")
    format = options.text("format", "table")
    if format not in ("table", "json"):
        raise UsageError(f"invalid format option {format!r}")
    record = context.store.existing(id).load()
    if not record.cgroup:
        raise NotSupported("list processes of", id, "it has no cgroup of its own")
    pids = record.group().pids()
    if format == "json":
        print(json.dumps(pids, separators=(",", ":")))
        return 0
    with failing("run", "ps"):
        done = subprocess.run(["ps", *(others or ["-ef"])], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeCoreError(f"run `ps {' '.join(others)}`: {done.stderr.strip()}")
    header, *lines = done.stdout.splitlines()
    titles = header.split()
    if "PID" not in titles:
        raise RuntimeCoreError("couldn't find PID field in ps output")
    column = titles.index("PID")
    print(header)
    for line in lines:
        cells = line.split()
        if len(cells) > column and cells[column].isdecimal() and int(cells[column]) in pids:
            print(line)
    return 0
