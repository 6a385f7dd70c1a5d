"""Implements `crisp-oci exec`: runs another process in a container. Exits with 255 if it could not be executed."""

from __future__ import annotations

import os

from linux import syscalls
from linux.tables import HIGHEST_ID
from runtime import validation
from runtime.cgroups import Cgroup
from runtime.command.child import Child, Launch
from runtime.command.flags import Flag, Options, UsageError
from runtime.command.foreground import attend, forward_signals
from runtime.command.handover import (
    PIDFD_SOCKET,
    PRESERVE_FDS,
    preserved_descriptors,
    send_console,
    send_descriptor,
    send_listener,
    write_pid_file,
)
from runtime.command.invocation import Context, first, require_readonly_interpreter
from runtime.command.record import Record, state_document
from runtime.command.removal import current_status
from runtime.command.store import Entry
from runtime.errors import OperationFailed, RuntimeCoreError, SpecError, failing
from runtime.light import contextlib, json, replace, socket
from runtime.namespaces import user as userns
from runtime.process.capabilities import left_out
from runtime.process.clone import clone_into
from runtime.process.gate import Gate, waiting_program
from runtime.process.join import Join, exec_process
from runtime.spec.parse import parse_process
from runtime.spec.values import Capabilities, Process, Spec, User
from runtime.wire.reports import EXEC, Conversation, Reporter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, NoReturn

FLAGS: Final = (
    Flag("console-socket", argument="PATH", help="send the terminal's master to this unix socket"),
    PIDFD_SOCKET,
    Flag("cwd", argument="DIR", help="working directory in the container"),
    Flag("env", short="e", argument="NAME=VALUE", repeated=True, help="set an environment variable"),
    Flag("tty", short="t", help="give the process a terminal"),
    Flag("user", short="u", argument="UID[:GID]", help="user and group of the process"),
    Flag("additional-gids", short="g", argument="GID", repeated=True, help="additional group"),
    Flag("process", short="p", argument="FILE", help="read the process from this JSON file"),
    Flag("detach", short="d", help="do not wait for the process"),
    Flag("pid-file", argument="FILE", help="write the process's id to this file"),
    Flag("process-label", argument="LABEL", help="SELinux label of the process"),
    Flag("apparmor", argument="PROFILE", help="AppArmor profile of the process"),
    Flag("no-new-privs", help="the process cannot gain privileges"),
    Flag("cap", short="c", argument="CAPABILITY", repeated=True, help="additional capability"),
    PRESERVE_FDS,
    Flag("cgroup", argument="[CONTROLLER,...:]PATH", repeated=True, help="run in this cgroup below the container's"),
    Flag("no-subreaper", help="accepted and ignored: crisp-oci is never a subreaper"),
    Flag("ignore-paused", help="allow exec in a paused container; the process waits for the resume"),
)
ARGUMENTS: Final = "ID COMMAND [ARGUMENT...], or --process FILE ID"


def run(context: Context, options: Options, operands: list[str]) -> int:
    id, arguments = first(operands, "ID")
    entry = context.store.existing(id)
    record = entry.load()
    found = current_status(entry, record)
    if found == "stopped":
        raise RuntimeCoreError("cannot exec in a stopped container")
    if found == "paused" and not options.switch("ignore-paused"):
        raise RuntimeCoreError("cannot exec in a paused container (use --ignore-paused to override)")
    spec = entry.spec()
    process = chosen_process(spec, options, arguments)
    validation.check_process(process)
    if process.capabilities is not None:
        for sentence in left_out(process.capabilities):
            context.log.warning(sentence)
    detach, console_socket = options.switch("detach"), options.text("console-socket")
    if process.terminal and detach and not console_socket:
        raise UsageError("cannot allocate tty if runc will detach without setting console socket")
    if console_socket and not process.terminal:
        raise UsageError("cannot use console socket if runc will not detach or allocate tty")
    preserved = preserved_descriptors(options)
    pid, pidfd, console = _start(context, entry, record, spec, process, options, preserved)
    context.log.debug(f"exec in container {id}: process {pid} runs")
    if console >= 0 and console_socket:
        send_console(console, console_socket)
        os.close(console)
        console = -1
    if path := options.text("pidfd-socket"):
        send_descriptor("pidfd", pidfd, path, b"setns")
    if pid_file := options.text("pid-file"):
        write_pid_file(pid_file, pid)
    if detach:
        return 0
    status = attend(pid, pidfd, console)
    context.log.debug(f"exec in container {id}: process {pid} ended with {status}")
    return status


