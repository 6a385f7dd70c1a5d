"""What the figures come to: a table with ratios, a JSON file, a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Samples = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the table. `tail` asks for the 99th percentile beside the median."""

    name: str
    unit: str
    tail: bool = True
    more_is_better: bool = False


FIGURES = (
    Figure("Version", "ms"),
    Figure("RunPodSandbox", "ms"),
    Figure("CreateContainer", "ms"),
    Figure("StartContainer", "ms"),
    Figure("pod start", "ms"),
    Figure("ExecSync", "ms"),
    Figure("ExecSync, 8 at a time", "ms"),
    Figure("execs a second", "1/s", tail=False, more_is_better=True),
    Figure("ListContainerStats", "ms"),
    Figure("ListPodSandboxStats", "ms"),
    Figure("StopPodSandbox", "ms"),
    Figure("RemovePodSandbox", "ms"),
    Figure("pod end", "ms"),
    Figure("pods a second up", "1/s", tail=False, more_is_better=True),
    Figure("pods a second down", "1/s", tail=False, more_is_better=True),
    Figure("machine's CPU, pod start", "ms", tail=False),
    Figure("processes' CPU, pod start", "ms", tail=False),
    Figure("machine's CPU, exec", "ms", tail=False),
    Figure("processes' CPU, exec", "ms", tail=False),
    Figure("machine's CPU, stats of all pods", "ms", tail=False),
    Figure("processes' CPU, stats of all pods", "ms", tail=False),
    Figure("memory of a pod", "MiB", tail=False),
    Figure("daemon memory", "MiB", tail=False),
)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0..1) of the values do not exceed, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def advantage(figure: Figure, ours: float, theirs: float) -> float:
    """How many times better our median is; below 1 it is worse. NaN where noise has eaten a figure up."""
    better, worse = (ours, theirs) if figure.more_is_better else (theirs, ours)
    return better / worse if better > 0 and worse > 0 else float("nan")


def print_table(
    samples: Mapping[str, Samples],
    versions: Mapping[str, str],
    console: Console,
    figures: Sequence[Figure] = FIGURES,
) -> None:
    """One column a runtime; then, against each of the others, how many times better the first is."""
    first, *others = samples
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0), title="medians / 99th percentiles")
    table.add_column("", no_wrap=True)
    table.add_column("unit")
    for name in samples:
        table.add_column(name, justify="right", no_wrap=True)
    for name in others:
        table.add_column(f"vs {name}", justify="right")
    for figure in figures:
        if not all(figure.name in of_one for of_one in samples.values()):
            continue
        medians = {name: median(of_one[figure.name]) for name, of_one in samples.items()}
        cells = [_cell(figure, of_one[figure.name]) for of_one in samples.values()]
        ratios = [_ratio(advantage(figure, medians[first], medians[name])) for name in others]
        table.add_row(figure.name, figure.unit, *cells, *ratios)
    console.print(table)
    for name, version in versions.items():
        console.print(f"{name}: {version}", highlight=False)


def _ratio(value: float) -> str:
    return "-" if isnan(value) else f"{value:.1f}x"


def _cell(figure: Figure, values: Sequence[float]) -> str:
    middle = f"{median(values):.2f}" if median(values) < 10 else f"{median(values):.1f}"
    return f"{middle} / {percentile(values, 0.99):.1f}" if figure.tail else middle


def write_json(path: Path, samples: Mapping[str, Samples], about: Mapping[str, Any]) -> None:
    """Every sample, the medians and percentiles of them, and what was measured where."""
    summary = {
        name: {
            figure.name: {
                "unit": figure.unit,
                "p50": round(median(of_one[figure.name]), 3),
                "p99": round(percentile(of_one[figure.name], 0.99), 3),
                "samples": [round(value, 3) for value in of_one[figure.name]],
            }
            for figure in FIGURES
            if figure.name in of_one
        }
        for name, of_one in samples.items()
    }
    path.write_text(json.dumps({**about, "results": summary}, indent=1) + "\n")


_PANELS = (
    ("Pod start, ms", ("RunPodSandbox", "CreateContainer", "StartContainer", "pod start")),
    ("ExecSync of true, ms", ("ExecSync", "ExecSync, 8 at a time")),
    ("Pod end, ms", ("StopPodSandbox", "RemovePodSandbox", "pod end")),
    ("Pods a second, 8 at a time", ("pods a second up", "pods a second down")),
    (
        "Processor time, ms",
        ("machine's CPU, pod start", "processes' CPU, pod start", "machine's CPU, exec", "processes' CPU, exec"),
    ),
    ("Memory, MiB", ("memory of a pod", "daemon memory")),
)


def draw_plot(path: Path, samples: Mapping[str, Samples]) -> None:
    """Bars of the medians, with a tick at the 99th percentile where there is one."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    tails = {figure.name for figure in FIGURES if figure.tail}
    grid, axes = pyplot.subplots(2, 3, figsize=(15, 8), layout="constrained")
    width = 0.8 / len(samples)
    for axis, (title, names) in zip(axes.flat, _PANELS, strict=True):
        for index, (runtime, of_one) in enumerate(samples.items()):
            places = [place + index * width for place in range(len(names))]
            bars = axis.bar(places, [median(of_one[name]) for name in names], width * 0.92, label=runtime)
            axis.bar_label(bars, fmt="%.3g", fontsize=8)
            tailed = [(place, name) for place, name in zip(places, names, strict=True) if name in tails]
            heights = [percentile(of_one[name], 0.99) for _, name in tailed]
            axis.scatter([place for place, _ in tailed], heights, marker="_", color="black", s=60)
        axis.set_title(title)
        labels = [name.replace(", ", ",\n") for name in names]
        axis.set_xticks([place + 0.4 - width / 2 for place in range(len(names))], labels, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].legend(frameon=False)
    grid.savefig(path, dpi=110)
