"""One end of a socket of frames (`runtime.wire.frames`), on an asyncio loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from runtime.wire.frames import Decoder, Message, Outbox, ProtocolError, receive


class Link:
    """Sends and receives messages with descriptors."""

    def __init__(
        self,
        sock: socket.socket,
        take: Callable[[Message, list[int]], None],
        ended: Callable[[], None],
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        """`take` is called with each message and its descriptors, which it owns; it may raise ProtocolError.

        `ended` is called at the other end's end, after all that was said before it; `broken` when nothing can be sent.
        """
        sock.setblocking(False)
        self._sock = sock
        self._take = take
        self._ended = ended
        self._broken = broken
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._outbox = Outbox(sock)
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def open(self) -> bool:
        return self._sock.fileno() >= 0

    @property
    def clogged(self) -> bool:
        """Whether the other end does not take what it is sent."""
        return bool(self._outbox)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message. The descriptors may be closed on return."""
        self._outbox.put(message, fds)
        self._flush()

    def finish(self) -> None:
        """Say that no message will follow."""
        self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        if not self.open:
            return
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._outbox.close()
        self._decoder.close()
        self._sock.close()

    def _flush(self) -> None:
        try:
            self._outbox.flush()
        except OSError:
            self._broken()
            return
        if self._outbox:
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._sock.fileno())
        self._flush()

    def _readable(self) -> None:
        try:
            alive = receive(self._sock, self._decoder)
            for message, fds in self._decoder.messages():
                self._take(message, fds)
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            alive = False
        if not alive and self.open:
            self._loop.remove_reader(self._sock.fileno())
            self._ended()
