"""`python -m tests.bench recorder`: what the flight recorder costs a pod start, by replaying a real one's entries."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from pods.model import SandboxMetadata
from pods.recorder.entry import Entry, decode
from pods.recorder.files import Files
from pods.recorder.recorder import Bounds, Recorder
from tests.bench.phases import Contender, down, up, warm_up

_REPLAYS: Final = 500
_WRITE_SECONDS: Final = 0.3  # entries are written a quarter of a second later


async def run(one: Contender, pods: int, directory: Path, console: Console) -> dict[str, Any]:
    """Start pods on crisp, and replay their entries into a recorder of ours; print and return figures."""
    await warm_up(one)
    before = time.perf_counter()
    await up(one, pods)
    start = (time.perf_counter() - before) / pods
    await asyncio.sleep(_WRITE_SECONDS)
    recordings = [
        [entry for line in lines if (entry := decode(line)) is not None]
        for subject, lines, _size in Files(one.peer.directory / "root/recorder").read()
        if not subject.is_image
    ]
    await down(one, pods)
    entries = max(recordings, key=len)
    loop, thread, written = await _replayed(entries, directory / "recorder")
    found = {
        "entries of a start": len(entries),
        "on the event loop, us a start": loop * 1e6,
        "processor time in all, us a start": (loop + thread) * 1e6,
        "bytes written a start": written,
        "a start takes, us": start * 1e6,
        "the recorder's share of it, %": (loop + thread) / start * 100,
    }
    for name, value in found.items():
        console.print(f"{name}: {value:.4g}", highlight=False)
    return found


async def _replayed(entries: list[Entry], directory: Path) -> tuple[float, float, float]:
    """Return the seconds of a start on the loop, those of the writing thread, and the bytes."""
    loop: list[float] = []
    recorder = Recorder(directory, Bounds())
    await recorder.open()
    begun = time.process_time()
    for number in range(_REPLAYS):
        recording = recorder.of_pod(SandboxMetadata(name=f"pod-{number}", uid="u", namespace="bench")).recording
        at = time.thread_time()
        for entry in entries:
            recording.add(entry)
        recording.size  # noqa: B018 - encodes what is pending, as a write does
        loop.append(time.thread_time() - at)
    recorder.close()
    whole = (time.process_time() - begun) / _REPLAYS
    size = sum(path.stat().st_size for path in directory.iterdir()) / _REPLAYS
    mine = statistics.median(loop)
    return mine, max(0.0, whole - mine), size
