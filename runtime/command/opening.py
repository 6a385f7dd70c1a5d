"""Starting a created container: opening its gate, learning whether its program could be executed, poststart hooks."""

from __future__ import annotations

import contextlib
import errno
import os
import select

from runtime.command import removal
from runtime.command.log import Log
from runtime.command.record import Record, state_document
from runtime.command.store import NOTIFY_DIRECTORY, Entry
from runtime.errors import OperationFailed, RuntimeCoreError, failing
from runtime.process.hooks import run_hooks
from runtime.spec.values import Spec
from runtime.wire.reports import failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.command.notify import Listener


def open_gate(entry: Entry, record: Record, spec: Spec, log: Log) -> None:
    """Let the init execute the container's program.

    Raises ExecFailed when the program cannot be executed, other RuntimeCoreErrors; the container has stopped then.
    """
    assert spec.process is not None
    report = os.open(entry.path("exec.report"), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _write_byte(entry)
        told = _read_to_end(report)
    finally:
        os.close(report)
    # The kernel may release the init's end of it a moment after that of the report: it would look as if it waited.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(entry.path("exec.fifo"))
    reason = failure(told, spec.process.args[0])
    if reason is not None:
        raise reason
    log.debug(f"container {record.id}: started")


def listener(entry: Entry) -> Listener | None:
    """What hears that the program is ready, if a manager waits for that and the container was made for one."""
    if not os.environ.get("NOTIFY_SOCKET") or not os.path.isdir(entry.path(NOTIFY_DIRECTORY)):
        return None
    from runtime.command.notify import Listener

    return Listener(entry)


def run_poststart(record: Record, spec: Spec) -> None:
    """Run the poststart hooks; one that fails ends the container. Raises HookFailed.

    Not for those who have the entry locked: hooks may use the container, and may hang.
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
        raise RuntimeCoreError(f"start container {entry.id}: its init has ended") from error
    try:
        os.write(fd, b"0")
    finally:
        os.close(fd)


def _read_to_end(fd: int) -> bytes:
    """What the init says until its execve, or its death, closes its end."""
    told = b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        poll.poll()
        chunk = os.read(fd, 65536)
        if not chunk:
            return told
        told += chunk
