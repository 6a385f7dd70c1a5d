"""The Debian package in a guest of its own: installed over an installation by hand, upgraded and purged, with pods."""

from __future__ import annotations

import os
import platform
import subprocess

import pytest

from tests.vm import payload
from tests.vm.machine import BOOKWORM

BOOTS = (("package_boot",),)
TIMEOUT_SECONDS = 1800.0


@pytest.fixture(scope="session")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> payload.Outcome:
    if os.geteuid() != 0:
        pytest.skip("making a guest takes root")
    if platform.freedesktop_os_release().get("VERSION_CODENAME") != BOOKWORM.suite:
        pytest.skip(f"a package fits the release that it is built on, and the guest is {BOOKWORM.suite}")
    made = payload.make(BOOKWORM, tmp_path_factory.mktemp("package"), BOOTS)
    # Under emulation little is as slow as unpacking xz.
    build = [payload.REPOSITORY / "deploy/package.sh", made]
    subprocess.run(build, env=os.environ | {"COMPRESSION": "gzip"}, check=True, stdin=subprocess.DEVNULL)
    return payload.run(BOOKWORM, made, BOOTS, TIMEOUT_SECONDS)


@pytest.mark.parametrize("name", payload.names(BOOTS))
def test_inside(name: str, outcome: payload.Outcome) -> None:
    """A test of that name passed in the guest."""
    outcome.check(name)
