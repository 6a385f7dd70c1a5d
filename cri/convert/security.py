"""Converts security contexts: namespaces, users, profiles, labels and capabilities of pods and containers."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cri.convert import fields
from cri.v1 import api_pb2
from linux.tables import HIGHEST_ID
from pods import rules
from pods.errors import InvalidArgument
from pods.model import (
    CgroupMountMode,
    ContainerSecurity,
    GroupsPolicy,
    IDMapping,
    NamespaceMode,
    NamespaceOptions,
    ProfileType,
    SandboxSecurity,
    SecurityProfile,
    SELinuxOptions,
    UserNamespace,
)

_MOST_GROUPS = 1 << 16  # NGROUPS_MAX
_USERNAME_CHARACTERS = 256  # LOGIN_NAME_MAX
_POD_OR_NODE = (NamespaceMode.POD, NamespaceMode.NODE)
_CONTAINER_OR_NODE = (NamespaceMode.CONTAINER, NamespaceMode.NODE)
_SANDBOX_PID = (NamespaceMode.POD, NamespaceMode.CONTAINER, NamespaceMode.NODE)


def sandbox_security(path: str, message: api_pb2.LinuxSandboxSecurityContext) -> SandboxSecurity:
    """Convert a pod's security context.

    `run_as_group` without `run_as_user` is accepted, as by CRI-O though against CRI's wording: kubelet sends it for a
    valid pod that sets only `runAsGroup`, and nothing in the sandbox runs as that group.
    """
    if message.namespace_options.HasField("cgroupns_options"):
        raise InvalidArgument(f"{path}.namespace_options.cgroupns_options: is for containers, not for pods")
    return SandboxSecurity(
        namespaces=_namespaces(f"{path}.namespace_options", message.namespace_options, _SANDBOX_PID),
        selinux=_selinux(f"{path}.selinux_options", message),
        run_as_user=_id(f"{path}.run_as_user", message.run_as_user) if message.HasField("run_as_user") else None,
        run_as_group=_id(f"{path}.run_as_group", message.run_as_group) if message.HasField("run_as_group") else None,
        readonly_rootfs=message.readonly_rootfs,
        supplemental_groups=_groups(f"{path}.supplemental_groups", message.supplemental_groups),
        groups_policy=fields.choice(
            f"{path}.supplemental_groups_policy", message.supplemental_groups_policy, GroupsPolicy
        ),
        privileged=message.privileged,
        seccomp=_seccomp(path, message),
        apparmor=_profile(f"{path}.apparmor", message.apparmor) if message.HasField("apparmor") else None,
    )


def container_security(path: str, message: api_pb2.LinuxContainerSecurityContext) -> ContainerSecurity:
    """Convert a container's security context."""
    capabilities = f"{path}.capabilities"
    user = _id(f"{path}.run_as_user", message.run_as_user) if message.HasField("run_as_user") else None
    group = _id(f"{path}.run_as_group", message.run_as_group) if message.HasField("run_as_group") else None
    if group is not None and user is None and not message.run_as_username:
        raise fields.invalid(f"{path}.run_as_group", group, "needs run_as_user or run_as_username")
    mount_mode = fields.choice(f"{path}.cgroup_mount_mode", message.cgroup_mount_mode, CgroupMountMode)
    namespaces = _namespaces(f"{path}.namespace_options", message.namespace_options, tuple(NamespaceMode))
    if mount_mode is CgroupMountMode.READ_ONLY and message.privileged:
        raise fields.invalid(
            f"{path}.cgroup_mount_mode", mount_mode.name, "is impossible in a privileged container: that may write"
        )
    if mount_mode is CgroupMountMode.READ_WRITE and namespaces.cgroup is NamespaceMode.NODE and not message.privileged:
        raise fields.invalid(
            f"{path}.cgroup_mount_mode", mount_mode.name,
            f"needs {path}.namespace_options.cgroupns_options.mode CONTAINER, or a privileged container",
        )  # fmt: skip
    return ContainerSecurity(
        add_capabilities=_capabilities(f"{capabilities}.add_capabilities", message.capabilities.add_capabilities),
        drop_capabilities=_capabilities(f"{capabilities}.drop_capabilities", message.capabilities.drop_capabilities),
        add_ambient_capabilities=_capabilities(
            f"{capabilities}.add_ambient_capabilities", message.capabilities.add_ambient_capabilities
        ),
        privileged=message.privileged,
        namespaces=namespaces,
        selinux=_selinux(f"{path}.selinux_options", message),
        run_as_user=user,
        run_as_group=group,
        run_as_username=fields.short(f"{path}.run_as_username", message.run_as_username, _USERNAME_CHARACTERS),
        readonly_rootfs=message.readonly_rootfs,
        supplemental_groups=_groups(f"{path}.supplemental_groups", message.supplemental_groups),
        groups_policy=fields.choice(
            f"{path}.supplemental_groups_policy", message.supplemental_groups_policy, GroupsPolicy
        ),
        no_new_privs=message.no_new_privs,
        masked_paths=_paths(f"{path}.masked_paths", message.masked_paths),
        readonly_paths=_paths(f"{path}.readonly_paths", message.readonly_paths),
        seccomp=_seccomp(path, message),
        apparmor=_apparmor(path, message),
        cgroup_mount_mode=mount_mode,
    )


