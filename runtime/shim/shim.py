"""Runs the shim: one small process per pod, the parent of everything in it. It survives crispd.

It is single-threaded, with one epoll loop. It serves the calls of `runtime.wire.calls` on the connection that it was
forked with and on those accepted from `<sandbox directory>/shim.sock`.

An exit status is on disk (`exits/<container id>`) before it is reported, so a daemon that was away finds it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

from linux import syscalls
from runtime.cgroups import SHIM_CGROUP, Cgroup, Hierarchies
from runtime.errors import NO_CALL, NotRunning, RuntimeCoreError, failing
from runtime.light import json, socket
from runtime.logs.writer import complain
from runtime.process.script import Runner
from runtime.shim.connection import Connection, Request
from runtime.shim.container import Container
from runtime.shim.deposits import Deposit, Deposits, NewKeeper
from runtime.shim.estates import (
    JOURNAL_KEY,
    PARENTS_KEY,
    POD_KEY,
    SANDBOX_KEY,
    ConnectionEstate,
    ContainerEstate,
    PodEstate,
    SandboxEstate,
    connection_key,
    container_key,
    is_connection,
    is_container,
    read,
)
from runtime.shim.holder import start_holder
from runtime.shim.holdings import Holdings
from runtime.shim.journal import Journal
from runtime.shim.launch.external import ExternalLauncher
from runtime.shim.launch.launcher import Launcher
from runtime.shim.launch.own import OwnLauncher
from runtime.shim.launch.restored import RestoredLauncher
from runtime.shim.launch.sandbox import Sandbox
from runtime.shim.launch.sandboxed import SandboxedLauncher
from runtime.shim.loop import READ, EventLoop
from runtime.shim.parents import Parents
from runtime.shim.pause import Pause
from runtime.shim.planner import Planner
from runtime.shim.pod import Pod
from runtime.shim.reply import Reply
from runtime.shim.sleep import Sleep
from runtime.wire import calls
from runtime.wire.frames import Message

_ACCEPT_PAUSE: Final = 1.0  # seconds
_BEGINNINGS: Final = frozenset(kind.call for kind in (calls.MakeSandbox, calls.Create, calls.Start, calls.Exec))


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a shim inherits from the zygote."""

    hierarchies: Hierarchies
    infra_program: int
    empty_mount_namespace: int
    script_runner: Runner
    planner: Planner
    code: str  # what tells this version from others
    sleep_seconds: int  # without anything to do, after which a shim sleeps; 0 for never
    by_second: bool = False  # the zygote is a second keeper (runtime.shim.sleep), whose shims had better be another's


