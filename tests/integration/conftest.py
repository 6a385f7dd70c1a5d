"""Every integration test runs as root, in a box, and leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from image.settings import LAYER_KINDS
from tests import box, leaks
from tests.answers import told as told
from tests.daemon import Daemon
from tests.oci import Bundle


@pytest.fixture(autouse=True, scope="session")
def claimed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Loop devices of files that tests make are theirs."""
    leaks.claim(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fail a test after which there is a mount, namespace, link, rule, cgroup, process, descriptor or loop more."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not box.inside():
        pytest.fail("integration tests run in a box: name their files on pytest's command line")
    before = leaks.Snapshot.take()
    yield
    if left := leaks.settle(before):
        pytest.fail("left behind:\n  " + "\n  ".join(sorted(left)), pytrace=False)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A crispd for the tests of one module, which has the image localhost/busybox:latest."""
    with Daemon.running() as running:
        running.import_busybox()
        with running.pod("first"):
            pass  # makes the bridge, which stays as long as the daemon
        yield running


class Attaching(Daemon):
    """One that attaches EROFS layers, as it must before Linux 6.15."""

    module = "tests.attaching"


@pytest.fixture(scope="module", params=[*LAYER_KINDS[1:], "attached"])
def daemon_of_each_kind(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """The same, of either kind of layers, and of mounted ones as older kernels have them."""
    attached = request.param == "attached"
    with (Attaching if attached else Daemon).running(
        "--image-layers", "erofs" if attached else request.param
    ) as running:
        running.import_busybox()
        with running.pod("first"):
            pass
        yield running


@pytest.fixture
def fresh_daemon() -> Iterator[Daemon]:
    """A crispd for one test, which may kill or restart it. Has the image localhost/busybox:latest."""
    with Daemon.running() as running:
        running.import_busybox()
        yield running


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    """A bundle of busybox for crisp-oci, whose containers are deleted afterwards."""
    made = Bundle.make(tmp_path)
    yield made
    made.delete()
    assert not (made.root.is_dir() and made.call("list", "-q").stdout)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the daemon's log with a test that failed."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Daemon):
                report.sections.append(("crispd", value.log()))
    return report
