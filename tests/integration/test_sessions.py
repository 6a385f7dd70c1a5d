"""Sessions of exec, attach and port-forward go on when crispd ends, and tell the truth when their shim does."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from runtime.cgroups import SHIM_CGROUP, Cgroup, Hierarchies
from tests.daemon import CALL_SECONDS, Daemon, Pod
from tests.processes import shim_of, titled
from tests.sessions import ECHO, Forwarded, ask, attach_url, exec_url, port_client
from tests.stream_clients import RESIZE, STDERR, STDIN, STDOUT, Command, Refused
from tests.waiting import until

TRANSPORTS = ("spdy", "websocket")
V4, V5 = "v4.channel.k8s.io", "v5.channel.k8s.io"
TTY = {"tty": True, "stdin": True, "stdout": True}
PORT = 7000


@pytest.fixture
def pod(fresh_daemon: Daemon) -> Iterator[Pod]:
    with fresh_daemon.pod("sessions") as pod:
        yield pod


def streams() -> list[int]:
    return titled("^crisp-streams")


def shell(daemon: Daemon, container: str, transport: str, script: str = ECHO) -> Command:
    return Command.over(transport, exec_url(daemon, container, "sh", "-c", script), V5, STDIN, STDOUT, STDERR)


class Everything:
    """A session of each kind."""

    def __init__(self, daemon: Daemon, pod: Pod, transport: str, echo: str) -> None:
        self.exec = shell(daemon, echo, transport)
        self.terminal = Command.over(transport, exec_url(daemon, echo, "sh", **TTY), V5, STDIN, STDOUT, RESIZE)
        self.attached = Command.over(transport, attach_url(daemon, echo), V5, STDIN, STDOUT, STDERR)
        self.ports = port_client(daemon, pod, transport)
        self.connections = [Forwarded(self.ports, PORT, str(number)) for number in range(2)]

    def use(self, word: str) -> None:
        """Send bytes both ways in each; and open another connection to the port."""
        ask(self.exec, word)
        ask(self.attached, word)
        width = 80 + len(word)
        self.terminal.resize(width, 33)
        script = f'until [ "$(stty size)" = "33 {width}" ]; do :; done; echo re""sized {word}\n'
        self.terminal.send(script.encode())
        self.terminal.until(f"resized {word}".encode())
        self.connections.append(Forwarded(self.ports, PORT, word))
        for connection in self.connections:
            before = connection.output()
            self.ports.send(connection.data, word.encode())
            self.ports.until(lambda connection=connection, before=before: connection.output() == before + word.encode())

    def end(self) -> None:
        """Each has its own end: a code, a code, its container's, and the end of each connection."""
        self.exec.end()
        assert self.exec.exit_code() == 7
        self.terminal.send(b"exit 5\n")
        assert self.terminal.exit_code() == 5
        self.attached.close()
        for connection in self.connections:
            self.ports.end(connection.data)
        self.ports.until(lambda: {connection.data for connection in self.connections} <= self.ports.ended)
        self.ports.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("end", [Daemon.stop, Daemon.kill9])
def test_sessions_go_on_without_crispd_and_with_the_next_one(
    fresh_daemon: Daemon, pod: Pod, transport: str, end: Callable[[Daemon], None]
) -> None:
    daemon = fresh_daemon
    pod.run("nc", "-ll", "-p", str(PORT), "-e", "cat", name="port")
    echo = pod.run("sh", "-c", ECHO, name="echo", stdin=True)
    sessions = Everything(daemon, pod, transport, echo)
    sessions.use("before")
    (first,) = streams()
    assert first == daemon.streams_pid()
    until(lambda: first in Cgroup.at(Hierarchies.detect(), SHIM_CGROUP).pids())  # systemd ends what is in crispd's
    end(daemon)
    sessions.use("meanwhile")
    daemon.start()
    assert "sessions of an earlier crispd go on" in daemon.log()
    again = shell(daemon, echo, transport)
    sessions.use("afterwards")
    ask(again, "new")
    assert len(streams()) == 2
    sessions.end()
    until(lambda: not Path(f"/proc/{first}").exists())
    again.end()
    assert again.exit_code() == 7
    assert streams() == [daemon.streams_pid()]


def test_a_command_that_ends_while_crispd_is_away_has_its_exit_code(fresh_daemon: Daemon, pod: Pod) -> None:
    container = pod.run("sleep", "1000")
    command = shell(fresh_daemon, container, "spdy", "read go; echo $go; exit 9")
    fresh_daemon.kill9()
    command.send(b"now\n")
    assert (command.exit_code(), command.output()) == (9, b"now\n")
    until(lambda: not streams())  # with its last session, though no crispd has come
    fresh_daemon.start()