def id_mappings(path: str, messages: Collection[api_pb2.IDMapping]) -> tuple[IDMapping, ...]:
    """Convert ranges of user or group ids."""
    mappings = []
    for index, message in enumerate(fields.few(path, messages)):
        fields.at_least(f"{path}[{index}].length", message.length, 1)
        mappings.append(
            IDMapping(host_id=message.host_id, container_id=message.container_id, length=message.length)
        )
    return tuple(mappings)


def id_mapping_messages(mappings: Iterable[IDMapping]) -> list[api_pb2.IDMapping]:
    """Convert ranges of ids for a status."""
    return [
        api_pb2.IDMapping(host_id=mapping.host_id, container_id=mapping.container_id, length=mapping.length)
        for mapping in mappings
    ]


def namespaces_message(options: NamespaceOptions) -> api_pb2.NamespaceOption:
    """Convert a pod's namespaces for its status."""
    mode = api_pb2.NamespaceMode.ValueType
    return api_pb2.NamespaceOption(
        network=mode(options.network),
        pid=mode(options.pid),
        ipc=mode(options.ipc),
        target_id=options.target_id,
        userns_options=_userns_message(options.userns) if options.userns else None,
    )


def _userns_message(userns: UserNamespace) -> api_pb2.UserNamespace:
    return api_pb2.UserNamespace(
        mode=api_pb2.NamespaceMode.ValueType(userns.mode),
        uids=id_mapping_messages(userns.uids),
        gids=id_mapping_messages(userns.gids),
    )


def _namespaces(path: str, message: api_pb2.NamespaceOption, pid: tuple[NamespaceMode, ...]) -> NamespaceOptions:
    userns = _userns(f"{path}.userns_options", message.userns_options) if message.HasField("userns_options") else None
    cgroup = None
    if message.HasField("cgroupns_options"):
        mode = message.cgroupns_options.mode
        cgroup = fields.choice(f"{path}.cgroupns_options.mode", mode, NamespaceMode, _CONTAINER_OR_NODE)
    options = NamespaceOptions(
        network=fields.choice(f"{path}.network", message.network, NamespaceMode, _POD_OR_NODE),
        pid=fields.choice(f"{path}.pid", message.pid, NamespaceMode, pid),
        ipc=fields.choice(f"{path}.ipc", message.ipc, NamespaceMode, _POD_OR_NODE),
        target_id=fields.text(f"{path}.target_id", message.target_id),
        userns=userns,
        cgroup=cgroup,
    )
    if options.pid is NamespaceMode.TARGET and not options.target_id:
        raise InvalidArgument(f"{path}.target_id: is required when {path}.pid is TARGET")
    return options


def _userns(path: str, message: api_pb2.UserNamespace) -> UserNamespace:
    return UserNamespace(
        mode=fields.choice(f"{path}.mode", message.mode, NamespaceMode, _POD_OR_NODE),
        uids=id_mappings(f"{path}.uids", message.uids),
        gids=id_mappings(f"{path}.gids", message.gids),
    )


def _selinux(
    path: str, message: api_pb2.LinuxSandboxSecurityContext | api_pb2.LinuxContainerSecurityContext
) -> SELinuxOptions | None:
    if not message.HasField("selinux_options"):
        return None
    options = message.selinux_options
    return SELinuxOptions(
        user=fields.text(f"{path}.user", options.user),
        role=fields.text(f"{path}.role", options.role),
        type=fields.text(f"{path}.type", options.type),
        level=fields.text(f"{path}.level", options.level),
    )


def _id(path: str, message: api_pb2.Int64Value) -> int:
    return fields.between(path, message.value, 0, HIGHEST_ID)


