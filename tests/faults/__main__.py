"""`python -m tests.faults [--pods N] [--rounds N] [FAULT...]`: fifty pods, one fault at a time. Takes root.

For each fault it measures every call that is not about it, calm and while the fault lasts, and prints p50 and p99. It
fails if one of these calls fails, or if something is left once the fault is over.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from cri.admin.v1 import admin_pb2
from cri.v1 import api_pb2 as cri
from tests import box
from tests.daemon import CALL_SECONDS, CNI_BIN_DIRS, Daemon, Pod
from tests.faults.kinds import FAULTS, Node
from tests.waiting import until

_CALL: Final[dict[str, Any]] = {"timeout": CALL_SECONDS}
_LIFE_EVERY: Final = 5  # rounds between whole lives of a pod
_AT_ONCE: Final = 4  # pods that are started
_SHARES: Final = (0.5, 0.99)

Samples = dict[str, list[float]]  # milliseconds, by call


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Measure a node with faults.")
    parser.add_argument("--pods", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=100, help="of each call, calm and during each fault")
    parser.add_argument("faults", nargs="*", metavar="FAULT", help="; ".join(FAULTS))
    arguments = parser.parse_args()
    if unknown := set(arguments.faults) - FAULTS.keys():
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        parser.error("containers take root")
    if not box.inside():
        return box.run([sys.executable, "-m", "tests.faults", *sys.argv[1:]])
    with ExitStack() as undo:
        place = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="f", dir="/tmp")))
        node = undo.enter_context(_node(place))
        pods = _fill(node.daemon, arguments.pods, undo)
        print(f"{arguments.pods} pods, {arguments.rounds} rounds; load {os.getloadavg()[0]:.1f}", flush=True)
        _measure(node.daemon, pods, 1)  # what the first of its kind has to make
        worst = {}
        for name in arguments.faults or FAULTS:
            # Half of the calm before the fault and half after it: a machine with other work to do changes its pace.
            calm = _measure(node.daemon, pods, math.ceil(arguments.rounds / 2))
            with FAULTS[name](node):
                during = _measure(node.daemon, pods, arguments.rounds)
            until(lambda: _nothing_left(node.daemon, arguments.pods))
            for call, more in _measure(node.daemon, pods, math.ceil(arguments.rounds / 2)).items():
                calm[call] += more
            worst[name] = _table(name, calm, during)
        print(f"\nworst ratios, calls of more than a millisecond; load {os.getloadavg()[0]:.1f}")
        print(f"{'p50':>36}{'p99':>32}")
        for name, ratios in worst.items():
            print(f"  {name:28}" + "".join(f"{ratio:6.1f}  {call:24}" for call, ratio in ratios).rstrip())
    return 0


@contextmanager
def _node(place: Path) -> Any:
    """A daemon with a directory for network plugins, NRI, and a criu that hangs."""
    plugins, socket, pids = place / "plugins", place / "nri.sock", place / "criu-pids"
    plugins.mkdir()
    criu = place / "bin/criu"
    criu.parent.mkdir()
    criu.write_text(f"#!/bin/sh\necho $$ >>{pids}\nexec sleep 86399\n")
    criu.chmod(0o755)
    os.environ["PATH"] = f"{criu.parent}:{os.environ['PATH']}"
    directories = [plugins, *CNI_BIN_DIRS]
    flags = [f"--cni-bin-dir={one}" for one in directories]
    with Daemon.running(f"--nri-socket={socket}", *flags) as daemon:
        daemon.import_busybox()
        yield Node(daemon, plugins, socket, pids)


def _fill(daemon: Daemon, number: int, undo: ExitStack) -> list[tuple[Pod, str]]:
    """So many pods with a container each."""
    threads = undo.enter_context(ThreadPoolExecutor(_AT_ONCE))

    def one(index: int) -> tuple[Pod, str]:
        pod = undo.enter_context(daemon.pod(f"pod{index}"))
        return pod, pod.run("sleep", "10000")

    return list(threads.map(one, range(number)))


def _measure(daemon: Daemon, pods: Sequence[tuple[Pod, str]], rounds: int) -> Samples:
    """Make every call that is not about the fault, in turns. Raises grpc.RpcError if one fails."""
    samples: Samples = defaultdict(list)
    runtime = daemon.runtime

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        answer = call()
        samples[name].append((time.perf_counter() - began) * 1000)
        return answer

    for number in range(rounds):
        pod, container = pods[number % len(pods)]
        timed("ListPodSandbox", lambda: runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL))
        timed("ListContainers", lambda: runtime.ListContainers(cri.ListContainersRequest(), **_CALL))
        timed("ListContainerStats", lambda: runtime.ListContainerStats(cri.ListContainerStatsRequest(), **_CALL))
        timed("ListPodSandboxStats", lambda: runtime.ListPodSandboxStats(cri.ListPodSandboxStatsRequest(), **_CALL))
        timed("ListPodSandboxMetrics", lambda: runtime.ListPodSandboxMetrics(
            cri.ListPodSandboxMetricsRequest(), **_CALL))  # fmt: skip
        timed("Status", lambda: runtime.Status(cri.StatusRequest(verbose=True), **_CALL))
        timed("ImageFsInfo", lambda: daemon.images.ImageFsInfo(cri.ImageFsInfoRequest(), **_CALL))
        timed("PodSandboxStatus", pod.status)
        timed("ContainerStatus", lambda one=container: daemon.status(one))
        timed("ExecSync", lambda one=container, of=pod: of.exec(one, "true"))
        if number % _LIFE_EVERY == 0:
            _live(daemon, timed)
    return samples


def _live(daemon: Daemon, timed: Callable[[str, Callable[[], Any]], Any]) -> None:
    runtime, config = daemon.runtime, daemon.sandbox_config("other")
    run = cri.RunPodSandboxRequest(config=config)
    pod = Pod(daemon, timed("RunPodSandbox", lambda: runtime.RunPodSandbox(run, **_CALL)).pod_sandbox_id, config)
    container = timed("CreateContainer", lambda: pod.create("sleep", "1000"))
    start = cri.StartContainerRequest(container_id=container)
    timed("StartContainer", lambda: runtime.StartContainer(start, **_CALL))
    stop = cri.StopContainerRequest(container_id=container, timeout=0)
    timed("StopContainer", lambda: runtime.StopContainer(stop, **_CALL))
    remove = cri.RemoveContainerRequest(container_id=container)
    timed("RemoveContainer", lambda: runtime.RemoveContainer(remove, **_CALL))
    by_pod = {"pod_sandbox_id": pod.id}
    timed("StopPodSandbox", lambda: runtime.StopPodSandbox(cri.StopPodSandboxRequest(**by_pod), **_CALL))
    timed("RemovePodSandbox", lambda: runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(**by_pod), **_CALL))


def _nothing_left(daemon: Daemon, pods: int) -> bool:
    """Whether records and machine agree, and the pods that are meant to be there are ready, and no other is there."""
    listed = daemon.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL).items
    containers = daemon.runtime.ListContainers(cri.ListContainersRequest(), **_CALL).containers
    well = [one.state for one in listed] == [cri.SANDBOX_READY] * pods
    runs = [one.state for one in containers] == [cri.CONTAINER_RUNNING] * pods
    conditions = daemon.runtime.Status(cri.StatusRequest(), **_CALL).status.conditions
    return (
        well
        and runs
        and all(one.status for one in conditions if one.type != "NRIPluginsAnswer")  # one that left is remembered
        and not daemon.admin.Check(admin_pb2.CheckRequest(), **_CALL).disagreements
    )


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[math.ceil(len(values) * share) - 1]


def _table(name: str, calm: Samples, during: Samples) -> list[tuple[str, float]]:
    """Print a fault's table. Return the call whose p50 grew most and the one whose p99 did, and how much."""
    print(f"\n{name}: ms\n  {'':24}{'calm p50':>10}{'p99':>9}{'fault p50':>11}{'p99':>9}{'ratios':>10}")
    ratios: list[dict[str, float]] = [{}, {}]
    for call in calm:
        (low, high), (low_then, high_then) = (
            [_percentile(samples[call], share) for share in _SHARES] for samples in (calm, during)
        )
        grown = f"{low_then / low:5.1f}{high_then / high:5.1f}"
        print(f"  {call:24}{low:10.1f}{high:9.1f}{low_then:11.1f}{high_then:9.1f}{grown}", flush=True)
        for of_share, before, after in zip(ratios, (low, high), (low_then, high_then), strict=True):
            if after > 1:
                of_share[call] = after / before
    return [max(of_share.items(), key=lambda one: one[1]) for of_share in ratios]


if __name__ == "__main__":
    sys.exit(main())
