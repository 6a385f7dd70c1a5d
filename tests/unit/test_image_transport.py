"""What is said of a connection that fails."""

from __future__ import annotations

import asyncio

import aiohttp

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
