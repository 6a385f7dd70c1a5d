"""The OCI runtime-spec configuration (1.3) as immutable values. The names are the specification's.

`parse.parse` builds them from config.json. A missing string is "", a missing list or map is empty. None stands for a
missing member only if that differs from every value.
"""

from __future__ import annotations

from types import MappingProxyType

from runtime.light import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

_NO_STRINGS: Mapping[str, str] = MappingProxyType({})


def _no_strings() -> Mapping[str, str]:
    return _NO_STRINGS


@dataclass(frozen=True, slots=True)
class User:
    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ConsoleSize:
    """The size of a terminal in characters."""

    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Capability names such as "CAP_CHOWN", as in the configuration."""

    bounding: frozenset[str] = frozenset()
    effective: frozenset[str] = frozenset()
    inheritable: frozenset[str] = frozenset()
    permitted: frozenset[str] = frozenset()
    ambient: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rlimit:
    """A resource limit. `type` is such as "RLIMIT_NOFILE"; 2**64 - 1 means infinity."""

    type: str
    hard: int
    soft: int


@dataclass(frozen=True, slots=True)
class Scheduler:
    """Arguments of sched_setattr(2): `policy` "SCHED_OTHER", `flags` "SCHED_FLAG_...", times in nanoseconds."""

    policy: str
    nice: int = 0
    priority: int = 0
    flags: tuple[str, ...] = ()
    runtime: int = 0
    deadline: int = 0
    period: int = 0


@dataclass(frozen=True, slots=True)
class IOPriority:
    """Arguments of ioprio_set(2): `io_class` is "IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE" or "IOPRIO_CLASS_IDLE"."""

    io_class: str
    priority: int = 0


@dataclass(frozen=True, slots=True)
class CPUAffinity:
    """The CPU lists ("0-3,7") that an exec runs on before (`initial`) and after (`final`) it joins its cgroup."""

    initial: str = ""
    final: str = ""


TERM = "xterm"  # for a process with a terminal and without TERM in its environment


def with_term(env: Iterable[str]) -> tuple[str, ...]:
    """Return the environment of a process with a terminal: TERM is added if missing."""
    entries = tuple(env)
    return entries if any(entry.startswith("TERM=") for entry in entries) else (*entries, f"TERM={TERM}")


@dataclass(frozen=True, slots=True)
class Process:
    cwd: str
    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    user: User = User()
    terminal: bool = False
    console_size: ConsoleSize | None = None
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    oom_score_adj: int | None = None
    apparmor_profile: str = ""
    selinux_label: str = ""
    scheduler: Scheduler | None = None
    io_priority: IOPriority | None = None
    exec_cpu_affinity: CPUAffinity | None = None


@dataclass(frozen=True, slots=True)
class Root:
    path: str
    readonly: bool = False


@dataclass(frozen=True, slots=True)
class IDMapping:
    container_id: int
    host_id: int
    size: int


@dataclass(frozen=True, slots=True)
class Mount:
    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IDMapping, ...] = ()
    gid_mappings: tuple[IDMapping, ...] = ()


def is_bind(type: str, options: Container[str]) -> bool:
    """Return whether a mount with that type and those options is a bind mount (config.md "Mounts")."""
    return type == "bind" or "bind" in options or "rbind" in options


@dataclass(frozen=True, slots=True)
class Hook:
    """A hook. `timeout` is in seconds, None means no limit. An `env` of None inherits the runtime's."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] | None = None
    timeout: int | None = None


@dataclass(frozen=True, slots=True)
class Hooks:
    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


