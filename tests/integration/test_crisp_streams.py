"""`crisp exec -it`, `crisp attach` and `crisp port-forward` on a real daemon, from a real terminal."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cri.v1 import api_pb2
from tests.daemon import REPOSITORY, Daemon, Pod
from tests.waiting import SECONDS, until


def command(daemon: Daemon, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "cri.client", "--listen", daemon.listen, *arguments]


class Terminal:
    """A terminal with `crisp` in it."""

    def __init__(self, daemon: Daemon, *arguments: str, columns: int = 80) -> None:
        self.master, self.slave = os.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.resize(columns, 24)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command(daemon, *arguments)], cwd=REPOSITORY,
            stdin=self.slave, stdout=self.slave, stderr=self.slave,
        )  # fmt: skip
        self.seen = b""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def expect(self, text: bytes) -> None:
        """Wait for the text after what was expected before."""
        deadline = time.monotonic() + SECONDS
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come, but {self.seen!r}"
            self.seen += os.read(self.master, 4096)
        self.seen = self.seen.split(text, 1)[1]

    def end(self) -> int:
        """The exit status; the terminal must be as it was."""
        status = self.process.wait(SECONDS)
        assert termios.tcgetattr(self.slave) == self.before
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@contextmanager
def terminal(daemon: Daemon, *arguments: str, columns: int = 80) -> Iterator[Terminal]:
    opened = Terminal(daemon, *arguments, columns=columns)
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture(scope="module")
def pod(daemon: Daemon) -> Iterator[Pod]:
    with daemon.pod("streams") as made:
        yield made


@pytest.fixture(scope="module")
def main(pod: Pod) -> str:
    """The id of a container that only runs."""
    return pod.run("sleep", "6000")


def test_a_shell_in_a_terminal(daemon: Daemon, pod: Pod, main: str) -> None:
    with terminal(daemon, "exec", "-it", "streams/main", "sh", columns=101) as shell:
        shell.expect(b"# ")
        shell.type(b"stty size\n")
        shell.expect(b"24 101")
        shell.resize(77, 33)
        # What is typed is shown, too: only what comes of it has these words without a gap.
        shell.type(b"until [ \"$(stty size)\" = '33 77' ]; do sleep 0.1; done; sh -c 'echo run''s; exec sleep 6000'\n")
        shell.expect(b"runs")
        shell.type(b"\x03")  # is the sleep's, not crisp's
        shell.expect(b"# ")
        shell.type(b"exit 9\n")
        assert shell.end() == 9


def test_the_terminal_is_given_back_when_crisp_is_killed(daemon: Daemon, pod: Pod, main: str) -> None:
    with terminal(daemon, "exec", "-it", "streams/main", "sh", "-c", "echo up; exec sleep 8642") as shell:
        shell.expect(b"up")
        shell.process.terminate()
        assert shell.end() == 128 + signal.SIGTERM
    until(lambda: b"8642" not in pod.exec(main, "ps", "-o", "args").stdout)


def test_a_pipe_through_exec(daemon: Daemon, pod: Pod, main: str) -> None:
    data = os.urandom(1 << 20) * 20
    script = "echo err >&2; sha256sum; exit 3"
    done = subprocess.run(
        command(daemon, "exec", "-i", "streams/main", "sh", "-c", script), cwd=REPOSITORY, input=data,
        capture_output=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert (done.stderr, done.returncode) == (b"err\n", 3)
    failed = subprocess.run(
        command(daemon, "exec", "-i", "streams/main", "nonsense"), cwd=REPOSITORY, capture_output=True,
        stdin=subprocess.DEVNULL, timeout=SECONDS,
    )  # fmt: skip
    assert failed.returncode == 127
    assert b"executable file not found" in failed.stderr


def test_attach_leave_and_attach_again(daemon: Daemon, pod: Pod) -> None:
    shell = pod.run("sh", "-c", "while read line; do echo got $line; done; exit 6", name="shell", stdin=True, tty=True)
    with terminal(daemon, "attach", "-i", "shell") as attached:
        attached.type(b"one\n")
        attached.expect(b"got one")
        attached.type(b"\x10\x11")
        assert attached.end() == 0
    with terminal(daemon, "attach", "-i", "shell") as attached:
        attached.type(b"two\n")
        attached.expect(b"got two")
        attached.type(b"\x04")
        assert attached.end() == 6
    assert daemon.status(shell).exit_code == 6
    piped = pod.run("sh", "-c", "cat; echo err >&2; exit 5", name="piped", stdin=True, stdin_once=True)
    done = subprocess.run(
        command(daemon, "attach", "-i", "piped"), cwd=REPOSITORY, input=b"through\n", capture_output=True,
        timeout=SECONDS,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (5, b"through\n", b"err\n")
    assert daemon.status(piped).exit_code == 5


def test_port_forward(daemon: Daemon, pod: Pod, main: str) -> None:
    server = pod.run("nc", "-ll", "-p", "7070", "-e", "cat", name="server")
    process = subprocess.Popen(
        command(daemon, "port-forward", "streams", ":7070", ":7071"), cwd=REPOSITORY, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        ports = []
        for _ in range(2):
            line = process.stdout.readline().decode()
            ports.append(int(re.fullmatch(r"Forwarding from 127\.0\.0\.1:(\d+) -> 707[01]\n", line)[1]))
        data = os.urandom(1 << 18)
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", ports[0]), SECONDS) as connection:
                connection.sendall(data)
                received = b""
                while len(received) < len(data):
                    received += connection.recv(1 << 16)
                assert received == data
        with socket.create_connection(("127.0.0.1", ports[1]), SECONDS) as connection:
            assert connection.recv(1) == b""
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130
        assert b"7071" in (refused := process.stderr.read())
        assert b"refused" in refused
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    daemon.runtime.StopContainer(api_pb2.StopContainerRequest(container_id=server))
