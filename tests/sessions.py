"""Sessions that clients have with a daemon's streaming server."""

from __future__ import annotations

from cri.v1 import api_pb2 as cri
from tests.daemon import CALL_SECONDS, Daemon, Pod
from tests.stream_clients import Command, SpdyClient, TunnelClient

ECHO = "while read line; do echo got $line; done; exit 7"  # a shell's; `ask` talks to it
ALL = {"stdin": True, "stdout": True, "stderr": True}


def exec_url(daemon: Daemon, container: str, *cmd: str, **fields: bool) -> str:
    request = cri.ExecRequest(container_id=container, cmd=cmd, **(fields or ALL))
    return str(daemon.runtime.Exec(request, timeout=CALL_SECONDS).url)


def attach_url(daemon: Daemon, container: str, **fields: bool) -> str:
    request = cri.AttachRequest(container_id=container, **(fields or ALL))
    return str(daemon.runtime.Attach(request, timeout=CALL_SECONDS).url)


def ports_url(daemon: Daemon, pod: Pod, *ports: int) -> str:
    request = cri.PortForwardRequest(pod_sandbox_id=pod.id, port=ports)
    return str(daemon.runtime.PortForward(request, timeout=CALL_SECONDS).url)


def ask(command: Command, word: str) -> None:
    """Send a word, and wait for the answer."""
    command.send(f"{word}\n".encode())
    command.until(f"got {word}".encode())


class Forwarded:
    """One forwarded connection of a SPDY client."""

    def __init__(self, client: SpdyClient, port: int, request: str) -> None:
        self.client = client
        self.error = client.open(streamtype="error", port=str(port), requestid=request)
        client.end(self.error)
        self.data = client.open(streamtype="data", port=str(port), requestid=request)

    def output(self) -> bytes:
        return bytes(self.client.data[self.data])


def port_client(daemon: Daemon, pod: Pod, transport: str) -> SpdyClient:
    url = ports_url(daemon, pod)
    if transport == "spdy":
        return SpdyClient(url, "portforward.k8s.io")
    return TunnelClient(url, "SPDY/3.1+portforward.k8s.io")