# Names as in config.json, in the order in which they run.
HOOK_KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace. `type` is a key of NAMESPACE_FLAGS ("pid", "network", ...); `path` "" asks for a new one."""

    type: str
    path: str = ""


@dataclass(frozen=True, slots=True)
class TimeOffset:
    secs: int = 0
    nanosecs: int = 0


@dataclass(frozen=True, slots=True)
class Device:
    """A device node to make. `type` is "c", "b", "u" or "p"; "p" ignores the numbers."""

    path: str
    type: str
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceRule:
    """A rule of the device filter; the last match counts. None is any number, `type` "a" any type."""

    allow: bool
    type: str = "a"
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory limits in bytes; -1 is unlimited. `swap` is memory plus swap, as in the specification."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    kernel: int | None = None
    kernel_tcp: int | None = None
    swappiness: int | None = None
    disable_oom_killer: bool = False
    use_hierarchy: bool | None = None
    check_before_update: bool = False


@dataclass(frozen=True, slots=True)
class CPU:
    """CPU limits. Times are in microseconds; `cpus` and `mems` are lists such as "0-3,7"."""

    shares: int | None = None
    quota: int | None = None
    burst: int | None = None
    period: int | None = None
    realtime_runtime: int | None = None
    realtime_period: int | None = None
    cpus: str = ""
    mems: str = ""
    idle: int | None = None


@dataclass(frozen=True, slots=True)
class WeightDevice:
    major: int
    minor: int
    weight: int | None = None
    leaf_weight: int | None = None


@dataclass(frozen=True, slots=True)
class ThrottleDevice:
    """An I/O limit of a device; `rate` is bytes or operations per second."""

    major: int
    minor: int
    rate: int


@dataclass(frozen=True, slots=True)
class BlockIO:
    weight: int | None = None
    leaf_weight: int | None = None
    weight_device: tuple[WeightDevice, ...] = ()
    throttle_read_bps_device: tuple[ThrottleDevice, ...] = ()
    throttle_write_bps_device: tuple[ThrottleDevice, ...] = ()
    throttle_read_iops_device: tuple[ThrottleDevice, ...] = ()
    throttle_write_iops_device: tuple[ThrottleDevice, ...] = ()


@dataclass(frozen=True, slots=True)
class HugepageLimit:
    """A limit of huge pages. `page_size` is as in the kernel's file names ("2MB"); `limit` is in bytes."""

    page_size: str
    limit: int


@dataclass(frozen=True, slots=True)
class InterfacePriority:
    name: str
    priority: int


@dataclass(frozen=True, slots=True)
class NetworkClass:
    """Settings of the net_cls and net_prio controllers of cgroup v1."""

    class_id: int | None = None
    priorities: tuple[InterfacePriority, ...] = ()


@dataclass(frozen=True, slots=True)
class RdmaLimit:
    device: str
    hca_handles: int | None = None
    hca_objects: int | None = None


@dataclass(frozen=True, slots=True)
class Resources:
    devices: tuple[DeviceRule, ...] = ()
    memory: Memory | None = None
    cpu: CPU | None = None
    pids_limit: int | None = None
    block_io: BlockIO | None = None
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    network: NetworkClass | None = None
    rdma: tuple[RdmaLimit, ...] = ()
    unified: Mapping[str, str] = field(default_factory=_no_strings)


@dataclass(frozen=True, slots=True)
class SeccompArg:
    """One comparison of a system call's argument. `op` is such as "SCMP_CMP_EQ"."""

    index: int
    value: int
    op: str
    value_two: int = 0


@dataclass(frozen=True, slots=True)
class SeccompRule:
    names: tuple[str, ...]
    action: str
    errno_ret: int | None = None
    args: tuple[SeccompArg, ...] = ()


@dataclass(frozen=True, slots=True)
class Seccomp:
    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    listener_path: str = ""
    listener_metadata: str = ""
    syscalls: tuple[SeccompRule, ...] = ()


@dataclass(frozen=True, slots=True)
class IntelRdt:
    clos_id: str = ""
    l3_cache_schema: str = ""
    mem_bw_schema: str = ""
    enable_cmt: bool = False
    enable_mbm: bool = False


@dataclass(frozen=True, slots=True)
class Personality:
    """`domain` is "LINUX" or "LINUX32"."""

    domain: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NetDevice:
    """A host interface to move into the container. `name` is its name there, "" keeps the present one."""

    name: str = ""


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """Arguments of set_mempolicy(2). `mode` is such as "MPOL_BIND", `nodes` a list such as "0-3,7"."""

    mode: str
    nodes: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Linux:
    namespaces: tuple[Namespace, ...] = ()
    uid_mappings: tuple[IDMapping, ...] = ()
    gid_mappings: tuple[IDMapping, ...] = ()
    time_offsets: Mapping[str, TimeOffset] = field(default_factory=lambda: MappingProxyType({}))
    devices: tuple[Device, ...] = ()
    cgroups_path: str = ""
    resources: Resources = field(default_factory=Resources)
    intel_rdt: IntelRdt | None = None
    sysctl: Mapping[str, str] = field(default_factory=_no_strings)
    seccomp: Seccomp | None = None
    rootfs_propagation: str = ""
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    mount_label: str = ""
    personality: Personality | None = None
    net_devices: Mapping[str, NetDevice] = field(default_factory=lambda: MappingProxyType({}))
    memory_policy: MemoryPolicy | None = None

    def namespace(self, type: str) -> Namespace | None:
        """Return the namespace of that type, or None if the configuration lists none and the caller's is kept."""
        return next((namespace for namespace in self.namespaces if namespace.type == type), None)


@dataclass(frozen=True, slots=True)
class Spec:
    oci_version: str
    root: Root
    process: Process | None = None
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks = field(default_factory=Hooks)
    annotations: Mapping[str, str] = field(default_factory=_no_strings)
    linux: Linux = field(default_factory=Linux)
