"""The main path inside a Debian guest (tests/vm/guest.py), one test here for each test there (tests/vm/inside).

The guest boots three times for all of them; in between it loses its power.
"""

from __future__ import annotations

import os
import shutil

import pytest

from tests import programs
from tests.e2e import critest, kubernetes
from tests.images import write_layout
from tests.vm import payload
from tests.vm.conftest import TIMES
from tests.vm.machine import BOOKWORM

BOOTS = (
    ("crisp_oci", "pulls", "sessions", "first_boot"), ("second_boot", "kubelet_boot"), ("third_boot", "critest_boot"),
)  # fmt: skip
TIMEOUT_SECONDS = 3300.0  # more than twice what a machine of two cores took that had other things to do


@pytest.fixture(scope="session")
def outcome(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> payload.Outcome:
    if os.geteuid() != 0:
        pytest.skip("making a guest takes root")
    made = payload.make(BOOKWORM, tmp_path_factory.mktemp("guest"), BOOTS)
    shutil.copy(kubernetes.directory("kubelet") / "kubelet", made)
    shutil.copy(critest.programs() / "critest", made)
    critest.busybox_layout(made / "critest-image")
    write_layout(made / "programs-image", {programs.IMAGE: programs.image(programs.unpacked())})
    outcome = payload.run(BOOKWORM, made, BOOTS, TIMEOUT_SECONDS)
    pytestconfig.stash[TIMES] = outcome.times()
    return outcome


@pytest.mark.parametrize("name", payload.names(BOOTS))
def test_inside(name: str, outcome: payload.Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    """A test of that name passed in the guest; what it has to tell is printed."""
    if told := outcome.check(name):
        with capsys.disabled():
            print("\n" + told)
