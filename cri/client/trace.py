"""`crisp trace`: a pod's timeline as a file for Perfetto (ui.perfetto.dev) and chrome://tracing.

The format is Chrome's trace events in JSON. Calls, network plugins, steps and commands are rows of one time axis.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cri.admin.v1 import admin_pb2
from cri.client.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cri.client.connection import Connection

# The rows of a pod or container, from the top: what was asked, what was done for it, and what happened.
_ROWS: Final = {
    "call": "calls (kubelet)", "step": "steps (crisp, kernel)", "plugin": "network plugins (CNI)",
    "command": "commands (ExecSync)", "life": "life", "log": "log", "output": "last words",
}  # fmt: skip


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Write the trace of a pod, container or image to the file, or to standard output."""
    answer = connection.read(connection.admin.Why, admin_pb2.WhyRequest(query=arguments.object))
    text = json.dumps({"displayTimeUnit": "ms", "traceEvents": list(events(answer))}, ensure_ascii=False)
    if arguments.file is None:
        print(text)
        return 0
    try:
        Path(arguments.file).write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"write {arguments.file}: {error.strerror}") from None
    print(f"wrote {arguments.file}; open it at https://ui.perfetto.dev", file=sys.stderr)
    return 0


def events(answer: admin_pb2.WhyResponse) -> Iterator[dict[str, Any]]:
    """Yield the trace events: a process for the pod and each container, a thread for each kind of entry."""
    processes = {name: number for number, name in enumerate(["", *_containers(answer)], start=1)}
    kinds = {name: number for number, name in enumerate(_ROWS, start=1)}
    for container, process in processes.items():
        name = f"container {container}" if container else answer.subject
        yield {"ph": "M", "name": "process_name", "pid": process, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": process, "args": {"sort_index": process}}
    rows = dict.fromkeys((one.container, one.kind) for one in answer.timeline)
    for container, kind in rows:
        place = {"pid": processes[container], "tid": kinds.get(kind, 0)}
        yield {"ph": "M", "name": "thread_name", **place, "args": {"name": _ROWS.get(kind, kind)}}
        yield {"ph": "M", "name": "thread_sort_index", **place, "args": {"sort_index": place["tid"]}}
    for one in answer.timeline:
        event: dict[str, Any] = {
            "name": one.text,
            "cat": one.kind,
            "pid": processes[one.container],
            "tid": kinds.get(one.kind, 0),
            "ts": (one.at - one.took) / 1e3,
            "args": {"wrong": one.wrong, "times": one.count},
        }
        if one.took:
            yield {**event, "ph": "X", "dur": one.took / 1e3}
        else:
            yield {**event, "ph": "i", "s": "t"}


def _containers(answer: admin_pb2.WhyResponse) -> list[str]:
    return list(dict.fromkeys(one.container for one in answer.timeline if one.container))
