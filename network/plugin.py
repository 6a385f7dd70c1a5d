"""Running one plugin: a child process with an environment of its own, bounded in time and in what it may print."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from network.errors import PluginFailed, PluginNotFound
from network.result import parse_error

MAX_OUTPUT = 1 << 20  # bytes of stdout; a result is a few KiB
_KEPT_STDERR = 4096  # bytes, the last ones: enough to say why a plugin crashed
_DRAIN_SECONDS = 0.5  # for a descendant of an exited plugin that holds its stdout open

_log = logging.getLogger(__name__)


def find_plugin(name: str, bin_dirs: Sequence[Path]) -> Path:
    """The executable `name` in the first of `bin_dirs` that has it. Raises PluginNotFound."""
    if "/" not in name:
        for directory in bin_dirs:
            candidate = directory / name
            if candidate.is_file() and os.access(candidate, os.X_OK):
                return candidate
    raise PluginNotFound(name, bin_dirs)


async def run_plugin(binary: Path, environment: Mapping[str, str], stdin: bytes, seconds: float) -> bytes:
    """Run `binary` with exactly `environment`, and return its stdout once it has exited with success.

    Raises PluginFailed: the plugin's own error, a crash, more output than MAX_OUTPUT, or no end within `seconds`.
    When it ends early, cancellation included, the plugin and what it started are killed and the plugin is reaped.
    """
    command = environment["CNI_COMMAND"]
    loop = asyncio.get_running_loop()
    try:
        transport, child = await loop.subprocess_exec(
            _Child, str(binary), env=dict(environment), cwd="/", start_new_session=True
        )
    except OSError as error:
        raise PluginFailed(binary.name, command, 0, f"cannot be started: {error.strerror}") from None
    try:
        async with asyncio.timeout(seconds):
            child.feed(stdin)
            await child.exited.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.printed.wait(), _DRAIN_SECONDS)
    except TimeoutError:
        raise PluginFailed(binary.name, command, 0, f"no answer within {seconds:g} s") from None
    finally:
        await _end(transport, child)
    if child.overflowed:
        raise PluginFailed(binary.name, command, 0, f"printed more than {MAX_OUTPUT} bytes")
    _judge(binary.name, command, transport.get_returncode() or 0, bytes(child.stdout), bytes(child.stderr))
    return bytes(child.stdout)


class _Child(asyncio.SubprocessProtocol):
    """Gathers what a plugin prints, and tells when it has exited and when its stdout has ended."""

    def __init__(self) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.overflowed = False
        self.exited = asyncio.Event()
        self.printed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def feed(self, stdin: bytes) -> None:
        pipe = self._transport.get_pipe_transport(0)
        assert isinstance(pipe, asyncio.WriteTransport)
        pipe.write(stdin)
        pipe.close()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self.stderr += data
            del self.stderr[:-_KEPT_STDERR]
        elif len(self.stdout) + len(data) <= MAX_OUTPUT:
            self.stdout += data
        else:
            self.overflowed = True
            kill_group(self._transport.get_pid())

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self.printed.set()

    def process_exited(self) -> None:
        self.exited.set()


def kill_group(pid: int) -> None:
    """Kill the plugin and what it started. Its pid is its process group, and is held until it has been reaped."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


async def _end(transport: asyncio.SubprocessTransport, child: _Child) -> None:
    if not child.exited.is_set():
        kill_group(transport.get_pid())
        await child.exited.wait()
    transport.close()


def _judge(plugin: str, command: str, status: int, stdout: bytes, stderr: bytes) -> None:
    words = stderr.decode(errors="replace").strip()
    if status == 0:
        if words:
            _log.debug("plugin %s %s said: %s", plugin, command, words)
        return
    if (error := parse_error(stdout)) is not None:
        raise PluginFailed(plugin, command, error.code, error.msg, error.details)
    how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    raise PluginFailed(plugin, command, 0, how, words or stdout[-_KEPT_STDERR:].decode(errors="replace").strip())
