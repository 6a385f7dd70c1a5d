"""`python -m tests.bench logs`: how many bytes of 100-byte lines a second containers can log, and what that takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from rich.console import Console

from tests.bench import report
from tests.bench.machine import worked_seconds
from tests.bench.peers import PeerFailed
from tests.bench.phases import Contender

_LINE = "x" * 99
_SECONDS = 2.0
_CONTAINERS = (1, 4)
_GIGA = 10**9

FIGURES = tuple(
    report.Figure(f"{name}, {count} containers", unit, tail=False, more_is_better=unit == "MB/s")
    for count in _CONTAINERS
    for name, unit in (("log output", "MB/s"), ("CPU, writers included", "s/GB"))
)


async def run(
    contenders: Sequence[Contender], rounds: int, versions: Mapping[str, str], console: Console
) -> None:
    """Note both figures for one container and for four, `rounds` times each. Print a table. Raises PeerFailed."""
    for number in range(rounds):
        console.print(f"round {number + 1}/{rounds}: logs", style="dim")
        for count in _CONTAINERS:
            for one in (*contenders[number % len(contenders) :], *contenders[: number % len(contenders)]):
                await _write(one, count)
    report.print_table({one.peer.name: one.samples for one in contenders}, versions, console, FIGURES)


async def _write(one: Contender, count: int) -> None:
    worked, began = worked_seconds(), time.monotonic()
    pods = [(await one.client.run_pod(["yes", _LINE]))[0] for _ in range(count)]
    sizes, worked, began = [pod.log.stat().st_size for pod in pods], worked_seconds(), time.monotonic()
    await asyncio.sleep(_SECONDS)
    logged = sum(pod.log.stat().st_size - size for pod, size in zip(pods, sizes, strict=True))
    taken, worked = time.monotonic() - began, worked_seconds() - worked
    with pods[0].log.open("rb") as log:
        record = len(log.readline())
    if not record:
        raise PeerFailed(f"logs of {one.peer.name}: nothing was written")
    written = logged * (len(_LINE) + 1) / record
    for pod in pods:
        await one.client.stop_container(pod)
        pod.log.unlink()  # not to fill the disk
        await one.client.remove_pod(pod)
    suffix = f", {count} containers"
    one.note({"log output": written / taken / 1e6, "CPU, writers included": worked / written * _GIGA}, suffix)
