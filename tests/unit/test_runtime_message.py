"""The wire between crispd and shims, without and with a socket."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.wire.frames import MAX_FRAME, Decoder, Outbox, ProtocolError, encode, receive

_MESSAGES = st.lists(st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=20)), max_size=4))


@given(_MESSAGES, st.lists(st.integers(1, 50), min_size=1))
def test_messages_survive_any_fragmentation(messages: list[dict[str, object]], sizes: list[int]) -> None:
    messages = [{k: v for k, v in message.items() if k != "fds"} for message in messages]
    stream = b"".join(map(encode, messages))
    decoder = Decoder()
    received = []
    turn = 0
    while stream:
        size = sizes[turn % len(sizes)]
        decoder.feed(stream[:size], ())
        received += [message for message, _fds in decoder.messages()]
        stream, turn = stream[size:], turn + 1
    assert received == messages


@pytest.mark.parametrize(
    "frame",
    [
        (MAX_FRAME + 1).to_bytes(4, "big"),
        b"\0\0\0\2[]",
        b"\0\0\0\3{x}",
        encode({"fds": 1}),
        encode({"fds": "many"}),
    ],
)
def test_a_broken_frame_is_refused(frame: bytes) -> None:
    decoder = Decoder()
    decoder.feed(frame, ())
    with pytest.raises(ProtocolError):
        list(decoder.messages())


def test_descriptors_arrive_with_their_message_through_a_full_socket() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    read, write = os.pipe()
    outbox, decoder = Outbox(ours), Decoder()
    outbox.put({"n": 1, "filler": "x" * 1_000_000})
    outbox.put({"n": 2}, [write])
    os.close(write)
    got: list[tuple[int, int]] = []
    while len(got) < 2:
        outbox.flush()
        receive(theirs, decoder)
        got += [(message["n"], len(fds)) for message, fds in decoder.messages() for fd in [*fds, -1] if _use(fd)]
    assert got == [(1, 0), (2, 1)]
    assert os.read(read, 10) == b"alive"
    os.close(read)
    ours.close()
    theirs.close()


def _use(fd: int) -> bool:
    """Write to and close a received descriptor; true for the marker that ends a message's descriptors."""
    if fd < 0:
        return True
    os.write(fd, b"alive")
    os.close(fd)
    return False
