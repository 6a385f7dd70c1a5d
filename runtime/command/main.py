"""Reads the global flags, runs a command, and turns its failure into an exit status."""

from __future__ import annotations

import os
import sys

from runtime.command.flags import Flag, UsageError, parse, usage
from runtime.command.log import Log
from runtime.errors import RuntimeCoreError, SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

FAILED: Final = 1
_NOT_EXECUTED: Final = 255  # as runc's exec

# What each command does. Its module has the same name, with FLAGS, ARGUMENTS and run(context, options, arguments).
COMMANDS: Final = {
    "checkpoint": "write a container's processes to files (criu)",
    "create": "create a container",
    "delete": "delete a container",
    "events": "print a container's statistics and OOM kills",
    "exec": "run another process in a container",
    "features": "print the features of this runtime and machine, as JSON",
    "kill": "send a signal to a container's init process",
    "list": "list the containers of --root",
    "pause": "suspend a container's processes",
    "ps": "list a container's processes",
    "restore": "restore a container from a checkpoint's files (criu)",
    "resume": "resume a paused container's processes",
    "run": "create and start a container",
    "spec": "write a sample config.json",
    "start": "start the program of a created container",
    "state": "print a container's state as JSON",
    "update": "change a container's limits",
}
_TAKE_BUNDLES: Final = ("create", "restore", "run")
_NOT_MIXED: Final = ("exec", "ps")  # their operands contain another program's flags
GLOBAL_FLAGS: Final = (
    Flag("root", argument="DIR", help="directory of the containers' state (default: /run/crisp-oci)"),
    Flag("log", argument="FILE", help="log to this file (default: standard error)"),
    Flag("log-format", argument="FORMAT", help="text (default) or json"),
    Flag("debug", help="log debug messages too"),
    Flag("systemd-cgroup", help="let systemd make the cgroup; cgroupsPath is slice:prefix:name"),
    Flag("rootless", argument="WHEN", help="continue if cgroups may not be used: auto (default), true or false"),
    Flag("criu", argument="FILE", help="accepted and ignored, as by runc"),
    Flag("version", short="v", help="print the version"),
    Flag("help", short="h", help="print this help"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status: 1 for a failure that was logged, 255 for one of exec."""
    log = Log("", "text", debug=False)
    name = ""
    try:
        options, rest = parse(GLOBAL_FLAGS, sys.argv[1:] if arguments is None else arguments)
        if options.switch("version"):
            print(f"crisp-oci version {_version()}\nspec: 1.3.0\npython: {sys.version.split()[0]}")
            return 0
        if options.switch("help") or not rest or rest[0] == "help":
            print(_help())
            return 0
        name = rest.pop(0)
        format = options.text("log-format", "text")
        if format not in ("text", "json"):
            raise UsageError(f"unknown log-format {format!r}")
        log = Log(options.text("log"), format, debug=options.switch("debug"))
        if name not in COMMANDS:
            raise UsageError(f"unknown command {name!r}; see crisp-oci --help")
        module = f"runtime.command.verbs.{name}"
        __import__(module)  # importing importlib would take a millisecond
        command = sys.modules[module]
        mixed = name not in _NOT_MIXED
        command_options, operands = parse((*command.FLAGS, GLOBAL_FLAGS[-1]), rest, mixed=mixed)
        if command_options.switch("help"):
            print(f"crisp-oci {name} [flags] {command.ARGUMENTS}: {COMMANDS[name]}\n\n{usage(command.FLAGS)}")
            return 0
        from runtime.command.invocation import Context, default_root
        from runtime.command.store import Store

        rootless = _rootless(options.text("rootless", "auto"))
        context = Context(
            store=Store(options.text("root") or default_root()),
            own_root=bool(options.text("root")),
            log=log,
            rootless=rootless,
            systemd_cgroup=options.switch("systemd-cgroup"),
        )
        return int(command.run(context, command_options, operands))
    except (RuntimeCoreError, OSError) as error:
        prefix = "exec failed: " if name == "exec" else ""
        if isinstance(error, SpecError) and name in _TAKE_BUNDLES:
            prefix = "invalid configuration: "
        log.error(f"{prefix}{error}")
        return _NOT_EXECUTED if name == "exec" else FAILED


def _rootless(when: str) -> bool:
    if when not in ("auto", "true", "false"):
        raise UsageError(f"--rootless: expected auto, true or false, got {when!r}")
    if when != "auto":
        return when == "true"
    from linux.user_namespaces import in_user_namespace

    return os.geteuid() != 0 or in_user_namespace()


def _help() -> str:
    commands = "\n".join(f"  {name:12}{about}" for name, about in COMMANDS.items())
    return f"crisp-oci [global flags] COMMAND [flags] ...\n\n{commands}\n\nGlobal flags:\n{usage(GLOBAL_FLAGS)}"


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("crisp-cri")
    except metadata.PackageNotFoundError:
        return "unknown"
