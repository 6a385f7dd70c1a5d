"""Writes an exec's way into its container as a list of system calls (runtime/process/script.py).

The list does what `runtime.process.join` does in a forked interpreter. Up to three processes execute it, and none has
anything of the shim's memory:

    first    on the host: joins the version 1 cgroups, sets affinity and keyring, and clones the second into the
             version 2 cgroup, which needs root
    second   joins all namespaces, takes the container's null device, working directory, user, capabilities and filter,
             and clones the third into the PID namespace
    third    is visible in the container from its birth (CVE-2016-9962): begins a session, finds the program, execve

Without a version 2 cgroup the first does the second's part too; without a PID namespace the second does the third's.
A process in the container's memory cgroup must not share the shim's memory: if the kernel kills it for the container's
memory limit, it kills everybody who shares its memory.

Each process reports the one it clones to the shim before that one continues. `runtime.process.become` explains the
order of the steps. Execs of a container usually differ only in their arguments, so the rest of the list is made once.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

from linux import capabilities as sets
from linux import syscalls
from runtime.errors import OperationFailed, RuntimeCoreError
from runtime.light import replace, signal, socket
from runtime.process import capabilities
from runtime.process.explanations import NoProgram, fixed
from runtime.process.explanations import decode as decode_names
from runtime.process.explanations import encode as encode_names
from runtime.process.join import Join, namespace_flags
from runtime.process.labelling import write_labels
from runtime.process.refusal import Refusal, report_refusal
from runtime.process.script import BASE, CHANNEL, EVERY_ERROR, Entry, Script, fits
from runtime.seccomp.passage import Passage
from runtime.spec import values as oci
from runtime.wire.reports import Undone, birth_by_list, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Final

    from runtime.process.script import About

_INIT: Final = 4  # the pidfd of the container's init
_FIRST_FREE: Final = 5
_ALL: Final = 2**64 - 1
_MOST_ERRORS: Final = 4095
_NULL: Final = os.makedev(1, 3)
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_MSG_NOSIGNAL: Final = 0x4000
_X_OK: Final = 1
_F_SETFD, _FD_CLOEXEC = 2, 1
_STATX_BASIC: Final = 0x7FF
_STATX_BYTES, _MODE_AT, _MODE_SHIFT, _RDEV_AT = 256, 24, 32, 128  # struct statx: the mode is the upper half of a word
_REGULAR: Final = stat.S_IFREG << _MODE_SHIFT
_CPU_MASK_BYTES: Final = 1024
_PATH_MAX: Final = 4096
OOM_SCORE: Final = "/proc/self/oom_score_adj"
_LIBRARYS_SIGNALS: Final = (32, 33)  # which glibc's posix_spawn has the child ignore
_NO_KEYRINGS: Final = (errno.ENOSYS, errno.EPERM, errno.EDQUOT)
_REFUSED: Final = (errno.EACCES, errno.EPERM)


def obstacle(join: Join) -> str:
    """Return why this exec needs a forked interpreter; "" if a list can do it. Only this function decides that."""
    process = join.process
    environment = [entry.partition("=") for entry in process.env]
    home = next((value for name, _, value in reversed(environment) if name == "HOME"), "")
    for reason, holds in (
        ("it has a terminal", process.terminal),
        ("it waits at a gate, or gets descriptors", join.gate is not None or join.preserved),
        ("it has resource limits", process.rlimits),
        ("it is scheduled in a way of its own", process.scheduler or process.io_priority or process.exec_cpu_affinity),
        ("it has a memory policy or a personality", join.spec.linux.memory_policy or join.spec.linux.personality),
        ("its filter has a listener", join.filter_flags & syscalls.SECCOMP_NEW_LISTENER),
        ("its HOME is to be looked up", not home),
        ("it has variables without a name or a value", not all(name and sign for name, sign, _ in environment)),
        ("it has capabilities that crisp lacks", _lacks(join)),
    ):
        if holds:
            return reason
    return ""


def leave_if_orphaned(script: Script) -> None:
    """Append a look whether the shim lives, which may have died before the process asked to die with it."""
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
    asked = script.call("recvfrom", CHANNEL, script.room(8), 1, flags, about=("ask", "the shim"), allow=(errno.EAGAIN,))
    orphaned = script.take(asked.zero)
    goes_on = script.open_ways()
    script.put(orphaned)
    script.call("exit_group", 1, about=None)
    script.end()
    script.put(*goes_on)


def is_null_device(fd: int) -> bool:
    status = os.fstat(fd)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL


def _lacks(join: Join) -> bool:
    wanted = join.process.capabilities
    if wanted is None:
        return False
    permitted, effective = (capabilities.mask(names) for names in (wanted.permitted, wanted.effective))
    return bool((permitted & ~_has(join) | effective & ~permitted) & capabilities.known())


def _has(join: Join) -> int:
    """Return the second process's permitted capabilities. It has all in a user namespace that it has just joined."""
    return capabilities.known() if join.mappings is not None else sets.current()[1]


