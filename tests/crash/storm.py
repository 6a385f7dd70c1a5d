"""Kills at random instants under load: crispd, shims, infra processes and the zygote, while pods live and die.

Some threads live whole lives of pods, and do as kubelet does: a call without an answer is made again, and a container
whose start failed is made anew. A pod has all of its answers, its exit code and its log, whoever was killed. One that
lost its infra process, or its shim when that had no keeper, can be stopped and removed.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from cri.admin.v1 import admin_pb2
from cri.v1 import api_pb2 as cri
from cri.v1 import api_pb2_grpc
from tests.daemon import BUSYBOX, CALL_SECONDS, Daemon
from tests.waiting import SECONDS, until

_CALL: Final[dict[str, Any]] = {"timeout": CALL_SECONDS}
_NO_ANSWER: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)
_LINES: Final = 20
_CODE: Final = 7
_PROGRAM: Final = f"i=0; while [ $i -lt {_LINES} ]; do echo line $i; i=$((i+1)); sleep 0.01; done; exit {_CODE}"
_WEIGHTS: Final = {"crispd": 0.3, "shim": 6, "infra": 1, "zygote": 0.3}  # after the first and last keepers are new
_KEEPER_SECONDS: Final = 2.0  # after which each shim surely has a keeper again
_PAUSES: Final = (0.0, 0.4)  # seconds between kills
_numbers = itertools.count(1)


@dataclass
class Storm:
    """The load, and what is killed meanwhile."""

    daemon: Daemon
    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    lives: Counter[str] = field(default_factory=Counter)
    hit: set[str] = field(default_factory=set)  # ids of pods that may be lost
    shaken: set[str] = field(default_factory=set)  # ids of pods whose shim was killed
    failures: list[str] = field(default_factory=list)
    _keepers_change: float = 0.0  # time of the last death of a zygote, or of who starts a new one
    _over: threading.Event = field(default_factory=threading.Event)
    _up: threading.Event = field(default_factory=threading.Event)

    def run(self, kills: int, workers: int = 3) -> None:
        """Kill so many processes, then let all pods end. Raises AssertionError with what went wrong."""
        self._up.set()
        self._over.clear()
        threads = [threading.Thread(target=self._work, args=(number,)) for number in range(workers)]
        for thread in threads:
            thread.start()
        try:
            self._kill(kills)
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
        assert not self.failures, "\n".join(self.failures) + f"\nseed {self.seed}\n{self.daemon.log()}"
        until(lambda: not self._disagreements())
        assert not self.daemon.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL).items

    def _disagreements(self) -> list[str]:
        found = self.daemon.admin.Check(admin_pb2.CheckRequest(), **_CALL).disagreements
        return [f"{one.kind} {one.object}: {one.text}" for one in found]

    # -- killing ------------------------------------------------------------------------------------------------------

    def _kill(self, kills: int) -> None:
        chance = random.Random(self.seed)
        done = 0
        while done < kills and not self.failures:
            time.sleep(chance.uniform(*_PAUSES))  # the instant
            (victim,) = chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
            if victim == "crispd":
                self._up.clear()
                self.daemon.kill9()
                self.daemon.start()
                self._keepers_change = time.monotonic()
                self._up.set()
            else:
                there = sorted(_processes(self.daemon, victim))
                if not there:
                    continue
                pid, pod = chance.choice(there)
                if victim == "zygote":
                    self._keepers_change = time.monotonic()
                elif victim == "shim" and time.monotonic() - self._keepers_change > _KEEPER_SECONDS:
                    self.shaken.add(pod)
                else:
                    self.hit.add(pod)
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.kills[victim] += 1
            done += 1

    # -- living -------------------------------------------------------------------------------------------------------

    def _work(self, worker: int) -> None:
        while not self._over.is_set() and not self.failures:
            name = f"storm{worker}-{next(_numbers)}"
            try:
                _Life(self, name).live()
            except (AssertionError, grpc.RpcError) as error:
                self.failures.append(f"pod {name}: {error!r}")

    def until_up(self) -> None:
        assert self._up.wait(CALL_SECONDS)


@dataclass
class _Life:
    """The life of one pod."""

    storm: Storm
    name: str
    pod: str = ""
    attempt: int = 0  # number of containers so far

    def live(self) -> None:
        config = self.storm.daemon.sandbox_config(self.name)
        config.linux.security_context.namespace_options.network = cri.NODE
        config.hostname = ""
        self.pod = self._run_pod(config)
        try:
            while not self._run(config):
                pass
        except grpc.RpcError as error:
            if self.pod not in self.storm.hit:
                raise AssertionError(f"it was not killed, and yet: {error.code().name} {error.details()}") from error
        kind = "lost" if self.pod in self.storm.hit else "shaken" if self.pod in self.storm.shaken else "whole"
        self._end(self.pod)
        self.storm.lives[kind] += 1

    def _run_pod(self, config: cri.PodSandboxConfig) -> str:
        """Make the pod. One that loses its shim meanwhile fails as a whole, or is there, not ready, unanswered."""
        request = cri.RunPodSandboxRequest(config=config)
        deadline = time.monotonic() + CALL_SECONDS
        while True:
            try:
                return str(self._repeat(lambda stub: stub.RunPodSandbox(request, **_CALL)).pod_sandbox_id)
            except grpc.RpcError as error:
                if time.monotonic() > deadline:
                    raise
                if error.code() is grpc.StatusCode.ALREADY_EXISTS:
                    listed = self._repeat(lambda stub: stub.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL)).items
                    for held in (one.id for one in listed if one.metadata.name == self.name):
                        known = self.storm.hit | self.storm.shaken
                        assert held in known, f"pod sandbox {held} was not killed, and is not ready"
                        self._end(held)
                elif error.code() is not grpc.StatusCode.INTERNAL:
                    raise

    def _end(self, pod: str) -> None:
        self._repeat(lambda stub: stub.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod), **_CALL))
        self._repeat(lambda stub: stub.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=pod), **_CALL))

    def _run(self, config: cri.PodSandboxConfig) -> bool:
        """Run the container to its end. False if its creation or start was cut off by the end of its shim."""
        self.attempt += 1
        container = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name="main", attempt=self.attempt),
            image=cri.ImageSpec(image=BUSYBOX),
            command=["sh", "-c", _PROGRAM],
            log_path=f"main{self.attempt}.log",
        )
        create = cri.CreateContainerRequest(pod_sandbox_id=self.pod, config=container, sandbox_config=config)
        try:
            made = self._repeat(lambda stub: stub.CreateContainer(create, **_CALL)).container_id
        except grpc.RpcError as error:
            if self.pod in self.storm.shaken and error.code() is grpc.StatusCode.INTERNAL:
                return False
            raise
        start = cri.StartContainerRequest(container_id=made)
        try:
            self._repeat(lambda stub: stub.StartContainer(start, **_CALL))
        except grpc.RpcError as error:
            if self.pod in self.storm.shaken and error.code() is grpc.StatusCode.INTERNAL:
                return False
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:  # it was started by the call before
                raise
        deadline = time.monotonic() + SECONDS
        status = cri.ContainerStatusRequest(container_id=made)
        while (shown := self._repeat(lambda stub: stub.ContainerStatus(status, **_CALL)).status).state in (
            cri.CONTAINER_CREATED, cri.CONTAINER_RUNNING,
        ):  # fmt: skip
            assert time.monotonic() < deadline, f"container {made} does not end"
            time.sleep(0.02)
        if self.pod in self.storm.hit:
            return True
        if self.pod in self.storm.shaken and shown.reason == "StartError":
            return False
        assert (shown.exit_code, shown.reason) == (_CODE, "Error"), shown
        log = Path(config.log_directory, f"main{self.attempt}.log").read_text()
        lines = [line.split(" stdout F ")[1] for line in log.splitlines()]
        due = [f"line {number}" for number in range(_LINES)]
        assert lines == due, log
        return True

    def _repeat(self, call: Callable[[api_pb2_grpc.RuntimeServiceStub], Any]) -> Any:
        """Make a call until it is answered, as kubelet does."""
        deadline = time.monotonic() + CALL_SECONDS
        while True:
            self.storm.until_up()
            try:
                return call(self.storm.daemon.runtime)
            except ValueError:  # the channel of a crispd that was killed is closed
                pass
            except grpc.RpcError as error:
                if error.code() not in _NO_ANSWER or time.monotonic() > deadline:
                    raise


def _processes(daemon: Daemon, victim: str) -> list[tuple[int, str]]:
    """Pids of such processes, with the pod that each is of."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            command = Path("/proc", pid, "cmdline").read_text(errors="replace")
            parent = int(Path("/proc", pid, "stat").read_text().rsplit(")", 1)[1].split()[1])
            above = Path("/proc", str(parent), "cmdline").read_text(errors="replace")
        except OSError:
            continue
        if victim == "zygote" and "crisp zygote" in command and parent == daemon.pid():
            found.append((int(pid), ""))
        # A child of a shim has its name until it runs its program.
        if victim == "shim" and command.startswith("crisp-shim ") and not above.startswith("crisp-shim "):
            found.append((int(pid), command.split()[1].strip("\0")))
        if victim == "infra" and command.startswith("crisp-infra"):
            found.append((int(pid), command.split()[1].strip("\0")))
    return found
