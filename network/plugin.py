"""Runs one plugin as a child process, with its own environment and limits on time and output."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import IO

from network.errors import PluginFailed, PluginNotFound
from network.result import parse_error

MAX_OUTPUT = 1 << 20  # bytes of stdout; a result is a few KiB
_KEPT_STDERR = 4096  # bytes, from the end: enough to show why a plugin crashed
_CHUNK = 65536  # bytes; the capacity of a pipe
_DRAIN_SECONDS = 0.5  # to wait for a descendant of an exited plugin that keeps stdout open

_log = logging.getLogger(__name__)


def find_plugin(name: str, bin_dirs: Sequence[Path]) -> Path:
    """Return the executable `name` in the first of `bin_dirs` that has it. Raises PluginNotFound."""
    if "/" not in name:
        for directory in bin_dirs:
            candidate = directory / name
            if candidate.is_file() and os.access(candidate, os.X_OK):
                return candidate
    raise PluginNotFound(name, bin_dirs)


async def run_plugin(binary: Path, environment: Mapping[str, str], stdin: bytes, seconds: float) -> bytes:
    """Run `binary` with exactly `environment`, and return its stdout after a successful exit.

    Raises PluginFailed for the plugin's own error, a crash, more output than MAX_OUTPUT, or no exit within `seconds`.
    On any failure or cancellation the plugin and its process group are killed and the plugin is reaped.
    """
    command = environment["CNI_COMMAND"]
    try:
        child = _Child(binary, environment, stdin)
    except OSError as error:
        raise PluginFailed(binary.name, command, 0, f"cannot be started: {error.strerror}") from None
    try:
        async with asyncio.timeout(seconds):
            await child.exited.wait()
            if not child.printed.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(child.printed.wait(), _DRAIN_SECONDS)
    except TimeoutError:
        raise PluginFailed(binary.name, command, 0, f"no answer within {seconds:g} s") from None
    finally:
        await child.end()
    if child.overflowed:
        raise PluginFailed(binary.name, command, 0, f"printed more than {MAX_OUTPUT} bytes")
    _check_exit(binary.name, command, child.status, bytes(child.stdout), bytes(child.stderr))
    return bytes(child.stdout)


class _Child:
    """A running plugin on the asyncio loop: feeds it, reads its output, and reaps it when its pidfd is readable.

    asyncio's own subprocesses take a thread each to wait (Python 3.11), and hang for ever when cancelled while their
    pipes are being connected. Here nothing is awaited between the fork and the wait for the exit. Only the loop reaps,
    so a kill cannot hit another process that got the same pid. Raises OSError.
    """

    def __init__(self, binary: Path, environment: Mapping[str, str], stdin: bytes) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.overflowed = False
        self.exited = asyncio.Event()
        self.printed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._unwritten = memoryview(stdin)
        self._process = subprocess.Popen(
            [binary], stdin=PIPE, stdout=PIPE, stderr=PIPE, bufsize=0, env=environment, cwd="/", start_new_session=True
        )
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError:
            self._process.kill()
            self._process.communicate()
            raise
        self._loop.add_reader(self._pidfd, self._reap)
        for pipe, watch, callback in (
            (self._process.stdout, self._loop.add_reader, self._read_stdout),
            (self._process.stderr, self._loop.add_reader, self._read_stderr),
            (self._process.stdin, self._loop.add_writer, self._feed),
        ):
            watch(_open(pipe), callback)
        os.set_blocking(_open(self._process.stdin).fileno(), False)
        self._feed()

    @property
    def status(self) -> int:
        """The exit status, negative for a signal. Valid after `exited`."""
        return self._process.returncode

    async def end(self) -> None:
        """Kill the plugin and its process group unless it has exited, and close all descriptors."""
        self._kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            self._close(pipe)
        await self.exited.wait()

    def _kill(self) -> None:
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._process.wait()
        self.exited.set()

    def _feed(self) -> None:
        pipe = _open(self._process.stdin)
        try:
            self._unwritten = self._unwritten[pipe.write(self._unwritten) or 0 :]
        except BrokenPipeError:  # a plugin may ignore its input
            self._unwritten = memoryview(b"")
        if not self._unwritten:
            self._close(pipe)

    def _read_stdout(self) -> None:
        data = _read(self._process.stdout)
        if not data:
            self._close(self._process.stdout)
            self.printed.set()
        elif len(self.stdout) + len(data) <= MAX_OUTPUT:
            self.stdout += data
        else:
            self.overflowed = True
            self._kill()

    def _read_stderr(self) -> None:
        data = _read(self._process.stderr)
        if not data:
            self._close(self._process.stderr)
        self.stderr += data
        del self.stderr[:-_KEPT_STDERR]

    def _close(self, pipe: IO[bytes] | None) -> None:
        if pipe is not None and not pipe.closed:
            self._loop.remove_reader(pipe)
            self._loop.remove_writer(pipe)
            pipe.close()


def _open(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None, "Popen was asked for this pipe"
    return pipe


def _read(pipe: IO[bytes] | None) -> bytes:
    return os.read(_open(pipe).fileno(), _CHUNK)


def _check_exit(plugin: str, command: str, status: int, stdout: bytes, stderr: bytes) -> None:
    words = stderr.decode(errors="replace").strip()
    if status == 0:
        if words:
            _log.debug("stderr of plugin %s %s: %s", plugin, command, words)
        return
    if (error := parse_error(stdout)) is not None:
        raise PluginFailed(plugin, command, error.code, error.msg, error.details)
    how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    raise PluginFailed(plugin, command, 0, how, words or stdout[-_KEPT_STDERR:].decode(errors="replace").strip())
