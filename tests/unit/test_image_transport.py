"""What is said of a connection that fails, and of one that is slow."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from image.errors import RegistryUnavailable
from image.registry.answers import Pace
from image.registry.transport import reason


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    writer.close()


async def test_tls_to_a_server_of_plain_http_is_no_matter_of_the_system() -> None:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, aiohttp.ClientSession() as session:
        try:
            await session.get(f"https://127.0.0.1:{port}/v2/")
        except aiohttp.ClientConnectorError as error:
            said = reason(error)
    assert said.startswith(f"connect to 127.0.0.1:{port}: TLS: ")
    assert said.endswith(": does it speak plain http?")


def test_so_many_bytes_a_second_have_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """While we wait for the registry: the disk may take its time."""
    now = 0.0
    monkeypatch.setattr("image.registry.answers.time.monotonic", lambda: now)

    def comes(least: int, *pieces: int, limit: float = 100.0) -> None:
        nonlocal now
        pace = Pace(limit, least, "blob x")
        for size in pieces:
            pace.wait()
            now += 50
            pace.received(size)
            now += 1000

    comes(2000, 150_000, 60_000, 10_000, 190_000)
    with pytest.raises(RegistryUnavailable, match="no progress within 100 s: 190000 of at least 200000 bytes came"):
        comes(2000, 150_000, 40_000)
    comes(0, 65_000, 1000)
    with pytest.raises(RegistryUnavailable, match="65000 of at least 65536"):
        comes(0, 64_000, 1000)
    comes(2000, 0, 0, 0, limit=0)
