"""What a container's last words lead to: an exit is recorded whatever they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pods.inflight import Background
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


async def _ended(state: State, logs: Path, words: str, document: dict[str, Any]) -> Container:
    """Record the end of a container with these last words and this config.json."""
    metadata = SandboxMetadata("pod", "u", "n")
    sandbox = Sandbox(
        "s", SandboxConfig(metadata, log_directory=str(logs)), "crisp", SandboxState.READY, created_at=1
    )
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
    cgroups: Any = None
    exits = Exits(state, cgroups, Background(), EndClues(state, images))
    await exits.record("c", ExitStatus(code=1, finished_at=5, oom=False))
    return state.find_container("c").container


async def test_an_exit_is_recorded_though_its_clues_cannot_be_looked_for(state: State, tmp_path: Path) -> None:
    ended = await _ended(state, tmp_path, "open '/srv/x': Permission denied", {"process": []})
    assert (ended.state, ended.exit_code) == (ContainerState.EXITED, 1)


async def test_last_words_with_a_null_byte_end_their_path(state: State, tmp_path: Path) -> None:
    ended = await _ended(state, tmp_path, "open /srv\0/x: Permission denied", {"process": {"user": {"uid": 7}}})
    assert ended.state is ContainerState.EXITED
