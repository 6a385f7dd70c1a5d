"""Implements `crisp-oci run`: creates and starts a container; in the foreground also waits and deletes it."""

from __future__ import annotations

import os

from runtime.command import creation, removal
from runtime.command.creation import Created
from runtime.command.flags import Flag, Options
from runtime.command.foreground import DETACH_FLAGS, NOT_EXECUTED, attend, forward_signals
from runtime.command.invocation import Context, only
from runtime.command.opening import listener, open_gate, run_poststart
from runtime.errors import ExecFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FLAGS: Final = (
    *creation.FLAGS,
    *DETACH_FLAGS,
    Flag("keep", help="do not delete the container when it exits"),
)
ARGUMENTS: Final = "ID"


def run(context: Context, options: Options, operands: list[str]) -> int:
    detach = options.switch("detach")
    created = creation.create(context, options, only(operands, "ID"), console_needed=detach)
    done = False
    try:
        if not detach:
            forward_signals(lambda: created.pidfd)
        if created.console >= 0:
            from runtime.command.relay import plain_lines

            plain_lines(created.console)
        notified = listener(created.entry)
        with created.entry.locked():
            open_gate(created.entry, created.record, created.spec, context.log)
        run_poststart(created.record, created.spec)
        done = detach
        if notified:
            (notified.wait_ready if detach else notified.begin)(created.record.pid, created.pidfd)
        if detach:
            return 0
        return attend(created.record.pid, created.pidfd, created.console)
    except ExecFailed as error:
        if detach:
            raise
        # The kernel could not execute it. With runc the init then exits with this status and logs to standard error.
        context.log.error(str(error))
        return NOT_EXECUTED
    finally:
        os.close(created.pidfd)
        if not done:
            _end(context, created, keep=options.switch("keep"))


def _end(context: Context, created: Created, *, keep: bool) -> None:
    if created.record.alive:  # something failed before we could wait for it
        removal.end(created.record)
    if not keep:
        removal.destroy(created.entry, created.record, context.log)
