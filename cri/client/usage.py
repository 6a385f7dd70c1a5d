"""`crisp stats`, `crisp statsp` and `crisp top`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence

from cri.client import names
from cri.client.connection import Connection
from cri.client.errors import CallFailed, Unreachable
from cri.client.render import document, drawn, plain, short, size, table
from cri.v1 import api_pb2

_COLUMNS = ("CONTAINER", "NAME", "POD", "CPU %", "MEM", "LIMIT", "SWAP", "DISK", "INODES")
_POD_COLUMNS = ("POD ID", "NAME", "NAMESPACE", "CPU %", "MEM", "PROCESSES", "RX", "TX")
_RESTARTING = ("UNAVAILABLE", "CANCELLED")  # how calls fail while the daemon restarts
_SAMPLE_SECONDS = 1.1  # the time that a daemon needs between two samples for a rate

Row = tuple[str, ...]


def stats(arguments: argparse.Namespace, connection: Connection) -> int:
    """Print the use of running containers, busiest first: all, or the named one."""
    selected = api_pb2.ContainerStatsFilter()
    if arguments.container:
        selected.id = names.find_container(connection, arguments.container).id
    found = _containers(connection, selected)
    if any(one.HasField("cpu") and not one.cpu.HasField("usage_nano_cores") for one in found):
        time.sleep(_SAMPLE_SECONDS)
        found = _containers(connection, selected)
    if arguments.output != "table":
        document({"stats": [plain(one) for one in found]}, arguments.output)
    else:
        table(_COLUMNS, _rows(connection, found))
    return 0


def stats_of_pods(arguments: argparse.Namespace, connection: Connection) -> int:
    """Print the use of ready pods, busiest first."""
    found = _pods(connection)
    if any(pod.linux.HasField("cpu") and not pod.linux.cpu.HasField("usage_nano_cores") for pod in found):
        time.sleep(_SAMPLE_SECONDS)
        found = _pods(connection)
    if arguments.output != "table":
        document({"stats": [plain(one) for one in found]}, arguments.output)
    else:
        table(_POD_COLUMNS, pod_rows(found))
    return 0


def top(arguments: argparse.Namespace, connection: Connection) -> int:
    """Show the busiest containers, refreshed. With --once, or without a terminal, print them once as text."""

    def look() -> list[Row]:
        return _rows(connection, _containers(connection, api_pb2.ContainerStatsFilter()))

    if arguments.once or not sys.stdout.isatty():
        look()
        time.sleep(_SAMPLE_SECONDS)
        table(_COLUMNS, look())
        return 0
    from rich.live import Live

    rows = look()
    with Live(drawn(_COLUMNS, rows), screen=True, auto_refresh=False) as screen:
        while True:
            time.sleep(arguments.delay)
            gone = ""
            try:
                rows = look()
            except (CallFailed, Unreachable) as error:
                if isinstance(error, CallFailed) and error.code not in _RESTARTING:
                    raise
                gone = f"{time.strftime('%H:%M:%S')} crispd does not answer; waiting, with the last figures above"
            shown = drawn(_COLUMNS, rows)
            shown.caption = gone
            screen.update(shown, refresh=True)


def _containers(connection: Connection, selected: api_pb2.ContainerStatsFilter) -> list[api_pb2.ContainerStats]:
    request = api_pb2.ListContainerStatsRequest(filter=selected)
    return list(connection.read(connection.runtime.ListContainerStats, request).stats)


def _pods(connection: Connection) -> list[api_pb2.PodSandboxStats]:
    return list(connection.read(connection.runtime.ListPodSandboxStats, api_pb2.ListPodSandboxStatsRequest()).stats)


def _rows(connection: Connection, found: Iterable[api_pb2.ContainerStats]) -> list[Row]:
    pods = {pod.id: pod.metadata.name for pod in names.pods(connection)}
    return container_rows(found, {one.id: pods.get(one.pod_sandbox_id, "") for one in names.containers(connection)})


def container_rows(found: Iterable[api_pb2.ContainerStats], pod_names: dict[str, str]) -> list[Row]:
    """Return a row for each running container; `pod_names` is by container id."""
    running = [one for one in found if one.HasField("cpu")]
    return [
        (
            short(one.attributes.id),
            one.attributes.metadata.name,
            pod_names.get(one.attributes.id, ""),
            _percent(one.cpu),
            size(one.memory.working_set_bytes.value),
            _limit(one.memory),
            size(one.swap.swap_usage_bytes.value),
            size(one.writable_layer.used_bytes.value),
            str(one.writable_layer.inodes_used.value),
        )
        for one in sorted(running, key=lambda one: one.cpu.usage_nano_cores.value, reverse=True)
    ]


def pod_rows(found: Sequence[api_pb2.PodSandboxStats]) -> list[Row]:
    """Return a row for each pod."""
    rows: list[Row] = []
    for pod in sorted(found, key=lambda pod: pod.linux.cpu.usage_nano_cores.value, reverse=True):
        network = pod.linux.network.default_interface
        rows.append(
            (
                short(pod.attributes.id),
                pod.attributes.metadata.name,
                pod.attributes.metadata.namespace,
                _percent(pod.linux.cpu),
                size(pod.linux.memory.working_set_bytes.value),
                str(pod.linux.process.process_count.value),
                size(network.rx_bytes.value) if network.name else "",
                size(network.tx_bytes.value) if network.name else "",
            )
        )
    return rows


def _percent(cpu: api_pb2.CpuUsage) -> str:
    return f"{cpu.usage_nano_cores.value / 1e7:.1f}" if cpu.HasField("usage_nano_cores") else ""


def _limit(memory: api_pb2.MemoryUsage) -> str:
    """Return the memory limit. CRI reports only the memory that is still available."""
    if not memory.HasField("available_bytes"):
        return ""
    return size(memory.available_bytes.value + memory.working_set_bytes.value)