class Shim:
    """Serves the calls for a pod and its containers."""

    def __init__(self, inheritance: Inheritance, keeping: socket.socket) -> None:
        """Deposit with the keeper at `keeping` when crispd says `Keep`."""
        self._inheritance = inheritance
        self._loop = loop = EventLoop()
        # Containers use the loop through the shim.
        self.watch, self.unwatch, self.later, self.idly = loop.watch, loop.unwatch, loop.later, loop.idly
        self.on_exit, self.is_child, self.command_started = loop.on_exit, loop.is_child, loop.command_started
        self.follow = loop.follow
        self._connections: list[Connection] = []
        self._containers: dict[str, Container] = {}
        self._pauses: dict[Connection, Pause] = {}
        self._bound: dict[Connection, set[tuple[str, str]]] = {}  # containers and keys of such execs
        self._pod: Pod | None = None
        self._sandbox: Sandbox | None = None
        self._listener: socket.socket | None = None
        self._journal: Journal | None = None
        self._cgroups: dict[str, Cgroup] = {}  # by the path of the parent cgroup
        self._shutdown_replies: list[Reply] = []
        self.deposits = Deposits(keeping, loop, loop.told)
        self._parents = Parents(loop, self.deposits, loop.told)
        self._needs_keeper = inheritance.by_second
        self._keeper_knows_sleep = True
        self._sleep = Sleep(
            loop, self.deposits, inheritance.sleep_seconds, self._may_sleep, self._deposit_for_sleep, self._go
        )

    def serve(self, birth: socket.socket) -> None:
        """Serve crispd at this connection, among others."""
        self._connections.append(Connection(self, birth))

    def run(self) -> None:
        self._loop.run()

    # -- what containers and the pod need -----------------------------------------------------------------------------

    @property
    def empty_mount_namespace(self) -> int:
        return self._inheritance.empty_mount_namespace

    @property
    def script_runner(self) -> Runner:
        return self._inheritance.script_runner

    @property
    def pod_directory(self) -> str:
        assert self._pod is not None
        return self._pod.directory

    @property
    def planner(self) -> Planner:
        return self._inheritance.planner

    @property
    def user_namespace(self) -> int:
        """A descriptor of the pod's user namespace, -1 if it has none."""
        return self._pod.user_namespace if self._pod is not None else -1

    @property
    def journal(self) -> Journal:
        """What is read of containers' outputs and not logged yet."""
        if self._journal is None:
            self._journal = Journal()
            self._deposit_journal()
        return self._journal

    def _deposit_journal(self) -> None:
        if self._journal is not None:
            self.deposits.put(JOURNAL_KEY, b"", [self._journal.fd])

    def start_holder(self) -> tuple[int, int]:
        """Start a placeholder process for a scope. Return its pid and pidfd; the caller closes the latter."""
        assert self._pod is not None
        inherited = self._inheritance
        pid, pidfd = start_holder(inherited.infra_program, inherited.empty_mount_namespace, self._pod.sandbox)
        self.on_exit(pid, lambda _status: None)
        return pid, pidfd

    def emit(self, event: calls.Event) -> None:
        for connection in list(self._connections):
            connection.send({"event": event.event, **event.to_json()})

    def uses_cgroup(self, cgroup: Cgroup) -> None:
        """Remember the cgroup, to remove its parents with the pod: other containers may be in them too."""
        self._cgroups.setdefault(os.path.dirname(cgroup.path), cgroup)

    def record_exit(self, container_id: str, status: calls.ExitStatus) -> None:
        assert self._pod is not None
        path = calls.exit_file(self._pod.directory, container_id)
        try:
            with open(path + ".new", "w") as file:
                file.write(json.dumps(status.to_json()))
            os.rename(path + ".new", path)
        except OSError as error:
            complain(f"could not record the exit of {container_id}: {error}")

    def recorded_exit(self, container_id: str) -> calls.ExitStatus | None:
        """Return the exit status that `record_exit` has written."""
        assert self._pod is not None
        try:
            with open(calls.exit_file(self._pod.directory, container_id), "rb") as file:
                return calls.ExitStatus.from_json(json.load(file))
        except (OSError, ValueError, TypeError):
            return None

    def forget(self, connection: Connection, fd: int) -> None:
        self.unwatch(fd)
        if (pause := self._pauses.pop(connection, None)) is not None:
            pause.abandon()
        for container_id, key in self._bound.pop(connection, ()):
            if (container := self._containers.get(container_id)) is not None:
                container.kill_exec(key)
        with contextlib.suppress(ValueError):
            self._connections.remove(connection)
        if self._pod is None and not self._connections:
            self._loop.stop()  # crispd died before it made a pod: nobody can find this shim

    # -- calls --------------------------------------------------------------------------------------------------------

    def handle(self, message: Message, fds: Sequence[int], connection: Connection) -> None:
        """Run one call, and close its descriptors afterwards: a cloned process has copies by then."""
        number = message["id"]

        def reply(result: calls.Answer | RuntimeCoreError) -> None:
            if isinstance(result, RuntimeCoreError):
                connection.send({"id": number, "error": result.to_json()})
            else:
                sent = result.fds if isinstance(result, calls.Descriptors) else ()
                connection.send({"id": number, "ok": result.to_json()}, sent)

        try:
            answer = self._run(message, Request(number, fds, reply, connection))
            if answer is not None:
                reply(answer)
        except RuntimeCoreError as error:
            reply(error)
        except Exception as error:  # no error of a call may stop the pod's other containers
            reply(RuntimeCoreError(f"{message.get('call')}: {type(error).__name__}: {error}"))
        finally:
            for fd in fds:
                os.close(fd)

    def _run(self, message: Message, request: Request) -> calls.Answer | None:
        name = message["call"]
        if self._pod is None and name not in (calls.MakePod.call, calls.Shutdown.call):
            raise RuntimeCoreError(f"{name}: the shim has no pod yet")
        if self._shutdown_replies and name in _BEGINNINGS:
            raise RuntimeCoreError(f"{name}: the pod is being shut down")
        if name not in _HANDLERS:
            raise RuntimeCoreError(f"{NO_CALL} {name!r}")
        kind, handler = _HANDLERS[name]
        return handler(self, kind.from_json(message), request)

    def _container(self, container_id: str) -> Container:
        try:
            return self._containers[container_id]
        except KeyError:
            raise NotRunning(f"the shim has no container {container_id!r}") from None

    def _freeze(self, call: calls.Freeze, request: Request) -> calls.Done:
        self._end_pause(request.connection)
        pause = Pause([self._container(container_id) for container_id in call.containers], self.idly)
        pause.begin(call.seconds)
        self._pauses[request.connection] = pause
        return calls.Done()

    def _thaw(self, _call: calls.Thaw, request: Request) -> calls.Done:
        self._end_pause(request.connection)
        return calls.Done()

    def _end_pause(self, connection: Connection) -> None:
        if (pause := self._pauses.pop(connection, None)) is not None:
            pause.end()

    def _prepare(self, call: calls.Prepare, request: Request) -> calls.Done:
        self._container(call.container).prepare(call, request.fds)
        return calls.Done()

    def _start(self, call: calls.Start, request: Request) -> None:
        self._container(call.container).start(call, request.fds, request.reply)

    def _wait_start(self, call: calls.WaitStart, request: Request) -> None:
        self._container(call.container).wait_start(request.reply)

    def _update(self, call: calls.Update, _request: Request) -> calls.Updated:
        return self._container(call.container).update(call)

    def _signal(self, call: calls.Signal, _request: Request) -> calls.Done:
        self._container(call.container).signal(call.signal)
        return calls.Done()

    def _kill(self, call: calls.Kill, _request: Request) -> calls.Done:
        self._container(call.container).kill()
        return calls.Done()

    def _reopen_log(self, call: calls.ReopenLog, _request: Request) -> calls.Done:
        self._container(call.container).reopen_log()
        return calls.Done()

    def _open_rootfs(self, call: calls.OpenRootfs, _request: Request) -> calls.Descriptors:
        return calls.Descriptors((self._container(call.container).rootfs(),))

    def _execute(self, call: calls.Exec, request: Request) -> None:
        container = self._container(call.container)
        if not call.bound:
            container.execute(call, request.fds, request.reply)
            return
        bound, execution = self._bound.setdefault(request.connection, set()), (call.container, call.exec)

        def reply(result: calls.Answer | RuntimeCoreError) -> None:
            bound.discard(execution)
            request.reply(result)

        bound.add(execution)
        try:
            container.execute(call, request.fds, reply)
        except BaseException:
            bound.discard(execution)
            raise

    def _wait_exec_running(self, call: calls.WaitExecRunning, request: Request) -> None:
        self._container(call.container).wait_exec_running(call.exec, request.reply)

    def _kill_exec(self, call: calls.KillExec, _request: Request) -> calls.Done:
        self._container(call.container).kill_exec(call.exec)
        return calls.Done()

    def _attach(self, call: calls.Attach, request: Request) -> None:
        self._container(call.container).attach(call, request.fds, request.reply)

    def _detach(self, call: calls.Detach, _request: Request) -> calls.Done:
        self._container(call.container).detach(call.attach)
        return calls.Done()

    def _resize(self, call: calls.Resize, _request: Request) -> calls.Done:
        self._container(call.container).resize(call.width, call.height)
        return calls.Done()

    def _keep(self, call: calls.Keep, request: Request) -> calls.Done:
        if request.fds:
            self._needs_keeper, self._keeper_knows_sleep = False, call.sleeps
        self.deposits.begin(socket.socket(fileno=os.dup(request.fds[0])) if request.fds else None)
        self._deposit_all()
        self._sleep.begin()
        return calls.Done()

    def _may_sleep(self) -> bool:
        owing = any(container.log_owes for container in self._containers.values())
        return self._keeper_knows_sleep and not owing and not self._work()

    def _deposit_for_sleep(self) -> None:
        self._deposit_all()
        for number, connection in enumerate(self._connections):
            self.deposits.put(connection_key(number), ConnectionEstate().encode(), [connection.fd])

    def _go(self, keeper: int) -> bool:
        """Leave the pod to the keeper. Return False if a connection does not take that now."""
        self.emit(calls.Asleep(self._describe(), keeper))
        if all(connection.at_rest for connection in self._connections) and self.deposits.gone():
            os._exit(0)
        self._tell_awake()
        return False

    def _tell_awake(self) -> None:
        self.emit(calls.Awake(os.getpid()))

    def _deposit_all(self) -> None:
        self._deposit_pod()
        self._deposit_journal()
        self._parents.deposit()
        if self._sandbox is not None:
            self._sandbox.deposit()
        for container in self._containers.values():
            container.deposit()

    def _renew(self, _call: calls.Renew, request: Request) -> None:
        """Leave the pod to a successor of another version, which answers. Raises RuntimeCoreError, and stays."""
        if reason := self._work():
            raise RuntimeCoreError(f"renew the shim: {reason}")
        with failing("renew", "the shim"), socket.socket(fileno=os.dup(request.fds[0])) as sock:
            keeper = NewKeeper(sock)
            with self.deposits.aside(keeper.take):
                self._deposit_all()
            keeper.put(PARENTS_KEY, b"", self._parents.fds())
            for number, connection in enumerate(self._connections):
                asked = request.number if connection is request.connection else None
                keeper.put(connection_key(number), ConnectionEstate(asked).encode(), [connection.fd])
            if reason := keeper.check():
                raise RuntimeCoreError(f"renew the shim: the new version cannot take over: {reason}")
            keeper.whole()
        os._exit(0)  # at once: all that comes from now on is the successor's

    def _work(self) -> str:
        """Return what the shim has to do before another process can take over without anybody noticing, or ""."""
        if self._pod is None or not self._pod.infra_alive or self._shutdown_replies:
            return "its pod ends"
        if self._pauses:
            return "a checkpoint is being made"
        if self._loop.busy:
            return "it waits for a command, or for processes to end"
        if not all(connection.at_rest for connection in self._connections):
            return "it has calls to answer"
        if not self.deposits.kept:
            return "it has no keeper"
        if not self._parents.tell_ends:
            return "before Linux 6.15 the parent of its processes has to be its keeper"
        return next(filter(None, (container.work for container in self._containers.values())), "")

    def _deposit_pod(self) -> None:
        if self._pod is not None and self._listener is not None:
            self._pod.deposit(self.deposits, self._listener.fileno())

    def succeed(self, deposit: Deposit) -> None:
        """Take over the pod of an earlier shim, or end it if crispd has removed it meanwhile. Raises OSError."""
        for pid, status in deposit.statuses.items():
            self._loop.expect(pid, status)
        asked = self._succeed_connections(deposit)
        entry = deposit.entries[POD_KEY]
        estate, fds = read(PodEstate, entry), list(entry.fds)
        if not os.path.isdir(estate.make.directory):
            self.deposits.begin()
            self.deposits.over()
            deposit.kill()
            self._loop.stop()
            return
        if (parents := deposit.entries.get(PARENTS_KEY)) is not None:
            self._parents.succeed(parents.fds)
        self._pod = Pod(estate.make, self._inheritance.infra_program, self._inheritance.empty_mount_namespace)
        self._pod.succeed(estate, fds)
        self._listener = socket.socket(fileno=fds.pop())
        if self._pod.infra_alive:
            self.follow(estate.infra_pid, self._pod.infra_pidfd, self._infra_exited)
        if (sandbox := deposit.entries.get(SANDBOX_KEY)) is not None:
            left = read(SandboxEstate, sandbox)
            self._sandbox = Sandbox(left.make, self, self._inheritance.hierarchies, self._pod.kill_infra)
            self._sandbox.succeed(left, sandbox.fds[0])
        if (journal := deposit.entries.get(JOURNAL_KEY)) is not None:
            self._journal = Journal(journal.fds[0])
        for key, entry in deposit.entries.items():
            if is_container(key):
                self._succeed_container(read(ContainerEstate, entry), entry.fds)
        if not deposit.orderly:  # who has frozen them is not connected any more
            Pause.of(list(self._containers.values()), self.idly).abandon()
        self.deposits.begin()
        self._parents.deposit()  # first: if we died now, our keeper must know the others
        for key in filter(is_connection, deposit.entries):
            self.deposits.drop(key)
        self._deposit_all()
        self._parents.settle()
        self._listen()
        for connection, number in asked:
            connection.send({"id": number, "ok": self._describe().to_json()})
        self._tell_awake()
        self._sleep.begin()

    def _succeed_connections(self, deposit: Deposit) -> list[tuple[Connection, int]]:
        """Serve the connections of a shim that was renewed, and return those that wait for an answer to that."""
        asked = []
        for key, entry in deposit.entries.items():
            if is_connection(key):
                connection = Connection(self, socket.socket(fileno=entry.fds[0]))
                self._connections.append(connection)
                if (number := read(ConnectionEstate, entry).asked) is not None:
                    asked.append((connection, number))
        return asked

    def _succeed_container(self, estate: ContainerEstate, fds: Sequence[int]) -> None:
        create = estate.create
        held = Holdings(create.container, create.bundle, self, self._inheritance.hierarchies)
        container = Container(held, _launcher(create, held, self._sandbox))
        self._containers[create.container] = container
        try:
            container.succeed(estate, dict(zip(estate.fds, fds, strict=True)))
        except RuntimeCoreError as error:
            complain(f"could not take over container {create.container}: {error}")
            container.abandon()

    def _sync(self, _call: calls.Sync, _request: Request) -> calls.Done:
        return calls.Done()  # calls are handled in order: all earlier ones have begun

    def _make_pod(self, call: calls.MakePod, _request: Request) -> calls.Made:
        if self._pod is not None:
            raise RuntimeCoreError("the shim has a pod already")
        pod = Pod(call, self._inheritance.infra_program, self._inheritance.empty_mount_namespace)
        answer = pod.make(self._inheritance.code)
        self._pod = pod
        self._listener = listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # Bound by a relative name: a socket's path has at most 107 bytes, and the directory's path may be longer.
        with contextlib.chdir(pod.directory):
            umask = os.umask(0o077)
            try:
                listener.bind("shim.sock")
            finally:
                os.umask(umask)
        listener.listen(64)  # of a stopped shim, that many crispds in a row can ask whether it is there
        self._listen()
        self.on_exit(pod.infra_pid, self._infra_exited)
        return answer

    def _make_sandbox(self, call: calls.MakeSandbox, request: Request) -> None:
        assert self._pod is not None
        if self._sandbox is not None:
            raise RuntimeCoreError("the pod has a sandbox already")
        # Without its sandbox the pod is as good as without its namespaces.
        self._sandbox = Sandbox(call, self, self._inheritance.hierarchies, self._pod.kill_infra)
        self._sandbox.make(request.reply)

    def _forward(self, call: calls.Forward, request: Request) -> None:
        if self._sandbox is None:
            raise RuntimeCoreError("the pod has no sandbox")
        self._sandbox.forward(call.port, request.reply)

    def _accept(self, _events: int) -> None:
        assert self._listener is not None
        try:
            sock, _address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            complain(f"could not accept a connection: {error}")
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                # The listener stays readable: try again later.
                self.unwatch(self._listener.fileno())
                self.later(_ACCEPT_PAUSE, self._listen)
            return
        self._connections.append(Connection(self, sock))

    def _listen(self) -> None:
        if self._listener is not None and self._listener.fileno() >= 0:
            self.watch(self._listener.fileno(), READ, self._accept)

    def _infra_exited(self, _status: int) -> None:
        assert self._pod is not None
        self._pod.infra_exited()
        self._deposit_pod()
        for container in self._containers.values():
            if container.state.has_processes:
                container.kill()
        self.emit(calls.InfraExited())

    def _create(self, call: calls.Create, _request: Request) -> calls.Created:
        if call.container in self._containers:
            raise RuntimeCoreError(f"the shim has a container {call.container!r} already")
        held = Holdings(call.container, call.bundle, self, self._inheritance.hierarchies)
        container = Container(held, _launcher(call, held, self._sandbox))
        answer = container.create(call)
        self._containers[call.container] = container
        return answer

    def _delete(self, call: calls.Delete, request: Request) -> calls.Done | None:
        container = self._containers.get(call.container)
        if container is None:
            return calls.Done()
        if container.state.has_processes:
            raise RuntimeCoreError(f"delete container {container.id}: it is running")
        container.delete()
        del self._containers[container.id]
        self.deposits.drop(container_key(container.id))
        assert self._pod is not None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(calls.exit_file(self._pod.directory, container.id))
        container.when_deleted(lambda: request.reply(calls.Done()))
        return None

    def _give_sockets(self, _call: calls.Sockets, request: Request) -> None:
        assert self._pod is not None
        fds = self._pod.sockets()
        try:
            request.reply(calls.Descriptors(tuple(fds)))
        finally:
            for fd in fds:
                os.close(fd)

    def _state(self, _call: calls.GetState, _request: Request) -> calls.ShimState:
        return self._describe()

    def _describe(self) -> calls.ShimState:
        assert self._pod is not None
        self.deposits.notice_end()
        return calls.ShimState(
            pid=os.getpid(),
            infra_pid=self._pod.infra_pid,
            infra_alive=self._pod.infra_alive,
            containers={container.id: container.describe() for container in self._containers.values()},
            abilities=calls.ABILITIES,
            kept=self.deposits.kept and not self._needs_keeper,
            code=self._inheritance.code,
        )

    def _shutdown(self, _call: calls.Shutdown, request: Request) -> None:
        """End all processes, undo MakePod, answer, and exit after the last container's exit is recorded."""
        self._shutdown_replies.append(request.reply)
        if len(self._shutdown_replies) > 1:
            return
        try:
            self._end_containers()
        except BaseException:
            self._shutdown_replies.clear()
            raise

    def _end_containers(self) -> None:
        running = [container for container in self._containers.values() if container.state.has_processes]
        if running:
            for container in running:
                container.kill()
            running[0].wait(self._end_containers)
            return
        for container in self._containers.values():
            container.delete()
        self._end_sandbox(list(self._containers.values()))

    def _end_sandbox(self, deleted: list[Container]) -> None:
        """End the sandbox, if there is one, after its containers' deletion."""
        if self._sandbox is None:
            self._end_infra()
        elif deleted:
            deleted.pop().when_deleted(lambda: self._end_sandbox(deleted))
        else:
            sandbox, self._sandbox = self._sandbox, None
            sandbox.end(self._end_infra)

    def _end_infra(self) -> None:
        if self._pod is not None and self._pod.infra_alive:
            self.on_exit(self._pod.infra_pid, lambda _status: self._end_pod(self._pod))
            self._pod.kill_infra()
        else:
            self._end_pod(self._pod)

    def _end_pod(self, pod: Pod | None) -> None:
        if pod is not None:
            pod.infra_exited()
            try:
                pod.unmake()
            except RuntimeCoreError as error:
                self._answer_shutdown(error)  # crispd may try again
                return
        self._leave()

    def _leave(self) -> None:
        # Some containers' cgroups may still be waiting for their last process to leave.
        if self._loop.busy:
            self.later(0.005, self._leave)
            return
        if self._listener is not None:
            self._listener.close()
        for cgroup in self._cgroups.values():
            cgroup.remove_made_parents()
        self.deposits.over()  # before the answer: crispd may not find a successor of ours
        self._answer_shutdown(calls.Done())
        self._loop.stop()

    def _answer_shutdown(self, result: calls.Done | RuntimeCoreError) -> None:
        replies, self._shutdown_replies = self._shutdown_replies, []
        for reply in replies:
            reply(result)


