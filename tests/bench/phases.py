"""The phases of a round, and the figures each of them yields."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.bench.machine import busy_seconds, command_name, memory_bytes, processes, worked_seconds
from tests.bench.peers import Peer
from tests.bench.workload import Client, Pod, at_a_time

WIDTH = 8
_MEBI = 1 << 20
_IDLE_SECONDS = 0.5
_VERSIONS = 50
_EXECS = 40
_EXECS_AT_A_TIME = 160
_LOOKS = 10
_WORKLOAD = "sleep"


@dataclass(slots=True)
class Contender:
    """A runtime in the ring: its pods of the moment, and every figure so far."""

    peer: Peer
    client: Client
    pods: list[Pod] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    noise: list[float] = field(default_factory=list)  # processors that were busy while nothing was asked

    def note(self, times: dict[str, float], suffix: str = "") -> None:
        for name, value in times.items():
            self.samples[name + suffix].append(value)


Phase = Callable[[Contender, int], Awaitable[None]]


async def idle_processors() -> float:
    """How many processors are busy while nothing is asked of anybody."""
    busy, before = busy_seconds(), time.monotonic()
    await asyncio.sleep(_IDLE_SECONDS)
    return (busy_seconds() - busy) / (time.monotonic() - before)


async def rest(one: Contender, pods: int) -> None:
    """What the daemon takes while no pod runs."""
    one.note({"daemon memory": memory_bytes(one.peer.daemon_pids()) / _MEBI})


async def greet(one: Contender, pods: int) -> None:
    """The floor under every call."""
    for _ in range(_VERSIONS):
        one.note(await one.client.version())


async def up(one: Contender, pods: int) -> None:
    """Pods one after the other, and what they keep in memory: shims and infra processes, not the workload itself."""
    before = processes()
    async with _processor_time(one, "pod start", pods):
        for _ in range(pods):
            pod, times = await one.client.run_pod()
            one.pods.append(pod)
            one.note(times)
    await asyncio.sleep(0.2)  # helpers that end by themselves
    family = {pid for pid in processes() - before if command_name(pid) != _WORKLOAD}
    one.note({"memory of a pod": memory_bytes(family) / pods / _MEBI})


async def execute(one: Contender, pods: int) -> None:
    """Commands one after the other."""
    async with _processor_time(one, "exec", _EXECS):
        for _ in range(_EXECS):
            one.note(await one.client.execute(one.pods[0]))


async def execute_together(one: Contender, pods: int) -> None:
    """Commands in several pods at a time."""

    async def one_command(number: int) -> None:
        one.note(await one.client.execute(one.pods[number % len(one.pods)]), f", {WIDTH} at a time")

    async with _rate(one, "execs a second", _EXECS_AT_A_TIME):
        await at_a_time(WIDTH, range(_EXECS_AT_A_TIME), one_command)


async def down(one: Contender, pods: int) -> None:
    """The pods' ends, one after the other."""
    while one.pods:
        one.note(await one.client.remove_pod(one.pods[-1]))
        one.pods.pop()


async def up_together(one: Contender, pods: int) -> None:
    """Pods, several at a time."""

    async def one_pod(_: int) -> None:
        pod, _times = await one.client.run_pod()
        one.pods.append(pod)

    async with _rate(one, "pods a second up", pods):
        await at_a_time(WIDTH, range(pods), one_pod)


async def look(one: Contender, pods: int) -> None:
    """What all pods use: with `--pods 250`, what a full node asks of its runtime every ten seconds."""
    async with _processor_time(one, "stats of all pods", _LOOKS):
        for _ in range(_LOOKS):
            one.note(await one.client.stats())


async def down_together(one: Contender, pods: int) -> None:
    """The pods' ends, several at a time."""

    async def one_pod(pod: Pod) -> None:
        await one.client.remove_pod(pod)
        one.pods.remove(pod)

    async with _rate(one, "pods a second down", pods):
        await at_a_time(WIDTH, list(one.pods), one_pod)


PHASES: tuple[Phase, ...] = (rest, greet, up, execute, execute_together, down, up_together, look, down_together)


async def warm_up(one: Contender) -> None:
    """One pod that counts nothing: caches, bridges and iptables chains exist afterwards."""
    pod, _ = await one.client.run_pod()
    await one.client.execute(pod)
    await one.client.remove_pod(pod)


@asynccontextmanager
async def _processor_time(one: Contender, name: str, count: int) -> AsyncIterator[None]:
    """Note the milliseconds of processor time that each of `count` things took.

    For the whole machine, less what it does anyhow (measured just before and after); and by our processes alone, which
    misses the kernel's own threads but stands on a busy machine too.
    """
    quiet = [await idle_processors()]
    busy, worked, before = busy_seconds(), worked_seconds(), time.monotonic()
    yield
    spent, own, taken = busy_seconds() - busy, worked_seconds() - worked, time.monotonic() - before
    quiet.append(await idle_processors())
    one.noise += quiet
    spent -= taken * sum(quiet) / len(quiet)
    one.note({f"machine's CPU, {name}": 1000 * spent / count, f"processes' CPU, {name}": 1000 * own / count})


@asynccontextmanager
async def _rate(one: Contender, name: str, count: int) -> AsyncIterator[None]:
    before = time.monotonic()
    yield
    one.note({name: count / (time.monotonic() - before)})
