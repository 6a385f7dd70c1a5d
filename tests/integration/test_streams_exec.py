"""Exec with streams, and connections to a pod's ports, below the door."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from pods.errors import FailedPrecondition, NotFound, PodError
from pods.model import ContainerSecurity, NamespaceMode, NamespaceOptions, SandboxSecurity
from pods.node import Node
from pods.streams.command import Command
from pods.streams.ports import open_port
from pods.streams.sessions import StreamSession, open_exec
from runtime.wire.calls import KillExec
from tests.node import run_container, run_pod, running_node
from tests.streams import finish, read_all, read_until, write
from tests.waiting import SECONDS, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
_MIB = 1 << 20


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    async with running_node(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def sandbox(node: Node) -> str:
    return await run_pod(node, "streams")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def container(node: Node, sandbox: str) -> str:
    return await run_container(node, sandbox, "idle", "sleep", "6000")


async def _open(node: Node, container: str, *argv: str, **streams: bool) -> StreamSession:
    wanted = {"tty": False, "stdin": False, "stdout": True, "stderr": False} | streams
    return await open_exec(node.container_place(container), argv, **wanted)


async def test_a_quarter_gigabyte_goes_there_and_back(node: Node, container: str) -> None:
    session = await _open(node, container, "cat", stdin=True)
    chunk = random.Random(7).randbytes(_MIB)
    sent, received = hashlib.sha256(), hashlib.sha256()

    async def feed() -> None:
        for _ in range(256):
            sent.update(chunk)
            await write(session, chunk)
        session.close_stdin()

    async def drink() -> None:
        while data := await session.read(session.stdout):
            received.update(data)

    await asyncio.gather(feed(), drink())
    assert received.digest() == sent.digest()
    assert await session.wait() == 0
    await session.close()


async def test_streams_are_separate_and_the_exit_code_is_kept(node: Node, container: str) -> None:
    session = await _open(node, container, "sh", "-c", "echo out; echo err >&2; exit 7", stderr=True)
    assert await read_all(session, session.stderr) == b"err\n"
    assert await finish(session) == (b"out\n", 7)
    assert await finish(await _open(node, container, "sh", "-c", "kill -9 $$")) == (b"", 137)


async def test_a_half_closed_stdin_lets_the_answer_through(node: Node, container: str) -> None:
    session = await _open(node, container, "sh", "-c", "sort; echo end", stdin=True)
    await write(session, b"b\na\n")
    session.close_stdin()
    assert await finish(session) == (b"a\nb\nend\n", 0)


async def test_a_terminal_has_a_size_a_type_and_a_session(node: Node, container: str) -> None:
    script = "trap 'stty size' WINCH; tty; echo type $TERM; read line; echo $line; while :; do sleep 0.1; done"
    session = await _open(node, container, "sh", "-c", script, tty=True, stdin=True)
    assert session.stderr == -1
    seen = await read_until(session, b"type xterm\r\n")
    assert seen.startswith(b"/dev/pts/")
    await write(session, b"typed\n")
    await read_until(session, b"typed\r\ntyped\r\n")
    await session.resize(123, 45)
    await read_until(session, b"45 123\r\n")
    await session.resize(80, 24)
    await read_until(session, b"24 80\r\n")
    await write(session, b"\x03")  # interrupts: the terminal is the shell's controlling one
    shown, code = await finish(session)
    assert code == 130
    assert shown in (b"^C", b"")  # the terminal forgets its echo when the shell is quick to end


async def test_the_process_is_the_containers(node: Node, sandbox: str) -> None:
    """User, groups, capabilities, filter, environment and directory, with a terminal and without."""
    security = ContainerSecurity(run_as_user=4321, run_as_group=8765, drop_capabilities=("ALL",), no_new_privs=True)
    container = await run_container(
        node, sandbox, "user", "sleep", "6000", security=security, working_dir="/tmp", envs=(("FROM", "pod"),)
    )
    script = "id -u; id -g; pwd; echo $FROM $HOME; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | sort"
    pod = (await node.exec_sync(container, ["sh", "-c", script], 60)).stdout
    piped, _ = await finish(await _open(node, container, "sh", "-c", script))
    typed, _ = await finish(await _open(node, container, "sh", "-c", script, tty=True))
    assert piped == typed.replace(b"\r\n", b"\n") == pod
    assert pod.startswith(b"4321\n8765\n/tmp\npod /\n")
    # Its streams are its own to open anew, as many images' log files that are links to /dev/stdout need.
    reopen = "echo again > /dev/stdout; [ -O /proc/self/fd/1 ] && echo mine"
    assert (await finish(await _open(node, container, "sh", "-c", reopen)))[0] == b"again\nmine\n"
    terminal = await finish(await _open(node, container, "sh", "-c", "echo again > $(tty)", tty=True))
    assert terminal[0] == b"again\r\n"
    await node.remove_container(container)


async def test_a_daemonised_child_keeps_nobody_waiting(node: Node, sandbox: str) -> None:
    container = await run_container(node, sandbox, "daemons", "sleep", "6000")
    for tty in (False, True):
        session = await _open(node, container, "sh", "-c", "setsid sleep 6000 & trap '' HUP; echo done", tty=tty)
        output, code = await finish(session)
        assert output.strip() == b"done"
        assert code == 0
    await node.remove_container(container)


async def test_close_kills_the_command_and_its_family(node: Node, container: str) -> None:
    for tty in (False, True):
        script = "sleep 4711 & setsid sleep 4712 & echo up; exec sleep 4713"
        session = await _open(node, container, "sh", "-c", script, tty=tty)
        await read_until(session, b"up")
        await session.close()
        await session.close()
        assert await session.wait() == 137
        # All were sent SIGKILL; on a busy machine the last may still be about to die of it.
        deadline = time.monotonic() + SECONDS
        while b"sleep 471" in (processes := (await node.exec_sync(container, ["ps", "-o", "args"], 60)).stdout):
            assert time.monotonic() < deadline, processes
        assert b"sleep 6000" in processes


async def test_an_exec_in_the_hosts_pid_namespace_has_a_session(node: Node) -> None:
    """Nobody is born there who could begin one; what a closed command leaves is found by it."""
    options = NamespaceOptions(pid=NamespaceMode.NODE)
    sandbox = await run_pod(node, "host-pid", security=SandboxSecurity(namespaces=options))
    security = ContainerSecurity(namespaces=options)
    container = await run_container(node, sandbox, "idle", "sleep", "6001", security=security)
    session = await _open(node, container, "sh", "-c", "echo $$; (sleep 4721 & echo $! up); exec sleep 4722")
    pid, orphan = (int(word) for word in (await read_until(session, b"up")).split()[:2])
    assert (os.getsid(pid), os.getsid(orphan)) == (pid, pid)
    await session.close()
    assert await session.wait() == 137
    await eventually(lambda: not Path(f"/proc/{orphan}").exists())
    await node.stop_sandbox(sandbox)
    await node.remove_sandbox(sandbox)


async def test_a_terminals_output_is_not_lost_however_soon_the_command_ends(node: Node, container: str) -> None:
    """The shim hears of the command, and is asked for its terminal only later."""
    shim = node._shims.of(node.container(container).sandbox_id)
    for claim in (True, False):
        command = Command(shim, container, ["sh", "-c", "echo quick; exit 3"], (), terminal=True)
        assert await command.ended(10)
        if claim:
            master = await command.running()
            assert os.read(master, 100) == b"quick\r\n"
            os.close(master)
        else:  # who asked went away
            await shim.call(KillExec(container, command._key))
        assert command.exit_code() == 3
        assert await command.running() == -1  # not twice, and nothing is left of it


async def test_what_cannot_run_is_said_before_there_are_streams(node: Node, sandbox: str, container: str) -> None:
    for tty in (False, True):
        with pytest.raises(PodError, match=r'"nonsense": executable file not found in \$PATH'):
            await _open(node, container, "nonsense", tty=tty)
    with pytest.raises(NotFound):
        await _open(node, "0" * 64, "true")
    ended = await run_container(node, sandbox, "ended", "true")
    await node.stop_container(ended, 5)
    with pytest.raises(FailedPrecondition, match="exited"):
        await _open(node, ended, "true")


async def test_an_open_that_is_cancelled_leaves_nothing(node: Node, container: str) -> None:
    for tty in (False, True):
        for turns in range(6):
            opening = asyncio.create_task(_open(node, container, "sleep", "4714", tty=tty, stdin=True))
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
    for _ in range(1000):
        if b"4714" not in (await node.exec_sync(container, ["ps", "-o", "args"], 60)).stdout:
            return
    pytest.fail("the command runs on")


async def test_many_at_once(node: Node, container: str) -> None:
    async def one(number: int) -> None:
        session = await _open(node, container, "cat", stdin=True)
        text = f"{number}\n".encode() * 1000
        await write(session, text)
        session.close_stdin()
        assert await finish(session) == (text, 0)

    await asyncio.gather(*(one(number) for number in range(20)))


async def test_a_port_is_reached_inside_the_pods_network(node: Node, sandbox: str, container: str) -> None:
    with pytest.raises(PodError, match=r"port 7070 in .*: Connection refused"):
        await open_port(node.pod_place(sandbox), 7070)
    server = await run_container(
        node, sandbox, "server", "nc", "-ll", "-p", "7070", "-e", "sh", "-c", "read a; echo $a$a"
    )
    loop = asyncio.get_running_loop()
    for _ in range(1200):
        try:
            connection = await open_port(node.pod_place(sandbox), 7070)
            break
        except PodError:
            await asyncio.sleep(0.05)
    with connection:
        await loop.sock_sendall(connection, b"ab\n")
        assert await loop.sock_recv(connection, 100) == b"abab\n"
    with pytest.raises(NotFound):
        node.pod_place("0" * 64)
    await node.stop_container(server, 0)


async def test_a_port_of_a_pod_on_the_hosts_network(node: Node) -> None:
    options = NamespaceOptions(network=NamespaceMode.NODE)
    sandbox = await run_pod(node, "host", security=SandboxSecurity(namespaces=options))
    answered = asyncio.Event()
    server = await asyncio.start_server(lambda _reader, writer: (answered.set(), writer.close()), "::1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with await open_port(node.pod_place(sandbox), port):
            await asyncio.wait_for(answered.wait(), 60)
    await node.stop_sandbox(sandbox)
    with pytest.raises(FailedPrecondition, match="not ready"):
        await open_port(node.pod_place(sandbox), port)
