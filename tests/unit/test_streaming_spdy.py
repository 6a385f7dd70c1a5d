"""The SPDY codec: one end hears what the other says, however it is cut; what is wrong is an error and nothing else."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from cri.streaming import spdy
from cri.streaming.errors import ProtocolViolation
from cri.streaming.spdy import frames
from cri.streaming.spdy.headers import DICTIONARY, Compressor, Decompressor

_NAMES = (
    st.text(st.characters(codec="latin-1"), min_size=1, max_size=20)
    .map(str.lower)
    .filter(lambda name: all(ord(character) < 256 for character in name))
)
_HEADERS = st.dictionaries(_NAMES, st.text(st.characters(codec="latin-1"), max_size=50), max_size=6)
_PIECES = st.lists(st.integers(1, 40), min_size=1, max_size=20)


def hear(end: spdy.Connection, data: bytes, sizes: list[int] | None = None) -> list[spdy.Event]:
    """What an end hears of bytes that arrive in pieces; the views of data are made bytes, as they do not last."""
    heard: list[spdy.Event] = []
    turn = 0
    while data:
        size = sizes[turn % len(sizes)] if sizes else len(data)
        piece, data, turn = data[:size], data[size:], turn + 1
        heard += [_lasting(event) for event in end.receive(piece)]
    return heard


def _lasting(event: spdy.Event) -> spdy.Event:
    return spdy.Received(event.stream, memoryview(bytes(event.data))) if isinstance(event, spdy.Received) else event


def said(end: spdy.Connection) -> bytes:
    return b"".join(end.take())


def pair() -> tuple[spdy.Connection, spdy.Connection]:
    client, server = spdy.Connection(client=True), spdy.Connection(client=False)
    hear(server, said(client))
    hear(client, said(server))
    return client, server


def test_the_dictionary_is_the_specifications() -> None:
    assert (len(DICTIONARY), zlib.adler32(DICTIONARY)) == (1423, 0xE3C6A7C2)


@given(st.lists(_HEADERS, min_size=1, max_size=5))
def test_headers_survive_compression_with_one_history(blocks: list[dict[str, str]]) -> None:
    compressor, decompressor = Compressor(), Decompressor(1 << 16, 64)
    for headers in blocks:
        assert decompressor.headers(memoryview(compressor.block(headers))) == headers


@given(_HEADERS, st.lists(st.binary(max_size=60), max_size=5), _PIECES)
def test_a_stream_survives_any_fragmentation(headers: dict[str, str], pieces: list[bytes], sizes: list[int]) -> None:
    client, server = pair()
    stream = client.open(headers)
    for piece in pieces:
        client.send(stream, piece)
    client.end(stream)
    heard = hear(server, said(client), sizes)
    assert heard[0] == spdy.Opened(stream, headers)
    assert heard[-1] == spdy.Ended(stream)
    assert b"".join(bytes(event.data) for event in heard if isinstance(event, spdy.Received)) == b"".join(pieces)
    server.reply(stream, headers)
    server.send(stream, b"back")
    server.end(stream)
    heard = hear(client, said(server), sizes)
    assert heard[0] == spdy.Replied(stream, headers)
    assert heard[-1] == spdy.Ended(stream)
    assert client.streams() == server.streams() == ()


@dataclass
class _Model:
    """A stream as both ends must see it: bytes under way, and which directions are open."""

    to_server: bytes = b""
    to_client: bytes = b""
    client_open: bool = True
    server_open: bool = True
    dead: bool = False


class TwoEnds(RuleBasedStateMachine):
    """Two ends that do flow control, doing anything that is allowed in any order."""

    streams = Bundle("streams")

    def __init__(self) -> None:
        super().__init__()
        limits = spdy.Limits(streams=8, stream_window=100, connection_window=(64 << 10) + 300)
        self.ends = {
            True: spdy.Connection(client=True, limits=limits),
            False: spdy.Connection(client=False, limits=limits),
        }
        self.models: dict[int, _Model] = {}
        self.sent: dict[tuple[int, bool], bytes] = {}
        self.got: dict[tuple[int, bool], bytes] = {}
        self.deliver()

    @rule(target=streams)
    def open(self) -> int:
        stream = self.ends[True].open({"streamtype": "data"})
        self.models[stream] = _Model(dead=sum(not model.dead for model in self.models.values()) >= 8)
        self.deliver()
        self.ends[False].reply(stream)
        return stream

    @rule(stream=streams, from_client=st.booleans(), length=st.integers(1, 300))
    def send(self, stream: int, from_client: bool, length: int) -> None:
        end = self.ends[from_client]
        if stream in end.streams() and (room := end.room(stream)) < 1 << 20:
            data = bytes([len(self.sent) % 256]) * min(room, length)
            if self._open(stream, from_client):
                end.send(stream, data)
                key = (stream, from_client)
                self.sent[key] = self.sent.get(key, b"") + data

    @rule(stream=streams, from_client=st.booleans())
    def end(self, stream: int, from_client: bool) -> None:
        self.ends[from_client].end(stream)
        model = self.models[stream]
        if from_client:
            model.client_open = False
        else:
            model.server_open = False
        model.dead |= not (model.client_open or model.server_open)

    @rule(stream=streams, from_client=st.booleans())
    def reset(self, stream: int, from_client: bool) -> None:
        self.deliver()
        self.ends[from_client].reset(stream)
        self.models[stream].dead = True

    @rule()
    def deliver(self) -> None:
        for _ in range(3):  # what one end says may make the other answer
            for from_client in (True, False):
                receiver = self.ends[not from_client]
                for event in hear(receiver, said(self.ends[from_client])):
                    if isinstance(event, spdy.Received):
                        key = (event.stream, from_client)
                        self.got[key] = self.got.get(key, b"") + bytes(event.data)
                        receiver.consumed(event.stream, len(event.data))

    def _open(self, stream: int, from_client: bool) -> bool:
        model = self.models[stream]
        return not model.dead and (model.client_open if from_client else model.server_open)

    @invariant()
    def what_arrived_is_what_was_sent(self) -> None:
        for key, data in self.got.items():
            assert self.sent[key].startswith(data)

    def teardown(self) -> None:
        self.deliver()
        for key, data in self.sent.items():
            if not self.models[key[0]].dead:
                assert self.got.get(key, b"") == data
        alive = {stream for stream, model in self.models.items() if not model.dead}
        assert set(self.ends[True].streams()) == set(self.ends[False].streams()) == alive


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, 0xFFFF), st.integers(0, 255), st.binary(max_size=40)), max_size=6), st.booleans()
)
def test_any_control_frame_is_understood_ignored_or_an_error(
    controls: list[tuple[int, int, bytes]], opened: bool
) -> None:
    client, server = pair()
    if opened:
        client.open({"streamtype": "data"})
        hear(server, said(client))
    try:
        for kind, flags, payload in controls:
            server.receive(frames.control(kind % 12, flags, payload))
    except ProtocolViolation:
        assert isinstance(hear(client, said(server))[-1], spdy.GoneAway)


def broken(kind: int, payload: bytes, flags: int = 0) -> bytes:
    return frames.control(kind, flags, payload)


BLOCK = Compressor().block({"streamtype": "data"})
BOMB = zlib.compressobj(zdict=DICTIONARY)
BOMB_BLOCK = BOMB.compress(struct.pack("!I", 1) + bytes(10 << 20)) + BOMB.flush(zlib.Z_SYNC_FLUSH)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (struct.pack("!II", 0x80020001, 0), "version 2"),
        (struct.pack("!II", 0x80030001, (64 << 10) + 1), "control frame of 65537 bytes"),
        (frames.data_header(0, 1), "data of stream 0"),
        (frames.data_header(7, 1) + b"x", "stream 7 was never opened"),
        (broken(1, b"short"), "SYN_STREAM: the frame is too short"),
        (broken(1, struct.pack("!IIBB", 2, 0, 0, 0) + BLOCK), "id 2 after 0"),
        (broken(1, struct.pack("!IIBB", 1, 0, 0, 0) + b"no zlib"), "inflate headers"),
        (broken(1, struct.pack("!IIBB", 1, 0, 0, 0) + BOMB_BLOCK), "more than 32768 bytes"),
        (broken(3, b"1234"), "4 bytes instead of 8"),
        (broken(4, struct.pack("!I", 1000)), "1000 settings in 4 bytes"),
        (broken(4, struct.pack("!III", 1, 7, 1 << 31)), "initial window"),
        (broken(6, b""), "PING"),
        (broken(9, struct.pack("!II", 0, 0x7FFFFFFF)), "window overflows"),
    ],
)
def test_what_ends_a_connection(data: bytes, reason: str) -> None:
    client, server = pair()
    with pytest.raises(ProtocolViolation, match=reason):
        server.receive(data)
    assert hear(client, said(server)) == [spdy.GoneAway(0, spdy.GoAwayStatus.PROTOCOL_ERROR)]


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        (struct.pack("!I", 65), "65 of them"),
        (struct.pack("!II", 1, 5) + b"name", "too short"),
        (struct.pack("!II", 1, 1) + b"X" + struct.pack("!I", 0), "not in lower case"),
        (struct.pack("!II", 1, 0) + struct.pack("!I", 0), "is empty"),
        (struct.pack("!II", 2, 1) + b"x" + struct.pack("!II", 0, 1) + b"x" + struct.pack("!I", 0), "repeated"),
        (struct.pack("!I", 0) + b"more", "longer than its headers"),
        (b"", "too short"),
    ],
)
def test_blocks_of_headers_that_are_refused(headers: bytes, reason: str) -> None:
    deflate = zlib.compressobj(zdict=DICTIONARY)
    block = deflate.compress(headers) + deflate.flush(zlib.Z_SYNC_FLUSH)
    with pytest.raises(ProtocolViolation, match=reason):
        Decompressor(1 << 16, 64).headers(memoryview(block))


def test_a_stream_too_many_is_refused_and_the_history_goes_on() -> None:
    client, server = spdy.Connection(client=True), spdy.Connection(client=False, limits=spdy.Limits(streams=1))
    first, second = client.open({"streamtype": "data"}), client.open({"streamtype": "error", "x": "y"})
    assert hear(server, said(client)) == [
        spdy.WindowOpened(0),
        spdy.WindowOpened(0),
        spdy.Opened(first, {"streamtype": "data"}),
    ]
    assert hear(client, said(server))[-1] == spdy.Reset(second, spdy.ResetStatus.REFUSED_STREAM)
    server.reset(first)
    third = client.open({"streamtype": "error", "x": "y"})
    assert hear(server, said(client)) == [spdy.Opened(third, {"streamtype": "error", "x": "y"})]


def test_windows_hold_only_for_peers_that_have_them() -> None:
    """moby/spdystream sends as much as it likes, and tells of no window: neither may stop anything."""
    quiet, server = spdy.Connection(client=True), spdy.Connection(client=False)
    quiet.take()
    stream = quiet.open({"streamtype": "data"})
    hear(server, said(quiet))
    server.reply(stream)
    quiet.send(stream, bytes(3 << 20))
    assert sum(len(event.data) for event in hear(server, said(quiet)) if isinstance(event, spdy.Received)) == 3 << 20
    server.send(stream, bytes(1 << 20))
    assert server.room(stream) > 1 << 20

    server.receive(frames.pair(frames.Type.WINDOW_UPDATE, stream, 100))
    assert server.room(stream) == 0  # it has them after all, and what was sent before counts
    server.receive(frames.pair(frames.Type.WINDOW_UPDATE, stream, 1 << 20))
    server.receive(frames.pair(frames.Type.WINDOW_UPDATE, 0, 1 << 20))
    assert server.room(stream) == 64 << 10
    with pytest.raises(ProtocolViolation, match="connection's window"):
        server.receive(frames.data_header(stream, 1) + b"x")


def test_a_stream_that_goes_over_its_window_is_reset() -> None:
    client, server = pair()
    stream = client.open({"streamtype": "data"})
    client.send(stream, bytes((256 << 10) + 1))
    assert hear(server, said(client))[-1] == spdy.Reset(stream, spdy.ResetStatus.FLOW_CONTROL_ERROR)
    assert server.streams() == ()


def test_pings_are_answered_and_ones_own_are_told_of() -> None:
    client, server = pair()
    number = client.ping()
    assert hear(server, said(client)) == []
    assert hear(client, said(server)) == [spdy.Pong(number)]


def test_data_of_a_stream_that_is_over_is_dropped_quietly() -> None:
    client, server = pair()
    stream = client.open({"streamtype": "data"})
    hear(server, said(client))
    server.reset(stream)
    client.send(stream, b"under way")
    assert hear(server, said(client)) == []
    assert hear(client, said(server)) == [spdy.Reset(stream, spdy.ResetStatus.CANCEL)]