def _groups(path: str, values: Collection[int]) -> tuple[int, ...]:
    few = fields.few(path, values, _MOST_GROUPS)
    return tuple([fields.between(f"{path}[{index}]", value, 0, HIGHEST_ID) for index, value in enumerate(few)])


def _capabilities(path: str, names: Collection[str]) -> tuple[str, ...]:
    for index, name in enumerate(fields.few(path, names)):
        if not rules.capability(name):
            raise fields.invalid(f"{path}[{index}]", name, "must be the name of a capability")
    return tuple(names)


def _paths(path: str, values: Collection[str]) -> tuple[str, ...]:
    few = fields.few(path, values)
    return tuple([fields.absolute(f"{path}[{index}]", value) for index, value in enumerate(few)])


def _seccomp(
    path: str, message: api_pb2.LinuxSandboxSecurityContext | api_pb2.LinuxContainerSecurityContext
) -> SecurityProfile | None:
    if message.HasField("seccomp"):
        name, profile = f"{path}.seccomp", _seccomp_profile(f"{path}.seccomp", message.seccomp)
    else:
        name = f"{path}.seccomp_profile_path"
        found = _legacy_profile(name, message.seccomp_profile_path)
        if found is None:
            return None
        profile = found
    if profile.type is ProfileType.LOCALHOST:
        fields.absolute(name, profile.localhost_ref)
    return profile


def _seccomp_profile(path: str, message: api_pb2.SecurityProfile) -> SecurityProfile:
    if message.profile_type != api_pb2.SecurityProfile.OCI:
        return _profile(path, message)
    if message.localhost_ref:
        raise fields.invalid(f"{path}.localhost_ref", message.localhost_ref, "belongs to profile_type Localhost")
    reference = fields.matching(f"{path}.oci_ref", message.oci_ref, rules.PINNED)
    return SecurityProfile(type=ProfileType.OCI, oci_ref=reference, base=_base(f"{path}.base_profile", message))


def _base(path: str, message: api_pb2.SecurityProfile) -> str:
    """Return the file of an OCI profile's base; "" for the runtime's default profile."""
    if not message.HasField("base_profile"):
        return ""
    kind, file = message.base_profile.type, message.base_profile.localhost_ref
    if kind == api_pb2.SecurityProfileBase.Localhost:
        return fields.absolute(f"{path}.localhost_ref", file)
    if kind != api_pb2.SecurityProfileBase.RuntimeDefault:
        raise fields.invalid(f"{path}.type", kind, "is not a SecurityProfileBase.BaseType of CRI v1")
    if file:
        raise fields.invalid(f"{path}.localhost_ref", file, "belongs to type Localhost")
    return ""


def _apparmor(path: str, message: api_pb2.LinuxContainerSecurityContext) -> SecurityProfile | None:
    if message.HasField("apparmor"):
        return _profile(f"{path}.apparmor", message.apparmor)
    return _legacy_profile(f"{path}.apparmor_profile", message.apparmor_profile)


def _profile(path: str, message: api_pb2.SecurityProfile) -> SecurityProfile:
    if message.profile_type == api_pb2.SecurityProfile.OCI:
        raise InvalidArgument(f"{path}.profile_type: OCI profiles are for seccomp only")
    if message.oci_ref or message.HasField("base_profile"):
        raise InvalidArgument(f"{path}: oci_ref and base_profile belong to profile_type OCI")
    kind = fields.choice(f"{path}.profile_type", message.profile_type, ProfileType)
    if kind is not ProfileType.LOCALHOST:
        return SecurityProfile(type=kind)
    return SecurityProfile(
        type=kind,
        localhost_ref=fields.required(f"{path}.localhost_ref", message.localhost_ref.removeprefix(rules.LOCALHOST)),
    )


def _legacy_profile(path: str, value: str) -> SecurityProfile | None:
    """Convert the textual form of profiles, which predates CRI's message; kubelet still fills it in."""
    match value:
        case "":
            return None
        case "runtime/default" | "docker/default":
            return SecurityProfile(type=ProfileType.RUNTIME_DEFAULT)
        case "unconfined":
            return SecurityProfile(type=ProfileType.UNCONFINED)
    if not value.startswith(rules.LOCALHOST) or value == rules.LOCALHOST:
        raise fields.invalid(path, value, "must be runtime/default, unconfined or localhost/<profile>")
    return SecurityProfile(
        type=ProfileType.LOCALHOST, localhost_ref=fields.text(path, value.removeprefix(rules.LOCALHOST))
    )
