"""`python -m tests.bench node`: a full node, its pods of two containers each, one runtime after the other."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console

from tests.bench import report
from tests.bench.machine import command_name, memory_bytes, processes, worked_seconds
from tests.bench.peers import PeerFailed
from tests.bench.phases import WIDTH, Contender, warm_up
from tests.bench.workload import CALL_SECONDS, Pod, at_a_time

_MEBI = 1 << 20
_WORKLOAD = "sleep"
_IDLE_SECONDS = 20.0
_QUIET_SECONDS = 40.0  # crisp's shims sleep by then
_POLLING_SECONDS = 20
_LOOKS = 5
_PROBES = 1000
_PROBES_A_SECOND = 50
_RESTARTS = 3
_TRIES = 1000

FIGURES = (
    report.Figure("up", "s", tail=False),
    report.Figure("CPU a pod", "ms", tail=False),
    report.Figure("memory a pod, page tables included", "MiB", tail=False),
    report.Figure("memory a pod, quiet for 40 s", "MiB", tail=False),
    report.Figure("memory of the daemon", "MiB", tail=False),
    report.Figure("ListContainers", "ms"),
    report.Figure("ListContainerStats", "ms"),
    report.Figure("ListPodSandboxStats", "ms"),
    report.Figure("CPU, nothing asked", "% of a core", tail=False),
    report.Figure("CPU, polled as by kubelet", "% of a core", tail=False),
    report.Figure("exec probe, 50 a second", "ms"),
    report.Figure("CPU, exec probes", "% of a core", tail=False),
    report.Figure("stop of the daemon", "ms", tail=False),
    report.Figure("start to the first answer", "ms", tail=False),
    report.Figure("down", "s", tail=False),
)
STATS_FIGURES = (
    report.Figure("ListContainerStats", "ms"),
    report.Figure("ListPodSandboxStats", "ms"),
    report.Figure("ListPodSandboxMetrics", "ms"),
    *(report.Figure(f"CPU, {name}", "ms", tail=False) for name in ("ListContainerStats", "ListPodSandboxStats",
                                                                  "ListPodSandboxMetrics")),
)  # fmt: skip
RESTART_FIGURES = tuple(figure for figure in FIGURES if figure.name.startswith(("stop", "start")))


async def run(contenders: Sequence[Contender], pods: int, versions: Mapping[str, str], console: Console) -> None:
    """Note all figures once, with `pods` pods. Print a table. Raises PeerFailed."""
    for one in contenders:
        console.print(f"{one.peer.name}: {pods} pods", style="dim")
        family = await _fill(one, pods)
        await _look(one)
        await _rest(one, family, pods)
        await _probe(one)
        await restart(one, _RESTARTS)
        await _empty(one)
    report.print_table({one.peer.name: one.samples for one in contenders}, versions, console, FIGURES)


async def run_restarts(
    contenders: Sequence[Contender], pods: int, rounds: int, versions: Mapping[str, str], console: Console
) -> None:
    """Note how long stops and starts take with `pods` pods. Print a table. Raises PeerFailed."""
    for one in contenders:
        console.print(f"{one.peer.name}: {pods} pods", style="dim")
        await _fill(one, pods)
        await restart(one, rounds)
        await _empty(one)
    report.print_table({one.peer.name: one.samples for one in contenders}, versions, console, RESTART_FIGURES)


async def run_stats(
    contenders: Sequence[Contender], pods: int, rounds: int, versions: Mapping[str, str], console: Console
) -> None:
    """Note what it takes to tell of `pods` pods, runtimes taking turns. Print a table. Raises PeerFailed."""
    for one in contenders:
        console.print(f"{one.peer.name}: {pods} pods", style="dim")
        await _fill(one, pods)
    spent: list[dict[str, float]] = [defaultdict(float) for _ in contenders]
    for number in range(_LOOKS * rounds):
        first = number % len(contenders)
        for index in (*range(first, len(contenders)), *range(first)):
            await _tell(contenders[index], spent[index])
    for one, seconds in zip(contenders, spent, strict=True):
        # Of all calls together: a tick of the kernel's account is as long as what a small process does in one.
        one.note({f"CPU, {name}": 1000 * value / (_LOOKS * rounds) for name, value in seconds.items()})
        await _empty(one)
    report.print_table({one.peer.name: one.samples for one in contenders}, versions, console, STATS_FIGURES)


async def _tell(one: Contender, spent: dict[str, float]) -> None:
    """Ask in each way. Add to `spent` the processor seconds of the runtime: they stand on a busy machine."""
    for ask in (one.client.container_stats, one.client.pod_stats, one.client.metrics):
        worked = _worked_without_us()
        taken = await ask()
        one.note(taken)
        for name in taken:
            spent[name] += _worked_without_us() - worked


def _worked_without_us() -> float:
    return worked_seconds() - time.process_time()


async def _fill(one: Contender, pods: int) -> Callable[[], set[int]]:
    """Start pods. Return what finds the processes that came with them, but for the workload."""
    await warm_up(one)
    before, worked, began = processes(), worked_seconds(), time.monotonic()

    async def one_pod(_: int) -> None:
        one.pods.append((await one.client.run_pod(more=["second"]))[0])

    await at_a_time(WIDTH, range(pods), one_pod)
    one.note({"up": time.monotonic() - began, "CPU a pod": 1000 * (worked_seconds() - worked) / pods})
    await asyncio.sleep(1)  # helpers that end by themselves

    def family() -> set[int]:
        return {pid for pid in processes() - before if command_name(pid) != _WORKLOAD}

    one.note({"memory a pod, page tables included": _memory(family()) / pods})
    assert one.peer.process is not None
    one.note({"memory of the daemon": _memory({one.peer.process.pid})})
    return family


def _memory(pids: set[int]) -> float:
    return memory_bytes(pids) / _MEBI


async def _look(one: Contender) -> None:
    for _ in range(_LOOKS):
        one.note(await one.client.lists())
        one.note(await one.client.stats())


async def _rest(one: Contender, family: Callable[[], set[int]], pods: int) -> None:
    """By the processes of this box alone, so that it stands on a busy machine."""
    worked = worked_seconds()
    await asyncio.sleep(_IDLE_SECONDS)
    one.note({"CPU, nothing asked": 100 * (worked_seconds() - worked) / _IDLE_SECONDS})
    await asyncio.sleep(_QUIET_SECONDS - _IDLE_SECONDS)
    one.note({"memory a pod, quiet for 40 s": _memory(family()) / pods})
    worked, began = worked_seconds(), time.monotonic()
    for second in range(_POLLING_SECONDS):
        await one.client.lists()
        if second % 10 == 0:
            await one.client.stats()
        await asyncio.sleep(max(0.0, began + second + 1 - time.monotonic()))
    one.note({"CPU, polled as by kubelet": 100 * (worked_seconds() - worked) / (time.monotonic() - began)})


async def _probe(one: Contender) -> None:
    worked, began = worked_seconds(), time.monotonic()

    async def probe(number: int) -> None:
        await asyncio.sleep(max(0.0, began + number / _PROBES_A_SECOND - time.monotonic()))
        try:
            taken = (await one.client.execute(one.pods[number % len(one.pods)]))["ExecSync"]
        except PeerFailed:  # it does not keep up
            taken = 1000 * CALL_SECONDS
        one.note({"exec probe, 50 a second": taken})

    async with asyncio.TaskGroup() as group:
        for number in range(_PROBES):
            group.create_task(probe(number))
    one.note({"CPU, exec probes": 100 * (worked_seconds() - worked) / (time.monotonic() - began)})


async def restart(one: Contender, rounds: int) -> None:
    """Stop and start the daemon; its pods run on."""
    for _ in range(rounds):
        stopped, listening = await asyncio.to_thread(one.peer.restart)
        answered = await _first_answer(one)
        one.note({"stop of the daemon": stopped, "start to the first answer": listening + answered})


async def _first_answer(one: Contender) -> float:
    """The milliseconds until the daemon lists all pods. containerd refuses calls for a while after it listens."""
    began = time.monotonic()
    for _ in range(_TRIES):
        await one.client.connect_again()
        try:
            if await one.client.pods() >= len(one.pods):
                return 1000 * (time.monotonic() - began)
        except PeerFailed:
            await asyncio.sleep(0.005)
    raise PeerFailed(f"restart {one.peer.name}: it does not list its pods\n{one.peer.log()}")


async def _empty(one: Contender) -> None:
    began = time.monotonic()

    async def one_pod(pod: Pod) -> None:
        await one.client.remove_pod(pod)

    await at_a_time(WIDTH, list(one.pods), one_pod)
    one.pods.clear()
    one.note({"down": time.monotonic() - began})
