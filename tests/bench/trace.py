"""Where crispd says that a start's time goes (`crispd --trace-start`), as medians."""

from __future__ import annotations

import re
from collections import defaultdict
from statistics import median

from rich import box
from rich.console import Console
from rich.table import Table

# msg=OPERATION id=ID ms=WHOLE steps="STEP MS, STEP MS"; a step's name may contain commas.
_LINE = re.compile(r'logger=crisp\.trace msg="?(.+?)"? id=[0-9a-f]+ ms=([\d.]+) steps="(.*)"')
_STEP = re.compile(r"(.+?) (-?[\d.]+)(?:, |$)")

Steps = dict[str, list[float]]


def parse(log: str) -> dict[str, Steps]:
    """The milliseconds of each step, by operation; the whole operation stands under ""."""
    operations: dict[str, Steps] = {}
    for operation, whole, steps in _LINE.findall(log):
        times = operations.setdefault(operation, defaultdict(list))
        for step, taken in _STEP.findall(steps):
            times[step].append(float(taken))
        times[""].append(float(whole))
    return operations


def print_trace(log: str, console: Console) -> None:
    """A table of the medians, in the order in which the steps come."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", title="crispd's own trace, medians in ms")
    table.add_column("")
    table.add_column("ms", justify="right")
    for operation, steps in parse(log).items():
        table.add_row(operation, f"{median(steps.pop('')):.2f}", style="bold")
        for step, times in steps.items():
            table.add_row(f"  {step}", f"{median(times):.2f}")
    console.print(table)
