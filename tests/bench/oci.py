"""`python -m tests.bench oci`: what a container and an exec cost as whole processes, by crisp-oci, runc and crun.

And the same by crispd's way: a zygote that is there already forks a shim, which forks the container.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from runtime.client import ShimClient, Zygote
from runtime.wire import calls
from tests.oci import CRISP_OCI, Bundle

_WARM_UPS = 3
RUNTIMES = {"crisp-oci": str(CRISP_OCI), "runc": "runc", "crun": "crun"}


@dataclass
class Samples:
    """Milliseconds, one each time: by the clock, and of processor time, that of all children included."""

    elapsed: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


class Contender(Protocol):
    """Who takes turns with the others."""

    name: str
    samples: dict[str, Samples]

    def measure(self, what: str) -> None: ...

    def stop(self) -> None: ...


class Runtime:
    """One runtime with state and a bundle of its own below `directory`."""

    def __init__(self, name: str, program: str, directory: Path) -> None:
        self.name = name
        self._program = program
        directory.mkdir()
        self._bundle = Bundle.make(directory)
        self._root = directory / "state"
        self.samples = {"run true": Samples(), "exec true": Samples()}

    def call(self, *arguments: str) -> None:
        """Raises CalledProcessError with what it printed."""
        command = [self._program, "--root", str(self._root), *arguments]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        subprocess.run(command, cwd=self._bundle.directory, check=True, stderr=subprocess.PIPE, **quiet)

    def configure(self, id: str, *args: str) -> None:
        cgroup = {"cgroupsPath": f"/crisp-bench-{os.getpid()}/{self.name}-{id}"}
        self._bundle.configure(*args, linux=cgroup, ociVersion="1.0.2")  # which crun knows too

    def start(self) -> None:
        """Leave one container running for the execs."""
        self.configure("long", "sleep", "600")
        command = [self._program, "--root", str(self._root), "run", "-d", "long"]
        null = subprocess.DEVNULL
        subprocess.run(command, cwd=self._bundle.directory, check=True, stdin=null, stdout=null, stderr=null)
        self.configure("short", "true")

    def stop(self) -> None:
        self.call("delete", "--force", "long")

    def measure(self, what: str) -> None:
        call: Callable[[], None] = {
            "run true": lambda: self.call("run", "short"),
            "exec true": lambda: self.call("exec", "long", "true"),
        }[what]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        call()
        ended, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.samples[what].elapsed.append((ended - started) * 1000)
        self.samples[what].processor.append(used * 1000)


class ThroughZygote:
    """A pod's shim that containers come and go in. What it costs the processor is told by `python -m tests.bench`."""

    name = "crisp's zygote"

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._rootfs = Bundle.make(directory).rootfs
        self._number = 0
        self._ended: asyncio.Queue[str] = asyncio.Queue()
        self._zygote = Zygote()
        self._loop = asyncio.Runner()
        self.samples = {"run true": Samples(), "exec true": Samples()}
        self._shim: ShimClient = self._loop.run(self._start())

    async def _start(self) -> ShimClient:
        await self._zygote.start()
        shim = await self._zygote.spawn(self._told, lambda: None)
        (self._directory / "exits").mkdir()
        await shim.call(
            calls.MakePod(
                sandbox="s" * 64, directory=str(self._directory), hostname="bench", sysctls={},
                new=("ipc", "pid", "uts"), netns="", shm_size=0,
            )
        )  # fmt: skip
        self._shim = shim
        await self._create("long", "sleep", "600")
        await shim.call(calls.Start("long", log=""))
        for _ in range(_WARM_UPS):
            await self._run()
        return shim

    def _told(self, event: calls.Event) -> None:
        if isinstance(event, calls.Exited):
            self._ended.put_nowait(event.container)

    async def _create(self, name: str, *args: str) -> None:
        place = self._directory / name
        for part in ("upper", "work"):
            (place / part).mkdir(parents=True)
        Bundle(place).configure(*args, linux={"cgroupsPath": f"/crisp-bench-{os.getpid()}/zygote-{name}"})
        await self._shim.call(
            calls.Create(
                container=name, bundle=str(place), lower=(str(self._rootfs),), upper=str(place / "upper"),
                work=str(place / "work"), user=calls.UserRequest(""),
            )
        )  # fmt: skip

    async def _run(self) -> None:
        self._number += 1
        name = f"short{self._number}"
        await self._create(name, "true")
        await self._shim.call(calls.Start(name, log=""))
        while await self._ended.get() != name:
            pass
        await self._shim.call(calls.Delete(name))

    async def _exec(self) -> None:
        null = os.open("/dev/null", os.O_RDWR)
        try:
            self._number += 1
            answer = await self._shim.call(
                calls.Exec("long", exec=str(self._number), args=("true",)), (null, null, null)
            )
        finally:
            os.close(null)
        if answer.code != 0:
            raise RuntimeError(f"exec true ended with {answer.code}")

    def measure(self, what: str) -> None:
        started = time.perf_counter()
        self._loop.run(self._run() if what == "run true" else self._exec())
        self.samples[what].elapsed.append((time.perf_counter() - started) * 1000)

    def stop(self) -> None:
        self._loop.run(self._end())
        self._loop.close()

    async def _end(self) -> None:
        await self._shim.call(calls.Shutdown())
        self._shim.close()
        self._zygote.close()


def measure(directory: Path, rounds: int, console: Console) -> None:
    """Measure those that are installed and can run here, taking turns, and print medians."""
    contenders: list[Contender] = []
    for name, program in RUNTIMES.items():
        if shutil.which(program) is None:
            console.print(f"left out: {name} is not installed", style="yellow")
            continue
        runtime = Runtime(name, program, directory / name)
        try:
            runtime.configure("short", "true")
            for _ in range(_WARM_UPS):
                runtime.call("run", "short")
            runtime.start()
        except subprocess.CalledProcessError as error:
            reason = (error.stderr or b"").decode(errors="replace").strip().splitlines()[-1:]
            console.print(f"left out: {name}: {''.join(reason)}", style="yellow", markup=False, highlight=False)
            continue
        contenders.append(runtime)
    contenders.append(ThroughZygote(directory / "zygote"))
    try:
        for number in range(rounds):
            for what in ("run true", "exec true"):
                for runtime in contenders[number % len(contenders) :] + contenders[: number % len(contenders)]:
                    runtime.measure(what)
    finally:
        for runtime in contenders:
            runtime.stop()
        _remove_cgroups()
    console.print(_table(contenders))


def _table(contenders: list[Contender]) -> Table:
    table = Table("ms, median (least)", *(runtime.name for runtime in contenders))
    for what in ("run true", "exec true"):
        for kind in ("elapsed", "processor"):
            values = [getattr(runtime.samples[what], kind) for runtime in contenders]
            table.add_row(f"{what}, {kind}", *map(_figure, values))
    return table


def _figure(samples: list[float]) -> str:
    return f"{statistics.median(samples):.1f} ({min(samples):.1f})" if samples else "-"


def _remove_cgroups() -> None:
    name = f"crisp-bench-{os.getpid()}"
    for top in (Path("/sys/fs/cgroup", name), *Path("/sys/fs/cgroup").glob(f"*/{name}")):
        for below, _, _ in os.walk(top, topdown=False):
            os.rmdir(below)
