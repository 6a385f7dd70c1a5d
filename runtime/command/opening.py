"""Starts a created container: opens its gate, checks that the program was executed, runs poststart hooks."""

from __future__ import annotations

import errno
import os
import select

from runtime.command import removal
from runtime.command.log import Log
from runtime.command.record import Record, state_document
from runtime.command.store import NOTIFY_DIRECTORY, Entry
from runtime.errors import OperationFailed, RuntimeCoreError, failing
from runtime.light import contextlib
from runtime.process.hooks import run_hooks
from runtime.spec.values import Spec
from runtime.wire.reports import failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.command.notify import Listener


def open_gate(entry: Entry, record: Record, spec: Spec, log: Log) -> None:
    """Let the init execute the container's program.

    Raises ExecFailed if the program cannot be executed, or other RuntimeCoreErrors. The container has stopped then.
    """
    assert spec.process is not None
    report = os.open(entry.path("exec.report"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _write_byte(entry)
        reported = _read_to_end(report)
    finally:
        os.close(report)
    # The kernel may close the init's end of the FIFO after that of the report: the container would seem to be waiting.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(entry.path("exec.fifo"))
    reason = failure(reported, spec.process.args[0])
    if reason is not None:
        raise reason
    log.debug(f"container {record.id}: started")


def listener(entry: Entry) -> Listener | None:
    """Return a listener for the program's READY=, if a manager waits for it and the container was created for one."""
    if not os.environ.get("NOTIFY_SOCKET") or not os.path.isdir(entry.path(NOTIFY_DIRECTORY)):
        return None
    from runtime.command.notify import Listener

    return Listener(entry)


def run_poststart(record: Record, spec: Spec) -> None:
    """Run the poststart hooks. A failing hook ends the container. Raises HookFailed.

    Do not call it with the entry locked: hooks may use the container, and may hang.
    """
    if spec.hooks.poststart:
        try:
            run_hooks("poststart", spec.hooks.poststart, state_document(record, "running", spec.annotations))
        except RuntimeCoreError:
            removal.end(record)
            raise


def _write_byte(entry: Entry) -> None:
    fifo = entry.path("exec.fifo")
    try:
        with failing("open", fifo):
            fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OperationFailed as error:
        if error.errno != errno.ENXIO:
            raise
        raise RuntimeCoreError(f"start container {entry.id}: its init has exited; recreate it") from error
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


def _read_to_end(fd: int) -> bytes:
    """Read what the init reports, until its execve or its death closes the pipe."""
    reported = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        poll.poll()
        chunk = os.read(fd, 65536)
        if not chunk:
            return reported
        reported += chunk
