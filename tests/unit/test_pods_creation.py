"""Creations that are undone: what they held is free again."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from pods.inflight import Background
from pods.life import chosen_image, container_plan
from pods.life.creation import Creation, Means
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
from pods.state.store import ContainerRecord
from pods.trace import Trace
from pods.undo import Undo

_SANDBOX = Sandbox("s", SandboxConfig(SandboxMetadata("pod", "u", "n")), "crisp", SandboxState.READY, created_at=1)
_CONFIG = ContainerConfig(metadata=ContainerMetadata(name="main"), image=ImageSpec(image="i"))


class _Images:
    """Those parts of the image store that holding images takes."""

    def __init__(self) -> None:
        self.held: Counter[str] = Counter()

    def hold(self, image_id: str) -> None:
        self.held[image_id] += 1

    def release(self, image_id: str) -> None:
        self.held[image_id] -= 1


@pytest.mark.parametrize("archive", ["", "/checkpoint.tar"])
async def test_a_container_that_is_undone_once_it_is_known_holds_no_images(
    archive: str, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its pod is stopped meanwhile."""
    images = _Images()
    container = Container(
        id="c", sandbox_id="s", config=_CONFIG, image_id="i", image_ref="i", state=ContainerState.CREATED, created_at=1
    )
    plan: Any = type("Plan", (), {"container": container})

    async def nothing(*_args: object, **_more: object) -> None:
        pass

    async def known(_self: Creation, _plan: object) -> None:
        assert images.held["i"] == 1
        await state.save_container(ContainerRecord(container=container, finished=True))
        raise LookupError("the step that fails")

    for name in ("choose", "unpacked", "require_trusted"):
        monkeypatch.setattr(chosen_image, name, nothing)
    monkeypatch.setattr(container_plan, "plan", lambda *_args: plan)
    monkeypatch.setattr(Creation, "_look_up", known)
    nobody: Any = None
    means = Means(state, nobody, images, nobody, nobody, nobody)  # type: ignore[arg-type]
    with pytest.raises(LookupError):
        async with Undo({}) as undo:
            await Creation(means, _SANDBOX, "c", _CONFIG, Trace("create", on=False), undo).prepare(archive)
    assert not state.containers
    assert images.held["i"] == 0


async def test_a_creation_that_fails_is_not_undone_while_its_cgroup_is_made(state: State) -> None:
    made = False

    class Parts:
        async def make(self, *_args: object) -> None:
            nonlocal made
            await asyncio.sleep(0.05)
            made = True

        async def of(self, _document: object) -> None:
            raise LookupError("a profile that cannot be compiled")

    parts = Parts()
    cgroups: Any = type("Cgroups", (), {"of": lambda _self, _sandbox: parts})()
    nobody: Any = None
    means = Means(state, nobody, nobody, nobody, cgroups, Background(), parts)  # type: ignore[arg-type]
    state.settings.bundle_dir("c").mkdir(parents=True)
    with pytest.raises(LookupError):
        await Creation(means, _SANDBOX, "c", _CONFIG, Trace("create", on=False), Undo({}))._write(
            {"linux": {"resources": {}}}, 1
        )
    assert made
