"""What is left of pods after a power cut: known, not running, and removable. Run inside the guest by run.py."""

from __future__ import annotations

import json

import pytest

from cri.v1 import api_pb2 as cri
from tests import leaks
from tests.daemon import BUSYBOX, CALL_SECONDS, Pod
from tests.vm.inside.first_boot import EXIT_SECONDS, EXPECTED
from tests.vm.inside.node import Service, left_since, systemctl
from tests.waiting import until


@pytest.fixture(scope="module")
def service() -> Service:
    service = Service()
    service.start()
    return service


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    return dict(json.loads(EXPECTED.read_text()))


def test_the_unit_is_started_by_the_machine() -> None:
    assert systemctl("is-enabled", "crispd") == "enabled"


def test_the_pod_is_known_and_not_ready(service: Service, expected: dict[str, str]) -> None:
    [sandbox] = service.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=CALL_SECONDS).items
    assert (sandbox.id, sandbox.state) == (expected["sandbox"], cri.SANDBOX_NOTREADY)


def test_the_running_container_has_ended(service: Service, expected: dict[str, str]) -> None:
    status = service.status(expected["running"])
    assert status.state == cri.CONTAINER_EXITED
    assert status.exit_code != 0
    assert status.reason


def test_an_exit_status_outlives_the_power(service: Service, expected: dict[str, str]) -> None:
    status = service.status(expected["exited"])
    assert (status.state, status.exit_code, status.reason) == (cri.CONTAINER_EXITED, 3, "Error")


def test_the_same_pod_runs_again_from_the_same_image(service: Service, expected: dict[str, str]) -> None:
    """As kubelet does it: the next attempt under the same name, while the old one is still there."""
    config = service.sandbox_config("workload")
    config.metadata.attempt = 1
    with service.pod(config=config) as pod:
        container_id = pod.run("sh", "-c", "sha256sum /bin/busybox; exit 5")
        assert service.wait_exited(container_id, EXIT_SECONDS).exit_code == 5
    assert BUSYBOX in service.images.ListImages(cri.ListImagesRequest(), timeout=CALL_SECONDS).images[0].repo_tags


def test_the_old_pod_goes_away_with_all_it_had(service: Service, expected: dict[str, str]) -> None:
    before = leaks.Snapshot.take()
    assert not (service.leases / expected["address"]).exists(), "a lease outlived its boot"
    Pod(service, expected["sandbox"], cri.PodSandboxConfig()).remove()
    assert left_since(before) == []
    until(lambda: not service.files_left())
    assert not service.runtime.ListContainers(cri.ListContainersRequest(), timeout=CALL_SECONDS).containers
