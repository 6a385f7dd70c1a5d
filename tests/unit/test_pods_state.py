"""The state in memory and on disk: what a full disk and a waiter that gives up may and may not do."""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from pods.errors import FailedPrecondition, InvalidArgument, PodError, Unavailable
from pods.life import overtaken
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
from pods.state.store import ContainerRecord, SandboxRecord, Store
from pods.state.transitions import Exited, StartFailed
from runtime.client import ShimGone
from runtime.errors import RuntimeCoreError

_SANDBOX = Sandbox("s", SandboxConfig(SandboxMetadata("pod", "u", "n")), "crisp", SandboxState.READY, created_at=1)


def _record(container_id: str = "c", name: str = "main") -> ContainerRecord:
    config = ContainerConfig(metadata=ContainerMetadata(name=name), image=ImageSpec(image="i"))
    container = Container(
        id=container_id, sandbox_id="s", config=config, image_id="i", image_ref="i", state=ContainerState.RUNNING,
        created_at=1,
    )  # fmt: skip
    return ContainerRecord(container=container, finished=True)


async def test_an_exit_is_known_though_the_disk_is_full(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for it must not wait for ever."""
    await state.save_container(_record())

    async def full(_record: object) -> None:
        raise PodError("write state database: database or disk is full")

    monkeypatch.setattr(state.store, "put", full)
    with pytest.raises(PodError):
        await state.record("c", Exited(3, at=2))
    assert state.find_container("c").container.exit_code == 3
    await asyncio.wait_for(state.exited("c").wait(), 60)


async def test_who_waits_for_the_exit_of_a_forgotten_container_goes_on(state: State) -> None:
    await state.save_container(_record())
    waiting = asyncio.create_task(state.exited("c").wait())
    await asyncio.sleep(0)
    await state.forget_container("c")
    await asyncio.wait_for(waiting, 60)


async def test_a_waiter_that_gives_up_does_not_end_the_writer(state: State) -> None:
    writes = [asyncio.create_task(state.save_container(_record(f"c{n}", "x" * 200_000))) for n in range(20)]
    await asyncio.sleep(0)
    for write in writes[::2]:
        write.cancel()
    await asyncio.gather(*writes, return_exceptions=True)
    await asyncio.wait_for(state.save_container(_record("after")), 60)


async def test_locks_serialise_and_are_not_kept(state: State) -> None:
    order = []

    async def change(name: str) -> None:
        async with state.lock("object"):
            order.append(name)
            await asyncio.sleep(0.01)
            order.append(name)

    await asyncio.gather(change("a"), change("b"), change("c"))
    assert order == ["a", "a", "b", "b", "c", "c"]
    gc.collect()
    assert not state._locks


async def test_of_two_that_forget_a_container_one_is_told_that_it_was_there(state: State) -> None:
    """That one releases the container's images: a removal and the undoing of a creation may meet."""
    await state.save_container(_record())
    told = await asyncio.gather(state.forget_container("c"), state.forget_container("c"))
    assert sorted(told) == [False, True]
    assert not await state.forget_container("never")


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _emptied(path: Path) -> None:
    (path.parent / "network").mkdir()
    (path.parent / "network" / "s1@eth0.json").touch()
    os.truncate(path, 0)


def _garbled(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)


def _no_database(path: Path) -> None:
    path.write_bytes(b"not a database, " * 1000)


def _no_record(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE containers SET record = '{'")


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA user_version = 7")


@pytest.mark.parametrize("damage", [_cut, _emptied, _garbled, _no_database, _no_record, _newer])
async def test_a_damaged_database_is_refused_and_left_as_it_is(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "crisp.db"
    store = Store(path)
    await store.open()
    for number in range(200):
        await store.put(_record(f"c{number}"))
    store.close()
    damage(path)
    before = path.read_bytes()
    with pytest.raises(PodError, match="put a copy back" if damage is not _newer else "start the crisp that wrote it"):
        await Store(path).open()
    assert path.read_bytes() == before

@pytest.mark.parametrize(
    ("change", "error", "kind", "words"),
    [
        ("none", PodError("the shim"), PodError, "^the shim$"),
        ("stopping", PodError("the shim"), FailedPrecondition, "^pod sandbox s is being stopped: the shim$"),
        ("stopping", Unavailable("the shim"), FailedPrecondition, "^pod sandbox s is being stopped: the shim$"),
        ("stopping", ShimGone("gone"), FailedPrecondition, "^pod sandbox s is being stopped: gone$"),
        ("stopping", InvalidArgument("its name"), InvalidArgument, "^its name$"),
        ("lost", PodError("the shim"), FailedPrecondition, "^pod sandbox s has lost its shim or infra process: "),
        ("stopped", PodError("the shim"), FailedPrecondition, "^pod sandbox s was stopped: "),
        ("removed", OSError("no directory"), FailedPrecondition, "^pod sandbox s was removed: "),
        ("ending", RuntimeCoreError("no cgroup"), FailedPrecondition, "^container c is being stopped: "),
        ("ended", RuntimeCoreError("no cgroup"), FailedPrecondition, "^container c has ended: "),
        ("forgotten", RuntimeCoreError("no cgroup"), FailedPrecondition, "^container c was removed: "),
    ],
)
async def test_a_call_that_an_end_overtook_says_so(
    change: str, error: Exception, kind: type[Exception], words: str, state: State
) -> None:
    await state.save_sandbox(SandboxRecord(sandbox=_SANDBOX, finished=True))
    await state.save_container(_record())
    with pytest.raises(kind, match=words) as raised:
        await _overtaken(state, change, error)
    assert type(raised.value) is kind


async def test_a_start_that_fails_is_not_overtaken_by_its_own_failure(state: State) -> None:
    await state.save_sandbox(SandboxRecord(sandbox=_SANDBOX, finished=True))
    created = msgspec.structs.replace(_record().container, state=ContainerState.CREATED)
    await state.save_container(ContainerRecord(container=created, finished=True))
    with pytest.raises(PodError, match=r"^no program$"):
        await _overtaken(state, "failed", PodError("no program"))


async def _overtaken(state: State, change: str, error: Exception) -> None:
    """A call about container c of sandbox s, under which the change comes, and then the error."""
    with overtaken.in_container(state, "c"):
        if change in ("stopping", "lost", "stopped"):
            not_ready = msgspec.structs.replace(_SANDBOX, state=SandboxState.NOT_READY)
            await state.save_sandbox(SandboxRecord(sandbox=not_ready, finished=True, stopped=change == "stopped"))
        if change == "stopping":
            state.stopping.add("s")
        elif change == "removed":
            await state.forget_sandbox("s")
        elif change == "ending":
            state.ending.add("c")
        elif change == "ended":
            await state.record("c", Exited(0, at=2))
        elif change == "failed":
            await state.record("c", StartFailed("no program", at=2))
        elif change == "forgotten":
            await state.forget_container("c")
        raise error
