"""The typed values of pods and containers: what a client asked for, and the present state.

`*Config` values are what a client asked for, validated at the door and never changed afterwards. They are stored as
JSON, so a field may be added (with a default) but never renamed. The fields are those of CRI v1.
"""

from __future__ import annotations

from enum import Enum, IntEnum

import msgspec


class _Value(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Base of the immutable, JSON-serialisable values."""


class NamespaceMode(IntEnum):
    """Who shares a namespace (CRI `NamespaceMode`)."""

    POD = 0
    CONTAINER = 1
    NODE = 2
    TARGET = 3


class Propagation(IntEnum):
    """How later mounts under a volume propagate between host and container (CRI `MountPropagation`)."""

    PRIVATE = 0
    HOST_TO_CONTAINER = 1
    BIDIRECTIONAL = 2


class GroupsPolicy(IntEnum):
    """Whether the image's /etc/group adds supplemental groups (CRI `SupplementalGroupsPolicy`)."""

    MERGE = 0
    STRICT = 1


class ProfileType(IntEnum):
    """The source of a seccomp or AppArmor profile (CRI `SecurityProfile.ProfileType`)."""

    RUNTIME_DEFAULT = 0
    UNCONFINED = 1
    LOCALHOST = 2
    OCI = 3  # seccomp only: pulled by PullSecurityProfile


class CgroupMountMode(IntEnum):
    """How the cgroup filesystem is mounted in a container (CRI `CgroupMountMode`)."""

    UNSPECIFIED = 0
    READ_ONLY = 1
    READ_WRITE = 2


class SecurityProfile(_Value, frozen=True):
    type: ProfileType
    localhost_ref: str = ""
    oci_ref: str = ""  # the reference of an OCI profile, with its digest
    base: str = ""  # the file of an OCI profile's base, "" for the runtime's default profile


class IDMapping(_Value, frozen=True):
    host_id: int
    container_id: int
    length: int


class UserNamespace(_Value, frozen=True):
    mode: NamespaceMode = NamespaceMode.NODE
    uids: tuple[IDMapping, ...] = ()
    gids: tuple[IDMapping, ...] = ()


class NamespaceOptions(_Value, frozen=True):
    network: NamespaceMode = NamespaceMode.POD
    pid: NamespaceMode = NamespaceMode.POD
    ipc: NamespaceMode = NamespaceMode.POD
    target_id: str = ""
    userns: UserNamespace | None = None
    cgroup: NamespaceMode | None = None  # only for containers: CONTAINER, NODE, or None to let crisp choose


class Resources(_Value, frozen=True):
    """Limits of a container or pod (CRI `LinuxContainerResources`). 0, "" and empty mean "not set"."""

    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    memory_limit_in_bytes: int = 0
    memory_swap_limit_in_bytes: int = 0
    oom_score_adj: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepage_limits: dict[str, int] = msgspec.field(default_factory=dict)  # page size ("2MB") -> bytes
    unified: dict[str, str] = msgspec.field(default_factory=dict)


class SELinuxOptions(_Value, frozen=True):
    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


class DNSConfig(_Value, frozen=True):
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class PortMapping(_Value, frozen=True):
    protocol: str  # "tcp", "udp" or "sctp"
    container_port: int
    host_port: int = 0
    host_ip: str = ""


class SandboxMetadata(_Value, frozen=True):
    name: str
    uid: str
    namespace: str
    attempt: int = 0


class SandboxSecurity(_Value, frozen=True):
    namespaces: NamespaceOptions = msgspec.field(default_factory=NamespaceOptions)
    selinux: SELinuxOptions | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    groups_policy: GroupsPolicy = GroupsPolicy.MERGE
    privileged: bool = False
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None


class SandboxConfig(_Value, frozen=True):
    """A pod as requested by RunPodSandbox (CRI `PodSandboxConfig`)."""

    metadata: SandboxMetadata
    hostname: str = ""
    log_directory: str = ""
    dns: DNSConfig | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    cgroup_parent: str = ""
    security: SandboxSecurity = msgspec.field(default_factory=SandboxSecurity)
    sysctls: dict[str, str] = msgspec.field(default_factory=dict)
    overhead: Resources | None = None
    resources: Resources | None = None


class ImageSpec(_Value, frozen=True):
    image: str = ""
    user_specified_image: str = ""
    runtime_handler: str = ""
    annotations: dict[str, str] = msgspec.field(default_factory=dict)


class Mount(_Value, frozen=True):
    container_path: str
    host_path: str = ""
    readonly: bool = False
    recursive_read_only: bool = False
    selinux_relabel: bool = False
    propagation: Propagation = Propagation.PRIVATE
    uid_mappings: tuple[IDMapping, ...] = ()
    gid_mappings: tuple[IDMapping, ...] = ()
    image: ImageSpec | None = None
    image_sub_path: str = ""
    mount_options: tuple[str, ...] = ()  # additional flags: "noexec", "nodev", "nosuid"


class Device(_Value, frozen=True):
    container_path: str
    host_path: str
    permissions: str = "rwm"


class ContainerMetadata(_Value, frozen=True):
    name: str
    attempt: int = 0


class ContainerSecurity(_Value, frozen=True):
    add_capabilities: tuple[str, ...] = ()
    drop_capabilities: tuple[str, ...] = ()
    add_ambient_capabilities: tuple[str, ...] = ()
    privileged: bool = False
    namespaces: NamespaceOptions = msgspec.field(default_factory=NamespaceOptions)
    selinux: SELinuxOptions | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_username: str = ""
    readonly_rootfs: bool = False
    supplemental_groups: tuple[int, ...] = ()
    groups_policy: GroupsPolicy = GroupsPolicy.MERGE
    no_new_privs: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None
    cgroup_mount_mode: CgroupMountMode = CgroupMountMode.UNSPECIFIED


class ContainerConfig(_Value, frozen=True):
    """A container as requested by CreateContainer (CRI `ContainerConfig`)."""

    metadata: ContainerMetadata
    image: ImageSpec
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    envs: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    resources: Resources = msgspec.field(default_factory=Resources)
    security: ContainerSecurity = msgspec.field(default_factory=ContainerSecurity)
    stop_signal: str = ""  # "SIGTERM", "SIGRTMIN+3"; "" means the image's, or else SIGTERM


class SandboxState(Enum):
    READY = "ready"
    NOT_READY = "not-ready"


class ContainerState(Enum):
    """The states of a container. `pods.state.transitions` draws the transitions."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


class ContainerUser(_Value, frozen=True):
    """The numeric identity of a container's first process."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()


class Sandbox(_Value, frozen=True):
    """A pod sandbox in its present state. Times are nanoseconds since the epoch."""

    id: str
    config: SandboxConfig
    runtime_handler: str
    state: SandboxState
    created_at: int
    ips: tuple[str, ...] = ()  # the default network's addresses, in the plugins' order
    netns: str = ""  # path of the pinned network namespace; "" on the host's network
    infra_pid: int = 0
    cgroup_driver: str = "cgroupfs"  # the driver at the pod's creation: its cgroups stay where they are
    overhead: Resources | None = None  # from the last UpdatePodSandboxResources; None: as in `config`
    resources: Resources | None = None
    selinux_level: str = ""  # with categories that no other pod has; "" if the pod was not given any


class MountedImage(_Value, frozen=True):
    """An image mounted in a container as a volume, with the index of its mount."""

    mount: int
    image_id: str


class Container(_Value, frozen=True):
    """A container in its present state. Times are nanoseconds since the epoch, 0 for "not yet"."""

    id: str
    sandbox_id: str
    config: ContainerConfig
    image_id: str  # Image.id: the digest of the image's config
    image_ref: str  # a repo digest where there is one, else the id
    state: ContainerState
    created_at: int
    log_path: str = ""  # absolute; "" when there is no log
    user: ContainerUser = msgspec.field(default_factory=ContainerUser)
    stop_signal: str = "SIGTERM"
    pid: int = 0
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""  # "Completed", "Error", "OOMKilled", "StartError"
    message: str = ""
    updated: Resources | None = None  # limits from the last UpdateContainerResources
    mounted_images: tuple[MountedImage, ...] = ()
    checkpoint: str = ""  # the directory of criu images to restore it from
    checkpoint_image_id: str = ""  # the container image that the directory came from, if any

    @property
    def images(self) -> tuple[str, ...]:
        """Return the ids of all images to keep while the container exists; an id appears once for each use."""
        own = tuple(filter(None, (self.image_id, self.checkpoint_image_id)))
        return *own, *(mounted.image_id for mounted in self.mounted_images)

    @property
    def resources(self) -> Resources:
        """The limits in force."""
        return self.config.resources if self.updated is None else self.updated


class ExecResult(_Value, frozen=True):
    stdout: bytes
    stderr: bytes
    exit_code: int


class SilentShim(_Value, frozen=True):
    """A pod whose shim lives but does not answer. `pod` is namespace/name/uid/attempt."""

    sandbox_id: str
    pod: str
    seconds: float


class ApartPlugin(_Value, frozen=True):
    """A plugin that did not answer a call, and is not asked for some seconds. `name` has its index: 10-name."""

    name: str
    call: str
    seconds: float
