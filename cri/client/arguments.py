"""The command line of `crisp`. Each command names the function that runs it, which is imported only then."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from cri.client.exits import OWN_FAILURE

FOREIGN_STATUS = ("run", "exec", "attach")  # commands that exit with the status of a process in a container

_Command = Callable[[str, str, str], argparse.ArgumentParser]


class _Version(argparse.Action):
    """Looks the version up only on request: that takes longer than the rest of this module."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from cri.version import crisp_version

        print(f"crisp {crisp_version()}")
        parser.exit()


class _CommandParser(argparse.ArgumentParser):
    """Exits with `OWN_FAILURE` for commands whose exit status comes from a process in a container."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(OWN_FAILURE if self.prog.split()[-1] in FOREIGN_STATUS else 2, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """Build the whole command line."""
    root = argparse.ArgumentParser(
        prog="crisp",
        description="Manage the pods, containers and images of a crisp daemon (or any CRI v1 runtime).",
        epilog="Containers and pods are given by id, by a unique prefix of the id, or by name.",
    )
    root.add_argument("--version", action=_Version, nargs=0, help="print this client's version")
    _add_global(root, None, "table")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_CommandParser)

    def command(name: str, target: str, summary: str) -> argparse.ArgumentParser:
        # exec's own --timeout replaces the general one.
        added = commands.add_parser(name, help=summary, description=f"{summary}.", conflict_handler="resolve")
        _add_global(added, argparse.SUPPRESS, argparse.SUPPRESS)
        added.set_defaults(target=target)
        return added

    _add_lists(command)
    _add_run(command)
    _add_running(command)
    _add_images(command)
    _add_about(command)
    return root


def _add_global(target: argparse.ArgumentParser, unset: str | None, output: str) -> None:
    target.add_argument(
        "--listen", "-r", default=unset, metavar="ADDRESS", help="the daemon's socket ($CRISP_LISTEN; as configured)"
    )
    formats = ("table", "json", "yaml")
    target.add_argument("-o", "--output", default=output, choices=formats, help="format of the result")
    target.add_argument("--timeout", default=unset, type=_seconds, metavar="S", help="seconds to wait for an answer")


def _add_lists(command: _Command) -> None:
    command("pods", "lists:pods", "List pods")
    containers = command("ps", "lists:containers", "List containers")
    containers.add_argument("-a", "--all", action="store_true", help="include those that do not run")
    command("images", "lists:images", "List images")
    stats = command("stats", "usage:stats", "Print the resource use of running containers")
    stats.add_argument("container", nargs="?", metavar="CONTAINER")
    command("statsp", "usage:stats_of_pods", "Print the resource use of pods")
    top = command("top", "usage:top", "Show the busiest containers, refreshed")
    top.add_argument("-d", "--delay", type=_seconds, default=2.0, metavar="S", help="seconds between refreshes (2)")
    top.add_argument("--once", action="store_true", help="print them once")
    command("events", "events:run", "Print events of pods and containers, and causes of troubles, as they happen")
    usage = command("df", "df:run", "Show what holds the disk, and what removal would free")
    usage.add_argument("-v", "--verbose", action="store_true", help="each image, container and log")


def _add_run(command: _Command) -> None:
    run = command("run", "run:run", "Run a command in a new pod of one container and wait for it")
    run.add_argument("-d", "--detach", action="store_true", help="do not wait; print the container's id")
    run.add_argument("--rm", action="store_true", help="remove the pod after the command has ended")
    run.add_argument("--name", help="name of the pod and of its container")
    run.add_argument("-e", "--env", action="append", default=[], metavar="NAME=VALUE", help="set a variable")
    run.add_argument("-v", "--volume", action="append", default=[], metavar="HOST:CONTAINER[:ro]", help="bind mount")
    run.add_argument("-p", "--publish", action="append", default=[], metavar="[IP:]HOST:CONTAINER[/PROTOCOL]")
    run.add_argument("-u", "--user", default="", metavar="USER[:GID]", help="name or number to run as")
    run.add_argument("-w", "--workdir", default="", metavar="DIR", help="working directory in the container")
    run.add_argument("--memory", metavar="SIZE", help="memory limit, such as 64m")
    run.add_argument("--cpus", type=float, metavar="N", help="CPU limit, such as 0.5")
    run.add_argument("--host-network", action="store_true", help="use the node's own network")
    run.add_argument("--privileged", action="store_true", help="give the container all rights on the node")
    run.add_argument("image", metavar="IMAGE")
    run.add_argument("command_line", nargs=argparse.REMAINDER, metavar="CMD", help="instead of the image's own")


def _add_running(command: _Command) -> None:
    execute = command("exec", "execution:run", "Run a command in a running container")
    execute.add_argument("-i", "--interactive", action="store_true", help="pass standard input to it")
    execute.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    execute.add_argument("-s", "--sync", action="store_true", help="wait, then print its output (not with -i or -t)")
    execute.add_argument(
        "--timeout", dest="exec_timeout", default=0, type=_whole, metavar="S", help="kill it after so many seconds"
    )
    execute.add_argument("container", metavar="CONTAINER")
    execute.add_argument("command_line", nargs=argparse.REMAINDER, metavar="CMD")
    attach = command("attach", "attach:run", "Follow a running container's output; Ctrl-P Ctrl-Q leaves a terminal")
    attach.add_argument("-i", "--interactive", action="store_true", help="pass standard input to it")
    attach.add_argument("container", metavar="CONTAINER")
    forward = command("port-forward", "portforward:run", "Forward ports of this machine to ports in a pod")
    forward.add_argument("--address", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    forward.add_argument("pod", metavar="POD")
    forward.add_argument("ports", nargs="+", metavar="[LOCAL:]PORT")
    logs = command("logs", "logs:run", "Print a container's log")
    logs.add_argument("-f", "--follow", action="store_true", help="follow it until the container ends")
    logs.add_argument("--tail", type=_whole, metavar="N", help="only the last N lines")
    logs.add_argument("--timestamps", action="store_true", help="show when each line was written")
    logs.add_argument("container", metavar="CONTAINER")
    inspect = command("inspect", "inspect:run", "Print all details of containers, pods or images")
    inspect.add_argument("--type", choices=("container", "pod", "image"), help="search only these")
    inspect.add_argument("--timeline", action="store_true", help="draw the last start of each as a chart instead")
    inspect.add_argument("ids", nargs="+", metavar="ID")
    why = command("why", "why:run", "Tell what is wrong with a pod, container or image, and what happened to it")
    why.add_argument("-n", "--lines", type=_whole, default=40, metavar="N", help="of the timeline, the last (40)")
    why.add_argument(
        "object", nargs="?", metavar="POD|CONTAINER|IMAGE", help="also one that is gone; without: all that is wrong"
    )
    trace = command("trace", "trace:run", "Write what happened to a pod as a trace for Perfetto")
    trace.add_argument("-o", "--output", dest="file", metavar="FILE", default=None, help="instead of standard output")
    trace.add_argument("object", metavar="POD|CONTAINER|IMAGE", help="also one that is gone")
    stop = command("stop", "lifecycle:stop", "Stop containers or pods")
    stop.add_argument("-t", "--time", type=_whole, default=10, metavar="S", help="kill them after so many seconds (10)")
    stop.add_argument("ids", nargs="+", metavar="ID")
    remove = command("rm", "lifecycle:remove", "Remove containers or pods")
    remove.add_argument("-f", "--force", action="store_true", help="stop them first")
    remove.add_argument("ids", nargs="+", metavar="ID")


def _add_images(command: _Command) -> None:
    pull = command("pull", "images:pull", "Pull images from their registries")
    pull.add_argument("--creds", metavar="USER:PASSWORD", help="login, instead of the daemon's own")
    pull.add_argument("--auth-file", metavar="FILE", help="file with logins, such as ~/.docker/config.json")
    pull.add_argument("references", nargs="+", metavar="REF")
    remove = command("rmi", "images:remove", "Remove images")
    remove.add_argument("references", nargs="+", metavar="REF")
    image = command("image", "", "Import, export, name and verify images")
    actions = image.add_subparsers(dest="action", metavar="ACTION", required=True)
    archive = actions.add_parser("import", help="Import an OCI layout or a docker archive")
    archive.add_argument("--name", metavar="REF", help="name for the image, instead of those in the archive")
    archive.add_argument("path", metavar="PATH")
    archive.set_defaults(target="images:import_archive")
    export = actions.add_parser("export", help="Export an image to a new file or directory")
    export.add_argument("--format", choices=("oci", "oci-archive", "docker-archive"), default="oci-archive")
    export.add_argument("reference", metavar="REF")
    export.add_argument("path", metavar="PATH")
    export.set_defaults(target="images:export")
    verify = actions.add_parser("verify", help="Check images for damage; exit status 1 if there is any")
    verify.add_argument("--repair", action="store_true", help="pull damaged images again")
    verify.add_argument("references", nargs="*", metavar="REF", help="check only these")
    verify.set_defaults(target="images:verify")
    tag = actions.add_parser("tag", help="Give an image another name")
    tag.add_argument("image", metavar="IMAGE", help="name or id")
    tag.add_argument("name", metavar="REF")
    tag.set_defaults(target="images:tag")


def _add_about(command: _Command) -> None:
    command("info", "about:info", "Print the runtime's condition")
    config = command("config", "config:run", "Print the configuration that crispd starts with")
    config.add_argument("--config", metavar="FILE", help="instead of /etc/crisp/crisp.toml")
    summary = "Check whether this machine can be a node, and show how to fix what is wrong"
    doctor = command("doctor", "doctor.command:run", summary)
    doctor.add_argument("--offline", action="store_true", help="do not connect to registries")
    seccomp = command("seccomp", "", "Show system calls that seccomp profiles denied, and learn a profile from a run")
    actions = seccomp.add_subparsers(dest="action", metavar="ACTION", required=True)
    denials = actions.add_parser("denials", help="Show the calls that profiles denied, by container")
    denials.add_argument("container", nargs="?", metavar="CONTAINER")
    denials.set_defaults(target="seccomp:denials")
    learn = actions.add_parser("learn", help="Run an image without restriction, and write a profile of what it called")
    learn.add_argument("-w", "--write", metavar="FILE", required=True, help="the profile, for localhostProfile")
    learn.add_argument("--seconds", type=_whole, default=0, metavar="S", help="stop it after so many seconds")
    learn.add_argument("image", metavar="IMAGE")
    learn.add_argument("command_line", nargs=argparse.REMAINDER, metavar="CMD", help="instead of the image's own")
    learn.set_defaults(target="seccomp:learn")
    summary = "Take over the settings and images of containerd or CRI-O, without the network"
    migrate = command("migrate", "migrate.command:run", summary)
    sources = ("containerd", "crio")
    migrate.add_argument("--from", dest="source", required=True, choices=sources, help="the other runtime")
    migrate.add_argument("--dry-run", action="store_true", help="only print what would be done")
    migrate.add_argument("--images-only", action="store_true", help="write no configuration")
    migrate.add_argument("--config", metavar="FILE", help="its configuration, if it is not in the usual place")
    migrate.add_argument("--root", metavar="DIR", help="its store, if it is not in the usual place")
    migrate.add_argument("--directory", metavar="DIR", default="/etc", help="write drop-ins below this (/etc)")
    summary = "Write an archive for a bug report, without environments, arguments, annotations, logins and output"
    bundle = command("bundle", "bundle:run", summary)
    bundle.add_argument("-o", "--output", dest="file", metavar="FILE", default=None, help="crisp-bundle-TIME.tar.gz")
    bundle.add_argument("--offline", action="store_true", help="do not connect to registries")
    check = command("check", "check:run", "Check whether records and machine agree; exit status 1 if they do not")
    check.add_argument("--repair", action="store_true", help="mend what can be mended")
    command("version", "about:version", "Print versions")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return seconds


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)
