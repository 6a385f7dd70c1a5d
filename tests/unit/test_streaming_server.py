"""The streaming server over a transport in memory: sessions as clients have them, and mutations of those."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from unittest.mock import patch

import pytest
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side

from cri.streaming import spdy
from cri.streaming.connection import Timeouts
from cri.streaming.errors import TooManyPending
from cri.streaming.portforward import _port
from cri.streaming.requests import Command, Request, kind
from cri.streaming.resize import Sizes
from cri.streaming.sessions import Sessions
from cri.streaming.status import Outcome
from cri.streaming.tokens import LIFETIME_SECONDS, Tokens
from pods.errors import PodError
from tests.stream_clients import NO_WINDOWS, WEBSOCKET_KEY, exit_code
from tests.unit.streaming_fakes import (
    CODE,
    CONTAINER,
    EXEC,
    GREETING,
    PORTS,
    TOKEN,
    FakeRuntime,
    MemoryClient,
    memory_server,
)
from tests.waiting import eventually

TTY = Command(CONTAINER, None, tty=True, stdin=True, stdout=True, stderr=False)
MUTATIONS = int(os.environ.get("MUTATIONS", "2500"))


@dataclass
class Recording:
    """What a client sends in a whole session, piece by piece: the state of the protocol is another after each."""

    name: str
    request: Request
    pieces: list[bytes]


def http(request: Request, upgrade: str, *headers: str, method: str = "GET") -> bytes:
    lines = [f"{method} /{kind(request)}/{TOKEN} HTTP/1.1", "Host: h", "Connection: Upgrade", f"Upgrade: {upgrade}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode()


def spdy_http(request: Request, protocol: str) -> bytes:
    length = "Content-Length: 0"
    return http(request, "SPDY/3.1", length, f"X-Stream-Protocol-Version: {protocol}", method="POST")


def websocket_http(request: Request, protocol: str) -> bytes:
    headers = ["Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {WEBSOCKET_KEY}"]
    return http(request, "websocket", *headers, *([f"Sec-WebSocket-Protocol: {protocol}"] if protocol else []))


def masked(opcode: Opcode, data: bytes, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True, extensions=[])


def spdy_pieces(act: Callable[[spdy.Connection], None]) -> list[bytes]:
    """Frame by frame, what a client says that does `act`."""
    end = spdy.Connection(client=True, limits=NO_WINDOWS)
    act(end)
    return [bytes(piece) for piece in end.take()]


def command(end: spdy.Connection) -> None:
    error, stdin, *_ = [end.open({"streamtype": name}) for name in ("error", "stdin", "stdout", "stderr", "resize")]
    end.ping()
    end.send(stdin, b"some input")
    end.send(stdin + 6, b'{"Width": 80, "Height": 25}')
    end.consumed(stdin + 2, 600 << 10)
    end.end(stdin)
    end.reset(error + 8)
    end.go_away()


def forward(end: spdy.Connection) -> None:
    for request in ("0", "1"):
        error = end.open({"streamtype": "error", "port": "80", "requestid": request})
        end.end(error)
        data = end.open({"streamtype": "data", "port": "80", "requestid": request})
        end.send(data, b"some input")
        if request == "0":
            end.end(data)
        else:
            end.reset(data)


def recordings() -> list[Recording]:
    with patch("secrets.token_bytes", lambda size: bytes(range(1, size + 1))):
        v5 = [b"\0some", b'\4{"Width": 80, "Height": 25}', b"\0input", b"\xff\0"]
        text = [b"0" + base64.b64encode(b"some"), b"0" + base64.b64encode(b"input")]
        tunnel = spdy_pieces(forward)
        closing = masked(Opcode.CLOSE, b"\x03\xe8")
        return [
            Recording("exec, SPDY", EXEC, [spdy_http(EXEC, "v4.channel.k8s.io"), *spdy_pieces(command)]),
            Recording("attach, SPDY", TTY, [spdy_http(TTY, "v2.channel.k8s.io"), *spdy_pieces(command)]),
            Recording("ports, SPDY", PORTS, [spdy_http(PORTS, "portforward.k8s.io"), *spdy_pieces(forward)]),
            Recording(
                "exec, WebSocket",
                EXEC,
                [
                    websocket_http(EXEC, "v5.channel.k8s.io"),
                    *(masked(Opcode.BINARY, message) for message in v5[:2]),
                    masked(Opcode.PING, b"?"),
                    masked(Opcode.BINARY, v5[2][:3], fin=False),
                    masked(Opcode.CONT, v5[2][3:]),
                    masked(Opcode.BINARY, v5[3]),
                    closing,
                ],
            ),
            Recording(
                "exec, WebSocket in base64",
                EXEC,
                [
                    websocket_http(EXEC, "v4.base64.channel.k8s.io"),
                    *(masked(Opcode.TEXT, message) for message in text),
                    closing,
                ],
            ),
            Recording(
                "ports, WebSocket",
                PORTS,
                [
                    websocket_http(PORTS, "v4.channel.k8s.io"),
                    *(masked(Opcode.BINARY, message) for message in (b"\0some", b"\2input", b"\0x")),
                    closing,
                ],
            ),
            Recording(
                "ports, SPDY in WebSocket",
                PORTS,
                [
                    websocket_http(PORTS, "SPDY/3.1+portforward.k8s.io"),
                    *(masked(Opcode.BINARY, piece) for piece in tunnel),
                    closing,
                ],
            ),
        ]


def mutate(pieces: list[bytes], at: int, others: list[bytes], dice: random.Random) -> list[bytes]:
    """The session with something done to its piece `at`."""
    piece = pieces[at]
    place = dice.randrange(len(piece))
    end = min(len(piece), place + dice.choice((1, 1, 2, 4, 8, 64)))
    extreme = dice.choice((b"\0", b"\xff", b"\x7f", b"\x80", b"\1")) * (end - place)
    choice = dice.randrange(9)
    changed = [
        piece[:place] + bytes([piece[place] ^ 1 << dice.randrange(8)]) + piece[place + 1 :],
        piece[:place] + extreme + piece[end:],
        piece[:place] + piece[end:],
        piece[:place] + piece[place:end] * 2 + piece[end:],
        piece[:place] + dice.randbytes(end - place) + piece[place:],
        piece[:place] + dice.choice(others) + piece[place:],
        piece + piece,
        piece[:place],
        dice.choice(others) + piece,
    ][choice]
    after = pieces[at + 1 :]
    if dice.randrange(4) == 0:
        dice.shuffle(after)
    return [*pieces[:at], changed, *after][: len(pieces) - (dice.randrange(4) == 0)]


@dataclass
class Memory:
    """A server without a network. What goes wrong on the loop unseen is in `trouble`."""

    runtime: FakeRuntime
    server: Sessions
    watched: socket.socket
    trouble: list[object]

    def client(self, request: Request) -> MemoryClient:
        return MemoryClient(self.server, self.watched, request)

    async def settle(self, condition: Callable[[], bool]) -> None:
        """Let the loop come round until the condition holds."""
        for _ in range(2000):
            if condition():
                return
            await asyncio.sleep(0)
        pytest.fail("did not settle")


@asynccontextmanager
async def in_memory(timeouts: Timeouts | None = None) -> AsyncIterator[Memory]:
    trouble: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: trouble.append(context))
    runtime = FakeRuntime()
    watched, other = socket.socketpair()
    with watched, other:
        memory = Memory(runtime, memory_server(runtime, timeouts), watched, trouble)
        yield memory
        await memory.settle(lambda: memory.server.idle)
        assert all(session.closed for session in runtime.sessions)
        assert not trouble
    runtime.close()


def heard(client: MemoryClient) -> bytes:
    return bytes(client.transport.written.partition(b"\r\n\r\n")[2])


def messages(client: MemoryClient) -> list[tuple[Opcode, bytes]]:
    """What a WebSocket client was sent."""
    protocol = Protocol(Side.CLIENT)
    protocol.receive_data(heard(client))
    return [(frame.opcode, bytes(frame.data)) for frame in protocol.events_received() if isinstance(frame, Frame)]


def errors(client: MemoryClient) -> list[bytes]:
    """The messages on the channel of the error."""
    return [data for opcode, data in messages(client) if opcode is Opcode.BINARY and data[:1] == b"\3"]


@pytest.mark.parametrize("recording", recordings(), ids=lambda recording: recording.name)
async def test_recorded_sessions_are_valid(recording: Recording) -> None:
    """Else their mutations would all end in the same early error."""
    async with in_memory() as memory:
        client = memory.client(recording.request)
        for piece in recording.pieces:
            client.send(piece)
            for _ in range(10):
                await asyncio.sleep(0)
        assert client.transport.written.startswith(b"HTTP/1.1 101 ")
        for session in memory.runtime.sessions:
            assert session.written in (b"some input", b"someinput")
        client.transport.lose()


async def test_mutated_sessions_end_cleanly() -> None:
    """No crash, no hang, and nothing left of session, stream or descriptor, whatever is done to a session, and wherever
    it breaks off."""
    dice = random.Random(1)
    recorded = recordings()
    others = [piece for recording in recorded for piece in recording.pieces]
    states = [(recording, at) for recording in recorded for at in range(len(recording.pieces))]
    upgraded = 0
    async with in_memory() as memory:
        for number in range(MUTATIONS):
            recording, at = states[number % len(states)]
            client = memory.client(recording.request)
            for index, piece in enumerate(mutate(recording.pieces, at, others, dice)):
                client.send(piece)
                if index == at or dice.randrange(4) == 0:
                    await asyncio.sleep(0)
            upgraded += client.transport.written.startswith(b"HTTP/1.1 101 ")
            client.transport.lose()
            if number % 50 == 0:
                await memory.settle(lambda: memory.server.idle)
                assert all(session.closed for session in memory.runtime.sessions), f"seed 1, number {number}"
                memory.runtime.sessions.clear()
                memory.runtime.close()
                memory.runtime.ports.clear()
            assert not memory.trouble, f"seed 1, number {number}: {recording.name} at {at}"
    assert upgraded > MUTATIONS // 2


# -- what is said over WebSocket --------------------------------------------------------------------------------------


async def talk(memory: Memory, protocol: str, *pieces: bytes, request: Request = EXEC) -> MemoryClient:
    """Send a request and frames, and wait for the server to close."""
    client = memory.client(request)
    client.send(websocket_http(request, protocol))
    for piece in pieces:
        client.send(piece)
    for _ in range(50):
        await asyncio.sleep(0)
    client.transport.lose()
    return client


async def test_a_whole_session_in_base64_and_one_in_bytes() -> None:
    async with in_memory() as memory:
        v5 = [masked(Opcode.BINARY, message) for message in (b"\0in", b'\4{"Width": 80, "Height": 25}', b"\xff\0")]
        client = await talk(memory, "v5.channel.k8s.io", *v5, masked(Opcode.PING, b"?"))
        opcodes = messages(client)
        assert opcodes[0] == (Opcode.BINARY, b"\1")  # the greeting
        assert (Opcode.PONG, b"?") in opcodes
        assert {b"\1" + GREETING, b"\2" + GREETING} <= {data for _, data in opcodes}
        (status,) = [json.loads(data[1:]) for data in errors(client)]
        assert exit_code(status) == CODE
        assert opcodes[-1] == (Opcode.CLOSE, b"\x03\xe8")
        assert (memory.runtime.sessions[0].written, memory.runtime.sessions[0].sizes) == (b"in", [(80, 25)])

        encoded = base64.b64encode(b"in and more")
        fragments = [masked(Opcode.TEXT, b"0" + encoded[:5], fin=False), masked(Opcode.CONT, encoded[5:])]
        client = await talk(memory, "base64.channel.k8s.io", *fragments)
        assert (Opcode.TEXT, b"1" + base64.b64encode(GREETING)) in messages(client)
        assert memory.runtime.sessions[1].written == b"in and more"


@pytest.mark.parametrize(
    ("protocol", "piece", "code"),
    [
        ("v5.channel.k8s.io", masked(Opcode.BINARY, b"\xff"), 1002),
        ("v5.channel.k8s.io", masked(Opcode.BINARY, b"\xff\5"), 1002),
        ("v4.base64.channel.k8s.io", masked(Opcode.TEXT, b"0!!!!"), 1007),
        ("v4.channel.k8s.io", Frame(Opcode.BINARY, b"\0").serialize(mask=False, extensions=[]), 1002),
        ("v4.channel.k8s.io", b"\x82\xff" + (17 << 20).to_bytes(8, "big") + b"mask", 1009),
        ("v4.channel.k8s.io", masked(Opcode.CLOSE, b"\x03\xe8"), 1000),
    ],
)
async def test_frames_that_end_a_session(protocol: str, piece: bytes, code: int) -> None:
    async with in_memory() as memory:
        client = await talk(memory, protocol, piece)
        opcode, data = messages(client)[-1]
        assert (opcode, int.from_bytes(data[:2], "big")) == (Opcode.CLOSE, code)


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [("v4.channel.k8s.io", b"InternalError"), ("channel.k8s.io", b"no such thing"), ("", b"no such thing")],
)
async def test_a_command_that_cannot_be_opened(protocol: str, expected: bytes) -> None:
    async with in_memory() as memory:
        memory.runtime.failure = PodError("no such thing")
        client = await talk(memory, protocol)
        (error,) = errors(client)
        assert expected in error


# -- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (http(EXEC, "h2c"), 400),
        (http(EXEC, "websocket", "Sec-WebSocket-Version: 8"), 426),
        (http(EXEC, "websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: short"), 400),
        (http(EXEC, "websocket", method="POST"), 405),
        (http(EXEC, "SPDY/3.1", method="DELETE"), 405),
        (http(EXEC, "SPDY/3.1", "Content-Length: 4", method="POST") + b"body", 413),
        (http(EXEC, "SPDY/3.1", "X: " + "y" * (16 << 10)), 431),
        (spdy_http(EXEC, "v9.channel.k8s.io"), 403),
        (websocket_http(EXEC, "v9.channel.k8s.io"), 403),
        (websocket_http(EXEC, "SPDY/3.1+portforward.k8s.io"), 403),
        (spdy_http(PORTS, "v4.channel.k8s.io"), 404),
        (spdy_http(EXEC, "v4.channel.k8s.io").replace(TOKEN.encode(), b"wrong"), 404),
    ],
)
async def test_requests_that_are_refused(sent: bytes, status: int) -> None:
    async with in_memory() as memory:
        client = memory.client(EXEC)
        client.send(sent)
        head = client.transport.written.partition(b"\r\n")[0]
        assert head.startswith(b"HTTP/1.1 %d " % status), head
        client.transport.lose()


async def test_a_request_in_pieces_with_frames_behind_it() -> None:
    async with in_memory() as memory:
        client = memory.client(EXEC)
        whole = websocket_http(EXEC, "v4.channel.k8s.io").replace(TOKEN.encode(), client.token.encode())
        whole += masked(Opcode.BINARY, b"\0at once")
        for place in range(len(whole)):
            client.send(whole[place : place + 1])
        await memory.settle(lambda: bool(memory.runtime.sessions and memory.runtime.sessions[0].written))
        assert memory.runtime.sessions[0].written == b"at once"
        client.transport.lose()


async def test_clients_that_keep_one_waiting() -> None:
    """For the request, for the streams of a command, for the second stream of a pair, and for anything at all."""
    async with in_memory(Timeouts(creation=0.02, idle=3600)) as memory:
        silent = memory.client(EXEC)
        half = memory.client(EXEC)
        half.send(spdy_http(EXEC, "v4.channel.k8s.io"))
        half.send(spdy_pieces(lambda end: end.open({"streamtype": "error"}) and None)[-1])
        single = memory.client(PORTS)
        single.send(spdy_http(PORTS, "portforward.k8s.io"))
        single.send(spdy_pieces(lambda end: end.open({"streamtype": "error", "port": "1"}) and None)[-1])
        idle = memory.client(EXEC)
        idle.send(websocket_http(EXEC, "v4.channel.k8s.io"))
        for client in (half, single):
            await eventually(lambda client=client: b"timed out waiting for" in heard(client))
        await eventually(lambda: silent.transport.closed)
        assert not idle.transport.closed
        for client in (half, single, idle):
            client.transport.lose()
    async with in_memory(Timeouts(creation=3600, idle=0.05)) as memory:
        idle = memory.client(EXEC)
        idle.send(websocket_http(EXEC, "v4.channel.k8s.io"))
        await eventually(lambda: idle.transport.closed)


@pytest.mark.trial("strangers-are-bounded", "of clients without a token 256 are connected, however fast they come")
async def test_of_too_many_strangers_the_oldest_is_sent_away() -> None:
    async with in_memory() as memory:
        clients = [memory.client(EXEC) for _ in range(256)]
        clients[0].send(websocket_http(EXEC, ""))
        assert not any(client.transport.closed for client in clients)
        clients += [memory.client(EXEC), memory.client(EXEC)]
        assert [client for client in clients if client.transport.closed] == [clients[1]]
        clients += [memory.client(EXEC) for _ in range(700)]  # before asyncio tells anybody of an end
        assert sum(not client.transport.closed for client in clients) == 257
        assert not clients[0].transport.closed
        for client in clients:
            client.transport.lose()


@pytest.mark.parametrize(
    ("text", "port"),
    [("80", 80), ("65535", 65535), ("0080", 80), ("0" * 5000 + "80", 80), ("65536", 0), ("", 0), ("0", 0), ("-1", 0),
     ("9" * 5000, 0), ("\uff18\uff10", 0), ("8 0", 0)],
)  # fmt: skip
def test_a_port_is_a_number_that_there_is(text: str, port: int) -> None:
    assert _port(text) == port


def test_tokens_end_after_a_minute_and_are_bounded() -> None:
    now = [0.0]
    tokens = Tokens(lambda: now[0])
    first, second = tokens.issue(EXEC), tokens.issue(PORTS)
    assert len({first, second, tokens.issue(EXEC)}) == 3
    assert tokens.redeem(first) is EXEC
    assert tokens.redeem(first) is None
    now[0] = LIFETIME_SECONDS
    assert tokens.redeem(second) is None
    for _ in range(1000):
        tokens.issue(EXEC)
    with pytest.raises(TooManyPending):
        tokens.issue(EXEC)
    now[0] *= 2
    tokens.issue(EXEC)


# -- what goes over the streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "sizes"),
    [
        ([b'{"Width": 1, "Height": 2}\n'], [(1, 2)]),
        ([b'{"Width": 1, "He', b'ight": 2}{"width":3,"height":4}'], [None, (3, 4)]),
        ([b'{"Width": 0, "Height": 2}', b'{"Width": 70000, "Height": 2}', b'{"Width": "a"}', b"{}"], [None] * 4),
        ([b"nonsense", b'{"Width": 1, "Height": 2}'], [None, None]),
        ([b"{" * 2000, b'{"Width": 1, "Height": 2}'], [None, None]),
    ],
)
def test_sizes_of_a_terminal(pieces: list[bytes], sizes: list[tuple[int, int] | None]) -> None:
    reader = Sizes()
    assert [reader.feed(memoryview(piece)) for piece in pieces] == sizes


def test_outcomes() -> None:
    assert [Outcome(0).encoded(version) for version in (1, 3)] == [b"", b""]
    assert json.loads(Outcome(0).encoded(4)) == {"metadata": {}, "status": "Success"}
    assert exit_code(json.loads(Outcome(137).encoded(5))) == 137
    assert Outcome(2).encoded(3) == b"command terminated with exit code 2"
    lost = json.loads(Outcome(None, "gone").encoded(4))
    assert (lost["status"], lost["reason"], lost["code"], lost["message"]) == ("Failure", "InternalError", 500, "gone")
