"""Writes the way of a container's init into its container as a list of system calls (runtime/process/script.py).

The list does what `runtime.process.init` does in a forked interpreter, for the inits of usual pods; `Starting.of` says
which. Up to three processes execute it:

    first    on the host: joins the version 1 cgroups, sets affinity, keyring and OOM score, and clones the second into
             the version 2 cgroup and into new namespaces
    second   joins the pod's namespaces, opens what the mounts take from the host, makes the mount namespace, and
             assembles the root; then it goes on as an exec does (runtime/process/joining.py), up to the execve
    third    only if the PID namespace has other processes: see runtime/process/joining.py
"""

from __future__ import annotations

import errno
import os

from linux import syscalls
from linux.sysctls import path_of
from linux.tables import NAMESPACE_FLAGS
from linux.user_namespaces import STARTED_IN_ONE
from runtime.light import dataclass, replace, signal
from runtime.process.assembling import Assembly, Obstacle
from runtime.process.become import oom_score_warning
from runtime.process.init import Start, cgroup_owner, cgroup_view, clone_flags
from runtime.process.join import Join
from runtime.process.joining import OOM_SCORE, Joining, Program, is_null_device, obstacle
from runtime.process.script import CHANNEL, EVERY_ERROR, Script
from runtime.wire.reports import Executing, Warned, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

_ROOTFS, _TEMPLATE, _FIRST_TREE = 4, 5, 6
NO_STREAMS: Final = (-1, -1, -1)
# A mount or rename anywhere on the machine while openat2(2) resolves `..` makes it fail (EAGAIN).
_REPETITIONS: Final = 8


class _StartingJoin(Join):
    """An init, as far as it becomes its program in the way of an exec."""

    __slots__ = ()

    @property
    def bears(self) -> bool:
        namespace = self.spec.linux.namespace("pid")
        return namespace is not None and bool(namespace.path)


class Starting(Joining):
    """Makes the list of one init."""

    _name = "crisp-init"

    def __init__(self, start: Start, join: Join, null_streams: Sequence[int]) -> None:
        self._start = start
        self._trees = {source: _FIRST_TREE + index for index, source in enumerate(start.trees)}
        super().__init__(join, null_streams, _FIRST_TREE + len(self._trees))

    @classmethod
    def of(cls, start: Start, null_streams: Sequence[int] | None = None) -> Starting:
        """Return the init's list. Raises Obstacle if an interpreter must be forked.

        `null_streams` are needed where there are no streams yet: those that will be the host's /dev/null.
        """
        join = _StartingJoin(
            container_id=start.container_id,
            spec=start.spec,
            process=start.process,
            init_pidfd=-1,
            cgroup=start.cgroup,
            in_unified_cgroup=False,
            stdio=start.stdio,
            filter_program=start.filter_program,
            filter_flags=start.filter_flags,
            gate=start.gate,
            preserved=start.preserved,
        )
        if reason := _obstacle(start) or obstacle(join):
            raise Obstacle(reason)
        return cls(start, join, _null_streams(start) if null_streams is None else null_streams)

    def _count_births(self) -> int:
        return int(self._is_cloned) + int(self._join.bears)

    @property
    def _is_cloned(self) -> bool:
        return bool(self._join.cgroup.unified) or bool(clone_flags(self._join.spec))

    def _plan(self) -> None:
        script, start = self._script, self._start
        spec = start.spec
        self._prepare_on_the_host()
        if self._is_cloned:
            self._bear_on_the_host(clone_flags(spec), "container init")
        script.call("prctl", syscalls.PR_SET_PDEATHSIG, signal.SIGKILL, about=("die with", "the shim"))
        script.call("setsid", about=("begin", "session"))
        assembly = Assembly(script, start.mounts, start.rootfs, _ROOTFS, self._first_free, start.directories)
        shared = -1
        if start.bears:
            pid = spec.linux.namespace("pid")
            assert pid is not None
            about = "join pid namespace", pid.path
            shared = assembly.opening(
                "openat", syscalls.AT_FDCWD, script.text(pid.path), os.O_RDONLY | os.O_CLOEXEC, about=about
            )
        self._enter_namespaces(assembly)
        view = cgroup_view(start.cgroup, namespaced=spec.linux.namespace("cgroup") is not None)
        contexts = assembly.open_sources(view, self._trees, shared)
        assembly.enter(_TEMPLATE, start.attach_point)
        assembly.populate(view, contexts, spec.linux.devices)
        assembly.make_directory(start.process.cwd)
        assembly.pivot()
        assembly.restrict(spec.linux, readonly=spec.root.readonly)
        if shared >= 0:
            script.call("setns", shared, syscalls.CLONE_NEWPID, about=("enter namespace", "pid"))
        script.call("close_range", CHANNEL + 1, 2**32 - 1, 0, about=("close", "inherited descriptors"))
        self._become()

    def _enter_namespaces(self, assembly: Assembly) -> None:
        script, spec = self._script, self._start.spec
        for namespace in spec.linux.namespaces:
            if namespace.path and namespace.type not in ("pid", "mount", "user"):
                about = f"join {namespace.type} namespace", namespace.path
                opening = script.text(namespace.path), os.O_RDONLY | os.O_CLOEXEC
                opened = assembly.opening("openat", syscalls.AT_FDCWD, *opening, about=about)
                script.call("setns", opened, NAMESPACE_FLAGS[namespace.type], about=about)
            elif namespace.type == "cgroup":
                script.call("unshare", syscalls.CLONE_NEWCGROUP, about=("make", "cgroup namespace"))
        uts = spec.linux.namespace("uts")
        for name, text, setting in (
            ("sethostname", spec.hostname, "set hostname"),
            ("setdomainname", spec.domainname, "set domain name"),
        ):
            if text and uts is not None:
                script.call(name, script.text(text), len(os.fsencode(text)), about=(setting, text))
        for parameter, value in spec.linux.sysctl.items():
            about = "set sysctl", f"{parameter}={value}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            path = script.text(f"/proc/sys/{path_of(parameter)}")
            opened = assembly.opening("openat", syscalls.AT_FDCWD, path, flags, 0o666, about=about)
            script.call("write", opened, script.text(value), len(os.fsencode(value)), about=about)

    def _set_oom_score(self, score: str) -> None:
        """Warn, as `init` does, if it is refused."""
        script = self._script
        refused = self._write_oom_score(score, (errno.EACCES, errno.EPERM))
        goes_on = script.open_ways()
        script.put(*refused)
        with open(OOM_SCORE) as file:
            report = encode(Warned(oom_score_warning(int(score), file.read().strip())))
        script.call("write", CHANNEL, script.data(report), len(report), about=None, allow=EVERY_ERROR)
        script.put(*goes_on)

    def _try_again(self, script: Script) -> None:
        script.repeat_on(errno.EAGAIN, _REPETITIONS)

    def _announce(self, script: Script) -> None:
        report = encode(Executing())
        script.call("write", CHANNEL, script.data(report), len(report), about=("tell of", "program"))


