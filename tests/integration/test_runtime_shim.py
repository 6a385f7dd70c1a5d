"""A shim by itself: no call and no death around it ends it before its time, and none keeps it from ending."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from runtime.cgroups import SHIM_CGROUP, Cgroup, Hierarchies
from runtime.client import ShimClient, ShimGone, Zygote
from runtime.errors import RuntimeCoreError
from runtime.wire import calls
from tests.births import Births
from tests.processes import children_of, name_of
from tests.waiting import eventually

_BUSYBOX = "/bin/busybox"


@pytest.fixture
async def zygote() -> AsyncIterator[Zygote]:
    running = Zygote()
    await running.start()
    yield running
    running.close()
    cgroup = Cgroup.at(Hierarchies.detect(), SHIM_CGROUP)

    def removed() -> bool:
        """Try as crispd does when it stops; shims that nobody is connected to are about to leave."""
        cgroup.remove_if_unused()
        return not cgroup.exists()

    await eventually(removed)


@pytest.fixture
async def shim(zygote: Zygote, tmp_path: Path) -> AsyncIterator[ShimClient]:
    client = await _spawn(zygote)
    await client.call(_pod(tmp_path))
    yield client
    if client.alive:
        await asyncio.wait_for(client.call(calls.Shutdown()), 60)
        client.close()


async def _spawn(zygote: Zygote) -> ShimClient:
    return await zygote.spawn(lambda _event: None, lambda: None)


def _pod(directory: Path) -> calls.MakePod:
    (directory / "exits").mkdir(exist_ok=True)
    return calls.MakePod(
        sandbox="s" * 64, directory=str(directory), hostname="shim", sysctls={}, new=("ipc", "pid"), netns="",
        shm_size=0,
    )


async def _created(
    shim: ShimClient, directory: Path, name: str = "c", *, env: Sequence[str] = (), restored: bool = False,
    **namespaces: str,
) -> str:
    """A container of busybox that sleeps; `namespaces` are joined by path."""
    place = directory / name
    lower = place / "lower"
    (lower / "bin").mkdir(parents=True)
    shutil.copy(_BUSYBOX, lower / "bin/busybox")
    for directory_name in ("upper", "work"):
        (place / directory_name).mkdir()
    joined = [{"type": kind, "path": path} for kind, path in namespaces.items()]
    document = {
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": ["/bin/busybox", "sleep", "600"], "cwd": "/", "env": list(env),
        },
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "mount"}, *joined], "cgroupsPath": _cgroup(name)},
    }
    (place / "config.json").write_text(json.dumps(document))
    await shim.call(
        calls.Create(
            container=name, bundle=str(place), lower=(str(lower),), upper=str(place / "upper"),
            work=str(place / "work"), user=calls.UserRequest(""), restored=restored,
        )
    )  # fmt: skip
    return name


def _start(shim: ShimClient, container: str) -> asyncio.Future[calls.Started]:
    return shim.begin(calls.Start(container, log=""))


async def test_an_infra_process_does_not_outlive_its_shim(zygote: Zygote, tmp_path: Path) -> None:
    """Not even one that was just born, and has not asked for it yet."""
    shim = await _spawn(zygote)
    await eventually(lambda: _only_shim(zygote))
    await _dies_with(_only_shim(zygote), lambda: shim.call(_pod(tmp_path)))


@pytest.mark.parametrize("kind", ["listed init", "forked init", "forked exec", "restored"])
async def test_what_is_to_be_a_program_does_not_outlive_its_shim(zygote: Zygote, tmp_path: Path, kind: str) -> None:
    shim = await _spawn(zygote)
    await shim.call(_pod(tmp_path))
    # Those without HOME are forked; others are made by a list of system calls.
    env, namespaces = ["HOME=/"] if kind == "listed init" else [], {}
    if "init" in kind:  # one that waits for ever, before it notices that nobody hears it any more
        os.mkfifo(tmp_path / "fifo")
        namespaces["network"] = str(tmp_path / "fifo")
    container = await _created(shim, tmp_path, env=env, restored=kind == "restored", **namespaces)
    start = calls.Start(container, log="")
    call: calls.Start | calls.Exec = start
    if kind == "restored":  # by a criu that never ends
        program = tmp_path / "criu"
        program.write_text("#!/bin/sh\nexec sleep 600\n")
        program.chmod(0o755)
        (tmp_path / "images").mkdir()
        (tmp_path / "images/descriptors.json").write_text("[]")
        places = {"restore": str(tmp_path / "images"), "work": str(tmp_path / "images"), "criu": str(program)}
        call = dataclasses.replace(start, **places)
    if kind == "forked exec":
        await shim.call(start)
        call = calls.Exec(container, exec="1", args=("/bin/busybox", "sleep", "600"))
    cgroup = Cgroup.at(Hierarchies.detect(), _cgroup(container))
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        await _dies_with(shim.pid, lambda: shim.call(call, [null] * 3 if kind == "forked exec" else ()))
    finally:
        os.close(null)
        cgroup.kill()
        await eventually(lambda: not cgroup.is_populated())
        cgroup.remove()
        cgroup.remove_made_parents()


async def _dies_with(shim: int, call: Callable[[], Awaitable[object]]) -> None:
    """The process that the shim bears for the call is gone, though the shim was killed at its birth."""
    with Births.below(shim, kill_at=1) as births:
        with pytest.raises(ShimGone):
            await asyncio.wait_for(call(), 60)
        (born,) = [one["pid"] for one in births.seen() if one["event"] == "birth"]
    await eventually(lambda: not Path(f"/proc/{born}").exists())


def _cgroup(container: str) -> str:
    return f"/crisp-shim-test-{os.getpid()}/{container}"


class _Nonsense(calls.Call):
    call = "nonsense"
    answer = calls.Done
    __slots__ = ()


async def test_senseless_calls_are_refused(zygote: Zygote, tmp_path: Path) -> None:
    shim = await _spawn(zygote)
    with pytest.raises(RuntimeCoreError, match="no pod yet"):
        await shim.call(calls.GetState())
    await shim.call(_pod(tmp_path))
    with pytest.raises(RuntimeCoreError, match="a pod already"):
        await shim.call(_pod(tmp_path))
    await _start(shim, await _created(shim, tmp_path))
    for call in (
        calls.Exec("c", exec="1", args=("/bin/busybox", "true")),  # without its descriptors
        calls.Signal("c", signal="TERM"),  # type: ignore[arg-type]
        calls.Start("c", log=""),  # runs already
        _Nonsense(),
    ):
        with pytest.raises(RuntimeCoreError) as raised:
            await shim.call(call)
        assert not isinstance(raised.value, ShimGone)
    assert (await shim.call(calls.GetState())).containers["c"].state == "running"
    await asyncio.wait_for(shim.call(calls.Shutdown()), 60)


async def test_only_namespaces_of_the_pods_processes_are_joined(shim: ShimClient, tmp_path: Path) -> None:
    """A number in a path of the configuration may have come to mean a process of the host."""
    container = await _created(shim, tmp_path, ipc=f"/proc/{os.getpid()}/ns/ipc")
    with pytest.raises(RuntimeCoreError, match="No such process"):
        await _start(shim, container)


async def test_a_start_that_hangs_keeps_nobody_waiting(zygote: Zygote, tmp_path: Path) -> None:
    shim = await _spawn(zygote)
    await shim.call(_pod(tmp_path))
    os.mkfifo(tmp_path / "fifo")
    container = await _created(shim, tmp_path, network=str(tmp_path / "fifo"))
    starting, settled = _start(shim, container), shim.begin(calls.WaitStart(container))
    ended = [shim.begin(calls.Shutdown()), shim.begin(calls.Shutdown())]
    with pytest.raises(RuntimeCoreError, match="died before its program ran"):
        await asyncio.wait_for(starting, 60)
    exit_status = (await settled).exit
    assert exit_status is not None
    assert exit_status.start_failed
    assert await asyncio.wait_for(asyncio.gather(*ended), 60) == [calls.Done()] * 2


async def test_a_shim_that_nobody_can_find_again_leaves(zygote: Zygote) -> None:
    shim = await _spawn(zygote)
    with pytest.raises(RuntimeCoreError):
        await shim.call(calls.GetState())
    gone = os.pidfd_open(_only_shim(zygote))
    try:
        shim.close()
        await asyncio.wait_for(_readable(gone), 60)
    finally:
        os.close(gone)


async def test_a_shim_that_was_forked_ahead(zygote: Zygote, tmp_path: Path) -> None:
    """It is the next one, if it lives; and it ends with the daemon's end of its connection."""
    zygote.fork_ahead()
    zygote.fork_ahead()
    await eventually(lambda: _only_shim(zygote))
    ahead = _only_shim(zygote)
    await eventually(lambda: Path(f"/proc/{ahead}/cmdline").read_bytes().rstrip(b"\0") == b"crisp-shim")
    shim = await _spawn(zygote)
    places = [tmp_path / name for name in ("first", "second")]
    for place in places:
        place.mkdir()
    assert (await shim.call(_pod(places[0]))).pid == ahead
    await shim.call(calls.Shutdown())
    shim.close()
    zygote.fork_ahead()
    await eventually(lambda: _only_shim(zygote) not in (0, ahead))
    ahead = _only_shim(zygote)
    os.kill(ahead, signal.SIGKILL)
    await eventually(lambda: _only_shim(zygote) != ahead)
    shim = await _spawn(zygote)
    assert (await shim.call(_pod(places[1]))).pid != ahead
    await shim.call(calls.Shutdown())
    shim.close()
    zygote.fork_ahead()
    await eventually(lambda: _only_shim(zygote))
    gone = os.pidfd_open(_only_shim(zygote))
    try:
        zygote.close()
        await asyncio.wait_for(_readable(gone), 60)
    finally:
        os.close(gone)


def _only_shim(zygote: Zygote) -> int:
    """The only one that lives, 0 if there is none."""
    shims = [pid for pid in children_of(zygote.pid) if name_of(pid) == "crisp-shim"]
    return shims[0] if len(shims) == 1 else 0


async def test_a_zygote_is_replaced_before_its_corpse_can_be_waited_for(zygote: Zygote) -> None:
    """Its socket is closed first: a call in that moment must not take the dying for the living."""
    for _ in range(5):
        os.kill(zygote.pid, signal.SIGKILL)
        shims = await asyncio.gather(*(_spawn(zygote) for _ in range(3)))
        for shim in shims:
            shim.close()


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    await ready.wait()
    loop.remove_reader(fd)
