"""Defines the protocol between crispd and a shim: a frozen value for each call, answer and event.

`runtime.wire.frames` carries them. An answer has the number of its call. Descriptors that go with a message are in <>:

    crispd                                                                 shim
      {"id": 7, "call": "create", "container": ..., ...}  ------------------>
      <----------------------------------  {"id": 7, "ok": {...}}  or  {"id": 7, "error": {...}}
      <----------------------------------  {"event": "exit", "container": ..., ...}, to every connection

The shim takes calls in order. It answers each when its result is there, whatever other calls came meanwhile.

    MakePod                         ------>  a newly forked shim makes the pod's namespaces
                                    <------  Made
    Keep                            ------>  Done: from now on the shim has a successor if it dies
    MakeSandbox                     ------>  for gVisor: makes the sandbox, when the pod has its network
                                    <------  Done
    Create                          ------>  mounts the rootfs, finds the user
                                    <------  Created
    OpenRootfs                      ------>
                                    <------  Descriptors <rootfs>
    Prepare <seccomp filter>        ------>  config.json is there: works ahead for Start
                                    <------  Done
    Start <seccomp filter>          ------>  clones the init
                                    <------  Started, when the program runs; an error if it cannot
      Exec <stdin stdout stderr>    ------>
      WaitExecRunning               ------>
                                    <------  Descriptors <terminal, if it has one>, once the program runs
      KillExec                      ------>  Done
                                    <------  (to Exec) ExecEnded, when it has exited
      Attach <its streams>          ------>
      Sync                          ------>  Done: all earlier calls have begun
      Resize, Detach                ------>  Done
                                    <------  (to Attach) AttachEnded
      Update                        ------>  Updated
      ReopenLog, Signal, Kill       ------>  Done
      Freeze                        ------>  Done; ends with Thaw, with the connection, or after its time
      Sockets                       ------>  Descriptors <sockets in the pod's network namespace>
      Forward                       ------>  Descriptors <a connection into the pod's sandbox>
                                    <======  Exited, when the exit status is on disk
    Delete                          ------>  Done
                                    <======  InfraExited: the pod's namespaces are gone; containers are killed
    Shutdown                        ------>  ends all processes and undoes MakePod
                                    <------  Done, and the shim exits

    GetState                        ------>  from a new crispd, to the shim of an earlier one, or to a successor
                                    <------  ShimState
    Keep <socket>                   ------>  Done: its keeper was gone, and it has this new one
    WaitStart                       ------>  for each start in progress then
                                    <------  ContainerStatus

A shim lives as long as its pod and meets later crispds, and after a downgrade earlier ones. So calls and members are
only added, and keep their names (see `Value`). A shim answers an unknown call with `errors.NO_CALL`. In `abilities`,
its answers to MakePod and GetState list what it accepts in a newer form than earlier shims.
"""

from __future__ import annotations

from runtime.light import dataclass, field
from runtime.wire.values import Value, mapping_to, optional, tuple_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, ClassVar, Final

    from runtime.wire.values import Readers

UNSEEN: Final = 255  # exit code of a container whose end nobody saw
START_FAILED: Final = 128  # exit code of a container whose program never ran
FILTER_BY_DESCRIPTOR: Final = "filter-by-descriptor"  # the shim knows `Start.filter_bytes`
KEEP: Final = "keep"  # the shim knows `Keep`
# The shim knows `Renew`. Records of estates that an earlier version would read wrongly need another word.
RENEW: Final = "renew"
ABILITIES: Final = (FILTER_BY_DESCRIPTOR, KEEP, RENEW)  # of shims of this version
EXITS: Final = "exits"  # name of the directory of exit statuses in a sandbox's directory


class Call(Value):
    """A request from crispd to a shim."""

    __slots__ = ()

    call: ClassVar[str]
    answer: ClassVar[type[Answer]]


class Answer(Value):
    """A shim's answer to a call that succeeded."""

    __slots__ = ()


class Event(Value):
    """A message that a shim sends unasked."""

    __slots__ = ()

    event: ClassVar[str]


# -- the end of a container --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExitStatus(Value):
    """How a container ended. Also the content of the file `exits/<container id>`, which outlives the shim."""

    code: int  # 128 plus the signal's number if a signal ended it
    signal: int = 0
    oom: bool = False
    finished_at: int = 0  # nanoseconds since 1970
    start_failed: bool = False  # its program never ran


