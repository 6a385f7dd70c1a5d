"""The shim: one small process a pod, parent of everything that runs in it, alive when crispd is not.

Single-threaded, one epoll loop. It serves the calls of `runtime.wire.calls` on connections accepted from
`<sandbox directory>/shim.sock` and on the one it was born with.

An exit status is on disk (`exits/<container id>`) before anyone is told, so a daemon that was away finds it.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

from linux import syscalls
from runtime.cgroups import Cgroup, Hierarchies
from runtime.errors import NO_CALL, NotRunning, RuntimeCoreError
from runtime.logs.writer import complain
from runtime.shim.container import Container
from runtime.shim.holder import start_holder
from runtime.shim.holdings import Holdings
from runtime.shim.launch.external import ExternalLauncher
from runtime.shim.launch.launcher import Launcher
from runtime.shim.launch.own import OwnLauncher
from runtime.shim.launch.restored import RestoredLauncher
from runtime.shim.pause import Pause
from runtime.shim.pod import Pod
from runtime.shim.reply import Reply
from runtime.wire import calls
from runtime.wire.frames import Decoder, Message, Outbox, ProtocolError, receive

_ACCEPT_PAUSE: Final = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class Inheritance:
    """What a shim gets from the zygote with its birth."""

    hierarchies: Hierarchies
    infra_program: int
    empty_mount_namespace: int


@dataclass(frozen=True, slots=True)
class _Request:
    """What comes with a call: its descriptors, which are closed once the handler has returned, and who made it."""

    fds: Sequence[int]
    reply: Reply
    connection: _Connection


class _Connection:
    """One daemon talking to the shim."""

    def __init__(self, shim: Shim, sock: socket.socket) -> None:
        self._shim = shim
        self._sock = sock
        self._decoder = Decoder()
        self._outbox = Outbox(sock)
        sock.setblocking(False)
        shim.watch(sock.fileno(), selectors.EVENT_READ, self._ready)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        if self._sock.fileno() < 0:
            return
        self._outbox.put(message, fds)
        self._flush()

    def _flush(self) -> None:
        try:
            self._outbox.flush()
        except OSError:
            self.close()
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outbox else 0)
        self._shim.watch(self._sock.fileno(), events, self._ready)

    def _ready(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush()
        if events & selectors.EVENT_READ and self._sock.fileno() >= 0:
            try:
                alive = receive(self._sock, self._decoder)
                for message, fds in self._decoder.messages():
                    self._shim.handle(message, fds, self)
            except BlockingIOError:
                return
            except (OSError, ProtocolError) as error:
                complain(f"connection: {error}")
                alive = False
            if not alive:
                self.close()

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._shim.forget(self, self._sock.fileno())
            self._outbox.close()
            self._decoder.close()
            self._sock.close()


class Shim:
    """The loop and the calls. See the module's docstring for the wire."""

    def __init__(self, birth: socket.socket, inheritance: Inheritance) -> None:
        self._inheritance = inheritance
        self._selector = selectors.EpollSelector()
        self._children: dict[int, Callable[[int], None]] = {}
        self._commands = 0  # of external runtimes, that run
        self._strays: dict[int, int] = {}  # statuses of children nobody has asked about, while there is a command
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0
        self._idle_timers = 0
        self._connections: list[_Connection] = []
        self._containers: dict[str, Container] = {}
        self._pauses: dict[_Connection, Pause] = {}
        self._pod: Pod | None = None
        self._listener: socket.socket | None = None
        self._leaving = False
        self._cgroups: dict[str, Cgroup] = {}  # by the path of its parent
        self._shutdown_replies: list[Reply] = []
        self._watch_children()
        self._connections.append(_Connection(self, birth))

    # -- loop ---------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        while not self._leaving:
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for key, events in self._selector.select(timeout):
                if self._is_current(key) and not _survived(key.data, events):
                    self.unwatch(key.fd)  # or it would fail again at once
            while self._timers and self._timers[0][0] <= time.monotonic():
                _survived(heapq.heappop(self._timers)[2])

    def _is_current(self, key: selectors.SelectorKey) -> bool:
        """Whether the descriptor is still watched for the same: an earlier event may have closed it, or reused it."""
        try:
            return bool(self._selector.get_key(key.fd).data == key.data)
        except KeyError:
            return False

    def watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None:
        """Call `ready(events)` when the descriptor is; replaces an earlier watch."""
        try:
            self._selector.modify(fd, events, ready)
        except KeyError:
            self._selector.register(fd, events, ready)

    def unwatch(self, fd: int) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)

    def later(self, delay: float, callback: Callable[[], None]) -> None:
        """Call back in `delay` seconds."""
        self._timer_count += 1
        heapq.heappush(self._timers, (time.monotonic() + delay, self._timer_count, callback))

    def idly(self, delay: float, callback: Callable[[], None]) -> None:
        """The same for what nobody waits for when the shim leaves."""

        def run() -> None:
            self._idle_timers -= 1
            callback()

        self._idle_timers += 1
        self.later(delay, run)

    def _watch_children(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

        def reap(_events: int) -> None:
            with contextlib.suppress(BlockingIOError):
                os.read(reader, 4096)
            self._reap()

        self.watch(reader, selectors.EVENT_READ, reap)

    def _reap(self) -> None:
        """Collect every dead child: ours, and orphans of pods that share no PID namespace of their own."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            callback = self._children.pop(pid, None)
            if callback is not None:
                _survived(callback, os.waitstatus_to_exitcode(status))
            elif self._commands:
                self._strays[pid] = os.waitstatus_to_exitcode(status)

    # -- what containers and the pod need -----------------------------------------------------------------------------

    @property
    def empty_mount_namespace(self) -> int:
        return self._inheritance.empty_mount_namespace

    @property
    def user_namespace(self) -> int:
        """A descriptor of the pod's own, -1 if it has none."""
        return self._pod.user_namespace if self._pod is not None else -1

    def on_exit(self, pid: int, callback: Callable[[int], None]) -> None:
        """Call back with the exit code, or minus the signal, once the child is reaped."""
        if (status := self._strays.pop(pid, None)) is not None:
            self.later(0, lambda: callback(status))
        else:
            self._children[pid] = callback

    def is_child(self, pid: int) -> bool:
        """Whether the process is a child that was not reaped, so that its number means no other."""
        return pid in self._children

    def start_holder(self) -> tuple[int, int]:
        """A process to hold a scope: its pid and a descriptor of it, which the caller closes."""
        pid, pidfd = start_holder(self._inheritance.infra_program, self._inheritance.empty_mount_namespace)
        self.on_exit(pid, lambda _status: None)
        return pid, pidfd

    def command_started(self, pid: int, done: Callable[[int], None]) -> None:
        """Call `done` with how a command ends. Until then children may end that nobody has asked about yet."""
        self._commands += 1

        def ended(status: int) -> None:
            try:
                done(status)
            finally:
                self._commands -= 1
                if not self._commands:
                    self._strays.clear()

        self.on_exit(pid, ended)

    def emit(self, event: calls.Event) -> None:
        for connection in list(self._connections):
            connection.send({"event": event.event, **event.to_json()})

    def uses_cgroup(self, cgroup: Cgroup) -> None:
        """Remember whose parents to remove with the pod: they may serve the container's siblings, too."""
        self._cgroups.setdefault(os.path.dirname(cgroup.path), cgroup)

    def record_exit(self, container_id: str, status: calls.ExitStatus) -> None:
        assert self._pod is not None
        path = calls.exit_file(self._pod.directory, container_id)
        try:
            with open(path + ".new", "w") as file:
                json.dump(status.to_json(), file)
            os.rename(path + ".new", path)
        except OSError as error:
            complain(f"record exit of {container_id}: {error}")

    def forget(self, connection: _Connection, fd: int) -> None:
        self.unwatch(fd)
        if (pause := self._pauses.pop(connection, None)) is not None:
            pause.abandon()
        with contextlib.suppress(ValueError):
            self._connections.remove(connection)
        if self._pod is None and not self._connections:
            self._leaving = True  # crispd died before it asked for a pod: nobody could find this shim again

    # -- calls --------------------------------------------------------------------------------------------------------

    def handle(self, message: Message, fds: Sequence[int], connection: _Connection) -> None:
        """Run one call. Its descriptors are closed after it: whoever cloned has them already."""
        number = message.get("id")

        def reply(result: calls.Answer | RuntimeCoreError) -> None:
            if isinstance(result, RuntimeCoreError):
                connection.send({"id": number, "error": result.to_json()})
            else:
                sent = result.fds if isinstance(result, calls.Descriptors) else ()
                connection.send({"id": number, "ok": result.to_json()}, sent)

        try:
            answer = self._run(message, _Request(fds, reply, connection))
            if answer is not None:
                reply(answer)
        except RuntimeCoreError as error:
            reply(error)
        except Exception as error:  # whatever a call runs into, the pod's other containers go on
            reply(RuntimeCoreError(f"{message.get('call')}: {type(error).__name__}: {error}"))
        finally:
            for fd in fds:
                os.close(fd)

    def _run(self, message: Message, request: _Request) -> calls.Answer | None:
        name = message["call"]
        if self._pod is None and name not in (calls.MakePod.call, calls.Shutdown.call):
            raise RuntimeCoreError(f"{name}: the shim has no pod yet")
        if self._shutdown_replies and name in (calls.Create.call, calls.Start.call, calls.Exec.call):
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

    def _freeze(self, call: calls.Freeze, request: _Request) -> calls.Done:
        self._end_pause(request.connection)
        pause = Pause([self._container(container_id) for container_id in call.containers], self.idly)
        pause.begin(call.seconds)
        self._pauses[request.connection] = pause
        return calls.Done()

    def _thaw(self, _call: calls.Thaw, request: _Request) -> calls.Done:
        self._end_pause(request.connection)
        return calls.Done()

    def _end_pause(self, connection: _Connection) -> None:
        if (pause := self._pauses.pop(connection, None)) is not None:
            pause.end()

    def _start(self, call: calls.Start, request: _Request) -> None:
        self._container(call.container).start(call, request.fds, request.reply)

    def _wait_start(self, call: calls.WaitStart, request: _Request) -> None:
        self._container(call.container).wait_start(request.reply)

    def _update(self, call: calls.Update, _request: _Request) -> calls.Updated:
        return self._container(call.container).update(call)

    def _signal(self, call: calls.Signal, _request: _Request) -> calls.Done:
        self._container(call.container).signal(call.signal)
        return calls.Done()

    def _kill(self, call: calls.Kill, _request: _Request) -> calls.Done:
        self._container(call.container).kill()
        return calls.Done()

    def _reopen_log(self, call: calls.ReopenLog, _request: _Request) -> calls.Done:
        self._container(call.container).reopen_log()
        return calls.Done()

    def _open_rootfs(self, call: calls.OpenRootfs, _request: _Request) -> calls.Descriptors:
        return calls.Descriptors((self._container(call.container).rootfs(),))

    def _execute(self, call: calls.Exec, request: _Request) -> None:
        self._container(call.container).execute(call, request.fds, request.reply)

    def _wait_exec_running(self, call: calls.WaitExecRunning, request: _Request) -> None:
        self._container(call.container).wait_exec_running(call.exec, request.reply)

    def _kill_exec(self, call: calls.KillExec, _request: _Request) -> calls.Done:
        self._container(call.container).kill_exec(call.exec)
        return calls.Done()

    def _attach(self, call: calls.Attach, request: _Request) -> None:
        self._container(call.container).attach(call, request.fds, request.reply)

    def _detach(self, call: calls.Detach, _request: _Request) -> calls.Done:
        self._container(call.container).detach(call.attach)
        return calls.Done()

    def _resize(self, call: calls.Resize, _request: _Request) -> calls.Done:
        self._container(call.container).resize(call.width, call.height)
        return calls.Done()

    def _sync(self, _call: calls.Sync, _request: _Request) -> calls.Done:
        return calls.Done()  # calls are taken in their order: those before it have begun

    def _make_pod(self, call: calls.MakePod, _request: _Request) -> calls.Made:
        if self._pod is not None:
            raise RuntimeCoreError("the shim has a pod already")
        pod = Pod(call, self._inheritance.infra_program, self._inheritance.empty_mount_namespace)
        answer = pod.make()
        self._pod = pod
        self._listener = listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # Bound by a relative name: a socket's path may have no more than 107 bytes, a state directory's any number.
        with contextlib.chdir(pod.directory):
            umask = os.umask(0o077)
            try:
                listener.bind("shim.sock")
            finally:
                os.umask(umask)
        listener.listen(8)
        self._listen()
        self.on_exit(pod.infra_pid, self._infra_exited)
        return answer

    def _accept(self, _events: int) -> None:
        assert self._listener is not None
        try:
            sock, _address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            complain(f"accept: {error}")
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                # It stays ready until there is room.
                self.unwatch(self._listener.fileno())
                self.later(_ACCEPT_PAUSE, self._listen)
            return
        self._connections.append(_Connection(self, sock))

    def _listen(self) -> None:
        if self._listener is not None and self._listener.fileno() >= 0:
            self.watch(self._listener.fileno(), selectors.EVENT_READ, self._accept)

    def _infra_exited(self, _status: int) -> None:
        assert self._pod is not None
        self._pod.infra_exited()
        for container in self._containers.values():
            if container.state.has_processes:
                container.kill()
        self.emit(calls.InfraExited())

    def _create(self, call: calls.Create, _request: _Request) -> calls.Created:
        if call.container in self._containers:
            raise RuntimeCoreError(f"the shim has a container {call.container!r} already")
        held = Holdings(call.container, call.bundle, self, self._inheritance.hierarchies)
        container = Container(held, _launcher(call, held))
        answer = container.create(call)
        self._containers[call.container] = container
        return answer

    def _delete(self, call: calls.Delete, _request: _Request) -> calls.Done:
        container = self._containers.get(call.container)
        if container is None:
            return calls.Done()
        if container.state.has_processes:
            raise RuntimeCoreError(f"delete container {container.id}: it is running")
        container.delete()
        del self._containers[container.id]
        assert self._pod is not None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(calls.exit_file(self._pod.directory, container.id))
        return calls.Done()

    def _give_sockets(self, _call: calls.Sockets, request: _Request) -> None:
        assert self._pod is not None
        fds = self._pod.sockets()
        try:
            request.reply(calls.Descriptors(tuple(fds)))
        finally:
            for fd in fds:
                os.close(fd)

    def _state(self, _call: calls.GetState, _request: _Request) -> calls.ShimState:
        assert self._pod is not None
        return calls.ShimState(
            pid=os.getpid(),
            infra_pid=self._pod.infra_pid,
            infra_alive=self._pod.infra_alive,
            containers={container.id: container.describe() for container in self._containers.values()},
            abilities=calls.ABILITIES,
        )

    def _shutdown(self, _call: calls.Shutdown, request: _Request) -> None:
        """End everything, undo what `pod` made, answer, and leave once the last container's exit is recorded."""
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
        if self._pod is not None and self._pod.infra_alive:
            self._children[self._pod.infra_pid] = lambda _status: self._end_pod(self._pod)
            self._pod.kill_infra()
        else:
            self._end_pod(self._pod)

    def _end_pod(self, pod: Pod | None) -> None:
        if pod is not None:
            pod.infra_exited()
            try:
                pod.unmake()
            except RuntimeCoreError as error:
                self._answer_shutdown(error)  # crispd may ask again
                return
        self._leave()

    def _leave(self) -> None:
        # Containers' cgroups may still be waiting for the last process to be gone from them.
        if len(self._timers) > self._idle_timers or self._commands:
            self.later(0.005, self._leave)
            return
        if self._listener is not None:
            self._listener.close()
        for cgroup in self._cgroups.values():
            cgroup.remove_made_parents()
        self._answer_shutdown(calls.Done())
        self._leaving = True

    def _answer_shutdown(self, result: calls.Done | RuntimeCoreError) -> None:
        replies, self._shutdown_replies = self._shutdown_replies, []
        for reply in replies:
            reply(result)


_Asked = TypeVar("_Asked", bound=calls.Call)
_Handler = Callable[[Shim, Any, _Request], calls.Answer | None]  # None: it answers by the request's `reply`


def _handled(
    kind: type[_Asked], handler: Callable[[Shim, _Asked, _Request], calls.Answer | None]
) -> tuple[str, tuple[type[calls.Call], _Handler]]:
    return kind.call, (kind, handler)


_HANDLERS: Final[Mapping[str, tuple[type[calls.Call], _Handler]]] = dict(
    (
        _handled(calls.MakePod, Shim._make_pod),
        _handled(calls.GetState, Shim._state),
        _handled(calls.Sockets, Shim._give_sockets),
        _handled(calls.Sync, Shim._sync),
        _handled(calls.Freeze, Shim._freeze),
        _handled(calls.Thaw, Shim._thaw),
        _handled(calls.Shutdown, Shim._shutdown),
        _handled(calls.Create, Shim._create),
        _handled(calls.OpenRootfs, Shim._open_rootfs),
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


def _launcher(call: calls.Create, held: Holdings) -> Launcher:
    if call.restored:
        return RestoredLauncher(held)
    if call.runtime is not None:
        return ExternalLauncher(held, call.runtime, call.cgroup)
    return OwnLauncher(held)


def _survived(callback: Callable[..., None], *arguments: int) -> bool:
    """Call back. What goes wrong is told in the shim's log and ends neither the loop nor the pod: False then."""
    try:
        callback(*arguments)
    except Exception:
        sys.excepthook(*sys.exc_info())
        return False
    return True


def shim_main(birth: socket.socket, inheritance: Inheritance) -> NoReturn:
    """Be a shim until told to shut down. Called in a child of the zygote, whose other descriptors are closed."""
    status = 1
    try:
        os.setsid()
        os.chdir("/")
        syscalls.set_name("crisp-shim")
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        Shim(birth, inheritance).run()
        status = 0
    except BaseException as error:
        print(f"shim: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise
    finally:
        os._exit(status)


