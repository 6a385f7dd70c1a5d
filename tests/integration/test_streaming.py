"""Exec, attach and port-forward through CRI and the streaming server, over both transports, with real containers."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest

from cri.streaming import spdy
from cri.v1 import api_pb2 as cri
from tests import leaks
from tests.daemon import CALL_SECONDS, Daemon, Pod
from tests.sessions import ECHO, Forwarded, ask, attach_url, exec_url, port_client, ports_url
from tests.stream_clients import (
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    Command,
    Refused,
    SpdyClient,
    WebSocketClient,
    closing,
    exit_code,
    random_pieces,
)
from tests.waiting import until

TRANSPORTS = ("spdy", "websocket")
V4, V5 = "v4.channel.k8s.io", "v5.channel.k8s.io"
TTY = {"tty": True, "stdin": True, "stdout": True}


@pytest.fixture(scope="module")
def pod(daemon: Daemon) -> Iterator[Pod]:
    with daemon.pod("streams") as pod:
        yield pod


@pytest.fixture(scope="module")
def container(daemon: Daemon, pod: Pod) -> str:
    container = pod.run("sleep", "1000", name="sleep")
    first = Command.over("spdy", exec_url(daemon, container, "true"), V4, STDIN, STDOUT, STDERR)
    assert first.exit_code() == 0  # the process that serves streams is there from now on
    return container


@pytest.mark.answer("ExecResponse")
@pytest.mark.cri("Exec", "container_id", "cmd", "stdin", "stdout", "stderr")
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("version", range(1, 6))
def test_exec_in_each_version(daemon: Daemon, container: str, transport: str, version: int) -> None:
    protocol = f"v{version}.channel.k8s.io" if version > 1 else "channel.k8s.io"
    script = "read line; echo got $line; echo oops >&2; exit 7"
    command = Command.over(transport, exec_url(daemon, container, "sh", "-c", script), protocol, STDIN, STDOUT, STDERR)
    assert command.client.protocol == protocol
    command.send(b"it\n")
    error = command.finish()
    assert (command.output(), command.output(STDERR)) == (b"got it\n", b"oops\n")
    if version >= 4:
        assert exit_code(json.loads(error)) == 7
    else:
        assert error == b"command terminated with exit code 7"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_end_of_input_is_heard(daemon: Daemon, container: str, transport: str) -> None:
    command = Command.over(transport, exec_url(daemon, container, "wc", "-c"), V5, STDIN, STDOUT, STDERR)
    command.send(b"12345")
    command.end()
    assert command.exit_code() == 0
    assert command.output().strip() == b"5"


@pytest.mark.cri("Exec", "tty")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_exec_with_a_terminal(daemon: Daemon, container: str, transport: str) -> None:
    command = Command.over(transport, exec_url(daemon, container, "sh", **TTY), V5, STDIN, STDOUT, RESIZE)
    command.resize(123, 45)
    command.send(b"tty; stty size; echo $TERM\n")
    command.until(b"xterm")
    command.resize(80, 24)
    command.send(b'until [ "$(stty size)" = "24 80" ]; do :; done; exit 4\n')
    assert command.exit_code() == 4
    assert b"/dev/pts/" in command.output()
    assert b"45 123" in command.output()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_command_that_cannot_start(daemon: Daemon, container: str, transport: str) -> None:
    command = Command.over(transport, exec_url(daemon, container, "no-such-program"), V4, STDIN, STDOUT, STDERR)
    status = json.loads(command.finish())
    assert (status["status"], status["reason"], status["code"]) == ("Failure", "InternalError", 500)
    assert "no-such-program" in status["message"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_client_that_leaves_ends_its_command(daemon: Daemon, pod: Pod, container: str, transport: str) -> None:
    script = "echo $$; trap '' HUP PIPE; sleep 987654"
    command = Command.over(transport, exec_url(daemon, container, "sh", "-c", script), V4, STDIN, STDOUT, STDERR)
    command.until(b"\n")
    command.close()
    wait_until_gone(pod, container, b"987654")


def test_a_url_is_good_once(daemon: Daemon, pod: Pod, container: str) -> None:
    url = exec_url(daemon, container, "true")
    Command.over("spdy", url, V4, STDIN, STDOUT, STDERR).finish()
    for again in (url, url.replace("/exec/", "/attach/"), url[:-1] + "x", exec_url(daemon, container, "x")[:-23] + "/"):
        with pytest.raises(Refused, match="404"):
            WebSocketClient(again, V4)
    ports = ports_url(daemon, pod)
    with pytest.raises(Refused, match="404"):
        WebSocketClient(ports.replace("/portforward/", "/exec/"), V4)
    with pytest.raises(Refused, match="404"):  # and a wrong kind uses it up
        SpdyClient(ports, "portforward.k8s.io")


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"cmd": [], "stdout": True}, "INVALID_ARGUMENT", "cmd: is required"),
        ({"container_id": "", "stdout": True}, "INVALID_ARGUMENT", "container_id: is required"),
        ({"tty": True, "stdout": True, "stderr": True}, "INVALID_ARGUMENT", "stderr: 1 must not be set with tty"),
        ({}, "INVALID_ARGUMENT", "one of stdin, stdout and stderr: is required"),
        ({"container_id": "nobody", "stdout": True}, "NOT_FOUND", "nobody"),
    ],
)
def test_exec_requests_that_are_refused(
    daemon: Daemon, container: str, fields: dict[str, object], code: str, reason: str
) -> None:
    request = cri.ExecRequest(**{"container_id": container, "cmd": ["true"], **fields})
    with pytest.raises(grpc.RpcError) as refused:
        daemon.runtime.Exec(request, timeout=CALL_SECONDS)
    assert (refused.value.code().name, reason in refused.value.details()) == (code, True), refused.value.details()


def test_what_does_not_run_has_no_streams(daemon: Daemon) -> None:
    with daemon.pod("stopped") as pod:
        created = pod.create("sleep", "1000")
        for call in (lambda: exec_url(daemon, created, "true"), lambda: attach_url(daemon, created)):
            with pytest.raises(grpc.RpcError) as refused:
                call()
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        daemon.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout=CALL_SECONDS)
        with pytest.raises(grpc.RpcError) as refused:
            ports_url(daemon, pod)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_much_data_arrives_as_it_was_sent_in_bounded_memory(daemon: Daemon, container: str, transport: str) -> None:
    before = resident(daemon)
    command = Command.over(transport, exec_url(daemon, container, "cat"), V5, STDIN, STDOUT, STDERR)
    sent, came = hashed(random_pieces(192 << 20, 256 << 10)), hashlib.sha256()
    output = command.stream(STDOUT)
    command.client.taken = lambda stream, data: (
        came.update(data) if stream == output else command.client.data[stream].extend(data)
    )
    command.feed(sent)
    assert command.exit_code(60) == 0
    assert came.digest() == sent.digest.digest()
    assert resident(daemon) - before < 16 << 20


def test_a_slow_client_costs_no_memory_and_stops_the_command(daemon: Daemon, container: str) -> None:
    before = resident(daemon)
    with closing(Command.over("websocket", exec_url(daemon, container, "yes"), V4, STDIN, STDOUT, STDERR)):

        def is_idle() -> bool:
            used = cpu_ticks(daemon)
            time.sleep(0.3)
            return cpu_ticks(daemon) - used <= 2

        until(is_idle)
        assert resident(daemon) - before < 8 << 20


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_command_that_reads_nothing_stops_its_client(
    daemon: Daemon, pod: Pod, container: str, transport: str
) -> None:
    """And one that leaves while its bytes are not wanted is noticed."""
    before = resident(daemon)
    command = Command.over(transport, exec_url(daemon, container, "sleep", "876543"), V5, STDIN, STDOUT, STDERR)
    sent = itertools.count()
    command.feed(bytes(256 << 10) for _ in sent)
    with pytest.raises(TimeoutError):
        command.client.until_closed(0.7)
    assert next(sent) < 64
    assert resident(daemon) - before < 8 << 20
    command.close()
    wait_until_gone(pod, container, b"876543")


def test_a_client_that_has_windows(daemon: Daemon, container: str) -> None:
    """It is never sent more than it takes, else it would reset the stream; and its own windows are opened for it."""
    url, total = exec_url(daemon, container, "cat", stdin=True, stdout=True), 3 << 20
    with SpdyClient(url, V4, windows=spdy.Limits(stream_window=20_000, connection_window=80_000)) as client:
        error, stdin, stdout = [client.open(streamtype=kind) for kind in ("error", "stdin", "stdout")]
        sent = 0
        while len(client.data[stdout]) < total and not client.closed:
            piece = bytes(min(client.spdy.room(stdin), total - sent))
            client.send(stdin, piece)
            sent += len(piece)
            client.step(5)
        client.end(stdin)
        client.until_closed()
    assert (len(client.data[stdout]), client.resets) == (total, {})
    assert exit_code(json.loads(client.data[error])) == 0


def test_ten_at_once(daemon: Daemon, container: str) -> None:
    commands = [
        Command.over(TRANSPORTS[number % 2], exec_url(daemon, container, "cat"), V5, STDIN, STDOUT, STDERR)
        for number in range(10)
    ]
    for number, command in enumerate(commands):
        command.send(b"%d" % number)
    for command in commands:
        command.end()
    for number, command in enumerate(commands):
        assert command.exit_code() == 0
        assert command.output() == b"%d" % number


# -- attach -----------------------------------------------------------------------------------------------------------


@pytest.mark.answer("AttachResponse")
@pytest.mark.cri("Attach", "container_id", "stdin", "stdout", "stderr")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_attach_leave_and_attach_again(daemon: Daemon, pod: Pod, transport: str) -> None:
    script = "while read line; do echo out $line; echo err $line >&2; done; exit 6"
    container = pod.run("sh", "-c", script, name=f"attach-{transport}", stdin=True)
    first = Command.over(transport, attach_url(daemon, container), V5, STDIN, STDOUT, STDERR)
    second = Command.over(transport, attach_url(daemon, container, stdout=True), V4, STDOUT)
    first.send(b"one\n")
    for onlooker in (first, second):
        onlooker.until(b"out one\n")
    first.until(b"err one\n", STDERR)
    first.close()
    third = Command.over(transport, attach_url(daemon, container), V5, STDIN, STDOUT, STDERR)
    third.send(b"two\n")
    third.until(b"out two\n")
    assert b"one" not in third.output()
    daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=container), timeout=CALL_SECONDS)
    assert [third.exit_code(), second.exit_code()] == [0, 0]  # as kubelet's server: to attach has gone well
    assert second.output() == b"out one\nout two\n"


@pytest.mark.cri("Attach", "tty")
def test_attach_to_a_terminal(daemon: Daemon, pod: Pod) -> None:
    container = pod.run("sh", name="attach-terminal", stdin=True, tty=True)
    command = Command.over("spdy", attach_url(daemon, container, **TTY), V4, STDIN, STDOUT, RESIZE)
    command.resize(99, 33)
    command.send(b"until [ \"$(stty size)\" = \"33 99\" ]; do :; done; echo re''sized\n")
    command.until(b"resized")
    command.send(b"exit 3\n")
    assert command.exit_code() == 0


# -- port-forward -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def echo(pod: Pod) -> int:
    """A port of the pod on which what is sent comes back."""
    pod.run("nc", "-ll", "-p", "7000", "-e", "cat", name="echo")
    return 7000


@pytest.mark.answer("PortForwardResponse")
@pytest.mark.cri("PortForward", "pod_sandbox_id", "port")
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_connections_are_forwarded(daemon: Daemon, pod: Pod, echo: int, transport: str) -> None:
    with port_client(daemon, pod, transport) as client:
        one, two = Forwarded(client, echo, "0"), Forwarded(client, echo, "1")
        client.send(two.data, b"second")
        client.send(one.data, b"first")
        client.until(lambda: (one.output(), two.output()) == (b"first", b"second"))
        for connection in (one, two):
            client.end(connection.data)
        client.until(lambda: {one.data, one.error, two.data, two.error} <= client.ended)
        nowhere = Forwarded(client, 7001, "2")
        client.until(lambda: nowhere.error in client.ended)
        assert b"port 7001" in client.data[nowhere.error]
        assert b"Connection refused" in client.data[nowhere.error]
        again = Forwarded(client, echo, "3")
        client.send(again.data, b"third")
        client.until(lambda: again.output() == b"third")


def test_ports_over_websockets_own_channels(daemon: Daemon, pod: Pod, echo: int) -> None:
    with WebSocketClient(ports_url(daemon, pod, echo, 7001), V4) as client:
        client.send(0, b"hello")
        client.until(lambda: bytes(client.data[0][2:]) == b"hello" and b"refused" in client.data[3])
        assert client.data[0][:2] == client.data[1] == echo.to_bytes(2, "little")
        assert client.data[3][:2] == (7001).to_bytes(2, "little")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_much_data_through_a_port(daemon: Daemon, pod: Pod, echo: int, transport: str) -> None:
    before = resident(daemon)
    with port_client(daemon, pod, transport) as client:
        connection = Forwarded(client, echo, "0")
        sent, came = hashed(random_pieces(96 << 20, 256 << 10)), hashlib.sha256()
        client.taken = lambda stream, data: came.update(data)
        client.feed(connection.data, sent)
        client.until(lambda: connection.data in client.ended, 60)
    assert came.digest() == sent.digest.digest()
    assert resident(daemon) - before < 16 << 20


# -- what the server is ----------------------------------------------------------------------------------------------


def certificate(directory: Path, name: str, *signer: Path) -> tuple[Path, Path]:
    """A certificate and its key, its own signer's or that of the certificate and key given."""
    cert, key = directory / f"{name}.pem", directory / f"{name}.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += [
        "-subj",
        f"/CN={name}",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(key),
        "-out",
        str(cert),
    ]
    if signer:
        command += ["-CA", str(signer[0]), "-CAkey", str(signer[1])]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def test_tls_with_certificates_of_both_sides(tmp_path: Path) -> None:
    authority = certificate(tmp_path, "authority")
    server, client = certificate(tmp_path, "server", *authority), certificate(tmp_path, "client", *authority)
    flags = [f"--stream-tls-cert={server[0]}", f"--stream-tls-key={server[1]}", f"--stream-tls-ca={authority[0]}"]
    with Daemon.running(*flags) as daemon:
        daemon.import_busybox()
        with daemon.pod("tls") as pod:
            container = pod.run("sleep", "1000")
            context = ssl.create_default_context(cafile=str(authority[0]))
            for transport in TRANSPORTS:
                url = exec_url(daemon, container, "cat")
                assert url.startswith("https://")
                with pytest.raises((ssl.SSLError, ConnectionError, Refused)):
                    Command.over(transport, url, V5, STDIN, STDOUT, STDERR, context=context).finish()
            context.load_cert_chain(*client)
            for transport in TRANSPORTS:
                url = exec_url(daemon, container, "cat")
                command = Command.over(transport, url, V5, STDIN, STDOUT, STDERR, context=context)
                sent = hashed(random_pieces(8 << 20, 64 << 10))
                command.feed(sent)
                assert command.exit_code() == 0
                assert hashlib.sha256(command.output()).digest() == sent.digest.digest()
            url = exec_url(daemon, container, "sh", "-c", ECHO)
            shell = Command.over("websocket", url, V5, STDIN, STDOUT, STDERR, context=context)
            ask(shell, "before")
            daemon.kill9()
            ask(shell, "meanwhile")
            daemon.start()
            ask(shell, "afterwards")
            shell.end()
            assert shell.exit_code() == 7


