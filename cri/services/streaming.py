"""Exec, Attach, PortForward: checks each request and answers with a URL of the streaming server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cri.convert import fields
from cri.streaming.requests import Command, Ports
from cri.v1 import api_pb2
from pods.oci.execve_limits import check_arguments

if TYPE_CHECKING:
    from cri.services.node import Node
    from cri.streaming.server import StreamingServer

_MAX_PORT = 0xFFFF


class StreamingCalls:
    """The calls that answer with a URL of the streaming server."""

    def __init__(self, node: Node, server: StreamingServer) -> None:
        self._node = node
        self._server = server

    async def Exec(self, request: api_pb2.ExecRequest) -> api_pb2.ExecResponse:
        """Prepare to run a command with streams; answers NOT_FOUND and FAILED_PRECONDITION already here."""
        if not request.cmd:
            raise fields.missing("cmd")
        argv = fields.texts("cmd", request.cmd)
        check_arguments("cmd", argv)
        return api_pb2.ExecResponse(url=self._server.url(self._command(request, argv)))

    async def Attach(self, request: api_pb2.AttachRequest) -> api_pb2.AttachResponse:
        """Prepare to attach to a running container."""
        return api_pb2.AttachResponse(url=self._server.url(self._command(request, None)))

    async def PortForward(self, request: api_pb2.PortForwardRequest) -> api_pb2.PortForwardResponse:
        """Prepare to connect to ports of a ready sandbox."""
        ports = [fields.between(f"port[{index}]", port, 1, _MAX_PORT) for index, port in enumerate(request.port)]
        place = self._node.pod_place(fields.required("pod_sandbox_id", request.pod_sandbox_id))
        return api_pb2.PortForwardResponse(url=self._server.url(Ports(place, tuple(ports))))

    def _command(self, request: api_pb2.ExecRequest | api_pb2.AttachRequest, argv: tuple[str, ...] | None) -> Command:
        container_id = fields.required("container_id", request.container_id)
        if request.tty and request.stderr:
            raise fields.invalid("stderr", True, "must not be set with tty: a terminal has one output")
        if not (request.stdin or request.stdout or request.stderr):
            raise fields.missing("one of stdin, stdout and stderr")
        place = self._node.container_place(container_id)
        return Command(place, argv, request.tty, request.stdin, request.stdout, request.stderr)
