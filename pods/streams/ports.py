"""Connects to the ports of a pod, for PortForward."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING

from pods.errors import FailedPrecondition, PodError
from pods.streams.places import connect
from runtime.client import ShimGone
from runtime.errors import NotRunning, RuntimeCoreError
from runtime.wire.calls import Forward, Sockets

if TYPE_CHECKING:
    from pods.streams.places import PodPlace


async def open_port(place: PodPlace, port: int) -> socket.socket:
    """Connect to a port on the pod's loopback, over IPv4 or else IPv6. Returns a non-blocking socket.

    Raises FailedPrecondition, PodError.
    """
    try:
        fds = await _ask(place, Forward(port) if place.in_sandbox else Sockets())
    except NotRunning as error:  # its end is not recorded yet
        raise FailedPrecondition(f"pod sandbox {place.sandbox} is gone: {error}") from error
    except RuntimeCoreError as error:
        raise PodError(f"connect to port {port} in pod sandbox {place.sandbox}: {error}") from error
    if place.in_sandbox:
        connected = socket.socket(fileno=fds[0])
        connected.setblocking(False)
        return connected
    with contextlib.ExitStack() as undo:
        sockets = [undo.enter_context(socket.socket(fileno=fd)) for fd in fds]
        failure: OSError | None = None
        for sock in sockets:
            sock.setblocking(False)
            try:
                await _connect(sock, port)
            except OSError as error:
                failure = failure or error
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock.dup()
        reason = os.strerror(failure.errno or 0) if failure else "no network"
        raise PodError(f"connect to port {port} in pod sandbox {place.sandbox}: {reason}")


async def _ask(place: PodPlace, call: Forward | Sockets) -> tuple[int, ...]:
    """Make the call of the pod's shim, or of the successor of one that dies meanwhile."""
    while True:
        shim = connect(place)
        try:
            return await shim.call_for_descriptors(call)
        except ShimGone:
            continue
        finally:
            shim.close()


async def _connect(sock: socket.socket, port: int) -> None:
    address = "127.0.0.1" if sock.family == socket.AF_INET else "::1"
    await asyncio.get_running_loop().sock_connect(sock, (address, port))
