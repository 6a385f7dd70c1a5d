"""What tests do with a StreamSession."""

from __future__ import annotations

import asyncio
import os

from pods.streams.sessions import StreamSession

SECONDS = 60.0


async def write(session: StreamSession, data: bytes) -> None:
    """Write all of it to the session's input."""
    loop = asyncio.get_running_loop()
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(session.stdin, view) :]
        except BlockingIOError:
            ready = asyncio.Event()
            loop.add_writer(session.stdin, ready.set)
            await ready.wait()
            loop.remove_writer(session.stdin)


async def read_all(session: StreamSession, fd: int) -> bytes:
    """What comes up to the stream's end."""
    parts = []
    while data := await session.read(fd):
        parts.append(data)
    return b"".join(parts)


async def read_until(session: StreamSession, ending: bytes) -> bytes:
    """What comes on standard output up to the given bytes, and perhaps some more."""
    seen, searched = bytearray(), 0
    while seen.find(ending, max(0, len(seen) - searched - len(ending))) < 0:
        try:
            data = await asyncio.wait_for(session.read(session.stdout), SECONDS)
        except TimeoutError:
            data = b""
        assert data, f"nothing came after {bytes(seen[-1000:])!r}"
        seen += data
        searched = len(data)
    return bytes(seen)


async def finish(session: StreamSession) -> tuple[bytes, int | None]:
    """The rest of standard output, and the exit code."""
    output = await asyncio.wait_for(read_all(session, session.stdout), SECONDS)
    code = await asyncio.wait_for(session.wait(), SECONDS)
    await session.close()
    return output, code