_Asked = TypeVar("_Asked", bound=calls.Call)
_Handler = Callable[[Shim, Any, Request], calls.Answer | None]  # None: the handler answers by the request's `reply`


def _handled(
    kind: type[_Asked], handler: Callable[[Shim, _Asked, Request], calls.Answer | None]
) -> tuple[str, tuple[type[calls.Call], _Handler]]:
    return kind.call, (kind, handler)


_HANDLERS: Final[Mapping[str, tuple[type[calls.Call], _Handler]]] = dict(
    (
        _handled(calls.MakePod, Shim._make_pod),
        _handled(calls.MakeSandbox, Shim._make_sandbox),
        _handled(calls.GetState, Shim._state),
        _handled(calls.Sockets, Shim._give_sockets),
        _handled(calls.Forward, Shim._forward),
        _handled(calls.Sync, Shim._sync),
        _handled(calls.Keep, Shim._keep),
        _handled(calls.Renew, Shim._renew),
        _handled(calls.Freeze, Shim._freeze),
        _handled(calls.Thaw, Shim._thaw),
        _handled(calls.Shutdown, Shim._shutdown),
        _handled(calls.Create, Shim._create),
        _handled(calls.OpenRootfs, Shim._open_rootfs),
        _handled(calls.Prepare, Shim._prepare),
        _handled(calls.Start, Shim._start),
        _handled(calls.WaitStart, Shim._wait_start),
        _handled(calls.Update, Shim._update),
        _handled(calls.ReopenLog, Shim._reopen_log),
        _handled(calls.Signal, Shim._signal),
        _handled(calls.Kill, Shim._kill),
        _handled(calls.Delete, Shim._delete),
        _handled(calls.Exec, Shim._execute),
        _handled(calls.WaitExecRunning, Shim._wait_exec_running),
        _handled(calls.KillExec, Shim._kill_exec),
        _handled(calls.Attach, Shim._attach),
        _handled(calls.Detach, Shim._detach),
        _handled(calls.Resize, Shim._resize),
    )
)


