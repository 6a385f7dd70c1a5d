"""`python -m tests.bench streams`: bytes a second through exec and port-forward, and the daemon's memory meanwhile."""

from __future__ import annotations

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from rich.console import Console
from rich.table import Table

from cri.v1 import api_pb2, api_pb2_grpc
from tests.bench.machine import memory_bytes
from tests.bench.peers import Peer
from tests.bench.workload import Client, Pod
from tests.stream_clients import STDIN, STDOUT, Command, SpdyClient, random_pieces

SIZE = 1 << 30  # bytes of one transfer
_PIECE = 128 << 10
_PORT = 7000
_SECONDS = 300.0
_SAMPLE_SECONDS = 0.02
_V4 = "v4.channel.k8s.io"


@dataclass(eq=False)
class Streamer:
    """One runtime with its pod, and what its transfers took."""

    peer: Peer
    pod: Pod
    runtime: Any
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    growth: dict[str, int] = field(default_factory=dict)  # of the daemon's memory during a transfer, in bytes

    def exec(self, *cmd: str, stdin: bool) -> str:
        request = api_pb2.ExecRequest(container_id=self.pod.container_id, cmd=cmd, stdin=stdin, stdout=True)
        return str(self.runtime.Exec(request).url)

    def port(self) -> str:
        return str(self.runtime.PortForward(api_pb2.PortForwardRequest(pod_sandbox_id=self.pod.id)).url)


def _there_and_back(streamer: Streamer) -> None:
    command = Command.over("spdy", streamer.exec("cat", stdin=True), _V4, STDIN, STDOUT)
    came = _count(command)
    command.feed(random_pieces(SIZE, _PIECE))
    assert command.exit_code(_SECONDS) == 0
    assert came() == SIZE


def _to_the_command(streamer: Streamer) -> None:
    command = Command.over("spdy", streamer.exec("wc", "-c", stdin=True), _V4, STDIN, STDOUT)
    command.feed(random_pieces(SIZE, _PIECE))
    command.finish(_SECONDS)
    assert int(command.output()) == SIZE


def _from_the_command(transport: str) -> Callable[[Streamer], None]:
    def transfer(streamer: Streamer) -> None:
        url = streamer.exec("head", "-c", str(SIZE), "/dev/zero", stdin=False)
        command = Command.over(transport, url, _V4, STDOUT)
        came = _count(command)
        command.finish(_SECONDS)
        assert came() == SIZE

    return transfer


def _through_a_port(streamer: Streamer) -> None:
    with SpdyClient(streamer.port(), "portforward.k8s.io") as client:
        error = client.open(streamtype="error", port=str(_PORT), requestid="0")
        client.end(error)
        data = client.open(streamtype="data", port=str(_PORT), requestid="0")
        came = 0

        def taken(_: int, view: memoryview) -> None:
            nonlocal came
            came += len(view)

        client.taken = taken
        client.feed(data, random_pieces(SIZE, _PIECE))
        client.until(lambda: came >= SIZE or client.closed, _SECONDS)
        assert came == SIZE


def _count(command: Command) -> Callable[[], int]:
    """Let output be counted, not kept."""
    output, came = command.stream(STDOUT), 0

    def taken(stream: int, view: memoryview) -> None:
        nonlocal came
        if stream == output:
            came += len(view)
        else:
            command.client.data[stream].extend(view)

    command.client.taken = taken
    return lambda: came


TRANSFERS: dict[str, Callable[[Streamer], None]] = {
    "exec, there and back, SPDY": _there_and_back,
    "exec, to the command, SPDY": _to_the_command,
    "exec, from the command, SPDY": _from_the_command("spdy"),
    "exec, from the command, WebSocket": _from_the_command("websocket"),
    "port-forward, there and back, SPDY": _through_a_port,
}


async def run(peers: Sequence[Peer], rounds: int, versions: dict[str, str], console: Console) -> dict[str, Any]:
    """A pod each; every transfer for every runtime in turn, `rounds` times; a table of medians, and a document."""
    clients = [Client(peer.address, peer.directory / "logs", "") for peer in peers]
    pods = [(await client.run_pod())[0] for client in clients]
    try:
        streamers = [Streamer(peer, pod, _connect(peer)) for peer, pod in zip(peers, pods, strict=True)]
        for streamer in streamers:
            _serve_echo(streamer)
        for number in range(rounds):
            console.print(f"round {number + 1}/{rounds}", style="dim")
            for what, transfer in TRANSFERS.items():
                for streamer in streamers if number % 2 else reversed(streamers):
                    _measure(streamer, what, transfer)
    finally:
        for client, pod in zip(clients, pods, strict=True):
            await client.remove_pod(pod)
            await client.close()
    return _report(streamers, versions, console)


def _connect(peer: Peer) -> Any:
    channel = grpc.insecure_channel(peer.address, options=(("grpc.default_authority", "localhost"),))
    return api_pb2_grpc.RuntimeServiceStub(channel)


def _serve_echo(streamer: Streamer) -> None:
    script = f"(nc -ll -p {_PORT} -e cat </dev/null >/dev/null 2>&1 &); sleep 0.2"
    request = api_pb2.ExecSyncRequest(container_id=streamer.pod.container_id, cmd=["sh", "-c", script], timeout=20)
    streamer.runtime.ExecSync(request)


def _measure(streamer: Streamer, what: str, transfer: Callable[[Streamer], None]) -> None:
    before = memory_bytes(streamer.peer.daemon_pids())
    largest, ended = before, threading.Event()

    def look() -> None:
        nonlocal largest
        while not ended.wait(_SAMPLE_SECONDS * 5):
            largest = max(largest, memory_bytes(streamer.peer.daemon_pids()))

    looking = threading.Thread(target=look)
    looking.start()
    start = time.perf_counter()
    try:
        transfer(streamer)
        streamer.seconds[what].append(time.perf_counter() - start)
    finally:
        ended.set()
        looking.join()
    streamer.growth[what] = max(streamer.growth.get(what, 0), largest - before)


def _report(streamers: Sequence[Streamer], versions: dict[str, str], console: Console) -> dict[str, Any]:
    table = Table(title=f"{SIZE >> 20} MiB through a stream")
    table.add_column("")
    for streamer in streamers:
        table.add_column(f"{streamer.peer.name}\n{versions[streamer.peer.name]}", justify="right")
    for what in TRANSFERS:
        rates = [SIZE / statistics.median(streamer.seconds[what]) / 1e6 for streamer in streamers]
        table.add_row(f"{what}, MB/s", *(f"{rate:.0f}" for rate in rates))
        table.add_row("  the daemon grew by, MiB", *(f"{streamer.growth[what] / 2**20:.1f}" for streamer in streamers))
    console.print(table)
    return {s.peer.name: {"seconds": dict(s.seconds), "growth": s.growth} for s in streamers}
