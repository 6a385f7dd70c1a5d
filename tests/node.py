"""A node within the test's own process, for what lies below the door: pods, without CRI and a daemon."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cri.daemon.config import Configuration
from cri.daemon.main import settings
from pods.model import (
    ContainerConfig,
    ContainerMetadata,
    ImageSpec,
    SandboxConfig,
    SandboxMetadata,
)
from pods.node import Node
from tests.daemon import BUSYBOX, CNI_BIN_DIRS, busybox_layout


async def open_node(directory: Path) -> Node:
    """A node that keeps everything in `directory`, has busybox, and whose pods have a network of only a loopback."""
    (directory / "cni").mkdir(exist_ok=True)
    network = {"cniVersion": "1.0.0", "name": "loopback", "plugins": [{"type": "loopback"}]}
    (directory / "cni/10-loopback.conflist").write_text(json.dumps(network))
    (directory / "registries.conf").touch()
    node = await Node.open(
        settings(
            Configuration(
                root=directory / "root",
                state=directory / "state",
                cni_conf_dir=directory / "cni",
                cni_bin_dirs=CNI_BIN_DIRS,
                registries_conf=directory / "registries.conf",
                cdi_spec_dirs=(),
                hooks_dirs=(),
            )
        )
    )
    if node.images.find(BUSYBOX) is None:
        await node.images.import_archive(await asyncio.to_thread(busybox_layout), BUSYBOX)
    return node


@asynccontextmanager
async def running_node(directory: Path) -> AsyncIterator[Node]:
    """`open_node`'s, emptied and closed afterwards."""
    node = await open_node(directory)
    try:
        yield node
    finally:
        for sandbox in node.sandboxes():
            await node.stop_sandbox(sandbox.id)
            await node.remove_sandbox(sandbox.id)
        await node.close()


async def run_pod(node: Node, name: str, **fields: Any) -> str:
    """A ready sandbox's id. `fields` are SandboxConfig's."""
    metadata = SandboxMetadata(name=name, uid=name, namespace="default")
    return await node.run_sandbox(SandboxConfig(metadata=metadata, hostname=name, **fields), "")


async def run_container(node: Node, sandbox_id: str, name: str, *command: str, **fields: Any) -> str:
    """A started container's id. `fields` are ContainerConfig's."""
    config = ContainerConfig(
        metadata=ContainerMetadata(name=name), image=ImageSpec(image=BUSYBOX), command=command, **fields
    )
    container_id = await node.create_container(sandbox_id, config)
    await node.start_container(container_id)
    return container_id
