"""End-to-end tests run as root, in a box, on programs of Kubernetes that are built once a machine."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from tests import box
from tests.daemon import Daemon
from tests.e2e.cluster import Cluster
from tests.e2e.kubelet import Kubelet


@pytest.fixture(autouse=True, scope="session")
def in_a_box() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not box.inside():
        pytest.fail("end-to-end tests run in a box: name their files on pytest's command line")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the logs of kubelet and crispd with a test that failed."""
    report = yield
    if report.failed and report.when != "teardown":  # what they tell of is gone by then
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Cluster):
                report.sections.append(("cluster", value.summary()))
            elif isinstance(value, Kubelet):
                report.sections += [("kubelet", value.log()), ("crispd", value.daemon.log())]
            elif isinstance(value, Daemon):
                report.sections.append(("crispd", value.log()))
    return report