def chosen_process(spec: Spec, options: Options, arguments: list[str]) -> Process:
    """Return the process in --process, or the container's own with the flags applied. Raises SpecError, UsageError."""
    if path := options.text("process"):
        with failing("read", path), open(path, "rb") as file:
            text = file.read()
        try:
            return parse_process(json.loads(text))
        except ValueError as error:
            raise SpecError("", f"{path} is not JSON: {error}") from error
    if not arguments:
        raise UsageError("process args cannot be empty")
    assert spec.process is not None
    base = spec.process
    return replace(
        base,
        args=tuple(arguments),
        cwd=options.text("cwd", base.cwd),
        env=(*base.env, *options.texts("env")),
        terminal=options.switch("tty"),
        console_size=None,
        user=_user(base.user, options),
        capabilities=_capabilities(base.capabilities, options.texts("cap")),
        apparmor_profile=options.text("apparmor", base.apparmor_profile),
        selinux_label=options.text("process-label", base.selinux_label),
        no_new_privileges=options.switch("no-new-privs") if "no-new-privs" in options else base.no_new_privileges,
    )


def _user(base: User, options: Options) -> User:
    uid, colon, gid = options.text("user").partition(":")
    numbers = [uid, gid] if colon else [uid]
    if uid and not all(number.isdecimal() for number in numbers):
        raise UsageError(f"--user: expected UID or UID:GID, got {options.text('user')!r}")
    more = options.texts("additional-gids")
    if not all(number.isdecimal() for number in more):
        raise UsageError(f"--additional-gids: expected a number, got {more!r}")
    for number in (*(numbers if uid else ()), *more):
        if int(number) > HIGHEST_ID:
            raise UsageError(f"--user, --additional-gids: expected at most {HIGHEST_ID}, got {number}")
    return replace(
        base,
        uid=int(uid) if uid else base.uid,
        gid=int(gid) if gid else base.gid,
        additional_gids=(*base.additional_gids, *map(int, more)),
    )


def _capabilities(base: Capabilities | None, names: list[str]) -> Capabilities | None:
    if not names:
        return base
    more = frozenset(name.upper() for name in names)
    base = base or Capabilities()
    return replace(
        base,
        bounding=base.bounding | more,
        effective=base.effective | more,
        permitted=base.permitted | more,
        inheritable=base.inheritable,
        # Without ambient a user other than root gets nothing; a capability that is not inheritable cannot be ambient.
        ambient=base.ambient | (more & base.inheritable),
    )


