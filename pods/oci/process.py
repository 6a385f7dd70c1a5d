"""Plans a container's process: arguments, user, environment, working directory (runtime-spec "Process")."""

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
    """Choose run_as_user, run_as_username or the image's user, in this order.

    The image's group applies only together with the image's user.
    """
    security = config.security
    user = security.run_as_username or image.user
    if security.run_as_user is not None:
        user = str(security.run_as_user)
    merge = security.groups_policy is GroupsPolicy.MERGE
    return UserRequest(user, security.run_as_group, security.supplemental_groups, merge)


def check_found(request: UserRequest, uid: int, gid: int) -> None:
    """Check that a requested numeric id was kept: Kubernetes judges `runAsNonRoot` by it.

    The image's files, which were read for the lookup, must not decide about it. Raises PodError.
    """
    user, _, group = request.user.partition(":")
    for what, asked, found in (
        ("user", user, uid),
        ("group", group if request.group is None else str(request.group), gid),
    ):
        if asked.isascii() and asked.isdigit() and found != int(asked):
            raise PodError(f"look up {what} {asked}: found {found} in the image")


def process_args(config: ContainerConfig, image: ImageConfig) -> list[str]:
    """Return the argument vector. `command` replaces the image's entrypoint and drops its cmd; `args` replaces its cmd.

    Builders write an empty entrypoint as one empty string. A command or cmd of one empty string is taken literally.
    Raises InvalidArgument, naming the image, if there is nothing to run, or for more than execve(2) accepts.
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
    """Return the canonical name ("SIGTERM", "SIGRTMIN+3") of the request's stop signal, or the image's, or SIGTERM.

    Raises InvalidArgument for an unknown signal.
    """
    if config.stop_signal:
        return canonical_name(config.stop_signal, "config.stop_signal")
    if image.stop_signal:
        return canonical_name(image.stop_signal, f"image {config.image.image!r}: StopSignal")
    return "SIGTERM"


def environment(
    config: ContainerConfig, image: ImageConfig, *, hostname: str, home: str, more: Iterable[str] = ()
) -> list[str]:
    """Return the environment as "NAME=value": defaults, then the image's, the request's, `more`; later ones win.

    Raises InvalidArgument for more than execve(2) accepts.
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
    """Return the request's directory, or the image's, or "/". Raises InvalidArgument if the image's is too long."""
    if config.working_dir:
        return config.working_dir
    # Builders accept a relative WORKDIR; it means "from the root".
    directory = "/" + image.working_dir.lstrip("/")
    if fault := rules.fault_of_path(directory):
        raise InvalidArgument(f"image {config.image.image!r}: its working directory {fault}")
    return directory
