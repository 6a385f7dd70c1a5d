"""NRI's framing: whatever way bytes arrive, the same messages come out; and what is not allowed is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.nri.errors import WireError
from cri.nri.wire import (
    FRAME_LIMIT,
    MESSAGE_LIMIT,
    FrameReader,
    Kind,
    Message,
    MessageReader,
    encode_frames,
    encode_message,
)

_messages = st.builds(
    Message, stream=st.integers(0, 2**32 - 1), kind=st.sampled_from(Kind), payload=st.binary(max_size=80),
    flags=st.integers(0, 255),
)


@given(sent=st.lists(st.tuples(st.integers(1, 3), _messages), max_size=8), step=st.integers(1, 50))
def test_messages_of_channels_survive_any_cut(sent: list[tuple[int, Message]], step: int) -> None:
    data = b"".join(encode_frames(channel, encode_message(message)) for channel, message in sent)
    frames, readers = FrameReader(), {channel: MessageReader() for channel in (1, 2, 3)}
    got = []
    for start in range(0, len(data), step):
        for channel, payload in frames.feed(data[start : start + step]):
            got += [(channel, message) for message in readers[channel].feed(payload)]
    assert got == sent


def test_a_header_is_ten_bytes_in_network_order() -> None:
    assert encode_message(Message(3, Kind.REQUEST, b"ab", 1)) == bytes.fromhex("00000002000000030101") + b"ab"


@pytest.mark.parametrize("size", [4086, 4087, MESSAGE_LIMIT])
def test_long_messages_begin_in_a_frame_that_go_can_read(size: int) -> None:
    message = Message(1, Kind.REQUEST, bytes(size))
    frames = list(FrameReader().feed(encode_frames(1, encode_message(message))))
    lengths = [len(payload) for _, payload in frames]
    assert lengths == ([4096, size - 4086] if size > 4086 else [4096])
    reader = MessageReader()
    assert [found for _, payload in frames for found in reader.feed(payload)] == [message]


@pytest.mark.parametrize("frame", [struct.pack(">II", 0, 1), struct.pack(">II", 1, FRAME_LIMIT + 1)])
def test_bad_frames_are_refused_by_their_header(frame: bytes) -> None:
    with pytest.raises(WireError):
        list(FrameReader().feed(frame))


@pytest.mark.parametrize("header", [struct.pack(">IIBB", MESSAGE_LIMIT + 1, 1, 1, 0), struct.pack(">IIBB", 0, 1, 9, 0)])
def test_bad_messages_are_refused_by_their_header(header: bytes) -> None:
    with pytest.raises(WireError):
        list(MessageReader().feed(header))
