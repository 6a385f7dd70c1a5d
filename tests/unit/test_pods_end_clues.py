"""What a container's last words lead to: an exit is recorded whatever they are."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from pods.cgroups.driver import CGROUPFS, Cgroups
from pods.clues import files
from pods.inflight import Background
from pods.life import end_clues
from pods.life.end_clues import EndClues
from pods.life.exit import Exits
from pods.model import (
    Container,
    ContainerConfig,
    ContainerMetadata,
    ContainerState,
    ImageSpec,
    Sandbox,
    SandboxConfig,
    SandboxMetadata,
    SandboxState,
)
from pods.state.memory import State
from pods.state.store import ContainerRecord, SandboxRecord
from runtime.wire.calls import ExitStatus


class _Images:
    def layers_of(self, _image_id: str) -> list[Path]:
        return []


async def _failing(
    state: State, logs: Path, words: str, document: dict[str, Any]
) -> tuple[Container, Sandbox, EndClues]:
    """A container with these last words and this config.json."""
    metadata = SandboxMetadata("pod", "u", "n")
    sandbox = Sandbox("s", SandboxConfig(metadata, log_directory=str(logs)), "crisp", SandboxState.READY, created_at=1)
    config = ContainerConfig(metadata=ContainerMetadata(name="main"), image=ImageSpec(image="i"))
    log = logs / "main.log"
    log.write_text(f"2026-11-30T12:00:00.000000000Z stderr F {words}\n")
    container = Container(
        id="c", sandbox_id="s", config=config, image_id="i", image_ref="i", state=ContainerState.RUNNING, created_at=1,
        log_path=str(log),
    )  # fmt: skip
    await state.save_sandbox(SandboxRecord(sandbox=sandbox, finished=True))
    await state.save_container(ContainerRecord(container=container, finished=True))
    bundle = state.settings.bundle_dir("c")
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_text(json.dumps(document))
    (state.settings.container_root("c") / "upper").mkdir(parents=True)
    images: Any = _Images()
    return container, sandbox, EndClues(state, images)


async def _ended(state: State, logs: Path, words: str, document: dict[str, Any]) -> Container:
    """Record the end of such a container."""
    _container, _sandbox, clues = await _failing(state, logs, words, document)
    exits = Exits(state, Cgroups(CGROUPFS), Background(), clues)
    await exits.record("c", ExitStatus(code=1, finished_at=5, oom=False))
    return state.find_container("c").container


async def test_an_exit_is_recorded_though_its_clues_cannot_be_looked_for(state: State, tmp_path: Path) -> None:
    ended = await _ended(state, tmp_path, "open '/srv/x': Permission denied", {"process": []})
    assert (ended.state, ended.exit_code) == (ContainerState.EXITED, 1)


async def test_last_words_with_a_null_byte_end_their_path(state: State, tmp_path: Path) -> None:
    ended = await _ended(state, tmp_path, "open /srv\0/x: Permission denied", {"process": {"user": {"uid": 7}}})
    assert ended.state is ContainerState.EXITED


async def test_file_systems_that_hang_hold_few_threads(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread that they hold is one less for the creation of containers."""
    held, goes_on = threading.Semaphore(0), threading.Event()

    def hang(*_args: object, **_more: object) -> str:
        held.release()
        goes_on.wait()
        return "an answer that nobody waits for"

    words = "open '/srv/x': Permission denied"
    container, sandbox, clues = await _failing(state, tmp_path, words, {})
    monkeypatch.setattr(files, "denied", hang)
    try:
        asked = (clues.of_words(container, sandbox, 1, words) for _ in range(end_clues._MOST + 4))
        assert set(await asyncio.gather(*asked)) == {""}
        assert sum(held.acquire(blocking=False) for _ in range(end_clues._MOST + 4)) == end_clues._MOST
    finally:
        goes_on.set()
