"""ExecSync: runs a command in a container."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri.convert import fields
from cri.v1 import api_pb2
from pods.oci.execve_limits import check_arguments
from pods.streams.exec_sync import MAX_OUTPUT

if TYPE_CHECKING:
    from cri.services.node import Node

class ExecutionCalls:
    """The calls that run commands in containers."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def ExecSync(self, request: api_pb2.ExecSyncRequest) -> api_pb2.ExecSyncResponse:
        """Run a command; answer output and exit code. DEADLINE_EXCEEDED after `timeout` seconds, 0 for no limit."""
        if not request.cmd:
            raise fields.missing("cmd")
        argv = fields.texts("cmd", request.cmd)
        check_arguments("cmd", argv)
        result = await self._node.exec_sync(
            fields.required("container_id", request.container_id),
            argv,
            fields.at_least("timeout", request.timeout, 0),
        )
        stdout, stderr = fitting(result.stdout, result.stderr)
        return api_pb2.ExecSyncResponse(stdout=stdout, stderr=stderr, exit_code=result.exit_code)


def fitting(stdout: bytes, stderr: bytes) -> tuple[bytes, bytes]:
    """Cut both outputs so that they fit one message; neither gets less than half of it if it needs that."""
    if len(stdout) + len(stderr) <= MAX_OUTPUT:
        return stdout, stderr
    stdout = stdout[: MAX_OUTPUT - min(len(stderr), MAX_OUTPUT // 2)]
    return stdout, stderr[: MAX_OUTPUT - len(stdout)]
