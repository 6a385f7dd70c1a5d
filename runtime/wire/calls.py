"""What crispd and a shim say to each other: a frozen value for each call, its answer, and each event.

`runtime.wire.frames` carries them. A call has a number, which its answer has too; descriptors go with what is in <>:

    crispd                                                                 shim
      {"id": 7, "call": "create", "container": ..., ...}  ------------------>
      <----------------------------------  {"id": 7, "ok": {...}}  or  {"id": 7, "error": {...}}
      <----------------------------------  {"event": "exit", "container": ..., ...}, to every connection

Calls are taken in their order; each is answered when there is something to say, whatever else was called meanwhile.

    MakePod                         ------>  a shim that the zygote has just forked makes the pod's namespaces
                                    <------  Made
    Create                          ------>  mounts the rootfs, finds the user
                                    <------  Created
    OpenRootfs                      ------>
                                    <------  Descriptors <rootfs>
    Start <seccomp filter>          ------>  clones the init
                                    <------  Started, once the program runs; an error when it never will
      Exec <stdin stdout stderr>    ------>
      WaitExecRunning               ------>
                                    <------  Descriptors <terminal, if it has one>, once the program runs
      KillExec                      ------>  Done
                                    <------  (to Exec) ExecEnded, when it has ended
      Attach <its streams>          ------>
      Sync                          ------>  Done: what was called before has begun
      Resize, Detach                ------>  Done
                                    <------  (to Attach) AttachEnded
      Update                        ------>  Updated
      ReopenLog, Signal, Kill       ------>  Done
      Freeze                        ------>  Done; the containers go on with Thaw, with the connection, or in time
      Sockets                       ------>  Descriptors <sockets in the pod's network namespace>
                                    <======  Exited, when the exit status is on disk
    Delete                          ------>  Done
                                    <======  InfraExited: the pod's namespaces are gone; its containers are killed
    Shutdown                        ------>  ends what runs, and undoes MakePod
                                    <------  Done, and the shim leaves

    GetState                        ------>  of a crispd that finds the shim of an earlier one
                                    <------  ShimState
    WaitStart                       ------>  for each start that was under way then
                                    <------  ContainerStatus

A shim lives as long as its pod and meets later crispds, and after a downgrade earlier ones: calls and members are only
ever added, and keep their names (see `Value`). A shim answers a call that it does not know with `errors.NO_CALL`, and
its answers to MakePod and GetState name as `abilities` what it can be given in another way than its forebears.
"""

from __future__ import annotations

from runtime.light import dataclass, field
from runtime.wire.values import Value, mapping_to, optional, tuple_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar, Final

    from runtime.wire.values import Readers

START_FAILED: Final = 128  # the exit code of a container whose program never ran
FILTER_BY_DESCRIPTOR: Final = "filter-by-descriptor"  # `Start.filter_bytes`
ABILITIES: Final = (FILTER_BY_DESCRIPTOR,)  # of this version's shims
EXITS: Final = "exits"  # the directory of exit statuses, in a sandbox's


class Call(Value):
    """What crispd asks of a shim."""

    __slots__ = ()

    call: ClassVar[str]
    answer: ClassVar[type[Answer]]


class Answer(Value):
    """What a shim answers if it does not fail."""

    __slots__ = ()


class Event(Value):
    """What a shim says unasked."""

    __slots__ = ()

    event: ClassVar[str]


# -- the end of a container --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExitStatus(Value):
    """How a container ended; also what the file `exits/<container id>` holds, which outlives the shim."""

    code: int  # 128 and the signal's number for one that a signal ended
    signal: int = 0
    oom: bool = False
    finished_at: int = 0  # nanoseconds since 1970
    start_failed: bool = False  # its program never ran


def exit_file(sandbox_directory: str, container: str) -> str:
    """The path of a container's exit status."""
    return f"{sandbox_directory}/{EXITS}/{container}"


@dataclass(frozen=True, slots=True)
class Exited(Event):
    """A container has ended. Not of one whose start failed: the start's answer says so."""

    event: ClassVar[str] = "exit"
    READ: ClassVar[Readers] = {"exit": ExitStatus.from_json}

    container: str
    exit: ExitStatus


@dataclass(frozen=True, slots=True)
class InfraExited(Event):
    """The process that holds the pod's namespaces has ended."""

    event: ClassVar[str] = "infra-exit"


# -- answers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done(Answer):
    """Nothing to tell."""


