"""The process of a container's configuration: what runs, as whom, with which environment (runtime-spec "Process")."""

from __future__ import annotations

from collections.abc import Iterable

from image.model import ImageConfig
from linux.tables import DEFAULT_PATH
from pods import rules
from pods.errors import InvalidArgument, PodError
from pods.model import ContainerConfig, GroupsPolicy
from pods.oci.execve_limits import check_arguments, check_environment
from pods.oci.signals import canonical_name
from runtime.spec.values import TERM
from runtime.wire.calls import UserRequest


def user_request(config: ContainerConfig, image: ImageConfig) -> UserRequest:
    """Choose between run_as_user, run_as_username and the image's user, in this order.

    The image's group counts only with the image's user.
    """
    security = config.security
    user = security.run_as_username or image.user
    if security.run_as_user is not None:
        user = str(security.run_as_user)
    merge = security.groups_policy is GroupsPolicy.MERGE
    return UserRequest(user, security.run_as_group, security.supplemental_groups, merge)


def check_found(request: UserRequest, uid: int, gid: int) -> None:
    """Hold what was found against the numbers that were asked for, by which Kubernetes judges `runAsNonRoot`.

    The image was asked meanwhile, which is not to decide about them. Raises PodError.
    """
    user, _, group = request.user.partition(":")
    for what, asked, found in (
        ("user", user, uid),
        ("group", group if request.group is None else str(request.group), gid),
    ):
        if asked.isascii() and asked.isdigit() and found != int(asked):
            raise PodError(f"look up {what} {asked}: found {found} in the image")


def process_args(config: ContainerConfig, image: ImageConfig) -> list[str]:
    """The argument vector: `command` replaces the image's entrypoint and drops its cmd, `args` replaces its cmd.

    An entrypoint of one empty string is how builders write none. A command or cmd of one is a program without a name.
    Raises InvalidArgument, naming the image, when nothing is left to run, and for more than execve(2) takes.
    """
    if config.command:
        argv = [*config.command, *config.args]
    else:
        entrypoint = () if image.entrypoint == ("",) else image.entrypoint
        argv = [*entrypoint, *(config.args or image.cmd)]
    name = config.image.user_specified_image or config.image.image
    if not argv:
        raise InvalidArgument(f"config.command: none is given, and the image {name!r} has neither entrypoint nor cmd")
    check_arguments("config.command, args" if config.command else f"image {name!r}: entrypoint, cmd", argv)
    return argv


def stop_signal(config: ContainerConfig, image: ImageConfig) -> str:
    """The canonical name ("SIGTERM", "SIGRTMIN+3") of the request's stop signal, else the image's, else SIGTERM.

    Raises InvalidArgument for what is not a signal.
    """
    if config.stop_signal:
        return canonical_name(config.stop_signal, "config.stop_signal")
    if image.stop_signal:
        return canonical_name(image.stop_signal, f"image {config.image.image!r}: StopSignal")
    return "SIGTERM"


def environment(
    config: ContainerConfig, image: ImageConfig, *, hostname: str, home: str, more: Iterable[str] = ()
) -> list[str]:
    """The environment as "NAME=value": defaults, the image's, the request's, `more`, each overriding the former.

    Raises InvalidArgument for more than execve(2) takes.
    """
    variables = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if config.tty:
        variables["TERM"] = TERM
    for entry in image.env:
        name, _, value = entry.partition("=")
        variables[name] = value
    variables.update(config.envs)
    variables.update((name, value) for name, _, value in (entry.partition("=") for entry in more))
    variables.setdefault("HOME", home)
    entries = [f"{name}={value}" for name, value in variables.items()]
    check_environment("config.envs", entries)
    return entries


def working_directory(config: ContainerConfig, image: ImageConfig) -> str:
    """The request's directory, else the image's, else "/". Raises InvalidArgument when the image's is too long."""
    if config.working_dir:
        return config.working_dir
    # Builders let a relative WORKDIR through; it means "from the root".
    directory = "/" + image.working_dir.lstrip("/")
    if fault := rules.fault_of_path(directory):
        raise InvalidArgument(f"image {config.image.image!r}: its working directory {fault}")
    return directory
