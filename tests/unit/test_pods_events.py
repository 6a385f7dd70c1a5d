"""Events: what is told of which change, in which order, and to whom no more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from cri.v1 import api_pb2, api_pb2_grpc
from pods.errors import ResourceExhausted, Unavailable
from pods.model import (
    Container,
    ContainerConfig,
    ContainerMetadata,
    ContainerState,
    ImageSpec,
    Resources,
    Sandbox,
    SandboxConfig,
    SandboxMetadata,
    SandboxState,
)
from pods.state.events import QUEUE, Event, EventKind, Events, Listener
from pods.state.memory import State
from pods.state.store import ContainerRecord, SandboxRecord
from pods.state.transitions import Exited, Started, StartFailed
from tests.unit.cri_fakes import FakeNode, serving

SANDBOX = Sandbox(
    id="s",
    config=SandboxConfig(metadata=SandboxMetadata(name="p", uid="u", namespace="n"), annotations={"a": "b" * 4000}),
    runtime_handler="",
    state=SandboxState.READY,
    created_at=1,
)
CONTAINER = Container(
    id="c",
    sandbox_id="s",
    config=ContainerConfig(metadata=ContainerMetadata(name="main"), image=ImageSpec(image="i")),
    image_id="i",
    image_ref="i",
    state=ContainerState.CREATED,
    created_at=1,
)
GONE = msgspec.structs.replace(SANDBOX, state=SandboxState.NOT_READY)


async def _next(listener: Listener) -> Event:
    return await asyncio.wait_for(anext(listener), 60)


async def _life(state: State) -> None:
    await state.save_sandbox(SandboxRecord(sandbox=SANDBOX, finished=True))
    await state.save_container(ContainerRecord(container=CONTAINER, finished=True))
    await state.record("c", Started(pid=7, at=1))
    limited = msgspec.structs.replace(state.find_container("c").container, updated=Resources(cpu_shares=2))
    await state.save_container(ContainerRecord(container=limited, finished=True))  # nothing that is told
    await state.record("c", Exited(3, at=2))
    await state.save_sandbox(SandboxRecord(sandbox=GONE, finished=True))
    await state.save_sandbox(SandboxRecord(sandbox=GONE, finished=True, stopped=True))
    await state.forget_container("c")
    await state.forget_sandbox("s")


async def test_a_life_is_told_in_its_order_with_how_things_were(state: State) -> None:
    listener = state.events.listen()
    await _life(state)
    told = [await _next(listener) for _ in range(8)]
    assert [(event.object_id, event.kind.name) for event in told] == [
        ("s", "CREATED"), ("s", "STARTED"), ("c", "CREATED"), ("c", "STARTED"), ("c", "STOPPED"), ("s", "STOPPED"),
        ("c", "DELETED"), ("s", "DELETED"),
    ]  # fmt: skip
    assert [event.at for event in told] == sorted({event.at for event in told})
    assert [event.sandbox.state for event in told] == [SandboxState.READY] * 5 + [SandboxState.NOT_READY] * 3
    inside = [[(one.state.value, one.exit_code) for one in event.containers] for event in told]
    assert inside == [[], [], [("created", 0)], [("running", 0)], [("exited", 3)], [("exited", 3)], [], []]


async def test_a_container_whose_start_failed_has_stopped(state: State) -> None:
    await state.save_sandbox(SandboxRecord(sandbox=SANDBOX, finished=True))
    await state.save_container(ContainerRecord(container=CONTAINER, finished=True))
    listener = state.events.listen()
    await state.record("c", StartFailed("no such program", at=1))
    event = await _next(listener)
    assert (event.kind, event.containers[0].reason) == (EventKind.STOPPED, "StartError")


async def test_every_listener_hears_what_happens_from_its_beginning_on(state: State) -> None:
    first = state.events.listen()
    await state.save_sandbox(SandboxRecord(sandbox=SANDBOX, finished=True))
    second = state.events.listen()
    await state.forget_sandbox("s")
    assert [(await _next(first)).kind.name for _ in range(3)] == ["CREATED", "STARTED", "DELETED"]
    assert (await _next(second)).kind is EventKind.DELETED


async def test_a_listener_that_does_not_listen_learns_that_it_lost_events() -> None:
    events = Events()
    slow, other = events.listen(), events.listen()
    for _ in range(QUEUE):
        events.tell("c", (EventKind.CREATED,), SANDBOX, ())
        await _next(other)
    assert len(events) == 2
    events.tell("c", (EventKind.STOPPED,), SANDBOX, ())
    assert (await _next(other)).kind is EventKind.STOPPED
    with pytest.raises(ResourceExhausted, match="4096 were unread"):
        await _next(slow)
    assert len(events) == 1


async def test_nobody_is_left_waiting_when_the_node_closes() -> None:
    events = Events()
    listener = events.listen()
    waiting = asyncio.create_task(_next(listener))
    await asyncio.sleep(0)
    events.close()
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await _next(events.listen())


async def _read_all(stream: Any) -> None:
    async for _ in stream:
        pass


@pytest.mark.cri("GetContainerEvents", "slow clients")
async def test_a_client_that_does_not_read_is_told_so_and_the_others_miss_nothing(tmp_path: Path) -> None:
    node = FakeNode()
    async with serving(node, tmp_path) as channel:
        stub = api_pb2_grpc.RuntimeServiceStub(channel)
        quick, slow = (stub.GetContainerEvents(api_pb2.GetEventsRequest()) for _ in range(2))
        for stream in (quick, slow):
            await asyncio.wait_for(stream.initial_metadata(), 60)
        told = 0
        while len(node.events) == 2:  # what lies on the wire is read, whether the client looks at it or not
            assert told < 8 * QUEUE
            for _ in range(64):
                node.events.tell("c", (EventKind.CREATED,), SANDBOX, ())
            for _ in range(64):
                assert (await asyncio.wait_for(quick.read(), 60)).container_id == "c"
            told += 64
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await asyncio.wait_for(_read_all(slow), 60)
        assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        quick.cancel()
