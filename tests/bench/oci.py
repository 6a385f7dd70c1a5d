"""`python -m tests.bench oci`: what a container and an exec cost as whole processes, by crisp-oci, runc and crun."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.oci import CRISP_OCI, Bundle

_WARM_UPS = 3
RUNTIMES = {"crisp-oci": str(CRISP_OCI), "runc": "runc", "crun": "crun"}


@dataclass
class Samples:
    """Milliseconds, one each time: by the clock, and of processor time, that of all children included."""

    elapsed: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


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


def measure(directory: Path, rounds: int, console: Console) -> None:
    """Measure those that are installed and can run here, taking turns, and print medians."""
    contenders = []
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


def _table(contenders: list[Runtime]) -> Table:
    table = Table("ms, median (least)", *(runtime.name for runtime in contenders))
    for what in ("run true", "exec true"):
        for kind in ("elapsed", "processor"):
            values = [getattr(runtime.samples[what], kind) for runtime in contenders]
            table.add_row(f"{what}, {kind}", *(f"{statistics.median(each):.1f} ({min(each):.1f})" for each in values))
    return table


def _remove_cgroups() -> None:
    name = f"crisp-bench-{os.getpid()}"
    for top in (Path("/sys/fs/cgroup", name), *Path("/sys/fs/cgroup").glob(f"*/{name}")):
        for below, _, _ in os.walk(top, topdown=False):
            os.rmdir(below)
