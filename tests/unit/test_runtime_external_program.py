"""What is told of another runtime's failed command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runtime.shim.launch.external_program import Program
from runtime.wire.calls import ExternalRuntime


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ('{"level":"warning","msg":"odd"}\n{"level":"error","msg":"first"}\n{"level":"fatal","msg":"last"}', "last"),
        ('{"level":"ERROR","message":"no cgroup manager\\n\\nStack backtrace:\\n 0: x"}', "no cgroup manager"),
        ("[]\nwords\n{}\n" + '{"level":7}\\n{"level":"error"}', "exit status 1"),
    ],
)
def test_the_last_error_of_its_log(tmp_path: Path, log: str, told: str) -> None:
    nobody: Any = None
    program = Program(ExternalRuntime(path="/bin/other", root="/run/other", systemd=False), str(tmp_path), nobody)
    (tmp_path / "runtime.log").write_text(log)
    assert str(program.failure("create", 1)) == f"/bin/other create: {told}"
