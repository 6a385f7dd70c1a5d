"""The main path on machines other than the usual guest's (docs/install.md), in one command for each:

pytest tests/vm/machines.py -k trixie
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import pytest

from tests.vm import machine, payload
from tests.vm.conftest import TIMES

BOOTS: Final = (("crisp_oci", "pulls", "first_boot"), ("second_boot", "layers"))
TIMEOUT_SECONDS: Final = 2400.0
SELINUX_BOOTS: Final = (("selinux_boot",), ("selinux_again",))
MACHINES: Final[Mapping[str, tuple[machine.Machine, payload.Boots]]] = {
    "trixie": (machine.TRIXIE, BOOTS),
    "newest": (machine.NEWEST, BOOTS),
    "ubuntu": (machine.UBUNTU_2204, BOOTS),
    "arm64": (machine.ARM, BOOTS),
    "selinux": (machine.SELINUX, SELINUX_BOOTS),
}
TESTS: Final = [(name, test) for name, (_machine, boots) in MACHINES.items() for test in payload.names(boots)]


@pytest.fixture(scope="session")
def outcome(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> payload.Outcome:
    """What the tests in a machine's guest said."""
    if os.geteuid() != 0:
        pytest.skip("making a guest takes root")
    chosen, boots = MACHINES[request.param]
    if chosen.kernel.packages and machine.ARCHIVE not in os.environ:
        pytest.skip(f"set {machine.ARCHIVE} to the address of a mirror of Ubuntu's packages")
    made = payload.make(chosen, tmp_path_factory.mktemp(request.param), boots)
    outcome = payload.run(chosen, made, boots, TIMEOUT_SECONDS)
    told = (pytestconfig.stash.get(TIMES, ""), request.param, outcome.times())
    pytestconfig.stash[TIMES] = "\n".join(filter(None, told))
    return outcome


@pytest.mark.parametrize(("outcome", "test"), TESTS, indirect=["outcome"], scope="session")  # a guest for all
def test_inside(test: str, outcome: payload.Outcome, request: pytest.FixtureRequest) -> None:
    """A test of that name passed in the machine's guest."""
    chosen, _boots = MACHINES[request.node.callspec.params["outcome"]]
    if reason := chosen.left_out.get(test):
        pytest.skip(reason)
    outcome.check(test)
