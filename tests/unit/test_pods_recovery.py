"""What an earlier daemon's starts come to."""

from __future__ import annotations

from typing import Any

import pytest

from pods.inflight import Background
from pods.life.recovery import Recovery
from pods.model import Container, ContainerConfig, ContainerMetadata, ContainerState, ImageSpec
from pods.state.memory import State
from pods.state.store import ContainerRecord
from pods.state.transitions import StartFailed
from runtime.wire import calls
from runtime.wire.states import RUNNING


@pytest.mark.parametrize("told_as_failed", [True, False])
async def test_a_start_that_was_told_as_failed_and_goes_on_is_ended(told_as_failed: bool, state: State) -> None:
    config = ContainerConfig(metadata=ContainerMetadata(name="main"), image=ImageSpec(image="i"))
    container = Container(
        id="c", sandbox_id="s", config=config, image_id="i", image_ref="i", state=ContainerState.CREATED, created_at=1
    )
    await state.save_container(ContainerRecord(container=container, finished=True))
    if told_as_failed:
        await state.record("c", StartFailed("the shim did not answer", at=2))
    asked: list[object] = []

    class Shim:
        async def call(self, call: object) -> calls.ContainerStatus:
            asked.append(call)
            return calls.ContainerStatus(state=RUNNING, pid=7, started_at=3)

    nobody: Any = None
    shim: Any = Shim()
    recovery = Recovery(state, *[nobody] * 6, Background(), nobody)
    await recovery._follow_start("c", shim)
    assert asked == [calls.WaitStart("c"), *([calls.Kill("c")] if told_as_failed else [])]
    assert state.find_container("c").container.started_at == 3