@dataclass(frozen=True, slots=True)
class Descriptors(Answer):
    """They travel beside the JSON, and are the receiver's."""

    fds: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True, slots=True)
class Made(Answer):
    """The shim's pid and that of the pod's infra process."""

    READ: ClassVar[Readers] = {"abilities": tuple}

    pid: int
    infra_pid: int
    abilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Identity(Value):
    """Numeric identity; `additional_gids` starts with the primary group, as CRI reports it."""

    READ: ClassVar[Readers] = {"additional_gids": tuple}

    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class Created(Answer):
    """Whom the container's process will run as, and the pid of a process that waits for a scope, 0 without `hold`."""

    identity: Identity
    holder: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**self.identity.to_json(), "holder": self.holder}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Created:
        return cls(Identity.from_json(record), record.get("holder", 0))


@dataclass(frozen=True, slots=True)
class Started(Answer):
    """The init's pid, when it ran, what did not go quite as asked, and of a traced start the steps with their times."""

    READ: ClassVar[Readers] = {"warnings": tuple, "steps": lambda steps: tuple(map(tuple, steps))}

    pid: int
    started_at: int  # nanoseconds since 1970
    warnings: tuple[str, ...] = ()
    steps: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ExecEnded(Answer):
    """A command's exit code, 128 and the signal's number for one that a signal ended."""

    code: int


@dataclass(frozen=True, slots=True)
class AttachEnded(Answer):
    """The container's exit code; None for a client that was detached before."""

    code: int | None = None


@dataclass(frozen=True, slots=True)
class Updated(Answer):
    """What of an update did not go quite as asked."""

    READ: ClassVar[Readers] = {"warnings": tuple}

    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerStatus(Answer):
    """One of a shim's containers; `state` is one of `runtime.wire.states`."""

    READ: ClassVar[Readers] = {"exit": optional(ExitStatus)}

    state: str
    pid: int = 0
    started_at: int = 0  # nanoseconds since 1970, 0 for one that never ran
    exit: ExitStatus | None = None


@dataclass(frozen=True, slots=True)
class ShimState(Answer):
    """All that a shim has, by the containers' ids."""

    READ: ClassVar[Readers] = {"containers": mapping_to(ContainerStatus), "abilities": tuple}

    pid: int
    infra_pid: int
    infra_alive: bool
    containers: Mapping[str, ContainerStatus]
    abilities: tuple[str, ...] = ()


# -- calls for the pod -------------------------------------------------------------------------------------------------

IDLines = tuple[tuple[int, int, int], ...]  # as uid_map of user_namespaces(7): id inside, id outside, how many


def _lines(lines: list[list[int]]) -> object:
    return tuple(map(tuple, lines))


@dataclass(frozen=True, slots=True)
class UserMappings(Value):
    """Which ids of the host those of a pod's user namespace are."""

    READ: ClassVar[Readers] = {"uids": _lines, "gids": _lines}

    uids: IDLines
    gids: IDLines


@dataclass(frozen=True, slots=True)
class MakePod(Call):
    """Make a pod's namespaces, its infra process and its /dev/shm; a shim's first call."""

    call: ClassVar[str] = "pod"
    answer: ClassVar[type[Made]] = Made
    READ: ClassVar[Readers] = {"new": tuple, "users": optional(UserMappings)}

    sandbox: str  # its id
    directory: str  # of the sandbox's state; it exists
    hostname: str
    sysctls: Mapping[str, str]
    new: tuple[str, ...]  # which of "network", "ipc", "uts", "pid" the pod has of its own
    netns: str  # where to pin the network namespace, "" not to
    shm_size: int  # bytes of the pod's /dev/shm, 0 for none
    default_sysctls: Mapping[str, str] = field(default_factory=dict)  # which are no loss where the kernel has them not
    users: UserMappings | None = None  # of the pod's user namespace, which owns the other new ones


@dataclass(frozen=True, slots=True)
class GetState(Call):
    call: ClassVar[str] = "state"
    answer: ClassVar[type[ShimState]] = ShimState


@dataclass(frozen=True, slots=True)
class Sockets(Call):
    """Ask for TCP sockets in the pod's network namespace: IPv4, and where there is any IPv6."""

    call: ClassVar[str] = "sockets"
    answer: ClassVar[type[Descriptors]] = Descriptors


