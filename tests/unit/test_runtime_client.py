"""The daemon's end of a shim's connection, with the test as the shim."""

from __future__ import annotations

import asyncio
import gc
import socket
from typing import Any

import pytest

from runtime.client import ShimClient, ShimTooOld
from runtime.errors import RuntimeCoreError
from runtime.wire.calls import Attach, Detach
from runtime.wire.frames import Decoder, encode


async def _answer(shim: socket.socket, error: RuntimeCoreError) -> None:
    """Answer one call with an error, as a shim does."""
    loop, decoder = asyncio.get_running_loop(), Decoder()
    decoder.feed(await loop.sock_recv(shim, 4096), ())
    ((call, _fds),) = decoder.messages()
    await loop.sock_sendall(shim, encode({"id": call["id"], "error": error.to_json()}))


async def test_a_failed_call_that_nobody_waits_for_is_no_news() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    ours, shim = socket.socketpair()
    shim.setblocking(False)
    client = ShimClient(ours, lambda _event: None, lambda: None)
    with shim:
        client.begin(Detach("c", "a"))
        await _answer(shim, RuntimeCoreError("the shim has no container 'c'"))
        await asyncio.sleep(0.05)
        assert not client._pending
        gc.collect()
        client.begin(Detach("c", "a"))
        client.close()
        gc.collect()
    assert told == []


async def test_the_shim_of_an_older_crisp_is_called_that() -> None:
    ours, shim = socket.socketpair()
    shim.setblocking(False)
    client = ShimClient(ours, lambda _event: None, lambda: None)
    with shim:
        calling = asyncio.ensure_future(client.call(Attach("c", "a", ())))
        await asyncio.sleep(0)
        await _answer(shim, RuntimeCoreError("the shim has no call 'attach'"))
        with pytest.raises(ShimTooOld, match="older crisp"):
            await calling
    client.close()
