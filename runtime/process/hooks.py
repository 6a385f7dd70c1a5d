"""Runs hooks, programs at certain events of a container's life (config.md "POSIX-platform Hooks").

The caller of `run_hooks` must be in the namespaces that the specification demands: the runtime's, or for
createContainer and startContainer the container's.
"""

from __future__ import annotations

import os
import select
import time

from linux import syscalls
from linux.tables import DEFAULT_PATH
from runtime.errors import RuntimeCoreError, failing
from runtime.light import contextlib, json, signal
from runtime.spec.values import Hook, Hooks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, Final, NoReturn

_MAX_OUTPUT: Final = 4096  # bytes of a failed hook's output that the error quotes
_CHUNK: Final = 65536


class HookFailed(RuntimeCoreError):
    """A hook could not be run, exited with a status other than 0, or exceeded its timeout."""


def enter_the_container(hooks: Hooks) -> bool:
    """Return whether a hook runs in, or may join, the container's mount namespace before it has the container's root.

    Such hooks are programs of the host. They need their files there, and may mount below the rootfs's host path (as GPU
    toolkits' prestart hooks do, with the init's pid). So that namespace must be a copy of the host's.
    """
    return bool(hooks.prestart or hooks.create_runtime or hooks.create_container)


def run_hooks(
    kind: str,
    hooks: Sequence[Hook],
    state: Mapping[str, Any],
    *,
    environment: Iterable[str] | None = None,
    first: int = 0,
) -> None:
    """Run the hooks of `kind` ("createRuntime") in order, with `state` as JSON on standard input.

    `environment` ("NAME=value") is for hooks without an `env`; None means the caller's own. `first` is the first hook's
    index among its kind. Raises HookFailed, with the hook's output, at the first failure. Single-threaded callers only.
    """
    text = json.dumps(state).encode()
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a hook may ignore its input; in an init SIGPIPE would kill
    try:
        for index, hook in enumerate(hooks, first):
            reason = _run(hook, text, _environment(hook, environment))
            if reason:
                raise HookFailed(f"error running {kind} hook #{index}: `{hook.path}`: {reason}")
    finally:
        signal.signal(signal.SIGPIPE, before)


def _environment(hook: Hook, given: Iterable[str] | None) -> dict[str, str]:
    entries = hook.env if hook.env is not None else given
    if entries is None:
        return {"PATH": DEFAULT_PATH, **os.environ}  # a shim's environment is empty
    return dict(entry.partition("=")[::2] for entry in entries)


def _run(hook: Hook, text: bytes, environment: dict[str, str]) -> str:
    """Run one hook. Return why it failed, "" if it did not."""
    with failing("run hook", hook.path):
        in_read, in_write = os.pipe()
        out_read, out_write = os.pipe()
        pid = syscalls.fork()
        if pid == 0:
            _execute(hook, environment, in_read, out_write)
        os.close(in_read)
        os.close(out_write)
        try:
            output, in_time = _converse(pid, in_write, text, out_read, hook.timeout)
        finally:
            os.close(out_read)
    if not in_time:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said = output.decode(errors="replace").strip()
    if not in_time:
        ending = f"no exit within {hook.timeout} s"
    elif code:
        ending = f"exit status {code}" if code > 0 else f"killed by signal {-code}"
    else:
        return ""
    return f"{ending}: {said}" if said else ending


def _execute(hook: Hook, environment: dict[str, str], stdin: int, output: int) -> NoReturn:
    try:
        for target, fd in ((0, stdin), (1, output), (2, output)):
            os.dup2(fd, target)
        syscalls.close_on_exec_from(3)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execve(hook.path, hook.args or (hook.path,), environment)
    except OSError as error:
        os.write(2, f"exec: {error.strerror}".encode())
    finally:
        os._exit(127)


def _converse(pid: int, stdin: int, text: bytes, output: int, timeout: int | None) -> tuple[bytes, bool]:
    """Write to and read from the hook until it exits. Return the beginning of its output, and False on a timeout."""
    deadline = None if timeout is None else time.monotonic() + timeout
    said = b""
    pidfd = syscalls.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(stdin, select.POLLOUT)
    poll.register(output, select.POLLIN)
    os.set_blocking(stdin, False)
    os.set_blocking(output, False)
    try:
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = dict(poll.poll(left))
            if not ready:
                return said, False
            if stdin in ready:
                text = _feed(stdin, text)
                if not text:
                    poll.unregister(stdin)
                    os.close(stdin)
                    stdin = -1
            if output in ready:
                chunk = _read(output)
                said = (said + chunk)[:_MAX_OUTPUT]
                if not chunk:
                    poll.unregister(output)
            elif pidfd in ready:
                return said, True
    finally:
        os.close(pidfd)
        if stdin >= 0:
            os.close(stdin)


def _feed(fd: int, text: bytes) -> bytes:
    """Write some of the text and return the rest. A hook that does not read is fine."""
    try:
        return text[os.write(fd, text[:_CHUNK]) :]
    except BlockingIOError:
        return text
    except BrokenPipeError:
        return b""


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except BlockingIOError:
        return b""