@dataclass(frozen=True, slots=True)
class InitList:
    """An init's list, or that there is none for it. It may be made ahead of the start.

    `start` has no mounts: they follow from its configuration.
    """

    start: Start
    null_streams: Sequence[int] | None
    program: Program | None
    births: int = 0

    @classmethod
    def of(cls, start: Start, null_streams: Sequence[int] | None = None) -> InitList:
        """Make the list. Without streams of the start it takes `null_streams`, as `Starting.of` does."""
        births = 0
        try:
            starting = Starting.of(start, null_streams)
            program, births = starting.list_for(start.process.args), starting.births
        except (Obstacle, UnicodeEncodeError):
            program = None
        return cls(replace(start, mounts=()), null_streams, program, births)

    def is_of(self, start: Start) -> bool:
        """Return whether this list, made ahead without streams, is that of a start now."""
        if replace(start, mounts=(), stdio=NO_STREAMS, trace=False, steps=[]) != self.start:
            return False
        return self.program is None or _null_streams(start) == self.null_streams

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What the list needs beside the streams and the channel."""
        start = self.start
        return start.rootfs, start.empty_mount_namespace, *start.trees.values()


def _null_streams(start: Start) -> list[int]:
    return [stream for stream, fd in enumerate(start.stdio) if is_null_device(fd)]


def _obstacle(start: Start) -> str:
    spec = start.spec
    hooks = spec.hooks
    for reason, holds in (
        ("it is in a user namespace", start.users.held or start.users.mappings is not None or STARTED_IN_ONE),
        ("it has no mount namespace to copy", start.empty_mount_namespace < 0),
        ("hooks", hooks.prestart or hooks.create_runtime or hooks.create_container or hooks.start_container),
        ("it gets interfaces, or devices of the host", start.links >= 0 or start.host_trees),
        ("it has a time namespace", spec.linux.namespace("time")),
        ("its keyring stays", not start.keyring),
        ("it owns its cgroup", cgroup_owner(start)),
        ("proc of another PID namespace", start.bears and not _has(_names_pid_namespaces)),
        ("the kernel lacks mount_setattr(2)", not _has(syscalls.has_mount_setattr)),
    ):
        if holds:
            return reason
    return ""


_known: dict[Callable[[], bool], bool] = {}


def _has(look: Callable[[], bool]) -> bool:
    """What the kernel has does not change."""
    if look not in _known:
        _known[look] = look()
    return _known[look]


def _names_pid_namespaces() -> bool:
    """Whether a proc file system can be made for a PID namespace that is named (Linux 6.18)."""
    try:
        context = syscalls.fsopen("proc")
        try:
            own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.fsconfig_descriptor(context, "pidns", own)
            finally:
                os.close(own)
        finally:
            os.close(context)
    except OSError:
        return False
    return True
