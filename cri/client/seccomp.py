"""`crisp seccomp`: which system calls profiles denied, and a profile learnt from a run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cri.admin.v1 import admin_pb2
from cri.client import names, run
from cri.client.arguments import parser
from cri.client.errors import UsageError
from cri.client.lifecycle import stop_container
from cri.client.render import document, plain, printable, short, table
from cri.v1 import api_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cri.client.connection import Connection

_COLUMNS: Final = ("CONTAINER", "NAME", "CALL", "ACTION", "TIMES")
_ALLOWED: Final = "log"
_ARCHITECTURES: Final = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}


def denials(arguments: argparse.Namespace, connection: Connection) -> int:
    """Print the denied calls of each container, or of one."""
    wanted = names.find_container(connection, arguments.container).id if arguments.container else ""
    answer = _denials(connection, wanted)
    if arguments.output != "table":
        document(plain(answer), arguments.output)
        return 0
    table(_COLUMNS, rows(answer.denials))
    if answer.unreadable:
        print(f"\ndenied calls cannot be counted: {answer.unreadable}", file=sys.stderr)
    elif not answer.reported:
        note = "only calls that ended a process are known: seccomp_denials = true reports those answered with an error"
        print(f"\n{note}", file=sys.stderr)
    if answer.lost:
        print(f"\n{answer.lost} reports were lost: numbers may be too low", file=sys.stderr)
    return 0


def rows(found: Iterable[admin_pb2.Denials]) -> list[tuple[str, ...]]:
    """Return a row for each call that was denied."""
    return [
        (short(one.container_id), printable(one.name), call.name, call.action, str(call.count))
        for one in found
        for call in one.calls
        if call.action != _ALLOWED
    ]


def learn(arguments: argparse.Namespace, connection: Connection) -> int:
    """Run a pod whose profile allows and reports each call, and write a profile that allows these calls only.

    Returns the container's exit status, or 1 if the profile may be incomplete.
    """
    before = _denials(connection, "")
    if before.unreadable:
        raise UsageError(f"learn a seccomp profile: {before.unreadable}")
    target = Path(arguments.write).absolute()
    with ExitStack() as undo:
        file = undo.enter_context(tempfile.NamedTemporaryFile("w", prefix="crisp-learn-", suffix=".json"))
        json.dump({"defaultAction": "SCMP_ACT_LOG"}, file)
        file.flush()
        profile = api_pb2.SecurityProfile(profile_type=api_pb2.SecurityProfile.Localhost, localhost_ref=file.name)
        chosen = parser().parse_args(["run", arguments.image, *arguments.command_line])
        container_id = ""

        def started(found: str) -> None:
            nonlocal container_id
            container_id = found
            if arguments.seconds:
                stop = threading.Timer(arguments.seconds, stop_container, (connection, found, 10))
                stop.daemon = True
                stop.start()
                undo.callback(stop.cancel)

        after = [before]

        def ended() -> None:
            after[0] = _denials(connection, container_id)

        status = run.run_with(chosen, connection, profile, started, ended)
    calls = learnt(before, after[0], container_id)
    if not calls:
        raise UsageError("learn a seccomp profile: the kernel reported no call; see `crisp doctor`")
    try:
        _write(target, json.dumps(profile_of(calls), indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"write {target}: {error.strerror}") from None
    print(f"wrote {target}: {len(calls)} system calls", file=sys.stderr)
    if after[0].lost > before.lost:
        print(
            f"crisp: {after[0].lost - before.lost} reports were lost, so that calls may be missing: run it again on a "
            "quiet machine, or enlarge audit's backlog (auditctl -b 8192)",
            file=sys.stderr,
        )
        return 1
    return status


def learnt(
    before: admin_pb2.GetDenialsResponse, after: admin_pb2.GetDenialsResponse, container_id: str
) -> list[str]:
    """Return the names of the calls of the container, and of processes that ended before they were looked at."""
    known = {call.name: call.count for one in before.denials if not one.container_id for call in one.calls}
    found = set()
    for one in after.denials:
        for call in one.calls:
            mine = one.container_id == container_id or call.count > known.get(call.name, 0)
            if call.action == _ALLOWED and mine:
                found.add(call.name)
    return sorted(found)


def profile_of(calls: list[str]) -> dict[str, Any]:
    """Return a profile that allows these calls only."""
    machine = platform.machine()
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": _ARCHITECTURES.get(machine, [f"SCMP_ARCH_{machine.upper()}"]),
        "syscalls": [{"names": calls, "action": "SCMP_ACT_ALLOW"}],
    }


def _denials(connection: Connection, container_id: str) -> admin_pb2.GetDenialsResponse:
    return connection.read(connection.admin.GetDenials, admin_pb2.GetDenialsRequest(container_id=container_id))


def _write(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    os.replace(new, path)