def exit_file(sandbox_directory: str, container: str) -> str:
    """Return the path of a container's exit status."""
    return f"{sandbox_directory}/{EXITS}/{container}"


@dataclass(frozen=True, slots=True)
class Logged(Value):
    """What became of a container's output. `lines` are records of its log: lines, and pieces of long ones."""

    bytes: int = 0
    lines: int = 0
    dropped_bytes: int = 0  # above `Start.log_rate`
    dropped_lines: int = 0
    lost_bytes: int = 0  # the log could not be written
    lost_lines: int = 0

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Logged:
        if not all(type(record.get(name, 0)) is int for name in cls.__slots__):
            raise TypeError("what was logged is counted in whole numbers")
        return cls(**{name: record[name] for name in cls.__slots__ if name in record})


@dataclass(frozen=True, slots=True)
class Exited(Event):
    """A container has exited. Not sent if its start failed, since the answer to Start says so."""

    event: ClassVar[str] = "exit"
    READ: ClassVar[Readers] = {"exit": ExitStatus.from_json, "logged": Logged.from_json}

    container: str
    exit: ExitStatus
    logged: Logged = Logged()


@dataclass(frozen=True, slots=True)
class InfraExited(Event):
    """The process that holds the pod's namespaces has exited."""

    event: ClassVar[str] = "infra-exit"


# -- answers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done(Answer):
    """The call succeeded; there is nothing to return."""


@dataclass(frozen=True, slots=True)
class Descriptors(Answer):
    """Descriptors, which travel beside the JSON. The receiver owns them."""

    fds: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True, slots=True)
class Made(Answer):
    """The pids of the shim and of the pod's infra process."""

    READ: ClassVar[Readers] = {"abilities": tuple}

    pid: int
    infra_pid: int
    abilities: tuple[str, ...] = ()
    code: str = ""  # what tells its version


@dataclass(frozen=True, slots=True)
class Identity(Value):
    """A process's numeric ids. `additional_gids` starts with the primary group, as CRI reports it."""

    READ: ClassVar[Readers] = {"additional_gids": tuple}

    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class Created(Answer):
    """The ids that the container's process will get. `holder` is a placeholder's pid with `Create.hold`, else 0."""

    identity: Identity
    holder: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**self.identity.to_json(), "holder": self.holder}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Created:
        return cls(Identity.from_json(record), record.get("holder", 0))


@dataclass(frozen=True, slots=True)
class Started(Answer):
    """The init's pid, its start time, warnings about the start, and the timed steps of a traced start."""

    READ: ClassVar[Readers] = {"warnings": tuple, "steps": lambda steps: tuple(map(tuple, steps))}

    pid: int
    started_at: int  # nanoseconds since 1970
    warnings: tuple[str, ...] = ()
    steps: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ExecEnded(Answer):
    """The exit code of an exec, or 128 plus the number of the signal that ended it."""

    code: int


@dataclass(frozen=True, slots=True)
class AttachEnded(Answer):
    """The container's exit code; None if the client was detached before."""

    code: int | None = None


@dataclass(frozen=True, slots=True)
class Updated(Answer):
    """Warnings about an update."""

    READ: ClassVar[Readers] = {"warnings": tuple}

    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerStatus(Answer):
    """The status of one container of a shim. `state` is one of `runtime.wire.states`."""

    READ: ClassVar[Readers] = {"exit": optional(ExitStatus), "logged": Logged.from_json}

    state: str
    pid: int = 0
    started_at: int = 0  # nanoseconds since 1970, 0 for one that never ran
    exit: ExitStatus | None = None
    logged: Logged = Logged()


@dataclass(frozen=True, slots=True)
class ShimState(Answer):
    """All state of a shim. `containers` is by id."""

    READ: ClassVar[Readers] = {"containers": mapping_to(ContainerStatus), "abilities": tuple}

    pid: int
    infra_pid: int
    infra_alive: bool
    containers: Mapping[str, ContainerStatus]
    abilities: tuple[str, ...] = ()
    kept: bool = False  # it has a lasting keeper, and so a successor if it dies
    code: str = ""  # what tells its version


# -- sleep -------------------------------------------------------------------------------------------------------------

ZYGOTE_NAME: Final = "crisp-zygote"  # as PR_SET_NAME has it
SECOND_KEEPER_NAME: Final = "crisp-keeper"


