"""Programs of Kubernetes that a test runs beside each other, each with a log."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

STOP_SECONDS: Final = 20.0
LOG_LINES: Final = 60
T = TypeVar("T")


class ProgramFailed(Exception):
    """A program ended, or what a test waits for did not happen in time; carries the ends of the logs."""


class Processes:
    """Running programs, by name. `into` is a command that runs another one: in other namespaces, say."""

    def __init__(self, directory: Path, into: Sequence[str] = ()) -> None:
        self._directory, self._into = directory, into
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, program: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Start a program without input; what it prints is in `directory`. `environment` is added to ours."""
        command = [*self._into, program, *arguments]
        with (self._directory / f"{program.name}.log").open("ab") as log:
            self._running[program.name] = subprocess.Popen(
                command, cwd=self._directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | dict(environment or {}),
            )  # fmt: skip

    def stop(self) -> None:
        """End all of them, the last one first."""
        while self._running:
            _, process = self._running.popitem()
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def check(self) -> None:
        """Raise ProgramFailed if one has ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise ProgramFailed(f"{name} exited with {process.returncode}\n{self.log(name)}")

    def log(self, name: str) -> str:
        """The end of what a program complained of."""
        return complaints(self._directory / f"{name}.log", name)

    def logs(self) -> str:
        """The ends of what all of them complained of."""
        return "\n".join(map(self.log, self._running))


def until(condition: Callable[[], T], what: str, seconds: float, *groups: Processes) -> T:
    """What `condition` answers once that is true. Raises ProgramFailed: wait for the cluster to `what`."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        for group in groups:
            group.check()
        if time.monotonic() > deadline:
            logs = "\n".join(group.logs() for group in groups)
            raise ProgramFailed(f"wait for the cluster to {what}: not in {seconds} s\n{logs}")
        time.sleep(0.1)
    return answer


def complaints(log: Path, name: str) -> str:
    """The last errors and warnings in the log of a program of Kubernetes."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join([f"--- {name}'s log:", *[line for line in lines if line[:1] in "EFW"][-LOG_LINES:]])
