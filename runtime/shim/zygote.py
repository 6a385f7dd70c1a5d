"""Runs the zygote: an interpreter with this package loaded and its heap frozen. It forks shims, and is their keeper.

crispd starts it as `python -I -S` (no site-packages, no environment) with a SEQPACKET socket as descriptor 3. Each
datagram has one descriptor:

    fork    the new shim's connection to crispd
    keep    the keeper's end of a living shim's socket: the shim's own keeper is dead
    renew   the same; the shim is of another version, and leaves when it has deposited everything
    probe   a directory; the answer is "able", or the reason why files in it cannot be id-mapped

When crispd is gone the zygote stays as long as it has shims. When a shim dies it forks a successor, of its own version,
whether there is a crispd or not.

Before a shim may sleep, the zygote forks another one, the second keeper, which serves it as it serves crispd. It gets
`renew` for each shim that sleeps, and `alone` when crispd is gone; when the zygote dies, it has their pods.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

from linux import syscalls
from linux.heap import fill_gaps
from linux.sealed import seal
from runtime.cgroups import SHIM_CGROUP, Cgroup, Hierarchies, v1, v2
from runtime.cgroups import device_filter as devices_bpf
from runtime.errors import OperationFailed, RuntimeCoreError
from runtime.light import contextlib, replace, signal, socket
from runtime.namespaces import netdevices
from runtime.namespaces import user as userns
from runtime.process import infra
from runtime.process.become import set_oom_score_adj
from runtime.process.parent import die_with, own_pidfd
from runtime.process.script import Runner
from runtime.rootfs.overlay import layers_can_be_appended
from runtime.shim.deposits import Deposit, Entry, NewKeeper
from runtime.shim.estates import unreadable
from runtime.shim.keeper import Keeper
from runtime.shim.loop import READ, EventLoop
from runtime.shim.planner import Planner, planner_main
from runtime.shim.shim import Inheritance, shim_main
from runtime.spec.values import Resources
from runtime.wire.calls import SECOND_KEEPER_NAME, ZYGOTE_NAME

_CONTROL: Final = 3
_PRELOADED: Final = (devices_bpf, json, netdevices, v1, v2)  # others import them lazily, after the fork
_LEAVING_SECONDS: Final = 2.0  # a shim without a keeper, whose pod goes on, is not waited for any longer
_SECOND_SECONDS: Final = 0.5  # somebody has stopped a second keeper that takes nothing for longer
_PLANNER_SECONDS: Final = 30.0  # without a question, after which it leaves
_PLANNER_PAUSE: Final = 0.1  # seconds
_NO_WAIT: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_JOINS: Final = 64  # attempts: each fails only if another crispd stops at that moment
_USUAL_DESCRIPTORS: Final = 1024
_SHIM_OOM_SCORE_ADJ: Final = -998  # the OOM killer takes shims after their pods


def main(own_cgroup: bool, code: str, sleep_seconds: int) -> None:
    """Serve until the control socket is closed.

    `own_cgroup`: enter the shims' cgroup ourselves, else crispd does it. `code` tells our code from other versions'.
    A shim that has had nothing to do for `sleep_seconds` sleeps; 0 for never.
    """
    control = socket.socket(fileno=_CONTROL)
    os.set_inheritable(_CONTROL, False)
    os.umask(0o022)
    _restore_descriptor_limit()
    _restore_signals()
    syscalls.close_all_from(_CONTROL, keep=(_CONTROL,))
    syscalls.set_name(ZYGOTE_NAME)
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the shims' keeper leaves after them
    asking, plans = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    inheritance = Inheritance(
        Hierarchies.usable(), infra.program_file(), infra.empty_mount_namespace(), Runner(), Planner(asking), code,
        sleep_seconds,
    )  # fmt: skip
    if own_cgroup:
        _leave_the_daemons_cgroup(inheritance.hierarchies)
    try:
        _serve(control, inheritance, plans)
    finally:
        _leave(inheritance.hierarchies)


def _serve(control: socket.socket, inheritance: Inheritance, plans: socket.socket) -> None:
    """Get ready, and serve until the control socket is closed and the last pod has ended."""
    set_oom_score_adj(_SHIM_OOM_SCORE_ADJ)
    # Inherited by shims and by what they clone into containers: until its execve an exec has the shim's memory and
    # descriptors, and root in the container could otherwise trace it (CVE-2016-9962).
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    layers_can_be_appended()
    seal()  # for every process forked from now on
    zygote = _Zygote(control, inheritance, plans)
    fill_gaps()
    gc.freeze()
    with contextlib.suppress(OSError):  # crispd is gone already
        control.send(b"ready")
    zygote.run()


class _Zygote:
    """Serves crispd, and keeps what shims deposit."""

    def __init__(self, control: socket.socket, inheritance: Inheritance, plans: socket.socket) -> None:
        """`plans` is where shims ask the planner."""
        self._control = control
        self._plans = plans
        self._planner = 0  # its pid, if it lives
        self._second: socket.socket | None = None  # where the second keeper serves us, if it lives
        self._second_pid = 0
        self._inheritance = inheritance
        self._loop = EventLoop(lambda pid, status: self._keeper.reaped(pid, status))
        self._keeper = Keeper(self._loop, self._fork_successor, self._leave_if_done, self._deposit_twice, unreadable)
        # What each shim inherits; everything else is another shim's, or ours.
        self._inherited = (0, 1, 2, inheritance.infra_program, inheritance.empty_mount_namespace,
                           inheritance.script_runner.program, inheritance.planner.fileno())  # fmt: skip
        self._served = True
        self._loop.watch(control.fileno(), READ, self._serve)
        self._watch_questions()
        _raise_descriptor_limit()

    def run(self) -> None:
        self._loop.run()
        if self._second is not None:
            self._second.close()  # it leaves too
        if self._planner:
            os.kill(self._planner, signal.SIGKILL)
            os.waitpid(self._planner, 0)

    def _serve(self, _events: int) -> None:
        try:
            data, fds, _flags, _address = socket.recv_fds(self._control, 16, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # crispd died with an answer unread; what it asked before comes after this
            return
        if not data:
            self._leave_crispd()
        elif data == b"probe":
            with contextlib.suppress(OSError):  # crispd is dead
                self._control.send(userns.refusal(fds[0]).encode() or b"able")
            os.close(fds[0])
        elif data == b"alone":
            _forget_stderr()
        elif data in (b"keep", b"renew"):
            self._keeper.keep(socket.socket(fileno=fds[0]), renewing=data == b"renew")
        else:
            self._fork_shim(fds[0])
            self._fork_planner()

    def _leave_crispd(self) -> None:
        self._loop.unwatch(self._control.fileno())
        if self._keeper.keeps_pods():
            with contextlib.suppress(OSError):  # crispd is dead
                self._control.send(b"stays")
        self._control.close()
        _forget_stderr()
        if self._second is not None:
            with contextlib.suppress(OSError):  # it is dead
                self._second.send(b"alone", _NO_WAIT)
        self._served = False
        self._watch_questions()
        self._leave_if_done()

    def _leave_if_done(self) -> None:
        if not self._served and not self._keeper.keeps_pods():
            self._loop.stop()

    def _fork_shim(self, birth: int) -> None:
        try:
            ours = self._fork(birth, None)
        except OSError as error:
            print(f"zygote: fork shim: {error}", file=sys.stderr, flush=True)
        else:
            self._keeper.keep(ours)
        finally:
            os.close(birth)  # crispd notices that, if there is no shim

    def _watch_questions(self) -> None:
        """Fork the planner when it is asked something, if there is none."""
        first_lives = self._inheritance.by_second and self._served  # then it has the planner
        if not self._planner and not first_lives:
            self._loop.watch(self._plans.fileno(), READ, lambda _events: self._fork_planner())

    def _fork_planner(self) -> None:
        """Fork the planner, unless there is one. Shims do without."""
        if self._planner:
            return
        self._loop.unwatch(self._plans.fileno())
        try:
            with own_pidfd() as zygote:
                self._planner = os.fork()
                if self._planner == 0:
                    self._become_planner(zygote)
                self._loop.on_exit(self._planner, self._planner_ended)
        except OSError:
            self._loop.later(_PLANNER_PAUSE, self._watch_questions)

    def _planner_ended(self, _status: int) -> None:
        self._planner = 0
        self._loop.later(_PLANNER_PAUSE, self._watch_questions)  # one that dies at once must not keep us busy

    def _become_planner(self, zygote: int) -> NoReturn:
        try:
            die_with(zygote)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            template = self._inheritance.empty_mount_namespace
            syscalls.close_all_from(0, keep=(0, 1, 2, template, self._plans.fileno()))
        except BaseException as error:
            print(f"zygote: fork planner: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        planner_main(self._plans, self._inheritance.hierarchies, template, _PLANNER_SECONDS)

    def _deposit_twice(self, entries: Mapping[str, Entry], ours: socket.socket, theirs: int) -> None:
        """Give a copy to the second keeper, over one of two sockets that it gets the other one of. Raises OSError."""
        if self._second is None:
            self._fork_second()
        assert self._second is not None
        try:
            socket.send_fds(self._second, [b"renew"], [theirs], _NO_WAIT)
            keeper = NewKeeper(ours, _SECOND_SECONDS)
            for key, entry in entries.items():
                keeper.put(key, entry.record, entry.fds, entry.pid)
            keeper.whole()  # now: it is what is there if we die
            if reason := keeper.check():
                raise OSError(reason)
        except (TimeoutError, BlockingIOError):
            os.kill(self._second_pid, signal.SIGKILL)  # somebody has stopped it
            raise

    def _fork_second(self) -> None:
        """Raises OSError."""
        self._second_pid, self._second = _fork_with_socket(self._become_second)
        self._loop.on_exit(self._second_pid, self._second_ended)

    def _second_ended(self, _status: int) -> None:
        if self._second is not None:
            self._second.close()
            self._second = None
        self._keeper.deposit_again()

    def _become_second(self, control: socket.socket) -> NoReturn:
        try:
            os.setsid()
            syscalls.set_name(SECOND_KEEPER_NAME)
            syscalls.set_process_title(SECOND_KEEPER_NAME)
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
            signal.set_wakeup_fd(-1)
            syscalls.close_all_from(0, keep=(*self._inherited, control.fileno(), self._plans.fileno()))
            _Zygote(control, replace(self._inheritance, by_second=True), self._plans).run()
            _leave(self._inheritance.hierarchies)
        except BaseException as error:
            print(f"second keeper: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(0)

    def _fork_successor(self, deposit: Deposit) -> socket.socket:
        return self._fork(-1, deposit)

    def _fork(self, birth: int, deposit: Deposit | None) -> socket.socket:
        """Fork a shim, and return the keeper's end of the socket between them. Raises OSError."""
        return _fork_with_socket(lambda keeping: self._become_shim(birth, keeping, deposit))[1]

    def _become_shim(self, birth: int, keeping: socket.socket, deposit: Deposit | None) -> NoReturn:
        """Keep what is for this shim alone, and close everything else."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            own = [birth] if birth >= 0 else []
            if deposit is not None:
                own += [fd for entry in deposit.entries.values() for fd in entry.fds]
            syscalls.close_all_from(0, keep=(*self._inherited, keeping.fileno(), *own))
            _restore_descriptor_limit()
        except BaseException as error:
            print(f"zygote: fork shim: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        shim_main(socket.socket(fileno=birth) if birth >= 0 else None, keeping, self._inheritance, deposit)


def _fork_with_socket(become: Callable[[socket.socket], NoReturn]) -> tuple[int, socket.socket]:
    """Fork a process that has one end of a socket. Return its pid and the other end. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            raise
        if pid == 0:
            become(theirs)
    return pid, ours


