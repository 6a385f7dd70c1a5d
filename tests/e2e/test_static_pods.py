"""kubelet without an API server: pods from manifests on crispd, watched through kubelet's own API and CRI."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.request
from collections.abc import Iterator

import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon
from tests.e2e import manifests
from tests.e2e.kubelet import NODE_IP, Kubelet, KubeletFailed

STEADY = ("ordered", "volumes", "host", "shared", "host-port", "secured", "limited")


@pytest.fixture(scope="module")
def kubelet() -> Iterator[Kubelet]:
    """A kubelet with a pod of every kind, on a crispd of its own; nothing may be left of either."""
    with Daemon.running() as daemon:
        daemon.import_busybox()
        (daemon.directory / "given").write_text("of the host\n")
        with Kubelet.running(daemon) as running:
            for pod in manifests.all_kinds(daemon.directory):
                running.add(pod)
            running.until(lambda: _are_running(running, *STEADY), f"run {STEADY}", 60)
            yield running


def test_pods_restart_by_their_policy(kubelet: Kubelet) -> None:
    again = kubelet.until(lambda: _restarted(kubelet, "restarts", "main", 2), "restart a container that ended")
    assert again["lastState"]["terminated"]["reason"] == "Completed"
    done = kubelet.until(lambda: _of_phase(kubelet, "on-failure", "Succeeded"), "let a pod succeed at its second try")
    assert done["status"]["containerStatuses"][0]["restartCount"] == 1
    kubelet.until(lambda: _of_phase(kubelet, "never", "Failed"), "let a pod fail")
    ends = {name: kubelet.container("never", name)["state"]["terminated"] for name in ("by-file", "by-log")}
    assert {name: (end["exitCode"], end["reason"], end["message"]) for name, end in ends.items()} == {
        "by-file": (3, "Error", "by file\n"),
        "by-log": (4, "Error", "by log\n"),
    }
    assert [kubelet.container("never", name)["restartCount"] for name in ends] == [0, 0]


def test_a_container_over_its_memory_is_killed_and_backed_off(kubelet: Kubelet) -> None:
    killed = kubelet.until(lambda: _restarted(kubelet, "starved", "main", 2), "kill and restart a starved container")
    assert killed["lastState"]["terminated"]["reason"] == "OOMKilled"
    assert killed["lastState"]["terminated"]["exitCode"] == 137
    # By its log: the pod's status has it only between two of kubelet's looks, with a back-off of a second maybe never.
    kubelet.until(
        lambda: "back-off 1s restarting failed container=main pod=starved-node" in kubelet.log(),
        "back off from a container that crashes",
    )


def test_init_containers_and_sidecars_start_in_order(kubelet: Kubelet) -> None:
    assert kubelet.run("ordered", "main", "cat /work/order").split() == ["first", "sidecar", "up", "second", "main"]
    assert kubelet.container("ordered", "sidecar")["ready"]


def test_probes(kubelet: Kubelet) -> None:
    """A failing liveness probe (exec) restarts, readiness (http) follows its answer, a startup probe (tcp) waits."""
    kubelet.until(lambda: kubelet.container("probes", "slow").get("started"), "see a slow container start")
    assert kubelet.container("probes", "slow")["restartCount"] == 0
    assert not kubelet.container("probes", "ready")["ready"]
    kubelet.run("probes", "ready", "touch /site/ready")
    kubelet.until(lambda: kubelet.container("probes", "ready")["ready"], "find a container ready")
    before = kubelet.container("probes", "alive")
    kubelet.run("probes", "alive", "touch /tmp/sick")
    after = kubelet.until(lambda: _restarted(kubelet, "probes", "alive", 1), "restart a container that is sick")
    assert before["restartCount"] == 0
    assert after["containerID"] != before["containerID"]


def test_volumes_and_the_downward_api(kubelet: Kubelet) -> None:
    def run(command: str) -> str:
        return kubelet.run("volumes", "main", command)

    assert run("cat /etc/given") == "of the host\n"
    run("touch /host/by-a-pod /part/in-a-sub-path /named/in-an-expanded-one")
    assert (kubelet.daemon.directory / "host/by-a-pod").exists()
    assert run("ls /disk/a/b") == "in-a-sub-path\n"
    assert run("ls /disk/volumes-node") == "in-an-expanded-one\n"
    assert re.search(r" /memory tmpfs \S*size=8192k", run("cat /proc/mounts"))
    assert run("cat /down/app") == "volumes"
    assert run("cat /down/limit") == str(64 << 20)
    address = kubelet.pod("volumes")["status"]["podIP"]
    assert {"POD=volumes-node", f"POD_IP={address}", "NODE=node"} <= set(run("env").splitlines())


@pytest.mark.cri("RunPodSandbox", "port_mappings")
def test_namespaces_of_pod_and_host(kubelet: Kubelet) -> None:
    for kind in ("net", "pid", "ipc"):
        theirs = kubelet.run("host", "main", f"readlink /proc/self/ns/{kind}").strip()
        assert theirs == os.readlink(f"/proc/self/ns/{kind}"), kind
    assert "sleep 7777" in kubelet.run("shared", "other", "ps -o args")
    with urllib.request.urlopen(f"http://{NODE_IP}:{manifests.HOST_PORT}/", timeout=10) as page:
        assert page.read() == b"hello\n"


def test_security_contexts(kubelet: Kubelet) -> None:
    user = _fields(kubelet.run("secured", "user", "cat /proc/self/status"))
    assert [user["Uid"].split()[0], user["Gid"].split()[0], set(user["Groups"].split())] == [
        "1000", "3000", {"2000", "3000", "4000"},
    ]  # fmt: skip
    assert (user["CapBnd"], user["NoNewPrivs"], user["Seccomp"]) == (f"{0:016x}", "1", "2")
    kubelet.run("secured", "user", "touch /work/by-the-group")
    assert kubelet.run("secured", "user", "stat -c %g /work/by-the-group").strip() == "2000"
    assert re.search(r"^overlay / overlay ro,", kubelet.run("secured", "user", "cat /proc/mounts"), re.MULTILINE)
    root = _fields(kubelet.run("secured", "root", "cat /proc/self/status"))
    assert root["CapEff"] == f"{1 << 10:016x}"
    assert kubelet.run("secured", "root", "cat /proc/sys/net/ipv4/ip_local_port_range").split() == ["40000", "41000"]


def test_kubelet_tells_of_logs_and_runs_commands(kubelet: Kubelet) -> None:
    assert kubelet.logs("never", "by-log") == "by log\n"
    assert kubelet.run("limited", "main", "echo hello") == "hello\n"
    nodes = json.loads(kubelet.get("/stats/summary"))["node"]
    assert nodes["nodeName"] == "node"


def test_a_pod_whose_manifest_goes_is_ended_gracefully(kubelet: Kubelet) -> None:
    told = kubelet.daemon.directory / "hooks/told"
    assert told.read_text() == "started\n"
    kubelet.remove("hooks")
    kubelet.until(lambda: _sandboxes(kubelet.daemon)["hooks-node"] == cri.SANDBOX_NOTREADY, "stop a sandbox")
    assert told.read_text().split() == ["started", "stopping", "terminated"]
    assert not kubelet.pod("hooks")


def test_restarts_of_kubelet_and_crispd_disturb_no_pod(kubelet: Kubelet) -> None:
    before = _containers(kubelet)
    kubelet.kill9()
    kubelet.start()
    kubelet.daemon.kill9()
    time.sleep(2)  # kubelet finds the runtime gone
    kubelet.daemon.start()
    kubelet.until(lambda: _are_running(kubelet, *STEADY), "know its pods again")
    kubelet.until(lambda: _executes(kubelet), "reach the runtime again")
    time.sleep(3)  # some rounds of kubelet's synchronisation, in which it would restart
    assert _containers(kubelet) == before


def test_pods_go_on_under_kubelets_gates_for_the_runtime(kubelet: Kubelet) -> None:
    """EventedPLEG, streamed lists, and what pods use as the runtime tells it."""
    before = _containers(kubelet)
    kubelet.stop()
    kubelet.start(featureGates={"EventedPLEG": True, "CRIListStreaming": True, "PodAndContainerStatsFromCRI": True})
    kubelet.until(lambda: _are_running(kubelet, *STEADY), "know its pods again")
    kubelet.add(manifests.pod("late", manifests.sh("main", manifests.FOREVER)))
    kubelet.until(lambda: _are_running(kubelet, "late"), "start a pod")
    summary = json.loads(kubelet.get("/stats/summary"))
    told = {pod["podRef"]["name"]: pod for pod in summary["pods"]}
    assert told["limited-node"]["containers"][0]["memory"]["workingSetBytes"] > 0
    metrics = kubelet.get("/metrics/cadvisor").decode()
    assert re.search(r'^container_memory_working_set_bytes\{.*pod="limited-node".*\} [1-9]', metrics, re.MULTILINE)
    assert _containers(kubelet) == before


def _are_running(kubelet: Kubelet, *names: str) -> bool:
    pods = kubelet.pods()
    return all(
        (containers := pods.get(name, {}).get("status", {}).get("containerStatuses"))
        and all("running" in container["state"] for container in containers)
        for name in names
    )


def _executes(kubelet: Kubelet) -> bool:
    try:
        return kubelet.run("limited", "main", "echo again") == "again\n"
    except KubeletFailed:
        return False


def _of_phase(kubelet: Kubelet, name: str, phase: str) -> dict[str, object]:
    pod = kubelet.pod(name)
    return pod if pod.get("status", {}).get("phase") == phase else {}


def _restarted(kubelet: Kubelet, pod: str, name: str, times: int) -> dict[str, object]:
    container = kubelet.container(pod, name)
    return container if container.get("restartCount", 0) >= times else {}


def _containers(kubelet: Kubelet) -> dict[tuple[str, str], tuple[str, int]]:
    """Id and restarts of each container of the pods that should not change."""
    pods = kubelet.pods()
    return {
        (name, container["name"]): (container["containerID"], container["restartCount"])
        for name in STEADY
        for container in pods[name]["status"]["containerStatuses"]
    }


def _sandboxes(daemon: Daemon) -> dict[str, cri.PodSandboxState.ValueType]:
    listed = daemon.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=20).items
    return {sandbox.metadata.name: sandbox.state for sandbox in listed}


def _fields(status: str) -> dict[str, str]:
    return {name: value.strip() for name, _, value in (line.partition(":") for line in status.splitlines())}
