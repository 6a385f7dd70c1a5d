"""Creates the shim's pod-wide objects: the infra process, the pinned network namespace, /dev/shm."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence

from linux import syscalls
from linux.mounts import mount_tmpfs, pin_namespace, unmount_if_mounted
from linux.tables import NAMESPACE_FLAGS
from runtime.errors import NotRunning, OperationFailed, failing
from runtime.light import contextlib, signal, socket
from runtime.namespaces import user as userns
from runtime.namespaces.sysctl import write_defaults, write_sysctls
from runtime.process.infra import INFRA_ID, OUTLIVE, infra_main
from runtime.process.init import leave_the_loop
from runtime.process.parent import die_with, own_pidfd
from runtime.shim.deposits import Deposits
from runtime.shim.estates import POD_KEY, PodEstate
from runtime.spec.values import IDMapping
from runtime.wire.calls import ABILITIES, Made, MakePod
from runtime.wire.reports import INFRA, Conversation, Ended, Reporter, answer, receive


class Pod:
    """A pod as MakePod describes it, made with the zygote's infra program and empty mount namespace."""

    def __init__(self, call: MakePod, infra_program: int, empty_mount_namespace: int) -> None:
        self._call = call
        self.sandbox = call.sandbox
        self.directory = call.directory
        self._hostname = call.hostname
        self._sysctls = call.sysctls
        self._default_sysctls = call.default_sysctls
        self._new = call.new
        self._netns = call.netns
        self._last_pid = call.last_pid if "pid" in call.new else 0
        self._shm_size = call.shm_size
        self._infra_program = infra_program
        self._empty_mount_namespace = empty_mount_namespace
        users = call.users
        self._users = userns.IDMappings.of_lines(users.uids, users.gids) if users is not None else None
        self.user_namespace = -1
        self.infra_pid = 0
        self._infra_pidfd = -1

    @property
    def infra_alive(self) -> bool:
        return self._infra_pidfd >= 0

    def make(self, code: str) -> Made:
        """Make everything, or nothing. Raises RuntimeCoreError."""
        self._take_name()
        with contextlib.ExitStack() as undo:
            if self._shm_size:
                self._mount_shm()
                undo.callback(syscalls.umount2, self._shm_path(), syscalls.MNT_DETACH)
            self._start_infra()
            undo.callback(self._end_infra)
            if self._netns:
                with failing("pin network namespace", self._netns):
                    pin_namespace(f"/proc/{self.infra_pid}/ns/net", self._netns)
            undo.pop_all()
        return Made(pid=os.getpid(), infra_pid=self.infra_pid, abilities=ABILITIES, code=code)

    def _take_name(self) -> None:
        """Give the shim the pod's title and log."""
        syscalls.set_process_title(f"crisp-shim {self.sandbox}")
        log = os.open(os.path.join(self.directory, "shim.log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)

    def deposit(self, deposits: Deposits, listener: int) -> None:
        """Deposit the pod, and let its infra process outlive the shim."""
        estate = PodEstate(self._call, self.infra_pid, self.infra_alive, self.user_namespace >= 0)
        fds = [fd for fd in (self._infra_pidfd, self.user_namespace, listener) if fd >= 0]
        deposits.put(POD_KEY, estate.encode(), fds, self.infra_pid if self.infra_alive else 0)
        if self.infra_alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._infra_pidfd, OUTLIVE)

    def succeed(self, estate: PodEstate, fds: list[int]) -> None:
        """Take over the pod of an earlier shim, with the first of its descriptors. Raises OSError."""
        self._take_name()
        self.infra_pid = estate.infra_pid
        if estate.infra_alive:
            self._infra_pidfd = fds.pop(0)
        if estate.user_namespace:
            self.user_namespace = fds.pop(0)

    def unmake(self) -> None:
        """Undo `make`, except for the network namespace, which is kept until CNI DEL has succeeded."""
        if self._shm_size:
            with failing("unmount", self._shm_path()):
                unmount_if_mounted(self._shm_path())

    def kill_infra(self) -> None:
        if self.infra_alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._infra_pidfd, signal.SIGKILL)

    @property
    def infra_pidfd(self) -> int:
        return self._infra_pidfd

    def infra_exited(self) -> None:
        for attribute in ("_infra_pidfd", "user_namespace"):
            if getattr(self, attribute) >= 0:
                os.close(getattr(self, attribute))
                setattr(self, attribute, -1)

    def sockets(self) -> list[int]:
        """Return new TCP sockets, IPv4 and if possible IPv6, in the pod's network namespace. The caller closes them."""
        if "network" not in self._new:
            return _tcp_sockets()
        if not self.infra_alive:
            raise NotRunning("make socket: the pod's network namespace is gone")
        own = userns.inside(self._infra_pidfd, syscalls.CLONE_NEWNET)
        with failing("enter network namespace of", f"infra process {self.infra_pid}"), own:
            return _tcp_sockets()

    def _shm_path(self) -> str:
        return os.path.join(self.directory, "shm")

    def _mount_shm(self) -> None:
        options = {"source": "shm", "mode": "1777", "size": str(self._shm_size)}
        if self._users is not None:
            options |= zip(("uid", "gid"), map(str, self._users.root), strict=True)
        with failing("mount `tmpfs` on", self._shm_path()):
            mount_tmpfs(self._shm_path(), options)

    def _start_infra(self) -> None:
        flags = sum(NAMESPACE_FLAGS[kind] for kind in self._new)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs, failing("clone", "infra process"), own_pidfd() as shim:
                if self._users is None:
                    self._clone_infra(flags, theirs, shim)
                else:
                    # Clone it in the empty mount namespace, which it could not enter from its user namespace.
                    with userns.inside(self._empty_mount_namespace, syscalls.CLONE_NEWNS):
                        self._clone_infra(flags | syscalls.CLONE_NEWUSER, theirs, shim)
            if self._users is not None:
                self._map_users(flags, self._users, ours)
            conversation = Conversation(INFRA)
            while not isinstance(receive(ours, conversation), Ended):  # ends with the child's execve, in milliseconds
                pass
        if conversation.outcome is not None:
            self._end_infra()
            raise conversation.outcome

    def _clone_infra(self, flags: int, channel: socket.socket, shim: int) -> None:
        self.infra_pid, self._infra_pidfd = syscalls.clone(flags)
        if self.infra_pid == 0:
            self._infra_child(Reporter(channel), shim)

    def _map_users(self, flags: int, users: userns.IDMappings, channel: socket.socket) -> None:
        """Map the infra process's ids, do what needs the host's root in its namespaces, and let it continue."""
        try:
            userns.write_mappings(self.infra_pid, users)
            with failing("open", "user namespace"):
                self.user_namespace = os.open(f"/proc/{self.infra_pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            if self._sysctls or self._default_sysctls:
                with userns.inside(self._infra_pidfd, flags & ~syscalls.CLONE_NEWPID):
                    _write_sysctls(self._sysctls, users.uid(0))
                    write_defaults(self._default_sysctls)
            answer(channel, {})
        except BaseException:
            self._end_infra()
            raise

    def _infra_child(self, reporter: Reporter, shim: int) -> None:
        try:
            die_with(shim)  # it has a copy of the shim's end, and would wait for an answer for ever
            leave_the_loop()
            if self._users is not None and reporter.await_answer() is None:
                os._exit(1)  # the shim knows why
            infra_main(
                parent=shim,
                program_fd=self._infra_program,
                mount_namespace=self._empty_mount_namespace if self._users is None else -1,
                title=f"crisp-infra {self.sandbox}",
                hostname=self._hostname,
                new_network="network" in self._new,
                new_uts="uts" in self._new,
                last_pid=self._last_pid,
                sysctls=self._sysctls if self._users is None else {},
                default_sysctls=self._default_sysctls if self._users is None else {},
                uid=_last_id(self._users.uids) if self._users else INFRA_ID,
                gid=_last_id(self._users.gids) if self._users else INFRA_ID,
            )
        except BaseException as error:  # the child must never return into the shim's code
            reporter.fail(error)
        os._exit(1)

    def _end_infra(self) -> None:
        self.kill_infra()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.infra_pid, 0)
        self.infra_exited()


def _tcp_sockets() -> list[int]:
    sockets: list[int] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            sockets.append(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK).detach())
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                for fd in sockets:
                    os.close(fd)
                raise
    return sockets


def _write_sysctls(sysctls: Mapping[str, str], owner: int) -> None:
    """Write sysctls as root. IPC's belong to the root of the user namespace since Linux 6.9, before that to us."""
    for name, value in sysctls.items():
        try:
            write_sysctls({name: value})
        except OperationFailed as error:
            if error.errno != errno.EACCES:
                raise
            with userns.effective(owner):
                write_sysctls({name: value})


def _last_id(mappings: Sequence[IDMapping]) -> int:
    """Return nobody's id, or the last id of a small user namespace."""
    return max(min(INFRA_ID, line.container_id + line.size - 1) for line in mappings if line.container_id <= INFRA_ID)