def _start(
    context: Context, entry: Entry, record: Record, spec: Spec, process: Process, options: Options, preserved: int
) -> tuple[int, int, int]:
    """Clone the process and wait until it runs its program. Returns its pid, a pidfd, its terminal's master or -1."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    opened, opener = os.pipe()
    report = theirs.fileno()
    program = waiting_program(opened, report, process, spec.linux.seccomp)
    require_readonly_interpreter(needed=program < 0)
    cgroup = _cgroup(record, options.texts("cgroup"))
    init = _init_pidfd(record)
    who = f"{process.user.uid}:{process.user.gid}"
    where = f"{process.cwd}, cgroup {cgroup.path if record.cgroup else 'the caller has'}"
    context.log.debug(f"exec in container {record.id}: `{process.args[0]}` as {who} in {where}")
    if os.geteuid() != 0:
        from runtime.command import rootless

        rootless.enter(record.pid)
        spec = rootless.within(spec)
    else:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # as in `_child`
    filter_program, filter_flags = _filter(entry, spec)
    join = Join(
        container_id=record.id,
        spec=spec,
        process=process,
        init_pidfd=init,
        cgroup=cgroup,
        in_unified_cgroup=bool(cgroup.unified),
        stdio=(0, 1, 2),
        filter_program=filter_program,
        filter_flags=filter_flags,
        mappings=userns.mappings_of(spec, f"/proc/{record.pid}"),
        gate=Gate(opened, report, program),
        preserved=preserved,
    )
    with ours:
        with theirs, failing("clone", "exec"):
            child = Child(*clone_into(cgroup, 0, lambda: _child(join, Reporter(theirs)), once=True))
        if not options.switch("detach"):
            forward_signals(lambda: child.pidfd)
        attended = process.terminal and not options.text("console-socket")
        if not attended:
            os.write(opener, b"0")
        for fd in (opened, program, init):
            if fd >= 0:
                os.close(fd)

        def terminal_is_here(master: int) -> None:
            if attended:
                from runtime.command.relay import plain_lines

                plain_lines(master)
                with contextlib.suppress(BrokenPipeError):  # it has failed and will report why
                    os.write(opener, b"0")

        try:
            state = state_document(record, "running", spec.annotations)
            launch = Launch(
                ours,
                child,
                Conversation(EXEC, bears=join.bears, listens=True, program=process.args[0]),
                warn=context.log.warning,
                listener=lambda fd: send_listener(spec, fd, child.pid, state),
                terminal=terminal_is_here,
            )
            console = launch.until_ready()
        except BaseException:
            child.end()
            raise
        finally:
            os.close(opener)
    return child.pid, child.pidfd, console


def _filter(entry: Entry, spec: Spec) -> tuple[bytes, int]:
    """Return the container's seccomp filter, as compiled at its creation, and its flags."""
    if spec.linux.seccomp is None:
        return b"", 0
    from runtime.seccomp import compile as seccomp

    program = entry.read("filter")
    if not program:  # never run a process without the container's filter
        raise RuntimeCoreError(f"exec in container {entry.id}: its seccomp filter is missing; recreate the container")
    return program, seccomp.filter_flags(spec.linux.seccomp)


def _child(join: Join, reporter: Reporter) -> NoReturn:
    # The child shares our memory until its execve, and the container must not read it (CVE-2016-9962).
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    exec_process(join, reporter)


def _init_pidfd(record: Record) -> int:
    with failing("open", f"process {record.pid}"):
        pidfd = syscalls.pidfd_open(record.pid)
    if not record.alive:  # the pid may belong to another process by now
        os.close(pidfd)
        raise OperationFailed("open", f"process {record.pid}", 3)
    return pidfd


def _cgroup(record: Record, words: list[str]) -> Cgroup:
    """Return the container's cgroup, or existing cgroups below it: one PATH, or several CONTROLLER[,CONTROLLER]:PATH.

    Controllers are version 1's. In all hierarchies that are not named, version 2's included, it is the container's own.
    """
    cgroup = record.group()
    if not words:
        return cgroup.for_exec(record.pid)
    for word in words:
        controllers, colon, below = word.rpartition(":")
        if not colon and len(words) > 1:
            raise UsageError(f"invalid --cgroup argument: {word} (missing <controller>: prefix)")
        path = os.path.normpath(f"{cgroup.path}/{below}")
        if not f"{path}/".startswith(f"{cgroup.path}/"):
            raise UsageError(f"--cgroup: {below} is not a sub cgroup path: expected one below the container's")
        if not colon:
            return Cgroup.at(cgroup.hierarchies, path)
        for controller in controllers.split(","):
            mountpoint = cgroup.hierarchies.v1.get(controller)
            if mountpoint is None:
                raise UsageError(f"invalid --cgroup argument: {word} (no version 1 controller {controller!r} here)")
            if dict(cgroup.apart).get(mountpoint, path) != path:
                raise UsageError(f"invalid --cgroup argument: {word} (controller {controller} has two paths)")
            cgroup = replace(cgroup, apart=(*cgroup.apart, (mountpoint, path)))
    return cgroup
