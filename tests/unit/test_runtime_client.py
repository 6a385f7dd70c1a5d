"""The daemon's end of a shim's connection, with the test as the shim."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from typing import Any

import pytest

from runtime import client as client_module
from runtime.client import ShimClient, ShimSilent, ShimTooOld, close_all
from runtime.errors import RuntimeCoreError
from runtime.wire.calls import (
    ABILITIES,
    Answer,
    Attach,
    Detach,
    Done,
    Exec,
    ExecEnded,
    GetState,
    Kill,
    ShimState,
    Start,
    Sync,
)
from runtime.wire.frames import Decoder, encode, receive
from tests.waiting import eventually


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


class _Shim:
    """The other end, which reads and answers when the test says."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._decoder = sock, Decoder()

    async def calls(self) -> list[tuple[int, str]]:
        """The calls that have come since the last time, at least one."""
        self._decoder.feed(await asyncio.get_running_loop().sock_recv(self._sock, 1 << 16), ())
        return [(call["id"], call["call"]) for call, _fds in self._decoder.messages()]

    async def say(self, number: int, answer: Answer) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, encode({"id": number, "ok": answer.to_json()}))


async def test_a_shim_that_takes_no_calls_is_set_apart_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(client_module, "ANSWER_SECONDS", 0.05)
    heard: list[ShimState | None] = []
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    client, shim = ShimClient(ours, lambda _event: None, lambda: None, heard.append), _Shim(theirs)
    with theirs:
        running = client.begin(Exec("c", "e", ("true",)))
        synced = client.begin(Sync())
        (_, _), (number, _) = await shim.calls()
        await shim.say(number, Done())
        await synced  # so the command was taken, too
        asked = client.begin(Kill("c"))
        await eventually(lambda: heard)
        assert heard == [None]
        assert client.silent_since
        with pytest.raises(ShimSilent, match="does not answer"):
            await asked
        with pytest.raises(ShimSilent):
            client.begin(Sync())
        assert not running.done()
        client.tell(Detach("c", "a"))  # is taken later
        calls = await shim.calls()
        assert [name for _, name in calls] == ["kill", "state", "state", "detach"]
        state = ShimState(pid=7, infra_pid=8, infra_alive=True, containers={})
        await shim.say(calls[1][0], state)
        await shim.say(calls[0][0], Done())
        await asyncio.sleep(0)
        assert client.silent_since  # what it was sent after the first question may still be to do
        await shim.say(calls[2][0], state)
        await eventually(lambda: not client.silent_since)
        assert heard == [None, state]
        await shim.say(1, ExecEnded(3))
        assert (await running).code == 3
        client.close()


async def test_a_shim_that_takes_a_long_call_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "QUIET_SECONDS", 0.02)
    heard: list[ShimState | None] = []
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    client, shim = ShimClient(ours, lambda _event: None, lambda: None, heard.append), _Shim(theirs)
    with theirs:
        starting = client.begin(Start("c", log=""))
        assert [name for _, name in await shim.calls()] == ["start"]
        ((question, name),) = await shim.calls()  # nothing more was sent, so it is asked
        assert name == "state"
        await shim.say(question, ShimState(pid=7, infra_pid=8, infra_alive=True, containers={}))
        await eventually(lambda: client._timer is None)
        assert not starting.done()
        assert heard == []
        client.close()