@dataclass(frozen=True, slots=True)
class Asleep(Event):
    """The shim has nothing to do, and leaves. The next call, or what happens in the pod, starts a successor."""

    event: ClassVar[str] = "asleep"
    READ: ClassVar[Readers] = {"state": ShimState.from_json}

    state: ShimState
    keeper: int = 0  # pid of who starts it


@dataclass(frozen=True, slots=True)
class Awake(Event):
    """The pod of a shim that slept has a successor, with this pid."""

    event: ClassVar[str] = "awake"

    pid: int


# -- calls for the pod -------------------------------------------------------------------------------------------------

IDLines = tuple[tuple[int, int, int], ...]  # as in uid_map of user_namespaces(7): id inside, id outside, size


def _lines(lines: list[list[int]]) -> object:
    return tuple(map(tuple, lines))


@dataclass(frozen=True, slots=True)
class UserMappings(Value):
    """The id mappings of a pod's user namespace."""

    READ: ClassVar[Readers] = {"uids": _lines, "gids": _lines}

    uids: IDLines
    gids: IDLines


@dataclass(frozen=True, slots=True)
class MakePod(Call):
    """Create a pod's namespaces, infra process and /dev/shm. The first call to a shim."""

    call: ClassVar[str] = "pod"
    answer: ClassVar[type[Made]] = Made
    READ: ClassVar[Readers] = {"new": tuple, "users": optional(UserMappings)}

    sandbox: str  # the pod's id
    directory: str  # directory of the sandbox's state; it exists
    hostname: str
    sysctls: Mapping[str, str]
    new: tuple[str, ...]  # which of "network", "ipc", "uts", "pid" are new for the pod
    netns: str  # where to pin the network namespace, "" not to
    shm_size: int  # bytes of the pod's /dev/shm, 0 for none
    default_sysctls: Mapping[str, str] = field(default_factory=dict)  # skipped if the kernel lacks them
    users: UserMappings | None = None  # for a new user namespace, which owns the other new namespaces
    last_pid: int = 0  # new processes in a new PID namespace get larger pids than this one


@dataclass(frozen=True, slots=True)
class Keep(Call):
    """Deposit what a successor needs: with the keeper whose socket is sent along, or with that of the shim's birth.

    Until then the pod ends with its shim: MakePod may have failed for a caller who did not get its answer.
    """

    call: ClassVar[str] = "keep"
    answer: ClassVar[type[Done]] = Done

    sleeps: bool = False  # that keeper knows of sleep


@dataclass(frozen=True, slots=True)
class Renew(Call):
    """Deposit with a keeper of another version, whose socket is sent along, and leave.

    The successor, which has that version, answers. An error says why the shim stays.
    """

    call: ClassVar[str] = "renew"
    answer: ClassVar[type[ShimState]] = ShimState


@dataclass(frozen=True, slots=True)
class ExternalRuntime(Value):
    """Another OCI runtime: its program, its state directory, and whether systemd makes its cgroups.

    Older shims accept exactly these members. Put new ones into `Create`.
    """

    path: str
    root: str
    systemd: bool


@dataclass(frozen=True, slots=True)
class MakeSandbox(Call):
    """Let a runtime with sandboxes make the pod's, before the first container."""

    call: ClassVar[str] = "sandbox"
    answer: ClassVar[type[Done]] = Done
    READ: ClassVar[Readers] = {"runtime": ExternalRuntime.from_json, "flags": tuple}

    sandbox: str  # the pod's id
    bundle: str  # directory of the config.json of the sandbox's own container
    runtime: ExternalRuntime
    flags: tuple[str, ...]  # for every command
    cgroup: str  # the cgroup of the sandbox's processes, which the runtime will make


@dataclass(frozen=True, slots=True)
class Forward(Call):
    """Get a stream socket that is connected to a TCP port on the loopback interface in the pod's sandbox."""

    call: ClassVar[str] = "forward"
    answer: ClassVar[type[Descriptors]] = Descriptors

    port: int


@dataclass(frozen=True, slots=True)
class GetState(Call):
    call: ClassVar[str] = "state"
    answer: ClassVar[type[ShimState]] = ShimState


@dataclass(frozen=True, slots=True)
class Sockets(Call):
    """Get TCP sockets in the pod's network namespace: IPv4, and IPv6 if there is any."""

    call: ClassVar[str] = "sockets"
    answer: ClassVar[type[Descriptors]] = Descriptors


@dataclass(frozen=True, slots=True)
class Sync(Call):
    """Get an answer as soon as all earlier calls have begun."""

    call: ClassVar[str] = "sync"
    answer: ClassVar[type[Done]] = Done


