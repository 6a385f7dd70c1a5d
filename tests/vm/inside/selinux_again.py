"""After the power cut: pods run again from their volumes, and are kept apart as before. Run inside by run.py."""

from __future__ import annotations

import json

import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import Pod
from tests.vm.inside.node import Service
from tests.vm.inside.selinux_boot import EXPECTED, VOLUMES, label_of, main, said


@pytest.fixture(scope="module")
def service() -> Service:
    service = Service()
    service.start()
    return service


def test_pods_run_again_with_their_volumes_and_apart(service: Service) -> None:
    for sandbox_id, container_id, _level in json.loads(EXPECTED.read_text()).values():
        assert service.status(container_id).state == cri.CONTAINER_EXITED
        Pod(service, sandbox_id, cri.PodSandboxConfig()).remove()
    first, second = (main(service, name) for name in ("first", "second"))
    assert first.level != second.level
    assert label_of(VOLUMES / "first/new").endswith(first.level)
    assert said(first.pod, first.container_id, "cat /own/new") == (0, "new\n")
    assert said(second.pod, second.container_id, "cat /all/first/new")[0] != 0
    for one in (first, second):
        one.pod.remove()
