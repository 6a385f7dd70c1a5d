"""A node that comes back after a power cut: kubelet starts its pods again. Run inside the guest by run.py."""

from __future__ import annotations

import json
import re

import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import CALL_SECONDS
from tests.vm.inside import kubelet
from tests.vm.inside.node import Service, systemctl
from tests.waiting import until


@pytest.fixture(scope="module")
def service() -> Service:
    service = Service()
    service.start()
    return service


def test_kubelets_pods_come_back(service: Service) -> None:
    expected = json.loads(kubelet.EXPECTED.read_text())
    until(lambda: kubelet.running(service, "limited"), kubelet.SECONDS, 0.5)
    assert kubelet.running(service, "limited") != expected["container"]
    ready = kubelet.ready_sandboxes(service)
    assert ready["limited"] != expected["sandbox"]
    status = service.runtime.PodSandboxStatus(
        cri.PodSandboxStatusRequest(pod_sandbox_id=ready["limited"]), timeout=CALL_SECONDS
    ).status
    assert status.metadata.attempt == 1


def test_nothing_is_left_once_they_are_taken_away(service: Service) -> None:
    for manifest in kubelet.MANIFESTS.iterdir():
        manifest.unlink()
    until(lambda: not kubelet.ready_sandboxes(service), kubelet.SECONDS, 0.5)
    systemctl("stop", "kubelet")
    # kubelet keeps what has ended for a while.
    for sandbox in service.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=CALL_SECONDS).items:
        service.runtime.RemovePodSandbox(
            cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox.id), timeout=CALL_SECONDS
        )
    until(lambda: not service.files_left())
    until(lambda: not _scopes(), kubelet.SECONDS)


def _scopes() -> list[str]:
    """The units of containers; those of shims end a moment after their pods."""
    units = systemctl("list-units", "--all", "--plain", "--no-legend", "crisp-*.scope").splitlines()
    return [unit for unit in units if re.match(r"crisp-[0-9a-f]{64}\.scope", unit)]
