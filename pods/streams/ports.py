"""Connects to the ports of a pod, for PortForward."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING

from pods import handlers
from pods.errors import FailedPrecondition, PodError
from runtime.client import ShimGone
from runtime.errors import NotRunning, RuntimeCoreError
from runtime.wire.calls import Forward, Sockets

if TYPE_CHECKING:
    from pods.life.shims import Shims
    from pods.state.memory import State


async def open_port(state: State, shims: Shims, sandbox_id: str, port: int) -> socket.socket:
    """Connect to a port on the pod's loopback, over IPv4 or else IPv6. Returns a non-blocking socket.

    Raises NotFound, InvalidArgument, FailedPrecondition, PodError.
    """
    sandbox = state.ready_sandbox(sandbox_id)
    # A sandbox has its own network stack: only its runtime gets to its loopback interface.
    in_sandbox = handlers.has_sandbox(sandbox, state.settings.runtime_handlers)
    try:
        fds = await shims.of(sandbox.id).call_for_descriptors(Forward(port) if in_sandbox else Sockets())
    except (ShimGone, NotRunning) as error:  # its end is not recorded yet
        raise FailedPrecondition(f"pod sandbox {sandbox.id} is gone: {error}") from error
    except RuntimeCoreError as error:
        raise PodError(f"connect to port {port} in pod sandbox {sandbox.id}: {error}") from error
    if in_sandbox:
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
        raise PodError(f"connect to port {port} in pod sandbox {sandbox.id}: {reason}")


async def _connect(sock: socket.socket, port: int) -> None:
    address = "127.0.0.1" if sock.family == socket.AF_INET else "::1"
    await asyncio.get_running_loop().sock_connect(sock, (address, port))
