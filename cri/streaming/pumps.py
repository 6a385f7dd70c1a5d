"""Copies between descriptors and streams of a link: a `Source` or `Sink` for each direction.

Neither reads ahead. A source reads only when the client can receive; what a sink cannot write at once makes the
connection stop reading (`Wire.hold`). So a slow end slows the other one down, and memory stays bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cri.streaming.page import PAGE_BYTES

if TYPE_CHECKING:
    from cri.streaming.link import Link

_TAIL: Final = 1 << 20  # bytes to read after a command's end: processes it left may write for ever
_PIPE: Final = 1 << 20


def widen(descriptor: int) -> None:
    """Enlarge a pipe beyond 64 KiB, as far as the system allows: data then takes fewer wake-ups."""
    with contextlib.suppress(OSError):  # not a pipe, or the user's limit for pipe memory is reached
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE)


class Source:
    """Sends what is read from a descriptor.

    `finished` is called once: with None at the end of the data, otherwise with the error. The descriptor stays open.
    """

    def __init__(self, link: Link, stream: int, descriptor: int, finished: Callable[[OSError | None], None]) -> None:
        self._link = link
        self._stream = stream
        self._descriptor = descriptor
        self._finished = finished
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self._over = False
        self._until_dry = False
        self._tail = _TAIL
        widen(descriptor)
        self.resume()

    def resume(self) -> None:
        """Continue after the link had no room."""
        if not self._over and not self._reading and self._link.room(self._stream):
            self._reading = True
            self._loop.add_reader(self._descriptor, self._ready)
            if self._until_dry:
                self._loop.call_soon(self._ready)

    def until_dry(self) -> None:
        """End when nothing more can be read at once.

        For a command that has ended: a child that it left behind may keep its output open for ever.
        """
        self._until_dry = True
        if self._reading:
            self._loop.call_soon(self._ready)

    def close(self) -> None:
        """Stop; `finished` is not called any more."""
        self._over = True
        self._pause()

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._descriptor)

    def _ready(self) -> None:
        while self._reading:
            room = self._link.room(self._stream)
            if not room:
                self._pause()
                return
            page = self._link.wire.page
            try:
                length = os.readv(self._descriptor, [page.space(min(room, PAGE_BYTES))])
            except (BlockingIOError, InterruptedError):
                if self._until_dry:
                    self._end(None)
                return
            except OSError as error:
                self._end(None if error.errno == errno.EIO else error)  # EIO: the last process left the terminal
                return
            if not length:
                self._end(None)
                return
            self._link.send_page(self._stream, page, length)
            if not self._until_dry:
                return
            self._tail -= length
            if self._tail <= 0:
                self._end(None)

    def _end(self, error: OSError | None) -> None:
        self.close()
        self._finished(error)


class Sink:
    """Writes what the client sends to a descriptor.

    `finish` is called once, after the client's last byte is written or when writing fails; it closes the descriptor or
    one direction of it. Data that comes before `open` is kept.
    """

    def __init__(self, link: Link, stream: int) -> None:
        self._link = link
        self._stream = stream
        self._descriptor = -1
        self._finish: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[memoryview] = deque()
        self._held = 0
        self._ending = False
        self._over = False

    def open(self, descriptor: int, finish: Callable[[], None]) -> None:
        """Set the descriptor; -1 drops all data."""
        self._descriptor, self._finish = descriptor, finish
        if descriptor >= 0:
            widen(descriptor)
            if self._waiting:
                self._loop.add_writer(descriptor, self._ready)
        else:
            self.close()
        self._end_if_done()

    def write(self, data: memoryview) -> None:
        """Write, or keep a copy and make the connection wait."""
        if self._over or self._ending:
            self._link.consumed(self._stream, len(data))
            return
        if self._descriptor >= 0 and not self._waiting:
            written = self._write(data)
            self._link.consumed(self._stream, len(data) if self._over else written)
            data = data[written:]
            if not data or self._over:
                return
            self._loop.add_writer(self._descriptor, self._ready)
        self._waiting.append(memoryview(bytes(data)))
        self._held += len(data)
        self._link.wire.hold(len(data))

    def end(self) -> None:
        """Handle the end of the client's data."""
        self._ending = True
        self._end_if_done()

    def close(self) -> None:
        """Stop, and drop unwritten data; `finish` is not called any more."""
        self._over = True
        if self._waiting and self._descriptor >= 0:
            self._loop.remove_writer(self._descriptor)
        self._waiting.clear()
        held, self._held = self._held, 0
        self._link.consumed(self._stream, held)
        self._link.wire.release(held)

    def _ready(self) -> None:
        while self._waiting:
            piece = self._waiting[0]
            written = self._write(piece)
            if self._over:
                return
            self._held -= written
            self._link.consumed(self._stream, written)
            if written < len(piece):
                self._waiting[0] = piece[written:]
                self._link.wire.release(written)
                return
            self._waiting.popleft()
            self._link.wire.release(written)
        self._loop.remove_writer(self._descriptor)
        self._end_if_done()

    def _write(self, data: memoryview) -> int:
        """Write; return the bytes written. If the reader is gone only the sink ends: output may follow."""
        try:
            return os.write(self._descriptor, data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self.close()
            self._finish_now()
            return 0

    def _end_if_done(self) -> None:
        if self._ending and not self._waiting and not self._over and self._finish:
            self._over = True
            self._finish_now()

    def _finish_now(self) -> None:
        finish, self._finish = self._finish, None
        if finish:
            finish()
