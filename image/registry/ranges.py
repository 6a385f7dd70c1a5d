"""Fetches a large blob by several ranges at once, where the registry can. Its bytes come in order.

Registries and the caches before them often limit the speed of one connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

from image.errors import RegistryUnavailable
from image.manifest import Descriptor
from image.registry.repository import Repository

LARGE = 64 << 20  # bytes: a smaller blob comes by one connection
RANGE = 4 << 20  # bytes
AT_ONCE = 3  # ranges of one blob: they are kept in memory until those before them have come
BLOBS = 2  # of all pulls that come so at a time, for the same reason


async def blob(repository: Repository, descriptor: Descriptor, offset: int) -> AsyncGenerator[bytes, None]:
    """Yield the bytes of a blob from `offset` on, as `Repository.blob` does; its errors tell how far it came."""
    try:
        async with aclosing(_pieces(repository, descriptor, offset)) as pieces:
            async for piece in pieces:
                offset += len(piece)
                yield piece
    except RegistryUnavailable as error:
        if not offset:
            raise
        raise RegistryUnavailable(f"{error}; {offset} of {descriptor.size} bytes in all") from error


async def _pieces(repository: Repository, descriptor: Descriptor, offset: int) -> AsyncGenerator[bytes, None]:
    transport = repository.transport
    if descriptor.size - offset >= LARGE and transport.blobs_in_ranges < BLOBS:
        transport.blobs_in_ranges += 1
        try:
            async with aclosing(_in_ranges(repository, descriptor, offset)) as pieces:
                async for piece in pieces:
                    offset += len(piece)
                    yield piece
        finally:
            transport.blobs_in_ranges -= 1
    if offset < descriptor.size:
        async with aclosing(repository.blob(descriptor, offset)) as pieces:
            async for piece in pieces:
                yield piece


async def _in_ranges(repository: Repository, descriptor: Descriptor, offset: int) -> AsyncGenerator[bytes, None]:
    """Yield the bytes from `offset` on; end early if the registry does not send what was asked for."""
    first = await repository.part(descriptor, offset, offset + RANGE)
    if first is None:
        return
    yield first
    asked = offset + RANGE
    coming: deque[asyncio.Task[bytes | None]] = deque()
    try:
        while coming or asked < descriptor.size:
            while asked < descriptor.size and len(coming) < AT_ONCE:
                end = min(asked + RANGE, descriptor.size)
                coming.append(asyncio.create_task(repository.part(descriptor, asked, end, of=AT_ONCE)))
                asked = end
            part = await coming[0]
            coming.popleft()
            if part is None:
                return
            yield part
    finally:
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)
