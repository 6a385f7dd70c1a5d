"""`python -m tests.bench critest`: the benchmarks of cri-tools' critest (its -benchmark), runtimes taking turns."""

from __future__ import annotations

import json
import os
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from rich.console import Console

from tests.bench import report
from tests.bench.layouts import BUSYBOX
from tests.bench.peers import Peer, PeerFailed
from tests.e2e import critest
from tests.images import busybox_image
from tests.registry import Registry

Samples = dict[str, list[float]]
_IMAGES_A_ROUND = 10
_SECONDS = 60  # for one operation; critest's own bounds are for an idle machine
# critest leaves them out where it has no parameters, and names what it measures.
_CALLS = (
    "CreatePod", "StatusPod", "StopPod", "RemovePod",
    "CreateContainer", "StartContainer", "StatusContainer", "StopContainer", "RemoveContainer",
    "PullImage", "StatusImage", "RemoveImage", "ListImages",
)  # fmt: skip
FIGURES = tuple(report.Figure(name, "ms") for name in _CALLS)


def run(
    peers: Sequence[Peer], pods: int, rounds: int, directory: Path, versions: Mapping[str, str], console: Console
) -> dict[str, Samples]:
    """Measure `pods` pods and containers a round, one after the other; print a table, and return samples by runtime.

    Raises PeerFailed.
    """
    samples: dict[str, Samples] = {peer.name: defaultdict(list) for peer in peers}
    with Registry(directory / "registry") as registry:
        registry.push("bench", "1", busybox_image())
        insecure = f'[[registry]]\nlocation = "{registry.host}"\ninsecure = true\n'
        for peer in peers:  # containerd takes every registry of the loopback for one without TLS
            (peer.directory / "registries.conf").write_text(insecure)
        for number in range(rounds):
            console.print(f"round {number + 1}/{rounds}: critest -benchmark", style="dim")
            for peer in (*peers[number % len(peers) :], *peers[: number % len(peers)]):
                for name, values in _measure(peer, pods, registry, directory / f"critest-{peer.name}-{number}").items():
                    samples[peer.name][name] += values
    report.print_table(samples, {peer.name: versions[peer.name] for peer in peers}, console, FIGURES)
    return samples


def _measure(peer: Peer, pods: int, registry: Registry, output: Path) -> Samples:
    output.mkdir()
    parameters = {
        "containersNumber": pods, "containerBenchmarkTimeoutSeconds": _SECONDS,
        "podsNumber": pods, "podBenchmarkTimeoutSeconds": _SECONDS,
        "imagesNumber": _IMAGES_A_ROUND, "imageBenchmarkTimeoutSeconds": _SECONDS,
        "imagePullingBenchmarkImage": f"{registry.host}/bench:1", "imageListingBenchmarkImages": [BUSYBOX],
        "podContainerStartBenchmarkTimeoutSeconds": _SECONDS,
    }  # fmt: skip
    files = {"parameters.yaml": parameters, "images.yaml": {"defaultTestContainerImage": BUSYBOX}}
    for name, content in files.items():
        (output / name).write_text(yaml.safe_dump(content))
    command = [
        critest.programs() / "critest", "-benchmark", f"-runtime-endpoint={peer.address}",
        f"-image-endpoint={peer.address}", f"-benchmarking-params-file={output}/parameters.yaml",
        f"-test-images-file={output}/images.yaml", f"-benchmarking-output-dir={output}", "-ginkgo.no-color",
    ]  # fmt: skip
    environment = os.environ | {"PATH": f"{critest.programs()}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, env=environment, cwd=output, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise PeerFailed(f"critest -benchmark of {peer.name}: exit {done.returncode}: {done.stdout[-3000:]}")
    samples: Samples = defaultdict(list)
    for path in output.glob("*_data.json"):
        result = json.loads(path.read_text())
        for datapoint in result["datapoints"]:
            for name, taken in zip(result["operationsNames"], datapoint["operationsDurationsNs"], strict=True):
                samples[name].append(taken / 1e6)
    return samples