def _launcher(call: calls.Create, held: Holdings, sandbox: Sandbox | None) -> Launcher:
    if call.restored:
        return RestoredLauncher(held)
    if call.runtime is not None and sandbox is not None:
        return SandboxedLauncher(held, call.runtime, call, sandbox)
    if call.runtime is not None:
        return ExternalLauncher(held, call.runtime, call.cgroup, call.flags)
    return OwnLauncher(held)


def shim_main(
    birth: socket.socket | None, keeping: socket.socket, inheritance: Inheritance, deposit: Deposit | None
) -> NoReturn:
    """Run a shim until it is shut down: with a connection of crispd, or with what an earlier shim has left.

    Called in a child of the zygote.
    """
    status, zygote = 1, os.getppid()
    try:
        os.setsid()
        os.chdir("/")
        syscalls.set_name("crisp-shim")
        syscalls.set_process_title("crisp-shim")
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        shim = Shim(inheritance, keeping)
        if birth is not None:
            shim.serve(birth)
        if deposit is not None:
            shim.succeed(deposit)
        shim.run()
        status = 0
    except BaseException as error:
        print(f"shim: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise
    finally:
        if os.getppid() != zygote:  # who would wait for this process, and then leave the cgroup
            with contextlib.suppress(Exception):
                Cgroup.at(inheritance.hierarchies, SHIM_CGROUP).leave_self()
        os._exit(status)
