"""critest on the machine that users have: AppArmor, which the specs' own machine lacks, and what differs by the kernel.

Run inside the guest by run.py, last: critest expects that nobody else uses the runtime.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e import critest
from tests.vm.inside.node import Service

# Under emulation a spec takes ten seconds. tests/e2e runs the others; what those ask of cgroups of version 2 and of
# seccomp, first_boot asks, too. Each with how many there are at least.
FOCUS = {
    "AppArmor": 9,
    "runtime should support NamespaceMode_POD": 1,
    "should support recursive readonly mounts": 1,
}
PROGRAM = Path("/payload/critest")
IMAGE = Path("/payload/critest-image")


@pytest.fixture(scope="module")
def service() -> Service:
    service = Service()
    service.start()
    service.import_image(IMAGE)
    return service


def test_critest(
    service: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    # It loads its profiles by sudo, which a machine of root alone has not.
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\nexec "$@"\n')
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}:/usr/sbin:/sbin")
    outcome = critest.run_alone(PROGRAM, service.listen, tmp_path, tuple(FOCUS))
    record_property("told", f"{outcome.summary('critest')}\n  the other specs run in tests/e2e, on the machine itself")
    assert outcome.failed == {}
    assert outcome.skipped == {}
    passed = {word: sum(word in name for name in outcome.passed) for word in FOCUS}
    assert {word: count for word, count in passed.items() if count < FOCUS[word]} == {}
