"""The crash matrix. CI runs a part of it, another one each day; `CRASHES=all` runs every cell and prints the counts.

    sudo CRASHES=all .venv/bin/python -m pytest -q -s tests/integration/test_crashes.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.crash.calls import ROWS
from tests.crash.killable import CrashDaemon
from tests.crash.matrix import VICTIMS, Matrix

_ALL = os.environ.get("CRASHES") == "all"


@pytest.fixture
def matrix() -> Iterator[Matrix]:
    with CrashDaemon.running() as daemon:
        daemon.import_busybox()
        yield Matrix(daemon)


def test_a_process_killed_at_a_point_of_each_call(matrix: Matrix) -> None:
    day = int(time.time()) // 86_400
    for number, row in enumerate(ROWS):
        points = matrix.points(row)
        assert points, row.name
        print(f"{row.name}: {len(points)} points: {', '.join(points)}")
        indices = range(len(points)) if _ALL else [(day + number) % len(points)]
        for index in indices:
            for victim in VICTIMS if _ALL else [VICTIMS[(day + number) % len(VICTIMS)]]:
                matrix.cell(row, index, victim)
    print(matrix.table())
    assert sum(matrix.kills.values()) >= 0.9 * sum(matrix.cells.values())