def test_a_renewed_certificate_is_served_after_a_reload(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "server")

    def served(daemon: Daemon) -> str:
        url = urlsplit(exec_url(daemon, container, "true"))
        return ssl.get_server_certificate((str(url.hostname), int(url.port or 0)))

    def reload(daemon: Daemon, said: str) -> None:
        os.kill(daemon.pid(), signal.SIGHUP)
        until(lambda: said in daemon.log())

    with Daemon.running(f"--stream-tls-cert={cert}", f"--stream-tls-key={key}") as daemon:
        daemon.import_busybox()
        with daemon.pod("renewed") as pod:
            container = pod.run("sleep", "1000")
            assert served(daemon) == cert.read_text()
            certificate(tmp_path, "server")
            renewed = cert.read_text()
            reload(daemon, '"configuration reloaded"')
            assert served(daemon) == renewed
            key.write_text("none")
            reload(daemon, "could not reload the configuration")
            assert served(daemon) == renewed


def test_bytes_that_are_no_session(daemon: Daemon, pod: Pod, container: str) -> None:
    """A few hundred broken sessions; the daemon answers after them as before, and holds nothing of them."""
    dice = random.Random(2)
    before = leaks.descriptors_of(daemon.streams_pid())
    for number in range(300):
        url = exec_url(daemon, container, "cat") if number % 2 else ports_url(daemon, pod)
        try:
            client = SpdyClient(url) if number % 3 else WebSocketClient(url, V5 if number % 2 else "")
        except Refused:
            continue
        with client:
            if isinstance(client, SpdyClient):
                stream = client.spdy.open({"streamtype": dice.choice(("error", "data", "stdin")), "port": "7000"})
                client.spdy.send(stream, dice.randbytes(20))
                data = bytearray(b"".join(client.spdy.take()))
            else:
                client.frames.send_binary(dice.randbytes(20))
                data = bytearray(b"".join(client.frames.data_to_send()))
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            client.write(data[: dice.randrange(1, len(data) + 1)])
            client.step(0.01)
    command = Command.over("spdy", exec_url(daemon, container, "echo", "alive"), V4, STDIN, STDOUT, STDERR)
    assert command.exit_code() == 0
    until(lambda: not leaks.descriptors_of(daemon.streams_pid()) - before, pause=0.02)


class hashed:
    """Pieces, and the digest of those that were taken."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.digest = hashlib.sha256()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = next(self._pieces)
        self.digest.update(piece)
        return piece


def wait_until_gone(pod: Pod, container: str, argument: bytes) -> None:
    """Wait until no process of the container has the argument."""
    until(lambda: argument not in pod.exec(container, "ps", "-o", "args").stdout, pause=0.02)


def resident(daemon: Daemon) -> int:
    """Bytes of the process that serves streams."""
    return int(Path(f"/proc/{daemon.streams_pid()}/statm").read_text().split()[1]) * 4096


def cpu_ticks(daemon: Daemon) -> int:
    fields = Path(f"/proc/{daemon.streams_pid()}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
