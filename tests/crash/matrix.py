"""Runs cells of the matrix: call x point x killed process."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from cri.admin.v1 import admin_pb2
from tests.crash.calls import Row, Stage
from tests.crash.killable import CrashDaemon
from tests.daemon import CALL_SECONDS

VICTIMS = ("crispd", "shim", "zygote", "both")  # a shim and its keeper, the zygote, at once
_SETTLE_SECONDS = 60.0
_tokens = itertools.count(1)


@dataclass
class Matrix:
    """What was run: cells by call and process, and the points of each call."""

    daemon: CrashDaemon
    cells: Counter[tuple[str, str]] = field(default_factory=Counter)
    kills: Counter[tuple[str, str]] = field(default_factory=Counter)

    def points(self, row: Row) -> list[str]:
        """Make the call once without a kill; the points that it passed."""
        stage = Stage(self.daemon, f"p{next(_tokens)}")
        row.before(stage)
        with self._armed(-1, "crispd") as passed, _refused(row):
            row.call(stage)
        with _refused(row):
            row.call(stage)
        row.after(stage)
        stage.end()
        self._agree("calm")
        return passed

    def cell(self, row: Row, index: int, victim: str) -> str:
        """Kill at one point; then all must be as if the call had been made once. Returns the point's name, or ""."""
        stage = Stage(self.daemon, f"c{next(_tokens)}")
        row.before(stage)
        with self._armed(index, victim) as passed, contextlib.suppress(grpc.RpcError):
            row.call(stage)
        point = passed[index] if len(passed) > index else ""
        what = f"{row.name}, {victim} killed at {point!r}"
        if victim == "crispd" and point:
            assert self.daemon.process is not None
            self.daemon.process.wait(CALL_SECONDS)
        if not self.daemon.alive():
            self.daemon.buried()
            self.daemon.start()
        self._agree(what)
        self.cells[row.name, victim] += 1
        self.kills[row.name, victim] += bool(point)
        if victim != "both":  # the pod is lost then
            try:
                with _refused(row):
                    row.call(stage)
                row.after(stage)
            except Exception as error:
                raise AssertionError(f"{what}: then {error}\n{self.daemon.log()}") from error
        elif (aside := self.daemon.cni_conf_dir / "10-test.aside").exists():
            aside.replace(aside.with_suffix(".conflist"))
        stage.end()
        self._agree(f"{what}, and the pod's end")
        return point

    def _agree(self, what: str) -> None:
        """Fail unless records and machine agree, once crispd has noticed the death of a shim."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while found := self.daemon.admin.Check(admin_pb2.CheckRequest(), timeout=CALL_SECONDS).disagreements:
            if time.monotonic() > deadline:
                told = "\n".join(f"  {one.kind} {one.object}: {one.text}" for one in found)
                raise AssertionError(f"{what}: crisp check finds\n{told}\n{self.daemon.log()}")

    def _look(self) -> None:
        """Return when crispd has passed every point of earlier calls: some come after the answer."""
        self.daemon.admin.Check(admin_pb2.CheckRequest(), timeout=CALL_SECONDS)  # reads the database behind its writes

    @contextmanager
    def _armed(self, index: int, victim: str) -> Iterator[list[str]]:
        """The points that are passed meanwhile, once the block has ended."""
        token, passed = f"t{next(_tokens)}", list[str]()
        self._look()
        new = self.daemon.plan.with_suffix(".new")
        new.write_text(f"{token} {index} {victim}")
        new.rename(self.daemon.plan)
        try:
            yield passed
        finally:
            with contextlib.suppress(grpc.RpcError):  # it may be dead
                self._look()
            self.daemon.plan.unlink()
            points = Path(f"{self.daemon.plan}.points")
            lines = [line.split(" ", 2) for line in points.read_text().splitlines()] if points.exists() else []
            passed += [name for of, _, name in lines if of == token]
            points.unlink(missing_ok=True)

    def table(self) -> str:
        """Cells run, by call and process, and how many of them were killed at their point."""
        names = list(dict.fromkeys(name for name, _ in self.cells))
        rows = [f"{'call':28}" + "".join(f"{victim:>16}" for victim in VICTIMS)]
        for name in names:
            counts = [f"{self.kills[name, victim]} of {self.cells[name, victim]}" for victim in VICTIMS]
            rows.append(f"{name:28}" + "".join(f"{count:>16}" for count in counts))
        return "\n".join(rows)


@contextmanager
def _refused(row: Row) -> Iterator[None]:
    """Take the row's refusals for an answer."""
    try:
        yield
    except grpc.RpcError as error:
        if error.code() not in row.refusals:
            raise
