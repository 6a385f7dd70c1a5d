"""The `process` of a container: what runs, as whom, with which environment and privileges.

The rules for commands are Kubernetes': `command` replaces the image's entrypoint and its arguments, `args` replaces
the image's arguments only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from pods import capability
from pods.errors import FailedPrecondition, InvalidArgument
from pods.model import ContainerConfig, GroupsPolicy, ProfileType

if TYPE_CHECKING:
    from image.model import ImageConfig
    from pods.host import HostFacts

_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SECURITY: Final = "config.linux.security_context"
_MAX_ID: Final = 2**32 - 2


@dataclass(frozen=True, slots=True)
class UserRequest:
    """What to look up inside the rootfs; the members are those of the shim's `create` call."""

    user: str
    group: int | None
    supplemental: tuple[int, ...]
    merge: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ResolvedUser:
    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    home: str


def process_args(config: ContainerConfig, image: ImageConfig) -> list[str]:
    """The argument vector. Raises InvalidArgument when neither the request nor the image has one."""
    if config.command:
        args = [*config.command, *config.args]
    else:
        args = [*image.entrypoint, *(config.args or image.cmd)]
    if not args or not args[0]:
        raise InvalidArgument(
            f"config.command: none is given, and image {config.image.image!r} has neither an entrypoint nor a command"
        )
    return args


def user_request(config: ContainerConfig, image: ImageConfig) -> UserRequest:
    """Who the container shall run as. Raises InvalidArgument for a group without a user, or an impossible number."""
    security = config.security
    if security.run_as_group is not None and security.run_as_user is None and not security.run_as_username:
        raise InvalidArgument(f"{_SECURITY}.run_as_group: given without run_as_user or run_as_username")
    for name, value in (("run_as_user", security.run_as_user), ("run_as_group", security.run_as_group)):
        if value is not None and not 0 <= value <= _MAX_ID:
            raise InvalidArgument(f"{_SECURITY}.{name}: {value} is not between 0 and {_MAX_ID}")
    if security.run_as_user is not None:
        user = str(security.run_as_user)
    else:
        user = security.run_as_username or image.user
    return UserRequest(
        user=user,
        group=security.run_as_group,
        supplemental=security.supplemental_groups,
        merge=security.groups_policy is GroupsPolicy.MERGE,
    )


def stop_signal(config: ContainerConfig, image: ImageConfig) -> str:
    """The signal that asks the container to end: the request's, the image's, SIGTERM."""
    return config.stop_signal or image.stop_signal or "SIGTERM"


def build_process(config: ContainerConfig, image: ImageConfig, user: ResolvedUser, host: HostFacts) -> dict[str, Any]:
    """`process` of config.json."""
    security = config.security
    bounding, ambient = capability.granted(security, host.capabilities)
    sets = {
        "bounding": sorted(bounding),
        "effective": sorted(bounding),
        "permitted": sorted(bounding),
        "inheritable": sorted(ambient),
        "ambient": sorted(ambient),
    }
    process: dict[str, Any] = {
        "terminal": config.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)},
        "args": process_args(config, image),
        "env": _environment(config, image, user),
        "cwd": config.working_dir or image.working_dir or "/",
        "capabilities": sets,
        "noNewPrivileges": security.no_new_privs,
        "oomScoreAdj": config.resources.oom_score_adj,
    }
    if not process["cwd"].startswith("/"):
        raise InvalidArgument(f"config.working_dir: {process['cwd']!r} is not an absolute path")
    if profile := _apparmor(config, host):
        process["apparmorProfile"] = profile
    if security.selinux is not None and any((security.selinux.user, security.selinux.type, security.selinux.level)):
        if not host.selinux:
            raise FailedPrecondition(f"{_SECURITY}.selinux_options: SELinux is not enabled on this node")
        options = security.selinux
        process["selinuxLabel"] = ":".join((options.user, options.role, options.type, options.level))
    return process


def _environment(config: ContainerConfig, image: ImageConfig, user: ResolvedUser) -> list[str]:
    values = dict(entry.partition("=")[::2] for entry in (_PATH, *image.env))
    if config.tty:
        values.setdefault("TERM", "xterm")
    values.update(config.envs)
    values.setdefault("HOME", user.home)
    return [f"{key}={value}" for key, value in values.items()]


def _apparmor(config: ContainerConfig, host: HostFacts) -> str:
    """The profile's name; "" where the kernel's default is right."""
    profile = config.security.apparmor
    if profile is None:
        return ""
    if profile.type is ProfileType.LOCALHOST:
        if not host.apparmor:
            raise FailedPrecondition(f"{_SECURITY}.apparmor: AppArmor is not enabled on this node")
        return profile.localhost_ref.removeprefix("localhost/")
    if profile.type is ProfileType.UNCONFINED and host.apparmor:
        return "unconfined"
    # RuntimeDefault: the node loads no profile of its own yet, so the container inherits crispd's confinement.
    return ""
