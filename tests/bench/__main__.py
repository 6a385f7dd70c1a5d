"""`python -m tests.bench`: crisp and the other runtimes of this machine, interleaved, under the same client."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from rich.console import Console

from tests import box
from tests.bench import critest, history, layouts, logs, node, oci, pull, recorder, report, streams, words
from tests.bench.peers import PEERS, Containerd, Crisp, Peer, PeerFailed, TracedCrisp, UnpackingCrisp
from tests.bench.phases import PHASES, Contender, down, idle_processors, up, warm_up
from tests.bench.trace import print_trace
from tests.bench.workload import Client
from tests.e2e.critest import programs

RESULTS = Path(__file__).parents[2] / "bench-results"
PUBLISHED = Path(__file__).parents[2] / "docs/figures.jsonl"
DIRECTORY = "CRISP_BENCH_DIRECTORY"  # set inside the box
_TURNS = 10  # of each runtime command in a round
NOISY = 0.3  # processors busy without us

# What the runtimes keep under /run (shims' sockets, locks, namespaces) is then this run's alone.
PRIVATE_RUN = "mount -t tmpfs -o mode=755 run /run && mkdir /run/netns && mount --make-shared /run\n"


def main() -> int:
    """Measure, report, and leave nothing: exit status 0, or 1 if a runtime failed."""
    arguments = _parser().parse_args()
    console = Console()
    if os.geteuid() != 0:
        console.print("bench: containers take root: run as root", style="red")
        return 1
    if DIRECTORY not in os.environ:
        if arguments.what == "critest":
            programs()  # built where they are missing, which takes a network
        return _in_a_box(sys.argv[1:])
    if arguments.what == "oci":
        oci.measure(Path(os.environ[DIRECTORY]), _TURNS * arguments.rounds, console)
        return 0
    status = 0
    try:
        pods = _trace if arguments.trace else _measure
        measures = {"critest": _critest, "pull": _pulls, "streams": _streams, "pods": pods}
        measures |= {"words": _words, "recorder": _recorder}
        measures |= dict.fromkeys(("node", "stats", "logs", "restart"), _node)
        measure = measures[arguments.what]
        asyncio.run(measure(arguments, Path(os.environ[DIRECTORY]), console))
    except* PeerFailed as failures:
        console.print(f"bench: {failures.exceptions[0]}", style="red", highlight=False, markup=False)
        status = 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    what = ("pods", "critest", "pull", "oci", "streams", "node", "stats", "logs", "restart", "words", "recorder")
    parser.add_argument("what", nargs="?", choices=what, default="pods", help="what to measure (pods)")
    parser.add_argument("--pods", type=_positive, default=15, metavar="N", help="pods of a round (15)")
    parser.add_argument("--rounds", type=_positive, default=3, metavar="N", help="rounds, runtimes taking turns (3)")
    names = [peer.name for peer in (*PEERS, UnpackingCrisp)]
    parser.add_argument("--only", action="append", choices=names, help="leave the other runtimes out; may be repeated")
    parser.add_argument(
        "--publish", action="store_true", help="add the figures to docs/figures.jsonl, from which README is generated"
    )
    parser.add_argument("--trace", action="store_true", help="instead, print where crispd spends a pod's start")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _in_a_box(arguments: list[str]) -> int:
    """Run this command line again in namespaces of its own; mounts, links, rules and processes go with them."""
    directory = Path(tempfile.mkdtemp(prefix="b", dir="/tmp"))
    script = box.INIT.replace("set +e", PRIVATE_RUN + "set +e", 1)
    try:
        return box.run([sys.executable, "-m", "tests.bench", *arguments], {DIRECTORY: str(directory)}, script)
    finally:
        shutil.rmtree(directory)  # out here none of the box's mounts lie below it


async def _measure(arguments: argparse.Namespace, directory: Path, console: Console) -> None:
    versions = {peer: version for peer in PEERS if (version := peer.version()) is not None}
    chosen = [peer for peer in versions if not arguments.only or peer.name in arguments.only]
    if not chosen:
        raise PeerFailed("measure: none of the runtimes asked for is installed")
    with ExitStack() as undo:
        peers = [peer(directory / peer.name, 100 + number) for number, peer in enumerate(chosen)]
        peers = _start(peers, directory, undo, console)
        contenders = await _contend(peers, arguments.pods, arguments.rounds, console)
    noise = statistics.median(value for one in contenders for value in one.noise)
    samples = {one.peer.name: dict(one.samples) for one in contenders}
    measured = {one.peer.name: versions[type(one.peer)] for one in contenders}
    report.print_table(samples, measured, console)
    if noise > NOISY:
        console.print(f"{noise:.1f} processors were busy with something else: compare with care", style="yellow")
    RESULTS.mkdir(exist_ok=True)
    about = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "busy_processors": round(noise, 3),
        "pods": arguments.pods,
        "rounds": arguments.rounds,
        "versions": measured,
    }
    report.write_json(RESULTS / "bench.json", samples, about)
    run = history.Run.now("pods", arguments.pods, noise, measured, samples, report.FIGURES)
    _keep(run, publish=arguments.publish)
    report.draw_plot(RESULTS / "bench.png", samples)
    console.print(f"written: {RESULTS}/bench.json, bench.png", highlight=False)


async def _pulls(arguments: argparse.Namespace, directory: Path, console: Console) -> None:
    with ExitStack() as undo:
        peers, versions = _started((Crisp, UnpackingCrisp, Containerd), arguments.only, directory, undo, console)
        async with AsyncExitStack() as close:
            contenders = _contenders(peers, close)
            for one in contenders:
                await warm_up(one)
            noise = [await idle_processors()]
            await pull.run(contenders, arguments.rounds, directory, versions, console)
            noise.append(await idle_processors())
    samples = {one.peer.name: dict(one.samples) for one in contenders}
    run = history.Run.now("pull", 0, statistics.mean(noise), versions, samples, pull.FIGURES)
    _keep(run, publish=arguments.publish)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "pull.json").write_text(json.dumps(samples, indent=1) + "\n")


async def _streams(arguments: argparse.Namespace, directory: Path, console: Console) -> None:
    versions = {peer.name: version for peer in (Crisp, Containerd) if (version := peer.version()) is not None}
    kinds = [kind for kind in (Crisp, Containerd) if kind.name in versions]
    with ExitStack() as undo:
        peers = [kind(directory / kind.name, 100 + number) for number, kind in enumerate(kinds)]
        peers = _start(peers, directory, undo, console)
        measured = await streams.run(peers, arguments.rounds, versions, console)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "streams.json").write_text(json.dumps(measured, indent=1) + "\n")


async def _node(arguments: argparse.Namespace, directory: Path, console: Console) -> None:
    """What a node of some size takes: `node`, `stats`, `logs` and `restart`."""
    with ExitStack() as undo:
        peers, versions = _started(PEERS, arguments.only, directory, undo, console)
        async with AsyncExitStack() as close:
            contenders = _contenders(peers, close)
            noise = [await idle_processors()]
            if arguments.what == "logs":
                await logs.run(contenders, arguments.rounds, versions, console)
            elif arguments.what == "node":
                await node.run(contenders, arguments.pods, versions, console)
            elif arguments.what == "stats":
                await node.run_stats(contenders, arguments.pods, arguments.rounds, versions, console)
            else:
                await node.run_restarts(contenders, arguments.pods, arguments.rounds, versions, console)
            noise.append(await idle_processors())
    figures = {"logs": logs.FIGURES, "stats": node.STATS_FIGURES}.get(arguments.what, node.FIGURES)
    samples = {one.peer.name: dict(one.samples) for one in contenders}
    run = history.Run.now(arguments.what, arguments.pods, statistics.mean(noise), versions, samples, figures)
    _keep(run, publish=arguments.publish)
    if run.busy_processors > NOISY:
        console.print(f"{run.busy_processors:.1f} processors were busy with something else", style="yellow")
    console.print(f"written: {RESULTS}/history.jsonl", highlight=False)


async def _recorder(arguments: argparse.Namespace, directory: Path, console: Console) -> None:
    with ExitStack() as undo:
        crisp = Crisp(directory / "crisp", 100)
        _start([crisp], directory, undo, console)
        async with AsyncExitStack() as close:
            one = Contender(crisp, _client(crisp))
            close.push_async_callback(one.client.close)
            measured = await recorder.run(one, arguments.pods, directory, console)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "recorder.json").write_text(json.dumps(measured, indent=1) + "\n")


async def _words(arguments: argparse.Namespace, directory: Path, console: Console) -> None:
    found = {peer.name: version for peer in (Crisp, Containerd) if (version := peer.version()) is not None}
    kinds = [kind for kind in (Crisp, Containerd) if kind.name in found]
    with ExitStack() as undo:
        peers = [kind(directory / kind.name, 100 + number) for number, kind in enumerate(kinds)]
        peers = _start(peers, directory, undo, console)
        words.run(peers, directory, found)
    console.print(f"written: {words.PAGE}", highlight=False)


def _keep(run: history.Run, *, publish: bool) -> None:
    for path in (RESULTS / "history.jsonl", *([PUBLISHED] if publish else [])):
        history.append(path, run)


async def _critest(arguments: argparse.Namespace, directory: Path, console: Console) -> None:
    with ExitStack() as undo:
        peers, versions = _started((Crisp, Containerd), arguments.only, directory, undo, console)
        noise = [await idle_processors()]
        samples = critest.run(peers, arguments.pods, arguments.rounds, directory, versions, console)
        noise.append(await idle_processors())
    run = history.Run.now(
        "critest", arguments.pods, statistics.mean(noise), versions, samples, critest.FIGURES
    )
    _keep(run, publish=arguments.publish)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "critest.json").write_text(json.dumps({"versions": versions, "samples": samples}, indent=1) + "\n")


async def _trace(arguments: argparse.Namespace, directory: Path, console: Console) -> None:
    with ExitStack() as undo:
        crisp = TracedCrisp(directory / "crisp", 100)
        _start([crisp], directory, undo, console)
        async with AsyncExitStack() as close:
            one = Contender(crisp, _client(crisp))
            close.push_async_callback(one.client.close)
            await warm_up(one)
            before = len(crisp.log_path.read_bytes())
            await up(one, arguments.pods)
            await down(one, arguments.pods)
        print_trace(crisp.log_path.read_bytes()[before:].decode(), console)


def _client(peer: Peer) -> Client:
    return Client(peer.address, peer.directory / "logs", f"/{peer.directory.parent.name}/{peer.name}")


def _contenders(peers: Sequence[Peer], close: AsyncExitStack) -> list[Contender]:
    contenders = [Contender(peer, _client(peer)) for peer in peers]
    for one in contenders:
        close.push_async_callback(one.client.close)
    return contenders


def _started(
    kinds: Sequence[type[Peer]], only: Sequence[str] | None, directory: Path, undo: ExitStack, console: Console
) -> tuple[list[Peer], dict[str, str]]:
    """Start those that are installed, and among `only` if there are any. Returns them and their versions."""
    chosen = [kind for kind in kinds if not only or kind.name in only]
    versions = {kind.name: version for kind in chosen if (version := kind.version()) is not None}
    found = [kind for kind in chosen if kind.name in versions]
    peers = [kind(directory / kind.name, 100 + number) for number, kind in enumerate(found)]
    peers = _start(peers, directory, undo, console)
    return peers, {peer.name: versions[peer.name] for peer in peers}


def _start(peers: list[Peer], directory: Path, undo: ExitStack, console: Console) -> list[Peer]:
    """Those of `peers` that could be started and given their images. Raises PeerFailed if none could."""
    busybox, pause = layouts.busybox_tar(directory), layouts.pause_tar(directory)
    started = []
    for peer in peers:
        try:
            peer.start(undo)
            peer.load(busybox, pause)
        except PeerFailed as error:
            console.print(f"left out: {error}", style="yellow", markup=False, highlight=False)
        else:
            started.append(peer)
    if not started:
        raise PeerFailed("measure: no runtime could be started")
    return started


async def _contend(peers: list[Peer], pods: int, rounds: int, console: Console) -> list[Contender]:
    """Every phase for every runtime, before the next phase."""
    async with AsyncExitStack() as undo:
        contenders = _contenders(peers, undo)
        for one in contenders:
            await warm_up(one)
        for number in range(rounds):
            # Whoever comes first in one round comes last in the next.
            turns = contenders[number % len(contenders) :] + contenders[: number % len(contenders)]
            for phase in PHASES:
                console.print(f"round {number + 1}/{rounds}: {phase.__name__.replace('_', ' ')}", style="dim")
                for one in turns:
                    await phase(one, pods)
    return contenders


if __name__ == "__main__":
    sys.exit(main())