def test_the_end_of_a_container_ends_sessions_of_an_earlier_crispd(fresh_daemon: Daemon, pod: Pod) -> None:
    container = pod.run("sh", "-c", "sleep 1000", stdin=True)
    command = shell(fresh_daemon, container, "websocket")
    attached = Command.over("spdy", attach_url(fresh_daemon, container), V4, STDIN, STDOUT, STDERR)
    ask(command, "one")
    fresh_daemon.kill9()
    fresh_daemon.start()
    fresh_daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=container), timeout=CALL_SECONDS)
    assert command.exit_code() == 137
    assert attached.exit_code() == 0
    until(lambda: not streams())


def test_a_client_that_leaves_while_crispd_is_away_ends_its_command(fresh_daemon: Daemon, pod: Pod) -> None:
    container = pod.run("sleep", "1000")
    command = shell(fresh_daemon, container, "spdy", "echo up; trap '' HUP PIPE; sleep 987651")
    command.until(b"up")
    fresh_daemon.kill9()
    command.close()
    until(lambda: not titled("^sleep 987651"))
    fresh_daemon.start()


def test_a_command_ends_with_who_reads_it(fresh_daemon: Daemon, pod: Pod) -> None:
    """Whatever it is of: of a session, whose process is killed, or of ExecSync, whose crispd is."""
    container = pod.run("sleep", "1000")
    command = shell(fresh_daemon, container, "spdy", "echo up; trap '' HUP PIPE; sleep 987652")
    command.until(b"up")
    os.kill(fresh_daemon.streams_pid(), signal.SIGKILL)
    command.client.until_closed()
    until(lambda: not titled("^sleep 987652"))
    assert shell(fresh_daemon, container, "spdy", "exit 3").exit_code() == 3  # of another process
    request = cri.ExecSyncRequest(container_id=container, cmd=["sleep", "987653"])
    call = fresh_daemon.runtime.ExecSync.future(request, timeout=CALL_SECONDS)
    until(lambda: titled("^sleep 987653"))
    fresh_daemon.kill9()
    until(lambda: not titled("^sleep 987653"))
    assert call.exception() is not None
    fresh_daemon.start()


def test_what_a_shim_had_begun_is_lost_with_it_and_that_is_said(fresh_daemon: Daemon, pod: Pod) -> None:
    container = pod.run("sh", "-c", ECHO, stdin=True)
    command = shell(fresh_daemon, container, "websocket")
    attached = Command.over("spdy", attach_url(fresh_daemon, container), V4, STDIN, STDOUT, STDERR)
    ask(command, "one")
    ask(attached, "two")
    request = cri.ExecSyncRequest(container_id=container, cmd=["sleep", "987654"])
    call = fresh_daemon.runtime.ExecSync.future(request, timeout=CALL_SECONDS)
    until(lambda: titled("^sleep 987654"))
    os.kill(shim_of(pod.id), signal.SIGKILL)
    lost = "the pod's shim died meanwhile, and what it had begun is lost; the container runs on, with another shim"
    for session in (command, attached):
        assert lost in json.loads(session.finish())["message"]
    assert isinstance(error := call.exception(), grpc.RpcError)
    assert (error.code(), lost in error.details()) == (grpc.StatusCode.UNAVAILABLE, True), error.details()
    until(lambda: not titled("^sleep 987654"))
    again = Command.over("spdy", attach_url(fresh_daemon, container), V4, STDIN, STDOUT, STDERR)
    ask(again, "three")
    again.close()


def test_sessions_that_are_stopped_tell_why(fresh_daemon: Daemon, pod: Pod) -> None:
    container = pod.run("sleep", "1000")
    commands = [shell(fresh_daemon, container, transport) for transport in TRANSPORTS]
    for command in commands:
        ask(command, "one")
    os.kill(fresh_daemon.streams_pid(), signal.SIGTERM)
    for command in commands:
        assert "being stopped" in json.loads(command.finish())["message"]
    until(lambda: not streams())


def test_the_address_is_free_at_once() -> None:
    """Of a crispd that was killed, with sessions that go on at that address."""
    with Daemon.running("--stream-addr=127.0.0.1:23459") as daemon:
        daemon.import_busybox()
        with daemon.pod("fixed") as fixed:
            container = fixed.run("sleep", "1000")
            command = shell(daemon, container, "spdy")
            url = exec_url(daemon, container, "true")
            daemon.kill9()
            with pytest.raises(ConnectionError):
                Command.over("spdy", url, V4, STDIN)
            daemon.start()
            with pytest.raises(Refused, match="404"):
                Command.over("websocket", url, V4, STDIN)
            assert shell(daemon, container, "spdy", "exit 6").exit_code() == 6
            ask(command, "still")
            command.close()