@dataclass(frozen=True, slots=True)
class Freeze(Call):
    """Freeze containers until `Thaw`, for at most `seconds`, and no longer than the caller is connected."""

    call: ClassVar[str] = "freeze"
    answer: ClassVar[type[Done]] = Done
    READ: ClassVar[Readers] = {"containers": tuple}

    containers: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Thaw(Call):
    """Thaw what the same connection has frozen."""

    call: ClassVar[str] = "thaw"
    answer: ClassVar[type[Done]] = Done


@dataclass(frozen=True, slots=True)
class Shutdown(Call):
    """End all processes, undo `MakePod`, and exit."""

    call: ClassVar[str] = "shutdown"
    answer: ClassVar[type[Done]] = Done


# -- calls for a container ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UserRequest(Value):
    """The user to look up inside a rootfs (`runtime.process.users.resolve`)."""

    READ: ClassVar[Readers] = {"supplemental": tuple}

    user: str  # "", "1000", "www-data:1004"
    group: int | None = None
    supplemental: tuple[int, ...] = ()
    merge: bool = True  # add the user's groups in the image's /etc/group


@dataclass(frozen=True, slots=True)
class MountPoint(Value):
    """A mount that will be made. Its destination in the image must be of the same kind, directory or file."""

    source: str  # as errors name it
    destination: str
    directory: bool
    tree: str = ""  # if it comes from a mounted image: the image's name, which tells the kind
    field: str = ""  # field of the request, as errors name it


@dataclass(frozen=True, slots=True)
class ImageMount(Value):
    """An image to mount as a volume: its layers, topmost first, and the path in it."""

    READ: ClassVar[Readers] = {"lower": tuple}

    lower: tuple[str, ...]
    sub_path: str
    label: str = ""  # SELinux label of its files


@dataclass(frozen=True, slots=True)
class Create(Call):
    """Mount a container's rootfs and its image volumes, and look up its user."""

    call: ClassVar[str] = "create"
    answer: ClassVar[type[Created]] = Created
    READ: ClassVar[Readers] = {
        "lower": tuple,
        "user": UserRequest.from_json,
        "mount_points": tuple_of(MountPoint),
        "images": mapping_to(ImageMount),
        "runtime": optional(ExternalRuntime),
        "flags": tuple,
    }

    container: str
    bundle: str  # directory of the future config.json
    lower: tuple[str, ...]  # the image's layers, topmost first
    upper: str
    work: str
    user: UserRequest
    mount_points: tuple[MountPoint, ...] = ()
    images: Mapping[str, ImageMount] = field(default_factory=dict)  # by the source in config.json
    hold: bool = False  # start a placeholder process for a systemd scope
    label: str = ""  # SELinux label of the rootfs
    restored: bool = False  # the container is restored by criu
    runtime: ExternalRuntime | None = None  # another runtime; None for crisp's own
    cgroup: str = ""  # with `runtime`: the cgroup that it will make; in a sandbox, which has its own, crisp makes it
    flags: tuple[str, ...] = ()  # with `runtime`: for every command


@dataclass(frozen=True, slots=True)
class OpenRootfs(Call):
    """Get the rootfs of a container that was not started."""

    call: ClassVar[str] = "rootfs"
    answer: ClassVar[type[Descriptors]] = Descriptors

    container: str


@dataclass(frozen=True, slots=True)
class Prepare(Call):
    """Do for a created container what its start can find done. Nothing depends on it, and a shim may not know it.

    The members are as in `Start`. If the start's are others then, or config.json is, the start does all itself.
    """

    call: ClassVar[str] = "prepare"
    answer: ClassVar[type[Done]] = Done

    container: str
    stdin: bool = False
    filter_bytes: int = 0
    filter_flags: int = 0


@dataclass(frozen=True, slots=True)
class Start(Call):
    """Start the program of config.json under a seccomp filter.

    The filter's program is in a file passed as a descriptor. A shim without the ability FILTER_BY_DESCRIPTOR gets it in
    base64: it would ignore a member that it does not know, and run the container without a filter. Shims accept both
    forms, because after a downgrade an earlier crispd starts containers.
    """

    call: ClassVar[str] = "start"
    answer: ClassVar[type[Started]] = Started

    container: str
    log: str  # path of the log, "" for none
    log_trusted: str = ""  # no links are followed below this directory on the log's path
    stdin: bool = False
    stdin_once: bool = False
    filter_bytes: int = 0  # length of the program in the descriptor's file; 0 for none
    filter: str = ""  # the program in base64
    filter_flags: int = 0  # of seccomp(2)
    trace: bool = False
    restore: str = ""  # directory of criu's images, if the container is restored
    work: str = ""  # directory of criu's log
    criu: str = ""  # path of criu, found by crispd, which has the operator's PATH
    log_limit: int = 0  # bytes after which a new log is begun; 0 for none
    log_rate: int = 0  # bytes a second above which output is dropped; 0 for none


