"""`crisp-oci`: the runtime core as an OCI runtime command. So far it runs a bundle in the foreground.

The container's process is made by the same code as in a shim (`runtime.init`), with the caller's own standard streams.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from runtime import seccomp, syscalls
from runtime.cgroups import Hierarchies
from runtime.container import clone_into
from runtime.errors import NotSupported, RuntimeCoreError, SpecError, failing, from_json
from runtime.infra import empty_mount_namespace
from runtime.init import MAX_REPORT, Start, clone_flags, container_init
from runtime.mounts import plan_mounts
from runtime.spec import Process, Spec
from runtime.spec_parse import parse

_FAILED = 1
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: returns the container's exit status, 1 with a line on stderr when it could not be run."""
    options = _parser().parse_args(arguments)
    try:
        return run(options.id, options.bundle)
    except (RuntimeCoreError, OSError) as error:
        print(f"crisp-oci: {error}", file=sys.stderr)
        return _FAILED


def run(container_id: str, bundle: str) -> int:
    """Run the bundle's container to its end. Returns its exit code, 128 + the signal that ended it.

    Raises RuntimeCoreError; nothing is left then. Single-threaded callers only.
    """
    spec, process = load(bundle)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # see runtime.zygote
    cgroup = Hierarchies.detect().cgroup(spec.linux.cgroups_path or f"/crisp-oci/{container_id}")
    with contextlib.ExitStack() as undo:
        rootfs_path = os.path.join(bundle, spec.root.path)
        with failing("open rootfs", rootfs_path):
            tree = syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE
            rootfs = syscalls.open_tree(syscalls.AT_FDCWD, rootfs_path, tree)
        undo.callback(os.close, rootfs)
        with failing("make private", rootfs_path):
            flags = syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE
            syscalls.mount_setattr(rootfs, "", flags, propagation=syscalls.MS_PRIVATE)
        namespace = empty_mount_namespace()
        undo.callback(os.close, namespace)
        made = cgroup.create(spec.linux.resources)
        undo.callback(cgroup.remove_parents, made)
        undo.callback(cgroup.wait_empty, 2.0)
        undo.callback(cgroup.kill)
        start = Start(
            container_id=container_id,
            spec=spec,
            process=process,
            mounts=plan_mounts(spec),
            rootfs=rootfs,
            empty_mount_namespace=namespace,
            cgroup=cgroup,
            in_unified_cgroup=bool(cgroup.unified),
            stdio=(0, 1, 2),
            filter_program=seccomp.compile_filter(spec.linux.seccomp) if spec.linux.seccomp else b"",
            filter_flags=seccomp.filter_flags(spec.linux.seccomp) if spec.linux.seccomp else 0,
        )
        return _run_to_end(start)


def load(bundle: str) -> tuple[Spec, Process]:
    """The bundle's configuration and its process. Raises SpecError, NotSupported."""
    path = os.path.join(bundle, "config.json")
    with failing("read", path), open(path, "rb") as file:
        text = file.read()
    try:
        document = json.loads(text)
    except ValueError as error:
        raise SpecError("", f"{path} is not JSON: {error}") from error
    spec = parse(document)
    if spec.process is None:
        raise SpecError("process", "missing")
    if spec.process.terminal:
        raise NotSupported("use", "process.terminal", "crisp-oci has no terminals yet")
    return spec, spec.process


def _run_to_end(start: Start) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid_namespace = start.spec.linux.namespace("pid")
    joined = pid_namespace.path if pid_namespace else ""
    with ours:
        with theirs, failing("clone", "container init"):
            pid, pidfd = clone_into(
                start.cgroup, clone_flags(start.spec), joined, lambda: container_init(start, theirs)
            )
        try:
            failure = _failure_before_exec(ours)
            if failure is None:
                _forward_signals(pidfd)
            _, status = os.waitpid(pid, 0)
        finally:
            os.close(pidfd)
    if failure is not None:
        raise failure
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _failure_before_exec(channel: socket.socket) -> RuntimeCoreError | None:
    """Read what init tells until its execve closes the channel."""
    executing = False
    failure: RuntimeCoreError | None = None
    while data := channel.recv(MAX_REPORT):
        message: dict[str, Any] = json.loads(data)
        if "failed" in message:
            failure = from_json(message["failed"])
        elif "warning" in message:
            print(f"crisp-oci: {message['warning']}", file=sys.stderr)
        executing = executing or "executing" in message
    if failure is None and not executing:
        failure = RuntimeCoreError("the container's init died before its program ran")
    return failure


def _forward_signals(pidfd: int) -> None:
    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)

    for number in _FORWARDED:
        signal.signal(number, forward)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="crisp-oci", description="Runs containers from OCI bundles.")
    parser.add_argument("--version", action="version", version=f"crisp-oci {_version()}\nspec: 1.2.0")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run_parser = commands.add_parser("run", help="run a bundle's container in the foreground")
    run_parser.add_argument("-b", "--bundle", default=".", help="the bundle's directory (the current one)")
    run_parser.add_argument("id", help="the container's name, used for its cgroup")
    return parser


def _version() -> str:
    try:
        return metadata.version("crisp-cri")
    except metadata.PackageNotFoundError:
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