@dataclass(frozen=True, slots=True)
class Sync(Call):
    """Ask for an answer: the calls before it have begun then."""

    call: ClassVar[str] = "sync"
    answer: ClassVar[type[Done]] = Done


@dataclass(frozen=True, slots=True)
class Freeze(Call):
    """Stop containers until `Thaw`, for some seconds at most, and no longer than the caller is connected."""

    call: ClassVar[str] = "freeze"
    answer: ClassVar[type[Done]] = Done
    READ: ClassVar[Readers] = {"containers": tuple}

    containers: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Thaw(Call):
    """Let go on what the same connection has frozen."""

    call: ClassVar[str] = "thaw"
    answer: ClassVar[type[Done]] = Done


@dataclass(frozen=True, slots=True)
class Shutdown(Call):
    """End everything, undo `MakePod`, and leave."""

    call: ClassVar[str] = "shutdown"
    answer: ClassVar[type[Done]] = Done


# -- calls for a container ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UserRequest(Value):
    """Whom to look up inside a rootfs (`runtime.process.users.resolve`)."""

    READ: ClassVar[Readers] = {"supplemental": tuple}

    user: str  # "", "1000", "www-data:1004"
    group: int | None = None
    supplemental: tuple[int, ...] = ()
    merge: bool = True  # add the groups that the image's /etc/group gives the user


@dataclass(frozen=True, slots=True)
class MountPoint(Value):
    """A mount to come, by which the image is asked whether its place is of the same kind."""

    source: str  # as errors name it
    destination: str
    directory: bool
    tree: str = ""  # the name of the mounted image that it is of, which tells its kind
    field: str = ""  # of the request, as errors name it


@dataclass(frozen=True, slots=True)
class ImageMount(Value):
    """An image that is mounted as a volume: its layers, topmost first, and the path in it."""

    READ: ClassVar[Readers] = {"lower": tuple}

    lower: tuple[str, ...]
    sub_path: str


@dataclass(frozen=True, slots=True)
class ExternalRuntime(Value):
    """Another OCI runtime: its program, the directory of its state, and whether it has systemd make cgroups.

    Shims before this module take these members and no others: what is added goes into `Create`.
    """

    path: str
    root: str
    systemd: bool


@dataclass(frozen=True, slots=True)
class Create(Call):
    """Mount a container's rootfs and the images among its volumes, and look up its user."""

    call: ClassVar[str] = "create"
    answer: ClassVar[type[Created]] = Created
    READ: ClassVar[Readers] = {
        "lower": tuple,
        "user": UserRequest.from_json,
        "mount_points": tuple_of(MountPoint),
        "images": mapping_to(ImageMount),
        "runtime": optional(ExternalRuntime),
    }

    container: str
    bundle: str  # the directory in which config.json will be
    lower: tuple[str, ...]  # the image's layers, topmost first
    upper: str
    work: str
    user: UserRequest
    mount_points: tuple[MountPoint, ...] = ()
    images: Mapping[str, ImageMount] = field(default_factory=dict)  # by the source that stands for each in config.json
    hold: bool = False  # have a process wait for a scope to be made around it
    label: str = ""  # SELinux's, of the rootfs
    restored: bool = False  # criu will make the processes
    runtime: ExternalRuntime | None = None  # that makes the container; None for crisp's own
    cgroup: str = ""  # with `runtime`: the cgroup that it will make


@dataclass(frozen=True, slots=True)
class OpenRootfs(Call):
    """Ask for the rootfs of a container that was not started."""

    call: ClassVar[str] = "rootfs"
    answer: ClassVar[type[Descriptors]] = Descriptors

    container: str


@dataclass(frozen=True, slots=True)
class Start(Call):
    """Run what config.json says, under a seccomp filter.

    The filter's program comes in a file by descriptor. To a shim whose answers name no FILTER_BY_DESCRIPTOR it goes in
    base64: the shim would pass over a member that it does not know, and the container would run without a filter.
    Shims take both, for after a downgrade it is an earlier crispd that starts containers.
    """

    call: ClassVar[str] = "start"
    answer: ClassVar[type[Started]] = Started

    container: str
    log: str  # path of the log, "" for none
    log_trusted: str = ""  # the directory that the log's path is followed from without links
    stdin: bool = False
    stdin_once: bool = False
    filter_bytes: int = 0  # how long the program is that the descriptor has; 0 for none
    filter: str = ""  # the program in base64
    filter_flags: int = 0  # of seccomp(2)
    trace: bool = False
    restore: str = ""  # of a container that is restored: the directory of criu's images
    work: str = ""  # one for criu's log
    criu: str = ""  # and its program, as crispd finds it, whose PATH is the operator's