@dataclass(frozen=True, slots=True)
class WaitStart(Call):
    """Get the status of a container once no start of it is in progress."""

    call: ClassVar[str] = "wait-start"
    answer: ClassVar[type[ContainerStatus]] = ContainerStatus

    container: str


@dataclass(frozen=True, slots=True)
class Update(Call):
    """Change the limits of a running container, all or none. Does nothing for one that has exited."""

    call: ClassVar[str] = "update"
    answer: ClassVar[type[Updated]] = Updated

    container: str
    resources: Mapping[str, object] | None  # as linux.resources of config.json; None reverts the last update
    oom_score_adj: int = 0  # 0 does not change the processes' scores
    again: bool = False  # repeat the last update after another program wrote to the files


@dataclass(frozen=True, slots=True)
class ReopenLog(Call):
    """Continue the log in a new file at its path."""

    call: ClassVar[str] = "reopen-log"
    answer: ClassVar[type[Done]] = Done

    container: str


@dataclass(frozen=True, slots=True)
class Signal(Call):
    """Send a signal to a container's init. Does nothing if it is gone."""

    call: ClassVar[str] = "signal"
    answer: ClassVar[type[Done]] = Done

    container: str
    signal: int


@dataclass(frozen=True, slots=True)
class Kill(Call):
    """Kill every process of a container."""

    call: ClassVar[str] = "kill"
    answer: ClassVar[type[Done]] = Done

    container: str


@dataclass(frozen=True, slots=True)
class Delete(Call):
    """Release everything of a container that does not run. Unknown containers are no error."""

    call: ClassVar[str] = "delete"
    answer: ClassVar[type[Done]] = Done

    container: str


# -- calls for an exec, and for a client attached ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exec(Call):
    """Run another process in a container, with the descriptors as its streams or with a new terminal.

    With `bound` it is killed when the connection ends that the call came by.
    """

    call: ClassVar[str] = "exec"
    answer: ClassVar[type[ExecEnded]] = ExecEnded
    READ: ClassVar[Readers] = {"args": tuple}

    container: str
    exec: str  # key of the exec within the container
    args: tuple[str, ...]
    terminal: bool = False
    bound: bool = False


@dataclass(frozen=True, slots=True)
class WaitExecRunning(Call):
    """Get an exec's terminal when its program runs, or an error if it never will."""

    call: ClassVar[str] = "wait-exec-running"
    answer: ClassVar[type[Descriptors]] = Descriptors

    container: str
    exec: str


@dataclass(frozen=True, slots=True)
class KillExec(Call):
    """Kill an exec's process and everything that it started."""

    call: ClassVar[str] = "kill-exec"
    answer: ClassVar[type[Done]] = Done

    container: str
    exec: str


@dataclass(frozen=True, slots=True)
class Attach(Call):
    """Connect a client to the running container's streams: one descriptor for each of `streams`, in order."""

    call: ClassVar[str] = "attach"
    answer: ClassVar[type[AttachEnded]] = AttachEnded
    READ: ClassVar[Readers] = {"streams": tuple}

    container: str
    attach: str  # key of the client within the container
    streams: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Detach(Call):
    """End a client's attachment, if there is one."""

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
        MakePod, Keep, Renew, MakeSandbox, GetState, Sockets, Forward, Sync, Freeze, Thaw, Shutdown,
        Create, OpenRootfs, Prepare, Start, WaitStart, Update, ReopenLog, Signal, Kill, Delete,
        Exec, WaitExecRunning, KillExec, Attach, Detach, Resize,
    )
}  # fmt: skip

EVENTS: Final[Mapping[str, type[Event]]] = {kind.event: kind for kind in (Exited, InfraExited, Asleep, Awake)}


def read_event(message: Mapping[str, Any]) -> Event | None:
    """Decode an event. None for one that this version does not know."""
    kind = EVENTS.get(message["event"]) if "event" in message else None
    return kind.from_json(message) if kind is not None else None
