"""The daemon's end of a shim's connection, with the test as the shim."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from typing import Any

import pytest

from runtime.client import ShimClient, ShimTooOld, close_all
from runtime.errors import RuntimeCoreError
from runtime.wire.calls import ABILITIES, Attach, Detach, GetState, ShimState, Start
from runtime.wire.frames import Decoder, encode, receive


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


async def _start(shim: socket.socket, client: ShimClient) -> tuple[dict[str, Any], bytes]:
    """The call that a start under a filter is, and what comes by descriptor."""
    starting = asyncio.ensure_future(client.start(Start("c", log=""), b"program"))
    await asyncio.sleep(0)
    decoder = Decoder()
    receive(shim, decoder)
    ((call, fds),) = decoder.messages()
    sent = b"".join(os.pread(fd, 100, 0) for fd in fds)
    close_all(fds)
    await asyncio.get_running_loop().sock_sendall(shim, encode({"id": call["id"], "ok": {"pid": 1, "started_at": 5}}))
    await starting
    return call, sent


async def test_a_filter_goes_by_descriptor_to_whom_takes_it_so() -> None:
    """An older shim would pass over the member, and start the container without a filter."""
    ours, shim = socket.socketpair()
    shim.setblocking(False)
    client = ShimClient(ours, lambda _event: None, lambda: None)
    with shim:
        call, sent = await _start(shim, client)
        assert (call["filter"], call["filter_bytes"], sent) == ("cHJvZ3JhbQ==", 0, b"")
        asking = client.begin(GetState())
        receive(shim, Decoder())
        told = ShimState(1, 2, True, {}, ABILITIES)
        await asyncio.get_running_loop().sock_sendall(shim, encode({"id": 2, "ok": told.to_json()}))
        await asking
        call, sent = await _start(shim, client)
        assert (call["filter"], call["filter_bytes"], sent) == ("", 7, b"program")
    client.close()
