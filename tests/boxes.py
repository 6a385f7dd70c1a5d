"""One run of pytest in several boxes (tests/box.py) at once, which share its test modules: `pytest --boxes 3`.

Many tests wait: for a grace period, a back-off, a process. Each box is a pytest of its own that collects everything. It
takes the next module that nobody has, until there is none. The first one's output is shown as it comes, the others' at
the end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest

from linux import syscalls

MARK = "CRISP_TEST_CLAIMS"  # the directory where a box puts a file for each module that it takes
# These take longest. One that begins when the other boxes have nothing left would lengthen the run.
LONGEST = (
    "test_faults.py", "test_image_evil.py", "test_image_layers.py", "test_crashes.py", "test_handlers.py",
    "test_fuzz.py", "test_streaming_server.py", "test_checkpoint_pod.py", "test_model.py", "test_upgrade.py",
)  # fmt: skip


def sharing() -> bool:
    """Does this process run only the modules that it takes?"""
    return MARK in os.environ


def run(arguments: Sequence[str], boxes: int) -> int:
    """Run pytest with these arguments in that many boxes; the worst exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what there is is still shown
    with tempfile.TemporaryDirectory(prefix="crisp-boxes-") as name, ExitStack() as undo:
        directory = Path(name)
        (directory / "claims").mkdir()
        environment = os.environ | {MARK: str(directory / "claims")}
        running = []
        for number in range(boxes):
            with ExitStack() as opened:
                output = None  # the first one's is shown as it comes
                if number:
                    path = directory / str(number)
                    output = opened.enter_context(path.open("wb"))
                    undo.callback(_show, path, f"box {number + 1} of {boxes}")
                command = [sys.executable, "-m", "pytest", *arguments]
                started = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
                    preexec_fn=_die_along,
                )  # fmt: skip
            undo.callback(started.kill)
            running.append(started)
        return max(started.wait() & 0xFF for started in running)


def chosen(items: Iterable[pytest.Item]) -> Iterator[pytest.Item]:
    """The tests of the modules that this process takes. One is taken when the first of its tests is asked for."""
    modules = [(path, list(tests)) for path, tests in groupby(items, lambda item: item.path)]
    for path, tests in sorted(modules, key=lambda module: _rank(module[0])):
        if _take(path):
            yield from tests


def loop(session: pytest.Session) -> None:
    """What pytest's own loop does, with the tests of `chosen`. Raises Session.Interrupted or Session.Failed."""
    if session.testsfailed and not session.config.option.continue_on_collection_errors:
        raise session.Interrupted(f"{session.testsfailed} errors during collection")
    items: Iterator[Any] = chosen(session.items)
    for item, following in pairwise(_and_none(items)):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)


def _and_none(items: Iterator[Any]) -> Iterator[Any]:
    yield from items
    yield None


def _rank(path: Path) -> tuple[int, bool]:
    """The longest first, and unit tests last: many modules that take a second or two make the ends meet."""
    place = LONGEST.index(path.name) if path.name in LONGEST else len(LONGEST)
    return place, path.parent.name == "unit"


def _take(module: Path) -> bool:
    try:
        (Path(os.environ[MARK]) / str(module).replace("/", "+")).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _show(output: Path, title: str) -> None:
    print(f"\n-- {title}\n{output.read_text(errors='replace')}", flush=True)


def _die_along() -> None:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
