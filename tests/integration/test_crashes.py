"""The crash matrix. CI runs a part of it, another one each day; `CRASHES=all` runs every cell and prints the counts.

A whole run goes on after a cell that fails, with a new daemon, and tells of all of them at its end.

    sudo CRASHES=all .venv/bin/python -m pytest -q -s tests/integration/test_crashes.py -k point
    sudo KILLS=500 .venv/bin/python -m pytest -q -s tests/integration/test_crashes.py -k instants
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

from tests.crash.calls import ROWS, Row
from tests.crash.killable import CrashDaemon
from tests.crash.matrix import VICTIMS, Matrix
from tests.crash.storm import Storm
from tests.daemon import Daemon, DaemonFailed

_KILLS = int(os.environ.get("KILLS", "0"))
_ONLY = os.environ.get("VICTIMS", "").split()
_ALL = os.environ.get("CRASHES") == "all"


def _cells(matrix: Matrix) -> Iterator[tuple[Row, int, str]]:
    day = int(time.time()) // 86_400
    for number, row in enumerate(ROWS):
        points = matrix.points(row)
        assert points, row.name
        print(f"{row.name}: {len(points)} points: {', '.join(points)}")
        for index in range(len(points)) if _ALL else [(day + number) % len(points)]:
            for victim in (_ONLY or VICTIMS) if _ALL else [VICTIMS[(day + number) % len(VICTIMS)]]:
                yield row, index, victim


def test_a_process_killed_at_a_point_of_each_call() -> None:
    failures: list[str] = []
    matrix: Matrix | None = None
    left: Iterator[tuple[Row, int, str]] = iter(())
    while True:
        try:
            with CrashDaemon.running() as daemon:
                daemon.import_busybox()
                if matrix is None:
                    matrix = Matrix(daemon)
                    left = _cells(matrix)
                matrix.daemon = daemon
                for cell in left:
                    matrix.cell(*cell)
            break
        except (AssertionError, DaemonFailed) as error:
            if not _ALL:
                raise
            failures.append(str(error))
            print(f"FAILED: {error}", flush=True)
    print(matrix.table())
    assert not failures, "\n\n".join(failures)
    assert sum(matrix.kills.values()) >= 0.9 * sum(matrix.cells.values())


def test_processes_killed_at_random_instants(fresh_daemon: Daemon) -> None:
    storm = Storm(fresh_daemon, random.randrange(1 << 32) if _KILLS else 1)
    for at_once in [50] * (_KILLS // 50) or [12]:
        storm.run(at_once)  # then all pods end, and records and machine must agree
        print(dict(storm.kills), dict(storm.lives), flush=True)
    assert storm.lives["whole"]
