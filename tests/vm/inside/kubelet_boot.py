"""A node as users have it: kubelet and crispd as units, cgroups made by systemd. Run inside the guest by run.py."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e import manifests
from tests.vm.inside import kubelet
from tests.vm.inside.node import CGROUPS, Process, Service, systemctl
from tests.waiting import until

LIMITED = {"cpu": "200m", "memory": "48Mi"}


@pytest.fixture(scope="module")
def service() -> Service:
    kubelet.install()
    service = Service()
    service.start()
    probe = {"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "timeoutSeconds": 10}
    container = manifests.sh(
        "main", f"touch /tmp/up; {manifests.FOREVER}", resources={"limits": LIMITED}, readinessProbe=probe
    )
    kubelet.add(manifests.pod("limited", container))
    kubelet.add(manifests.starved())
    return service


def test_kubelet_runs_a_pod_in_slices_of_systemd(service: Service) -> None:
    until(lambda: kubelet.running(service, "limited"), kubelet.SECONDS, 0.5)
    cgroup = Process.of(service, kubelet.running(service, "limited")).cgroup()
    pod = cgroup.parent
    assert cgroup.name == f"crisp-{kubelet.running(service, 'limited')}.scope"
    assert pod.parent == CGROUPS / "kubepods.slice"
    assert pod.name.startswith("kubepods-pod")
    assert pod.name.endswith(".slice")
    for place in (cgroup, pod):
        assert (place / "memory.max").read_text() == f"{48 << 20}\n"
        assert (place / "cpu.max").read_text() == "20000 100000\n"
    assert (pod / "pids.max").read_text() == "99\n"


def test_kubelet_finds_it_ready_and_tells_what_it_uses(service: Service) -> None:
    def ready() -> bool:
        pods = json.loads(kubelet.get("/pods"))["items"] or ()
        conditions = [one for pod in pods if pod["metadata"]["name"] == "limited-guest"
                      for one in pod["status"].get("conditions", ())]  # fmt: skip
        return any((one["type"], one["status"]) == ("Ready", "True") for one in conditions)

    until(ready, kubelet.SECONDS, 0.5)
    assert kubelet.get("/run/default/limited-guest/main?cmd=echo+hello", "POST") == "hello\n"

    def told() -> bool:
        pods = json.loads(kubelet.get("/stats/summary"))["pods"]
        used = [one["memory"]["workingSetBytes"] for pod in pods if pod["podRef"]["name"] == "limited-guest"
                for one in pod["containers"] if "memory" in one]  # fmt: skip
        return any(used)

    until(told, kubelet.SECONDS, 0.5)


def test_a_pod_over_its_memory_is_killed_and_started_again(service: Service) -> None:
    until(lambda: "OOMKilled" in kubelet.ends(service, "starved"), kubelet.SECONDS, 0.5)
    until(lambda: any(one.metadata.attempt for one in kubelet.containers(service, "starved")), kubelet.SECONDS, 0.5)


def test_restarts_of_the_units_disturb_no_pod(service: Service) -> None:
    before = kubelet.running(service, "limited")
    process = Process.of(service, before)
    systemctl("restart", "crispd")
    service.connect()
    systemctl("restart", "kubelet")
    until(lambda: "limited-guest" in _pods(), kubelet.SECONDS, 0.5)
    assert kubelet.get("/run/default/limited-guest/main?cmd=echo+again", "POST") == "again\n"
    assert kubelet.running(service, "limited") == before
    assert Process.at(process.pid) == process
    assert "limited" in kubelet.ready_sandboxes(service)


def _pods() -> str:
    try:
        return kubelet.get("/pods")
    except OSError:  # it is not up again
        return ""


def test_the_machine_verifies_what_deploy_has(service: Service) -> None:
    """The unit, temporary files, sysctls and modules, by systemd's own tools."""
    deploy = Path("/payload/deploy")
    for unit in (deploy / "crispd.service", deploy / "kubelet.service"):
        done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
        told = [line for line in done.stderr.splitlines() if unit.name in line and "is not executable" not in line]
        assert told == []
    for tool, directory in (("systemd-tmpfiles", "tmpfiles.d"), ("/usr/lib/systemd/systemd-sysctl", "sysctl.d")):
        for file in (deploy / directory).iterdir():
            arguments = ["--create", str(file)] if "tmpfiles" in tool else [str(file)]
            done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, ""), file
    for file in (deploy / "modules-load.d").iterdir():
        for module in filter(re.compile("[a-z]").match, file.read_text().splitlines()):
            assert subprocess.run(["modinfo", module], capture_output=True, check=False).returncode == 0, module


def test_the_pods_are_left_for_a_power_cut(service: Service) -> None:
    """The last one."""
    sandbox, container = kubelet.ready_sandboxes(service)["limited"], kubelet.running(service, "limited")
    kubelet.EXPECTED.write_text(json.dumps({"sandbox": sandbox, "container": container}))
    subprocess.run(["sync", kubelet.EXPECTED, kubelet.EXPECTED.parent], check=True)