@dataclass(frozen=True, slots=True)
class WaitStart(Call):
    """Ask for the status of a container once no start of it is under way."""

    call: ClassVar[str] = "wait-start"
    answer: ClassVar[type[ContainerStatus]] = ContainerStatus

    container: str


@dataclass(frozen=True, slots=True)
class Update(Call):
    """Change the limits of a running container, all or none; one that has exited needs none."""

    call: ClassVar[str] = "update"
    answer: ClassVar[type[Updated]] = Updated

    container: str
    resources: Mapping[str, object] | None  # in the terms of config.json's linux.resources; None takes the last back
    oom_score_adj: int = 0  # 0 leaves the processes' alone
    again: bool = False  # the same as just before, after somebody else wrote to the files


@dataclass(frozen=True, slots=True)
class ReopenLog(Call):
    """Go on in a new file at the log's path."""

    call: ClassVar[str] = "reopen-log"
    answer: ClassVar[type[Done]] = Done

    container: str


@dataclass(frozen=True, slots=True)
class Signal(Call):
    """Send a signal to a container's init; nothing happens when it is gone."""

    call: ClassVar[str] = "signal"
    answer: ClassVar[type[Done]] = Done

    container: str
    signal: int


@dataclass(frozen=True, slots=True)
class Kill(Call):
    """End every process of a container."""

    call: ClassVar[str] = "kill"
    answer: ClassVar[type[Done]] = Done

    container: str


@dataclass(frozen=True, slots=True)
class Delete(Call):
    """Let go of all that is left of a container that does not run; one that the shim does not have is fine."""

    call: ClassVar[str] = "delete"
    answer: ClassVar[type[Done]] = Done

    container: str


# -- calls for an exec, and for a client attached ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exec(Call):
    """Run another process in a container, with the descriptors as its streams, or with a terminal of its own."""

    call: ClassVar[str] = "exec"
    answer: ClassVar[type[ExecEnded]] = ExecEnded
    READ: ClassVar[Readers] = {"args": tuple}

    container: str
    exec: str  # its key among the container's
    args: tuple[str, ...]
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class WaitExecRunning(Call):
    """Ask for an exec's terminal once its program runs, or never will."""

    call: ClassVar[str] = "wait-exec-running"
    answer: ClassVar[type[Descriptors]] = Descriptors

    container: str
    exec: str


@dataclass(frozen=True, slots=True)
class KillExec(Call):
    """End an exec'd process and all that it started."""

    call: ClassVar[str] = "kill-exec"
    answer: ClassVar[type[Done]] = Done

    container: str
    exec: str


@dataclass(frozen=True, slots=True)
class Attach(Call):
    """Give a client the running container's streams: a descriptor for each of `streams`, in their order."""

    call: ClassVar[str] = "attach"
    answer: ClassVar[type[AttachEnded]] = AttachEnded
    READ: ClassVar[Readers] = {"streams": tuple}

    container: str
    attach: str  # its key among the container's
    streams: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Detach(Call):
    """End a client's attachment if there is one."""

    call: ClassVar[str] = "detach"
    answer: ClassVar[type[Done]] = Done

    container: str
    attach: str


@dataclass(frozen=True, slots=True)
class Resize(Call):
    """Set the size of a container's terminal, in characters."""

    call: ClassVar[str] = "resize"
    answer: ClassVar[type[Done]] = Done

    container: str
    width: int
    height: int


# -- the tables --------------------------------------------------------------------------------------------------------

CALLS: Final[Mapping[str, type[Call]]] = {
    kind.call: kind
    for kind in (
        MakePod, GetState, Sockets, Sync, Freeze, Thaw, Shutdown,
        Create, OpenRootfs, Start, WaitStart, Update, ReopenLog, Signal, Kill, Delete,
        Exec, WaitExecRunning, KillExec, Attach, Detach, Resize,
    )
}  # fmt: skip

EVENTS: Final[Mapping[str, type[Event]]] = {kind.event: kind for kind in (Exited, InfraExited)}


def read_event(message: Mapping[str, Any]) -> Event | None:
    """The event that a message is; None for one that this version does not know."""
    kind = EVENTS.get(message["event"]) if "event" in message else None
    return kind.from_json(message) if kind is not None else None