def _forget_stderr() -> None:
    """Close crispd's standard error: who reads it waits for its end."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 2)
    os.close(null)


def _leave(hierarchies: Hierarchies) -> None:
    _await_children()
    Cgroup.at(hierarchies, SHIM_CGROUP).leave_self()


def _await_children() -> None:
    """Wait for shims that have left, and are about to exit: who is the last in a cgroup removes it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    deadline = time.monotonic() + _LEAVING_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        try:
            pid, _status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            signal.sigtimedwait([signal.SIGCHLD], left)


def _restore_signals() -> None:
    """Reset signals that crispd's parent ignored (as a shell does for background jobs): containers would inherit it."""
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN and number not in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _raise_descriptor_limit() -> None:
    """Raise the soft limit: a keeper has some descriptors of each container."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _restore_descriptor_limit() -> None:
    """Reset the soft limit, which crispd has raised, to the usual value of a Linux system: containers inherit it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    usual = _USUAL_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_USUAL_DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (usual, hard))


def _leave_the_daemons_cgroup(hierarchies: Hierarchies) -> None:
    """Enter a cgroup outside all pods': kubelet kills every process in a dead pod's cgroup."""
    cgroup = Cgroup.at(hierarchies, SHIM_CGROUP)
    for attempt in range(_JOINS):
        try:
            cgroup.create(Resources())
            cgroup.join_self()
            return
        except RuntimeCoreError as error:
            # Another crispd that stops removes the cgroup while it is empty.
            if not isinstance(error, OperationFailed) or error.errno != errno.ENOENT or attempt == _JOINS - 1:
                with contextlib.suppress(OSError):
                    print(f"zygote: could not leave crispd's cgroup: {error}", file=sys.stderr, flush=True)
                return
