"""The process that serves streams, as crispd starts it and lets it go: with a network, but without containers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from cri.streaming import server
from cri.streaming.address import StreamAddress
from cri.streaming.server import StreamingServer
from tests.stream_clients import STDERR, STDIN, STDOUT, Command
from tests.unit.streaming_fakes import EXEC
from tests.waiting import eventually


def _ask(url: str) -> str:
    """What a client of the URL is told."""
    command = Command.over("websocket", url, "v4.channel.k8s.io", STDIN, STDOUT, STDERR)
    return str(json.loads(command.finish())["message"])


async def test_a_process_is_started_when_it_is_needed_and_let_go_when_it_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_IDLE_SECONDS", 0.2)
    placed: list[int] = []

    async def place(pid: int) -> None:
        placed.append(pid)

    streaming = StreamingServer(StreamAddress("127.0.0.1:0"), tmp_path, place)
    await streaming.start()
    try:
        assert streaming.processes() == 0
        for turn in (1, 2):
            url = streaming.url(EXEC)
            await asyncio.sleep(0.5)  # whoever has a URL need not hurry
            assert await asyncio.to_thread(_ask, url) == "container c is gone"
            await eventually(lambda: streaming.processes() == 0)
            assert len(placed) == turn
            await eventually(lambda turn=turn: not Path(f"/proc/{placed[turn - 1]}").exists())
            assert streaming.traffic().opened == {("exec", "websocket"): turn}
    finally:
        await streaming.close()


async def test_crispd_waits_for_the_end_of_a_process_without_sessions(tmp_path: Path) -> None:
    placed: list[int] = []

    async def place(pid: int) -> None:
        placed.append(pid)

    streaming = StreamingServer(StreamAddress("127.0.0.1:0"), tmp_path, place)
    await streaming.start()
    await asyncio.to_thread(_ask, streaming.url(EXEC))
    await streaming.close()
    assert not Path(f"/proc/{placed[0]}").exists()
