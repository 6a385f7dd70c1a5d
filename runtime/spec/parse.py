"""Parses config.json into `values`. Checks types strictly and ignores unknown members (config.md "Extensibility").

Every error is a `SpecError` that names the member by its JSON path.
"""

from __future__ import annotations

from linux.tables import HIGHEST_ID, NAMESPACE_FLAGS
from runtime.errors import SpecError
from runtime.spec.values import (
    CPU,
    BlockIO,
    Capabilities,
    ConsoleSize,
    CPUAffinity,
    Device,
    DeviceRule,
    Hook,
    Hooks,
    HugepageLimit,
    IDMapping,
    IntelRdt,
    InterfacePriority,
    IOPriority,
    Linux,
    Memory,
    MemoryPolicy,
    Mount,
    Namespace,
    NetDevice,
    NetworkClass,
    Personality,
    Process,
    RdmaLimit,
    Resources,
    Rlimit,
    Root,
    Scheduler,
    Seccomp,
    SeccompArg,
    SeccompRule,
    Spec,
    ThrottleDevice,
    TimeOffset,
    User,
    WeightDevice,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TypeVar

    T = TypeVar("T")
    _Typed = TypeVar("_Typed", Rlimit, Namespace)

NAMESPACE_TYPES = frozenset(NAMESPACE_FLAGS)
RLIMIT_TYPES = frozenset(
    {
        "RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_LOCKS", "RLIMIT_MEMLOCK",
        "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_RSS", "RLIMIT_RTPRIO",
        "RLIMIT_RTTIME", "RLIMIT_SIGPENDING", "RLIMIT_STACK",
    }
)
_PROPAGATIONS = frozenset({"shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate", "runbindable"})
_SECCOMP_FLAGS = ("SECCOMP_FILTER_FLAG_SPEC_ALLOW",)  # default for a profile without flags
_U32 = 2**32 - 1
_U64 = 2**64 - 1
_I64 = 2**63 - 1
_SHOWN = 128  # most characters of a value in a message


def _kind(value: Any) -> str:
    """Return the JSON type. Messages show only this for arguments, variables and annotations, which may be Secrets."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return "a string with NUL" if "\0" in value else "a string"
    return "a number" if isinstance(value, int | float) else "an object" if isinstance(value, dict) else "an array"


def _shown(value: Any) -> str:
    """Format a plain value for a message, shortened; for other values return the JSON type."""
    text = repr(value) if isinstance(value, str | int | float) else _kind(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_NAMES = frozenset(
    """
    access action additionalGids allow ambient annotations apparmorProfile architectures args blockIO bounding burst
    capabilities cgroupsPath checkBeforeUpdate class classID closID consoleSize containerID cpu cpus createContainer
    createRuntime cwd deadline defaultAction defaultErrnoRet destination devices disableOOMKiller domain domainname
    effective enableCMT enableMBM env errnoRet execCPUAffinity fileMode final flags gid gidMappings hard hcaHandles
    hcaObjects height hooks hostID hostname hugepageLimits idle index inheritable initial intelRdt ioPriority kernel
    kernelTCP l3CacheSchema leafWeight limit linux listenerMetadata listenerPath major maskedPaths memBwSchema memory
    memoryPolicy mems minor mode mountLabel mounts name names namespaces nanosecs netDevices network nice
    noNewPrivileges nodes ociVersion oomScoreAdj op options pageSize path period permitted personality pids policy
    poststart poststop prestart priorities priority process quota rate rdma readonly readonlyPaths realtimePeriod
    realtimeRuntime reservation resources rlimits root rootfsPropagation runtime scheduler seccomp secs selinuxLabel
    shares size soft source startContainer swap swappiness syscalls sysctl terminal throttleReadBpsDevice
    throttleReadIOPSDevice throttleWriteBpsDevice throttleWriteIOPSDevice timeOffsets timeout type uid uidMappings
    umask unified useHierarchy user value valueTwo weight weightDevice width
    """.split()
)


def spelled(members: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the members of a JSON object under the specification's spelling of their names.

    Go's decoder, and so every runtime that callers know, ignores case. If a name occurs twice, the last one counts.
    """
    if _NAMES.issuperset(members):
        return members
    names = {name.lower(): name for name in _NAMES}
    return {names.get(name.lower(), name): value for name, value in members.items()}


class _Object:
    """A JSON object that is being parsed. `path` is its JSON path, for errors."""

    __slots__ = ("members", "path")

    def __init__(self, members: Any, path: str) -> None:
        if not isinstance(members, dict):
            raise SpecError(path, f"expected an object, got {_kind(members)}")
        self.members = spelled(members)
        self.path = path

    def at(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def wrong(self, name: str, expected: str) -> SpecError:
        if self.members.get(name) is None:
            return SpecError(self.at(name), "is required")
        return SpecError(self.at(name), f"expected {expected}, got {_shown(self.members[name])}")

    def optional_integer(self, name: str, low: int = -_I64 - 1, high: int = _I64) -> int | None:
        value = self.members.get(name)
        if value is None:
            return None
        if type(value) is not int:
            raise self.wrong(name, "an integer")
        if not low <= value <= high:
            raise self.wrong(name, f"an integer between {low} and {high}")
        return value

    def integer(self, name: str, default: int = 0, low: int = -_I64 - 1, high: int = _I64) -> int:
        value = self.optional_integer(name, low, high)
        return default if value is None else value

    def required_integer(self, name: str, low: int = -_I64 - 1, high: int = _I64) -> int:
        value = self.optional_integer(name, low, high)
        if value is None:
            raise self.wrong(name, "an integer")
        return value

    def optional_boolean(self, name: str) -> bool | None:
        value = self.members.get(name)
        if value is not None and type(value) is not bool:
            raise self.wrong(name, "true or false")
        return value

    def boolean(self, name: str) -> bool:
        return self.optional_boolean(name) or False

    def string(self, name: str) -> str:
        value = self.members.get(name)
        if value is None:
            return ""
        if type(value) is not str:
            raise self.wrong(name, "a string")
        if not _for_kernel(value):
            raise self.wrong(name, "a string without NUL")
        return value

    def required_string(self, name: str) -> str:
        value = self.string(name)
        if not value:
            raise self.wrong(name, "a string that is not empty")
        return value

    def choice(self, name: str, choices: frozenset[str], default: str | None = None) -> str:
        value = self.string(name)
        if not value and default is not None:
            return default
        if value not in choices:
            raise self.wrong(name, "one of " + ", ".join(sorted(choices)))
        return value

    def array(self, name: str) -> Iterable[Any]:
        value = self.members.get(name)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise SpecError(self.at(name), f"expected an array, got {_kind(value)}")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        values = tuple(self.array(name))
        for index, value in enumerate(values):
            if type(value) is not str or not _for_kernel(value):
                raise SpecError(f"{self.at(name)}[{index}]", f"expected a string without NUL, got {_kind(value)}")
        return values

    def integers(self, name: str, high: int) -> tuple[int, ...]:
        values = tuple(self.array(name))
        for index, value in enumerate(values):
            if type(value) is not int or not 0 <= value <= high:
                raise SpecError(
                    f"{self.at(name)}[{index}]", f"expected an integer between 0 and {high}, got {_shown(value)}"
                )
        return values

    def string_map(self, name: str) -> Mapping[str, str]:
        value = self.members.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise SpecError(self.at(name), f"expected an object of strings, got {_kind(value)}")
        for key, text in value.items():
            if type(key) is not str or type(text) is not str:
                raise SpecError(f"{self.at(name)}.{key}", f"expected a string, got {_kind(text)}")
        return dict(value)

    def optional(self, name: str, parse: Callable[[_Object], T]) -> T | None:
        value = self.members.get(name)
        return None if value is None else parse(_Object(value, self.at(name)))

    def required(self, name: str, parse: Callable[[_Object], T]) -> T:
        if self.members.get(name) is None:
            raise self.wrong(name, "an object")
        return parse(_Object(self.members[name], self.at(name)))

    def each(self, name: str, parse: Callable[[_Object], T]) -> tuple[T, ...]:
        values = self.array(name)
        if not values:
            return ()
        path = self.at(name)
        return tuple(parse(_Object(value, f"{path}[{index}]")) for index, value in enumerate(values))

    def named(self, name: str, parse: Callable[[str, _Object], T]) -> tuple[T, ...]:
        value = self.members.get(name)
        if value is None:
            return ()
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        path = self.at(name)
        return tuple(parse(key, _Object(each, f"{path}.{key}")) for key, each in value.items())


def _for_kernel(text: str) -> bool:
    """Return whether the kernel can take the text: no NUL, and no surrogates except those that stand for bytes
    which are not UTF-8 (PEP 383).
    """
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def parse(config: Mapping[str, Any]) -> Spec:
    """Parse the configuration of a container (runtime-spec config.md). Raises `SpecError`."""
    top = _Object(config, "")
    return Spec(
        oci_version=_version(top),
        root=top.required("root", lambda root: Root(root.required_string("path"), root.boolean("readonly"))),
        process=top.optional("process", _process),
        hostname=top.string("hostname"),
        domainname=top.string("domainname"),
        mounts=top.each("mounts", _mount),
        hooks=top.optional("hooks", _hooks) or Hooks(),
        annotations=top.string_map("annotations"),
        linux=top.optional("linux", _linux) or Linux(),
    )


def parse_process(process: Mapping[str, Any], path: str = "process") -> Process:
    """Parse a `process` object alone, for an exec (config.md "Process"). Raises `SpecError`."""
    return _process(_Object(process, path))


def parse_resources(resources: Mapping[str, Any], path: str = "linux.resources") -> Resources:
    """Parse a `resources` object alone, for an update (config-linux.md "Control groups"). Raises `SpecError`."""
    return _resources(_Object(resources, path))


def _version(top: _Object) -> str:
    version = top.required_string("ociVersion")
    major, _, rest = version.partition(".")
    if major != "1" or not rest[:1].isdigit():
        raise SpecError("ociVersion", f"expected 1.x, got {version!r}")
    return version


def _process(process: _Object) -> Process:
    cwd = process.required_string("cwd")
    if not cwd.startswith("/"):
        raise process.wrong("cwd", "an absolute path")
    args = process.strings("args")
    if not args:
        raise SpecError(process.at("args"), "is required")
    return Process(
        cwd=cwd,
        args=args,
        env=process.strings("env"),
        user=process.optional("user", _user) or User(),
        terminal=process.boolean("terminal"),
        console_size=process.optional("consoleSize", _console_size),
        capabilities=process.optional("capabilities", _capabilities),
        rlimits=_unique(process, "rlimits", process.each("rlimits", _rlimit)),
        no_new_privileges=process.boolean("noNewPrivileges"),
        oom_score_adj=process.optional_integer("oomScoreAdj", -1000, 1000),
        apparmor_profile=process.string("apparmorProfile"),
        selinux_label=process.string("selinuxLabel"),
        scheduler=process.optional("scheduler", _scheduler),
        io_priority=process.optional("ioPriority", _io_priority),
        exec_cpu_affinity=process.optional(
            "execCPUAffinity", lambda cpus: CPUAffinity(cpus.string("initial"), cpus.string("final"))
        ),
    )


def _unique(parent: _Object, name: str, values: tuple[_Typed, ...]) -> tuple[_Typed, ...]:
    types = [value.type for value in values]
    for index, type_ in enumerate(types):
        if type_ in types[:index]:
            raise SpecError(f"{parent.at(name)}[{index}].type", f"{type_} is listed twice")
    return values


def _user(user: _Object) -> User:
    return User(
        uid=user.integer("uid", 0, 0, HIGHEST_ID),
        gid=user.integer("gid", 0, 0, HIGHEST_ID),
        umask=user.optional_integer("umask", 0, 0o777),
        additional_gids=user.integers("additionalGids", HIGHEST_ID),
    )


def _console_size(size: _Object) -> ConsoleSize | None:
    height, width = size.integer("height", 0, 0, 0xFFFF), size.integer("width", 0, 0, 0xFFFF)
    return ConsoleSize(height, width) if height and width else None


def _capabilities(sets: _Object) -> Capabilities:
    return Capabilities(
        bounding=frozenset(sets.strings("bounding")),
        effective=frozenset(sets.strings("effective")),
        inheritable=frozenset(sets.strings("inheritable")),
        permitted=frozenset(sets.strings("permitted")),
        ambient=frozenset(sets.strings("ambient")),
    )


def _rlimit(limit: _Object) -> Rlimit:
    parsed = Rlimit(
        type=limit.choice("type", RLIMIT_TYPES),
        hard=limit.required_integer("hard", 0, _U64),
        soft=limit.required_integer("soft", 0, _U64),
    )
    if parsed.soft > parsed.hard:
        raise limit.wrong("soft", f"at most the hard limit {parsed.hard}")
    return parsed


def _scheduler(scheduler: _Object) -> Scheduler:
    return Scheduler(
        policy=scheduler.required_string("policy"),
        nice=scheduler.integer("nice", 0, -20, 19),
        priority=scheduler.integer("priority", 0, 0, 99),
        flags=scheduler.strings("flags"),
        runtime=scheduler.integer("runtime", 0, 0, _U64),
        deadline=scheduler.integer("deadline", 0, 0, _U64),
        period=scheduler.integer("period", 0, 0, _U64),
    )


def _io_priority(priority: _Object) -> IOPriority:
    classes = frozenset({"IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE"})
    return IOPriority(priority.choice("class", classes), priority.integer("priority", 0, 0, 7))


def _id_mapping(mapping: _Object) -> IDMapping:
    return IDMapping(
        container_id=mapping.required_integer("containerID", 0, _U32),
        host_id=mapping.required_integer("hostID", 0, _U32),
        size=mapping.required_integer("size", 1, _U32),
    )


def _mount(mount: _Object) -> Mount:
    return Mount(
        destination=mount.required_string("destination"),
        type=mount.string("type"),
        source=mount.string("source"),
        options=mount.strings("options"),
        uid_mappings=mount.each("uidMappings", _id_mapping),
        gid_mappings=mount.each("gidMappings", _id_mapping),
    )


def _hook(hook: _Object) -> Hook:
    path = hook.required_string("path")
    if not path.startswith("/"):
        raise hook.wrong("path", "an absolute path")
    env = None if hook.members.get("env") is None else hook.strings("env")
    return Hook(path, hook.strings("args"), env, hook.optional_integer("timeout", 1))


def _hooks(hooks: _Object) -> Hooks:
    return Hooks(
        prestart=hooks.each("prestart", _hook),
        create_runtime=hooks.each("createRuntime", _hook),
        create_container=hooks.each("createContainer", _hook),
        start_container=hooks.each("startContainer", _hook),
        poststart=hooks.each("poststart", _hook),
        poststop=hooks.each("poststop", _hook),
    )


def _linux(linux: _Object) -> Linux:
    return Linux(
        namespaces=_unique(linux, "namespaces", linux.each("namespaces", _namespace)),
        uid_mappings=linux.each("uidMappings", _id_mapping),
        gid_mappings=linux.each("gidMappings", _id_mapping),
        time_offsets=dict(linux.named("timeOffsets", _time_offset)),
        devices=linux.each("devices", _device),
        cgroups_path=linux.string("cgroupsPath"),
        resources=linux.optional("resources", _resources) or Resources(),
        intel_rdt=linux.optional("intelRdt", _intel_rdt),
        sysctl=linux.string_map("sysctl"),
        seccomp=linux.optional("seccomp", _seccomp),
        rootfs_propagation=linux.choice("rootfsPropagation", _PROPAGATIONS, ""),
        masked_paths=linux.strings("maskedPaths"),
        readonly_paths=linux.strings("readonlyPaths"),
        mount_label=linux.string("mountLabel"),
        personality=linux.optional("personality", _personality),
        net_devices=dict(linux.named("netDevices", lambda name, device: (name, NetDevice(device.string("name"))))),
        memory_policy=linux.optional("memoryPolicy", _memory_policy),
    )


def _memory_policy(policy: _Object) -> MemoryPolicy:
    return MemoryPolicy(policy.required_string("mode"), policy.string("nodes"), policy.strings("flags"))


def _namespace(namespace: _Object) -> Namespace:
    path = namespace.string("path")
    if path and not path.startswith("/"):
        raise namespace.wrong("path", "an absolute path")
    return Namespace(namespace.choice("type", NAMESPACE_TYPES), path)


def _time_offset(clock: str, offset: _Object) -> tuple[str, TimeOffset]:
    if clock not in ("monotonic", "boottime"):
        raise SpecError(offset.path, "expected monotonic or boottime")
    return clock, TimeOffset(offset.integer("secs"), offset.integer("nanosecs", 0, 0, 999_999_999))


def _device(device: _Object) -> Device:
    return Device(
        path=device.required_string("path"),
        type=device.choice("type", frozenset("cbup")),
        major=device.integer("major"),
        minor=device.integer("minor"),
        file_mode=device.optional_integer("fileMode", 0, 0o177777),
        uid=device.optional_integer("uid", 0, HIGHEST_ID),
        gid=device.optional_integer("gid", 0, HIGHEST_ID),
    )


def _intel_rdt(rdt: _Object) -> IntelRdt:
    return IntelRdt(
        clos_id=rdt.string("closID"),
        l3_cache_schema=rdt.string("l3CacheSchema"),
        mem_bw_schema=rdt.string("memBwSchema"),
        enable_cmt=rdt.boolean("enableCMT"),
        enable_mbm=rdt.boolean("enableMBM"),
    )


def _personality(personality: _Object) -> Personality:
    return Personality(personality.choice("domain", frozenset({"LINUX", "LINUX32"})), personality.strings("flags"))


def _resources(resources: _Object) -> Resources:
    return Resources(
        devices=resources.each("devices", _device_rule),
        memory=resources.optional("memory", _memory),
        cpu=resources.optional("cpu", _cpu),
        pids_limit=resources.optional("pids", lambda pids: pids.optional_integer("limit")),
        block_io=resources.optional("blockIO", _block_io),
        hugepage_limits=resources.each(
            "hugepageLimits",
            lambda limit: HugepageLimit(limit.required_string("pageSize"), limit.required_integer("limit", 0, _U64)),
        ),
        network=resources.optional("network", _network_class),
        rdma=resources.named("rdma", _rdma_limit),
        unified=resources.string_map("unified"),
    )


def _device_rule(rule: _Object) -> DeviceRule:
    access = rule.string("access")
    if set(access) - set("rwm"):
        raise rule.wrong("access", "letters of rwm")
    return DeviceRule(
        allow=rule.boolean("allow"),
        type=rule.choice("type", frozenset("abc"), "a"),
        major=_any_or_number(rule, "major"),
        minor=_any_or_number(rule, "minor"),
        access=access or "rwm",
    )


def _any_or_number(rule: _Object, name: str) -> int | None:
    number = rule.optional_integer(name, -1, _U32)
    return None if number == -1 else number


def _memory(memory: _Object) -> Memory:
    return Memory(
        limit=memory.optional_integer("limit", -1),
        reservation=memory.optional_integer("reservation", -1),
        swap=memory.optional_integer("swap", -1),
        kernel=memory.optional_integer("kernel", -1),
        kernel_tcp=memory.optional_integer("kernelTCP", -1),
        swappiness=memory.optional_integer("swappiness", 0, 100),
        disable_oom_killer=memory.boolean("disableOOMKiller"),
        use_hierarchy=memory.optional_boolean("useHierarchy"),
        check_before_update=memory.boolean("checkBeforeUpdate"),
    )


def _cpu(cpu: _Object) -> CPU:
    return CPU(
        shares=cpu.optional_integer("shares", 0, _U64),
        quota=cpu.optional_integer("quota"),
        burst=cpu.optional_integer("burst", 0, _U64),
        period=cpu.optional_integer("period", 0, _U64),
        realtime_runtime=cpu.optional_integer("realtimeRuntime"),
        realtime_period=cpu.optional_integer("realtimePeriod", 0, _U64),
        cpus=cpu.string("cpus"),
        mems=cpu.string("mems"),
        idle=cpu.optional_integer("idle", 0, 1),
    )


def _block_io(block_io: _Object) -> BlockIO:
    return BlockIO(
        weight=block_io.optional_integer("weight", 0, 0xFFFF),
        leaf_weight=block_io.optional_integer("leafWeight", 0, 0xFFFF),
        weight_device=block_io.each("weightDevice", _weight_device),
        throttle_read_bps_device=block_io.each("throttleReadBpsDevice", _throttle_device),
        throttle_write_bps_device=block_io.each("throttleWriteBpsDevice", _throttle_device),
        throttle_read_iops_device=block_io.each("throttleReadIOPSDevice", _throttle_device),
        throttle_write_iops_device=block_io.each("throttleWriteIOPSDevice", _throttle_device),
    )


def _weight_device(device: _Object) -> WeightDevice:
    return WeightDevice(
        major=device.required_integer("major", 0),
        minor=device.required_integer("minor", 0),
        weight=device.optional_integer("weight", 0, 0xFFFF),
        leaf_weight=device.optional_integer("leafWeight", 0, 0xFFFF),
    )


def _throttle_device(device: _Object) -> ThrottleDevice:
    return ThrottleDevice(
        major=device.required_integer("major", 0),
        minor=device.required_integer("minor", 0),
        rate=device.required_integer("rate", 0, _U64),
    )


def _network_class(network: _Object) -> NetworkClass:
    return NetworkClass(
        class_id=network.optional_integer("classID", 0, _U32),
        priorities=network.each(
            "priorities",
            lambda each: InterfacePriority(each.required_string("name"), each.required_integer("priority", 0, _U32)),
        ),
    )


def _rdma_limit(device: str, limit: _Object) -> RdmaLimit:
    return RdmaLimit(
        device, limit.optional_integer("hcaHandles", 0, _U32), limit.optional_integer("hcaObjects", 0, _U32)
    )


def _seccomp(seccomp: _Object) -> Seccomp:
    return Seccomp(
        default_action=seccomp.required_string("defaultAction"),
        default_errno_ret=seccomp.optional_integer("defaultErrnoRet", 0, _U32),
        architectures=seccomp.strings("architectures"),
        flags=_SECCOMP_FLAGS if seccomp.members.get("flags") is None else seccomp.strings("flags"),
        listener_path=seccomp.string("listenerPath"),
        listener_metadata=seccomp.string("listenerMetadata"),
        syscalls=seccomp.each("syscalls", _seccomp_rule),
    )


def _seccomp_rule(rule: _Object) -> SeccompRule:
    names = rule.strings("names")
    if not names:
        raise SpecError(rule.at("names"), "is required")
    return SeccompRule(
        names=names,
        action=rule.required_string("action"),
        errno_ret=rule.optional_integer("errnoRet", 0, _U32),
        args=rule.each("args", _seccomp_arg),
    )


def _seccomp_arg(arg: _Object) -> SeccompArg:
    return SeccompArg(
        index=arg.required_integer("index", 0, 5),
        value=arg.required_integer("value", 0, _U64),
        op=arg.required_string("op"),
        value_two=arg.integer("valueTwo", 0, 0, _U64),
    )
