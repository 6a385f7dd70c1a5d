"""`crisp version` and `crisp info`."""

from __future__ import annotations

import argparse
from typing import Any

from cri.client.connection import Connection
from cri.client.render import document, new_layers, plain, size, table, with_info
from cri.v1 import api_pb2
from cri.version import crisp_version


def version(arguments: argparse.Namespace, connection: Connection) -> int:
    """Print the versions of this client and of the runtime that it talks to."""
    client = crisp_version()
    if arguments.output == "table":
        print(f"client    crisp {client}")  # printed even if the runtime does not answer
    runtime = connection.read(connection.runtime.Version, api_pb2.VersionRequest())
    if arguments.output != "table":
        document({"client": client, "runtime": plain(runtime)}, arguments.output)
        return 0
    print(f"runtime   {runtime.runtime_name} {runtime.runtime_version} (CRI {runtime.runtime_api_version})")
    return 0


def info(arguments: argparse.Namespace, connection: Connection) -> int:
    """Print the runtime's conditions, handlers and image store; as JSON or YAML also its verbose status."""
    runtime = connection.read(connection.runtime.Version, api_pb2.VersionRequest())
    status = connection.read(connection.runtime.Status, api_pb2.StatusRequest(verbose=True))
    usage = connection.read(connection.images.ImageFsInfo, api_pb2.ImageFsInfoRequest())
    if arguments.output != "table":
        whole: dict[str, Any] = {"version": plain(runtime), **with_info(status), "imageFs": plain(usage)}
        document(whole, arguments.output)
        return 0
    rows = [("runtime", f"{runtime.runtime_name} {runtime.runtime_version}"), ("socket", connection.address)]
    for condition in status.status.conditions:
        reason = ": ".join(filter(None, (condition.reason, condition.message)))
        rows.append((condition.type, "yes" if condition.status else f"no ({reason})"))
    rows.append(("handlers", ", ".join(handler.name or "(default)" for handler in status.runtime_handlers)))
    for filesystem in usage.image_filesystems:
        used = f"{size(filesystem.used_bytes.value)}, {filesystem.inodes_used.value} inodes"
        rows.append(("images", f"{used} in {filesystem.fs_id.mountpoint}"))
    if layers := new_layers(status):
        rows.append(("new layers", layers))
    table(("ITEM", "VALUE"), rows)
    return 0
