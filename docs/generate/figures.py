"""Fills tables of figures between `<!-- bench:begin NAME -->` and `<!-- bench:end -->`, from docs/figures.jsonl.

`python -m tests.bench ... --publish` appends to that file. The newest run of a kind counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.bench.history import Run, Value, read

_MARKS: Final = re.compile(r"(<!-- bench:begin (\w+)(?: (\d+))? -->\n).*?(<!-- bench:end -->)", re.DOTALL)
_OURS: Final = "crisp"
_PEER: Final = "containerd"

Row = tuple[str, str, tuple[str, ...]]  # a text; what was measured, and the figures of it
_OVERVIEW: Final[tuple[Row, ...]] = (
    ("start of a pod (RunPodSandbox + CreateContainer + StartContainer), ms", "pods", ("pod start",)),
    ("ExecSync of `true`, ms", "pods", ("ExecSync",)),
    ("ExecSync, 8 at a time, a second", "pods", ("execs a second",)),
    ("stop and removal of a pod, ms", "pods", ("pod end",)),
    ("pods a second, 8 at a time, up; down", "pods", ("pods a second up", "pods a second down")),
    ("CPU of the whole machine for a pod start; for an exec, ms", "pods",
     ("machine's CPU, pod start", "machine's CPU, exec")),
    ("CreateContainer alone, ms", "pods", ("CreateContainer",)),
    ("ListContainerStats; ListPodSandboxStats, ms", "pods", ("ListContainerStats", "ListPodSandboxStats")),
    ("an empty call (Version), ms", "pods", ("Version",)),
    ("memory of a pod of one container, MiB", "pods", ("memory of a pod",)),
    ("memory of the idle daemon, MiB", "pods", ("daemon memory",)),
    ("`tests.bench logs`: lines of 100 bytes from one container; from four, MB/s", "logs",
     ("log output, 1 containers", "log output, 4 containers")),
    ("the same: CPU for a GB, writers included, s", "logs",
     ("CPU, writers included, 1 containers", "CPU, writers included, 4 containers")),
    ("`tests.bench pull`: an image of 500 MB in 40,000 files; 30 small ones, s", "pull", ("large", "small")),
    ("the same: CPU of the daemon and its workers, s", "pull", ("large, CPU", "small, CPU")),
    ("the same: most memory of the daemon and its workers, MiB", "pull", ("large, peak memory", "small, peak memory")),
    ("the same: removal, s", "pull", ("large, removal", "small, removal")),
    ("the same: start of a pod whose image must be pulled: the large one; a small one, s", "pull",
     ("pod start, large image not there", "pod start, small image not there")),
    ("`tests.bench oci`: `crisp-oci run` of `true`, and runc's; `exec`, ms", "oci", ("run", "exec")),
    ("the same by crisp's zygote, as pods have it, ms", "oci", ("run by the zygote", "exec by the zygote")),
)  # fmt: skip


def filled(root: Path, name: str) -> str:
    """The text of a file of the project with all of its tables filled in."""
    runs = read(root / "docs/figures.jsonl")
    tables: dict[str, Callable[[int], str]] = {
        "overview": lambda _pods: _overview(runs),
        "critest": lambda pods: _newest(runs, "critest", pods),
        "node": lambda pods: _newest(runs, "node", pods),
        "stats": lambda pods: _newest(runs, "stats", pods),
        "runs": lambda _pods: _runs(runs),
    }

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}{tables[match[2]](int(match[3] or 0))}{match[4]}"

    return _MARKS.sub(table, (root / name).read_text())


def _overview(runs: Sequence[Run]) -> str:
    newest = {run.what: run for run in runs}
    versions = newest["pods"].versions
    lines = [_line("", *(f"{name} {versions[name]}" for name in (_OURS, _PEER))), _line("---", "---", "---")]
    for text, what, figures in _OVERVIEW:
        if what in newest:
            results = newest[what].results
            lines.append(_line(text, *(_cell(results.get(name, {}), figures) for name in (_OURS, _PEER))))
    return "".join(lines)


def _newest(runs: Sequence[Run], what: str, pods: int) -> str:
    fitting = [run for run in runs if (run.what, run.pods) == (what, pods)]
    if not fitting:
        return ""
    run = fitting[-1]
    runtimes = [f"{name} {run.versions[name]}" for name in run.results]
    lines = [_line("", *runtimes), _line("---", *["---"] * len(runtimes))]
    for name, value in next(iter(run.results.values())).items():
        cells = (_with_tail(of_one.get(name)) for of_one in run.results.values())
        lines.append(_line(f"{name}, {value.unit}" + (", p50 / p99" if value.p99 is not None else ""), *cells))
    return "".join(lines)


def _runs(runs: Sequence[Run]) -> str:
    lines = [_line("run", "pods", "date", "kernel", "processors", "of them busy with something else", "note")]
    lines.append(_line(*["---"] * 7))
    for run in runs:
        busy = f"{run.busy_processors:g}"
        lines.append(_line(run.what, str(run.pods or ""), run.date, run.kernel, str(run.processors), busy, run.note))
    return "".join(lines)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n".replace("|  |", "| |")


def _cell(values: dict[str, Value], figures: Sequence[str]) -> str:
    return "; ".join(_number(values[name].p50) for name in figures if name in values)


def _with_tail(value: Value | None) -> str:
    if value is None:
        return ""
    return _number(value.p50) + (f" / {_number(value.p99)}" if value.p99 is not None else "")


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
