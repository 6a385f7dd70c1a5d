"""Executes files that the kernel refuses to execute, by a list of system calls."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from runtime.process.joining import Program
from runtime.process.refusal import Refusal, report_refusal
from runtime.process.script import Runner, Script
from runtime.wire.reports import Undone, decode


def refused(path: Path) -> list[str]:
    """Execute the file by a list, as an exec does. Returns the errors that its reports stand for, in their order."""
    script = Script()
    address = script.text(str(path))
    nothing = script.room(8)
    refused = script.from_now_on_failure()
    script.call("execve", address, nothing, nothing, about=Refusal("it", 7, 8))
    script.end()
    script.put(refused)
    report_refusal(script, lambda: address)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        pid, pidfd = Runner().spawn((0, 1, 2, theirs.fileno()))
        os.close(pidfd)
        theirs.close()
        ours.send(script.finished())
        reports = [decode(packet) for packet in iter(lambda: ours.recv(1 << 16), b"")]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    return [str(Program(b"", script.names).failure(report)) for report in reports if isinstance(report, Undone)]
