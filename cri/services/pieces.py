"""Lists in pieces, for answers that would not fit one message (CRI's Stream* calls)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from google.protobuf.message import Message

PIECE_BYTES = 1 << 20  # kubelet takes 16 MiB; small pieces leave other calls their turn

M = TypeVar("M", bound=Message)


def pieces(messages: Iterable[M]) -> Iterator[list[M]]:
    """The messages in lists of about `PIECE_BYTES`, one at least in each. An empty list has no pieces.

    What is to be sent is taken before the first piece: the whole is as of one moment.
    """
    piece: list[M] = []
    room = PIECE_BYTES
    for message in list(messages):
        length = message.ByteSize()
        if piece and length > room:
            yield piece
            piece, room = [], PIECE_BYTES
        piece.append(message)
        room -= length
    if piece:
        yield piece