class Joining:
    """Makes the lists of execs that differ only in their arguments."""

    _name = "crisp-exec"

    def __init__(self, join: Join, null_streams: Sequence[int], first_free: int = _FIRST_FREE) -> None:
        """`null_streams` are the standard streams that are the host's /dev/null."""
        self._join = join
        self._first_free = first_free
        self._null_streams = null_streams
        self._script = Script()
        self._filter_at = 0
        self._late_filter: tuple[int, ...] = ()
        self._given_up_late: tuple[int, int] | None = None
        self._last: tuple[tuple[str, ...], Script] | None = None
        self._environment = self._cwd = self._place = 0
        self.births = self._count_births()
        self._plan()

    def _count_births(self) -> int:
        return int(bool(self._join.cgroup.unified)) + int(self._join.bears)

    def list_for(self, args: tuple[str, ...]) -> Program | None:
        """Return the list that executes these arguments. None if it would be too long, or no program can get them."""
        if not args or any("\0" in argument for argument in args):
            return None  # the forked interpreter reports what is wrong with them
        if self._last is None or self._last[0] != args:
            script = self._script.copy()
            self._find_and_execute(script, args)
            self._last = args, script
        script = self._last[1]
        if not fits(script.image):
            self._last = None
            return None
        image = script.finished()
        if script.passing:
            passage = Passage.make()
            for at in script.passing:
                struct.pack_into("=Q", image, at, passage.word)
            head = passage.before(b"")
            image[self._filter_at : self._filter_at + len(head)] = head
        return Program(bytes(image), {**self._script.names, **script.names})

    # -- the list -----------------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        script, join = self._script, self._join
        self._prepare_on_the_host()
        if join.cgroup.unified:
            self._bear_on_the_host(0, "exec")
        script.call("prctl", syscalls.PR_SET_PDEATHSIG, signal.SIGKILL, about=("die with", "the shim"))
        script.call("setsid", about=("begin", "session"))  # `kill` finds the program's children by it
        self._join_namespaces()
        script.call("close", _INIT, about=("close", "pidfd"))
        self._become()

    def _become(self) -> None:
        """Append the way from root in the container's file system to what remains to be done for one program."""
        script, join = self._script, self._join
        process = join.process
        if self._null_streams:
            self._use_own_null_device()
        self._own_streams(process.user.uid)
        if not join.bears:
            write_labels(script, process, _INIT)
        self._enter_directory()
        early = bool(join.filter_program) and not process.no_new_privileges
        given_up = self._set_identity(("CAP_SYS_ADMIN",) if early else ())
        self._enter_directory_as_user()
        script.call("prctl", syscalls.PR_SET_DUMPABLE, 0, about=("hide", "process"))
        script.call("fcntl", CHANNEL, _F_SETFD, _FD_CLOEXEC, about=("close at execve", "channel"))
        pipe = self._pipe() if join.bears else 0
        if not join.bears:  # children do not inherit it; and a filter may forbid the call
            leave_if_orphaned(script)
            script.call("prctl", syscalls.PR_SET_PDEATHSIG, 0, about=("outlive", "the shim"))
        if join.bears:  # who is born there must not have CAP_SYS_ADMIN
            if early:
                program = script.data(Passage().before(join.filter_program))
                self._filter_at = program - BASE
                self._load(script, program, len(Passage().before(join.filter_program)))
                script.passing = []
            self._give_up(script, given_up)
            self._bear_into_pid_namespace(pipe)
            script.call("setsid", about=("begin", "session"))
            write_labels(script, process, _INIT)
        if process.no_new_privileges:
            script.call("prctl", syscalls.PR_SET_NO_NEW_PRIVS, 1, about=("set", "no_new_privs"))
        if join.filter_program and not (early and join.bears):
            # Not with a passage, whose calls the kernel no longer allows by number alone: the program would pay for it.
            self._late_filter = script.data(join.filter_program), len(join.filter_program)
            self._given_up_late = given_up
        variables = dict(entry.partition("=")[::2] for entry in process.env)
        addresses = [script.text(f"{name}={value}") for name, value in variables.items()]
        self._environment = script.data(struct.pack(f"={len(addresses) + 1}Q", *addresses, 0))
        goes_on = script.open_ways()
        script.on_failure()
        self._try_again(script)
        script.call("write", CHANNEL, BASE, len(encode(Undone(0, 0))), about=None, allow=EVERY_ERROR)
        script.call("exit_group", 1, about=None)
        script.end()
        script.put(*goes_on)

    def _give_up(self, script: Script, capabilities: tuple[int, int] | None) -> None:
        if capabilities:
            script.call("capset", *capabilities, about=("set", "capabilities"))

    def _try_again(self, script: Script) -> None:
        """Append what precedes the report of a failure. Nothing for an exec."""

    def _prepare_on_the_host(self) -> None:
        script, join = self._script, self._join
        script.call("prctl", syscalls.PR_SET_DUMPABLE, 0, about=("hide", "process"))
        script.call("prctl", syscalls.PR_SET_NAME, script.text(self._name), about=("name", "process"))
        script.call("prctl", syscalls.PR_SET_PDEATHSIG, signal.SIGKILL, about=("die with", "the shim"))
        script.call("close_range", self._first_free, 2**32 - 1, 0, about=("close", "inherited descriptors"))
        default = script.room(32)  # struct sigaction
        for number in _LIBRARYS_SIGNALS:
            script.call("rt_sigaction", number, default, 0, 8, about=("reset", f"signal {number}"))
        zero = script.text("0")
        for path in join.cgroup.task_files():
            about = "write", f"`0` to `{path}`"
            tasks = script.call("openat", syscalls.AT_FDCWD, script.text(path), os.O_WRONLY | os.O_CLOEXEC, about=about)
            script.call("write", tasks, zero, 1, about=about)
        mask = script.data(b"\xff" * _CPU_MASK_BYTES)
        script.call("sched_setaffinity", 0, _CPU_MASK_BYTES, mask, about=None, allow=EVERY_ERROR)
        self._new_keyring()
        if join.process.oom_score_adj is not None:
            self._set_oom_score(str(join.process.oom_score_adj))
        script.call("close_range", self._first_free, 2**32 - 1, 0, about=("close", "files of cgroups"))

    def _set_oom_score(self, score: str) -> None:
        """An exec goes on without it."""
        self._script.put(*self._write_oom_score(score, EVERY_ERROR))

    def _write_oom_score(self, score: str, allow: tuple[int, ...]) -> list[int]:
        """Append the writing. Returns the ways after an allowed error."""
        script, about = self._script, ("set oom_score_adj", score)
        opening = syscalls.AT_FDCWD, script.text(OOM_SCORE), os.O_WRONLY | os.O_CLOEXEC
        file = script.call("openat", *opening, about=about, allow=allow)
        refused = [script.take(file.error)]
        written = script.call("write", file, script.text(score), len(score), about=about, allow=allow)
        return [*refused, script.take(written.error)]

    def _new_keyring(self) -> None:
        script = self._script
        name = script.text(f"_ses.{self._join.container_id}")
        script.call(
            "keyctl", syscalls.KEYCTL_JOIN_SESSION_KEYRING, name, about=("make", "session keyring"), allow=_NO_KEYRINGS
        )

    def _bear_on_the_host(self, namespaces: int, what: str) -> None:
        """Clone into the version 2 cgroup, if there is one, and into these new namespaces."""
        script, join = self._script, self._join
        path = join.cgroup.joined_unified
        told = self._first_free
        arguments = script.room(88)  # struct clone_args
        pid, header, descriptor = self._announcement()
        flags = syscalls.CLONE_PARENT | syscalls.CLONE_PIDFD | namespaces
        if path:
            flags |= syscalls.CLONE_INTO_CGROUP
            opening = script.text(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            script.call("openat", syscalls.AT_FDCWD, *opening, about=("open", path), store=arguments + 80)
            told += 1
        struct.pack_into("=QQ", script.image, arguments - BASE, flags, descriptor)
        pipe = self._pipe(told)
        clone = script.call("clone3", arguments, 88, about=("clone", what), store=pid)
        self._after_birth(clone.zero, pipe, header, told)
        if path:
            script.call("close", self._first_free, about=("close", path))

    def _bear_into_pid_namespace(self, pipe: int) -> None:
        script = self._script
        pid, header, descriptor = self._announcement()
        flags = syscalls.CLONE_PARENT | syscalls.CLONE_PIDFD
        clone = script.call("clone", flags, 0, descriptor, about=("clone into", "PID namespace"), store=pid)
        self._after_birth(clone.zero, pipe, header, _INIT)

    def _announcement(self) -> tuple[int, int, int]:
        """Make the message that reports a child. Returns the addresses of its pid, of the header and of the pidfd."""
        script = self._script
        text = birth_by_list()
        birth = script.data(text)
        control = script.data(struct.pack("=Qiiii", 20, 1, 1, -1, 0))  # SOL_SOCKET, SCM_RIGHTS
        vector = script.data(struct.pack("=QQ", birth, len(text)))
        header = script.data(struct.pack("=QIIQQQQiI", 0, 0, 0, vector, 1, control, 24, 0, 0))
        return birth + len(text) - 8, header, control + 16

    def _pipe(self, first: int = _INIT) -> int:
        """Make a pipe, whose ends must become the descriptors `first` and `first` + 1. Returns their address."""
        script = self._script
        pipe = script.room(8)
        script.call("pipe2", pipe, os.O_CLOEXEC, about=("make", "pipe"))
        script.require(pipe, _ALL, first | (first + 1) << 32, about=("make", "pipe"))
        return pipe

    def _after_birth(self, born: int, buffer: int, header: int, told: int) -> None:
        """The parent reports the child and lets it continue. A child whose parent dies before that exits."""
        script = self._script
        telling = told + 1
        child = script.take(born)
        script.call("sendmsg", CHANNEL, header, _MSG_NOSIGNAL, about=("tell of", "process"))
        script.call("write", telling, BASE, 1, about=("tell", "process"))
        script.call("exit_group", 0, about=None)
        script.end()
        script.put(child)
        script.call("close", telling, about=("close", "pipe"))
        read = script.call("read", told, buffer, 1, about=("wait for", "parent"))
        orphaned = script.take(read.zero)
        script.call("close", told, about=("close", "pipe"))
        goes_on = script.open_ways()
        script.put(orphaned)
        script.call("exit_group", 1, about=None)
        script.end()
        script.put(*goes_on)

    def _join_namespaces(self) -> None:
        script, join = self._script, self._join
        if join.mappings is not None:
            self._own_streams(join.mappings.uid(join.process.user.uid))
        about = "join namespaces of", "container"
        script.call("setns", _INIT, namespace_flags(join.spec), about=about)
        if join.mappings is not None:
            script.call("setresgid", 0, 0, 0, about=about)
            script.call("setresuid", 0, 0, 0, about=about)
            script.call("prctl", syscalls.PR_SET_DUMPABLE, 0, about=("hide", "process"))
            self._new_keyring()

    def _use_own_null_device(self) -> None:
        script = self._script
        path, status = script.text("/dev/null"), script.room(_STATX_BYTES)
        opening, using = ("open", "/dev/null"), fixed("use", "/dev/null", errno.EINVAL)

        def require_it() -> None:
            script.require(status + _MODE_AT, 0xF000 << _MODE_SHIFT, stat.S_IFCHR << _MODE_SHIFT, about=using)
            script.require(status + _RDEV_AT, _ALL, os.major(_NULL) | os.minor(_NULL) << 32, about=using)

        script.call("statx", syscalls.AT_FDCWD, path, _AT_SYMLINK_NOFOLLOW, _STATX_BASIC, status, about=opening)
        require_it()
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
        opened = script.room(8)
        script.call("openat", syscalls.AT_FDCWD, path, flags, about=opening, store=opened)
        script.require(opened, _ALL, _INIT, about=opening)  # the next free number
        script.call("statx", _INIT, script.text(""), syscalls.AT_EMPTY_PATH, _STATX_BASIC, status, about=opening)
        require_it()
        for stream in self._null_streams:
            script.call("dup3", _INIT, stream, 0, about=using)
        script.call("close", _INIT, about=using)

    def _own_streams(self, uid: int) -> None:
        for stream in (0, 1, 2) if uid else ():
            if stream not in self._null_streams:
                self._script.call("fchown", stream, uid, -1, about=None, allow=EVERY_ERROR)

    def _enter_directory(self) -> None:
        """Change to the directory as root: only root may be able to reach it."""
        script, cwd = self._script, self._join.process.cwd
        self._cwd = script.text(cwd)
        self._place = script.room(_PATH_MAX)
        about = "enter working directory", cwd
        refused = script.take(script.call("chdir", self._cwd, about=about, allow=_REFUSED).error)
        self._require_inside()
        script.put(refused)

    def _require_inside(self) -> None:
        """Fail if the working directory is outside the rootfs: it would lead to the host (CVE-2024-21626)."""
        about = "enter working directory", self._join.process.cwd
        outside = fixed(*about, errno.ENOENT)
        self._script.call("getcwd", self._place, _PATH_MAX, about=about)
        self._script.require(self._place, 0xFF, ord("/"), about=outside)

    def _enter_directory_as_user(self) -> None:
        script = self._script
        # The directory's name is empty if root was refused.
        entered = script.take(script.look(self._place, 0xFF).positive)
        script.call("chdir", self._cwd, about=("enter working directory", self._join.process.cwd))
        self._require_inside()
        script.put(entered)

    def _set_identity(self, more: Sequence[str]) -> tuple[int, int] | None:
        """Take on user and capabilities, and keep `more` for now. Returns capset(2)'s arguments to drop those."""
        script, process = self._script, self._join.process
        user, wanted = process.user, process.capabilities
        if wanted is not None:
            self._drop_bounding(wanted)
        if wanted is None and more and user.uid:
            wanted = oci.Capabilities()  # as the change of user leaves them
        if wanted is not None:
            script.call("prctl", sets.PR_SET_KEEPCAPS, 1, about=("keep", "capabilities"))
        groups = user.additional_gids
        about = "set groups", ",".join(map(str, groups)) or "none"
        # A user namespace made without help denies it (setgroups in proc_pid_uid_map(5)); the caller's own stay.
        packed = script.data(struct.pack(f"={len(groups)}I", *groups))
        script.call("setgroups", len(groups), packed, about=about, allow=() if groups else (errno.EPERM,))
        script.call("setresgid", user.gid, user.gid, user.gid, about=("set gid", str(user.gid)))
        script.call("setresuid", user.uid, user.uid, user.uid, about=("set uid", str(user.uid)))
        script.call("umask", 0o022 if user.umask is None else user.umask, about=None)
        if wanted is None:
            return None
        known = capabilities.known()
        permitted, effective, inheritable, ambient = (
            capabilities.mask(names) & known
            for names in (wanted.permitted, wanted.effective, wanted.inheritable, wanted.ambient)
        )
        kept = capabilities.mask(more) & _has(self._join)
        about = "set", "capabilities"
        script.call("capset", *self._sets(effective | kept, permitted | kept, inheritable), about=about)
        script.call("prctl", sets.PR_CAP_AMBIENT, sets.PR_CAP_AMBIENT_CLEAR_ALL, about=None, allow=EVERY_ERROR)
        for number in capabilities.bits(ambient & permitted & inheritable):
            about = "add", f"`{capabilities.name(number)}` to the ambient set"
            script.call("prctl", sets.PR_CAP_AMBIENT, sets.PR_CAP_AMBIENT_RAISE, number, about=about)
        script.call("prctl", sets.PR_SET_KEEPCAPS, 0, about=None, allow=EVERY_ERROR)
        return self._sets(effective, permitted, inheritable) if more else None

    def _drop_bounding(self, wanted: oci.Capabilities) -> None:
        for number in capabilities.bits(capabilities.known() & ~capabilities.mask(wanted.bounding)):
            if self._join.mappings is not None or sets.in_bounding(number):
                about = "drop", f"`{capabilities.name(number)}` from the bounding set"
                self._script.call("prctl", sets.PR_CAPBSET_DROP, number, about=about)

    def _sets(self, effective: int, permitted: int, inheritable: int) -> tuple[int, int]:
        """Write capset(2)'s arguments into the list and return their addresses."""
        header, words = sets.arguments(effective, permitted, inheritable)
        return self._script.data(bytes(header)), self._script.data(bytes(words))

    def _load(self, script: Script, program: int, size: int) -> None:
        described = script.data(struct.pack("=H6xQ", size // 8, program))
        flags = self._join.filter_flags
        script.call("seccomp", syscalls.SECCOMP_SET_MODE_FILTER, flags, described, about=("load", "seccomp filter"))

    # -- the program --------------------------------------------------------------------------------------------------

    def _find_and_execute(self, script: Script, args: tuple[str, ...]) -> None:
        addresses = [script.text(argument) for argument in args]
        arguments = script.data(struct.pack(f"={len(addresses) + 1}Q", *addresses, 0))
        name = args[0]
        chosen = 0
        if "/" in name:
            status = script.room(_STATX_BYTES)
            missing = NoProgram(name, before=f"stat {name}: ")
            script.call("statx", syscalls.AT_FDCWD, addresses[0], 0, _STATX_BASIC, status, about=missing)
        else:
            chosen = self._look_up(script, name)
        if self._late_filter:
            self._load(script, *self._late_filter)
            self._give_up(script, self._given_up_late)

        def path() -> int | Entry:
            return script.look(chosen) if chosen else addresses[0]

        self._announce(script)
        refused = script.from_now_on_failure()
        user = self._join.process.user
        about = Refusal(name, user.uid, user.gid)
        script.call("execve", path(), arguments, self._environment, about=about)
        script.end()
        script.put(refused)
        report_refusal(script, path)

    def _announce(self, script: Script) -> None:
        """Append what is due when only execve is left. Nothing for an exec."""

    def _look_up(self, script: Script, name: str) -> int:
        """Find the program as execvp(3) does. Returns the address where the address of its path is stored.

        Of files that the process may not execute it is the last one: execve refuses it, and the reason is reported.
        """
        path = next((entry[5:] for entry in reversed(self._join.process.env) if entry.startswith("PATH=")), "")
        status, refusal, chosen = script.room(_STATX_BYTES), script.room(8), script.room(8)
        found: list[int] = []
        for directory in path.split(":"):
            candidate = script.text(os.path.join(directory or ".", name))
            pointer = script.data(struct.pack("=Q", candidate))
            arguments = syscalls.AT_FDCWD, candidate, 0, _STATX_BASIC, status
            missing = script.take(script.call("statx", *arguments, about=None, allow=EVERY_ERROR).error)
            other = script.take(script.look(status + _MODE_AT, 0xF000 << _MODE_SHIFT, _REGULAR).positive)
            access = script.call("faccessat", syscalls.AT_FDCWD, candidate, _X_OK, about=None, allow=EVERY_ERROR)
            refused = script.take(access.error)
            script.look(pointer, store=chosen)
            found += script.open_ways()
            script.put(refused)
            script.look(pointer, store=refusal)
            script.put(missing, other)
        denied = script.take(script.look(refusal, store=chosen).positive)
        script.fail(NoProgram(name, errno.ENOENT, "executable file not found in $PATH"))
        script.put(denied, *found)
        return chosen


class Program:
    """A finished list, and what its entries do."""

    def __init__(self, image: bytes, names: Mapping[int, About] | bytes) -> None:
        """`names` may be encoded (runtime.process.explanations)."""
        self.image = image
        self._names = names

    def encoded_names(self) -> bytes:
        return self._names if isinstance(self._names, bytes) else encode_names(self._names)

    def failure(self, undone: Undone) -> RuntimeCoreError:
        """Return the error that a report stands for. Trusts nothing in it: the container may trace the sender."""
        names = decode_names(self._names) if isinstance(self._names, bytes) else self._names
        about = names.get(undone.at, ("become", "the program"))
        number = min(undone.number, _MOST_ERRORS)
        if isinstance(about, tuple):
            return OperationFailed(*about, number)
        return about.error(number, undone.facts)


def _key(join: Join, null_streams: Sequence[int]) -> tuple[object, ...]:
    """Return what two execs must have in common. Comparing is cheap: most members are the same object in both."""
    alike = replace(join.process, args=())
    return (
        join.spec, alike, join.cgroup, join.filter_program, join.filter_flags, join.mappings, tuple(null_streams),
        join.gate, join.preserved,
    )  # fmt: skip


class Joinings:
    """Caches the last `Joining` of one container."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._joining: Joining | None = None

    def of(self, join: Join) -> Joining | None:
        """Return the exec's lists. None if an interpreter must be forked (`obstacle`)."""
        null_streams = [stream for stream, fd in enumerate(join.stdio) if is_null_device(fd)]
        key = _key(join, null_streams)
        if key != self._key:
            self._joining = None if obstacle(join) else Joining(join, null_streams)
            self._key = key
        return self._joining
