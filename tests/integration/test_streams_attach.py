"""Attachments to running containers, below the door: what a client gets, and what it cannot do to a container."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from pods.errors import FailedPrecondition, NotFound, PodError
from pods.node import Node
from pods.streams.sessions import StreamSession, open_attach
from runtime.shim.attach import MAX_UNREAD
from tests.node import open_node, run_container, run_pod, running_node
from tests.streams import finish, read_all, read_until, write

pytestmark = pytest.mark.asyncio(loop_scope="module")
_ECHO = 'while read line; do echo "got $line"; done; echo end of input'


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    async with running_node(tmp_path_factory.mktemp("node")) as running:
        yield running


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def sandbox(node: Node, logs: Path) -> str:
    sandbox = await run_pod(node, "attach", log_directory=str(logs))
    await run_container(node, sandbox, "idle", "sleep", "6000")  # makes the pod's cgroup
    return sandbox


async def _attach(node: Node, container: str, **streams: bool) -> StreamSession:
    wanted = {"stdin": False, "stdout": True, "stderr": False} | streams
    return await open_attach(node.container_place(container), **wanted)


async def test_clients_see_what_is_written_while_they_are_there(node: Node, sandbox: str, logs: Path) -> None:
    script = "n=0; while :; do n=$((n + 1)); echo line $n; [ $((n % 500)) = 0 ] && sleep 0.01; done"
    container = await run_container(node, sandbox, "counter", "sh", "-c", script, log_path="counter.log")
    before = (logs / "counter.log").read_bytes().count(b"\n")
    clients = [await _attach(node, container, stdin=True) for _ in range(3)]
    assert all(client.stdin == -1 for client in clients)  # the container takes no input
    last = [0, 0, 0]
    for index, client in enumerate(clients):
        seen = await read_until(client, b"\n")
        while len(seen) < 200_000:
            seen += await client.read(client.stdout)
        numbers = [int(line) for line in re.findall(rb"(?<=line )\d+(?=\n)", seen)]
        assert numbers[0] >= before  # nothing is replayed
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))  # nothing is missing
        last[index] = numbers[-1]
    for client in clients:
        await client.close()
        assert await client.wait() is None
    assert node.container(container).pid
    await node.stop_container(container, 0)
    log = (logs / "counter.log").read_bytes()
    assert b"stdout F line %d\n" % max(last) in log
    await node.remove_container(container)


async def test_the_end_of_the_container_ends_its_clients(node: Node, sandbox: str) -> None:
    container = await run_container(
        node, sandbox, "ends", "sh", "-c", "read a; echo out $a; echo err $a >&2; exit 5", stdin=True
    )
    one = await _attach(node, container, stdin=True, stderr=True)
    two = await _attach(node, container, stdout=False, stderr=True)
    assert two.stdout == -1
    await write(one, b"x\n")
    assert await finish(one) == (b"out x\n", 5)
    assert await two.read(two.stderr) == b"err x\n"
    assert await two.read(two.stderr) == b""
    assert await two.wait() == 5
    await two.close()
    with pytest.raises(FailedPrecondition):
        await _attach(node, container)
    with pytest.raises(NotFound):
        await _attach(node, "0" * 64)
    await node.remove_container(container)


async def test_stdin_stays_open_over_clients(node: Node, sandbox: str) -> None:
    container = await run_container(node, sandbox, "stays", "sh", "-c", _ECHO, stdin=True)
    watching = await _attach(node, container)
    for word in (b"first", b"second"):
        client = await _attach(node, container, stdin=True)
        await write(client, word + b"\n")
        await read_until(client, b"got " + word)
        client.close_stdin()  # which ends an attachment with input, as clients of containerd know it
        assert await finish(client) == (b"", None)
    gone = await _attach(node, container, stdin=True)
    await write(gone, b"third\n")
    await gone.close()
    assert await read_until(watching, b"third") == b"got first\ngot second\ngot third\n"
    await watching.close()
    await node.remove_container(container)


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.cri("CreateContainer", "stdin_once")
async def test_stdin_once_ends_with_its_first_client(node: Node, sandbox: str, closes: bool) -> None:
    container = await run_container(
        node, sandbox, f"once-{closes}", "sh", "-c", f"{_ECHO}; sleep 0.1", stdin=True, stdin_once=True
    )
    watching = await _attach(node, container)
    client = await _attach(node, container, stdin=True)
    await write(client, b"only\n")
    if closes:
        await client.close()
    else:
        client.close_stdin()
        assert await finish(client) == (b"got only\nend of input\n", 0)
    assert await finish(watching) == (b"got only\nend of input\n", 0)
    await node.remove_container(container)


async def test_a_slow_client_is_dropped_and_told_so(node: Node, sandbox: str) -> None:
    """Neither the container nor another client waits for it."""
    amount = 2 * MAX_UNREAD
    script = f"read go; tr '\\0' x < /dev/zero | head -c {amount}; echo all written; sleep 6000"
    container = await run_container(node, sandbox, "slow", "sh", "-c", script, stdin=True)
    slow = await _attach(node, container)
    quick = await _attach(node, container, stdin=True)
    await write(quick, b"go\n")
    assert len(await read_until(quick, b"all written\n")) == amount + len(b"all written\n")
    with pytest.raises(PodError, match="detached: it has not read more than 64 MiB of output"):
        await asyncio.wait_for(slow.wait(), 60)
    assert (await read_all(slow, slow.stdout)).strip(b"x") == b""  # what its pipe held, and the end
    await slow.close()
    await quick.close()
    await node.remove_container(container)


async def test_a_pausing_client_within_the_bound_loses_nothing(node: Node, sandbox: str, logs: Path) -> None:
    lines = MAX_UNREAD // 4 // 16
    script = f"read go; yes 0123456789abcde | head -n {lines}; exit 4"
    container = await run_container(node, sandbox, "pausing", "sh", "-c", script, stdin=True, log_path="pausing.log")
    client = await _attach(node, container, stdin=True)
    await write(client, b"go\n")
    assert await asyncio.wait_for(client.wait(), 60) == 4  # the container ended long before its output is read
    assert (logs / "pausing.log").read_bytes().count(b"0123456789abcde\n") == lines
    await node.remove_container(container)
    output, _ = await finish(client)
    assert output == b"0123456789abcde\n" * lines


async def test_a_container_that_closes_its_input_goes_on(node: Node, sandbox: str) -> None:
    container = await run_container(
        node, sandbox, "closes", "sh", "-c", "exec <&-; while sleep 0.05; do echo on; done", stdin=True
    )
    client = await _attach(node, container, stdin=True)
    await read_until(client, b"on\n")
    with pytest.raises(BrokenPipeError):
        await write(client, b"x" * (1 << 20))
    await read_until(client, b"on\n")
    await client.close()
    await node.remove_container(container)


async def test_a_container_that_reads_nothing_stops_its_client_only(node: Node, sandbox: str) -> None:
    container = await run_container(node, sandbox, "deaf", "sleep", "6000", stdin=True)
    client = await _attach(node, container, stdin=True)
    writing = asyncio.create_task(write(client, b"x" * (4 << 20)))
    _, waiting = await asyncio.wait({writing}, timeout=0.3)
    assert waiting
    assert (await node.exec_sync(container, ["echo", "lives"], 60)).stdout == b"lives\n"
    writing.cancel()
    asyncio.get_running_loop().remove_writer(client.stdin)
    await client.close()
    await node.remove_container(container)


async def test_a_terminal_is_shared_resized_and_attached_again(node: Node, sandbox: str) -> None:
    container = await run_container(
        node, sandbox, "terminal", "sh", "-c", "trap 'stty size' WINCH; while :; do read line && echo got $line; done",
        tty=True, stdin=True, stdin_once=True,
    )  # fmt: skip
    for width in (91, 92):  # the second client after the first has left: kubectl attaches to such containers again
        client = await _attach(node, container, stdin=True, stderr=True)
        assert client.stderr == -1
        await write(client, b"hello\n")
        await read_until(client, b"got hello\r\n")  # so the shell has set its trap
        await client.resize(width, 33)
        await read_until(client, b"33 %d\r\n" % width)
        client.close_stdin()
        assert await client.wait() is None
        await client.close()
    await node.remove_container(container)


async def test_the_container_and_its_clients_outlive_the_daemon(tmp_path: Path) -> None:
    node = await open_node(tmp_path)
    container = await run_container(node, await run_pod(node, "old"), "c", "sh", "-c", _ECHO, stdin=True)
    client = await _attach(node, container, stdin=True)
    await write(client, b"one\n")
    await read_until(client, b"one")
    await node.close()
    await write(client, b"none\n")
    assert await read_until(client, b"none") == b"got none\n"
    async with running_node(tmp_path) as successor:
        again = await _attach(successor, container, stdin=True)
        await write(again, b"two\n")
        for session in (again, client):
            assert (await read_until(session, b"two")).endswith(b"got two\n")
            await session.close()
