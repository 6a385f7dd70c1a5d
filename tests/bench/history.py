"""Keeps what was measured: a line of JSON for each run, with medians and percentiles of each runtime."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import msgspec

from tests.bench.report import Figure, Samples, percentile


class Value(msgspec.Struct, frozen=True):
    """A figure of one runtime; `p99` only where the figure has a tail."""

    unit: str
    p50: float
    p99: float | None = None


class Run(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A run of `python -m tests.bench what`, on which machine, and what came of it: runtime -> figure -> value."""

    date: str
    what: str
    pods: int
    kernel: str
    processors: int
    busy_processors: float  # with something else
    versions: dict[str, str]
    results: dict[str, dict[str, Value]]
    note: str = ""

    @classmethod
    def now(
        cls,
        what: str,
        pods: int,
        busy: float,
        versions: Mapping[str, str],
        samples: Mapping[str, Samples],
        figures: Sequence[Figure],
    ) -> Run:
        """Sum up samples on this machine."""
        return cls(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            what=what,
            pods=pods,
            kernel=platform.release(),
            processors=os.cpu_count() or 0,
            busy_processors=round(busy, 2),
            versions=dict(versions),
            results={name: _values(of_one, figures) for name, of_one in samples.items()},
        )


def _values(samples: Samples, figures: Sequence[Figure]) -> dict[str, Value]:
    return {
        figure.name: Value(
            figure.unit,
            round(median(samples[figure.name]), 3),
            round(percentile(samples[figure.name], 0.99), 3) if figure.tail else None,
        )
        for figure in figures
        if figure.name in samples
    }


def append(path: Path, run: Run) -> None:
    """Add a run to a history."""
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        file.write(msgspec.json.encode(run) + b"\n")


def read(path: Path) -> list[Run]:
    """The runs of a history, oldest first."""
    return [msgspec.json.decode(line, type=Run) for line in path.read_bytes().splitlines()]
