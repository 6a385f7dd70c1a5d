"""crispd killed, upgraded, rebooted; shims and infra processes killed: what is true afterwards is told."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from cri.admin.v1 import admin_pb2
from cri.v1 import api_pb2 as cri
from runtime.cgroups import Cgroup, Hierarchies
from tests.daemon import Daemon, Pod
from tests.faults.kinds import shim_of
from tests.processes import titled
from tests.waiting import until

_until = partial(until, pause=0.02)
_CALL = {"timeout": 120}


def _info(daemon: Daemon, container: str) -> dict[str, object]:
    request = cri.ContainerStatusRequest(container_id=container, verbose=True)
    return dict(json.loads(daemon.runtime.ContainerStatus(request, **_CALL).info["info"]))


def _shim_pids() -> list[int]:
    return titled("^crisp-shim ")


@pytest.mark.parametrize("how", ["kill9", "restart"])
def test_containers_do_not_notice(fresh_daemon: Daemon, how: str) -> None:
    daemon = fresh_daemon
    with daemon.pod("survivor") as pod:
        counter = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.01; done"
        runs = pod.run("sh", "-c", counter, name="counter")
        leaves = pod.run("sh", "-c", "sleep 98642; exit 9", name="leaver")
        done = pod.run("sh", "-c", "exit 4", name="done")
        created = pod.create("sleep", "50", name="created")
        daemon.wait_exited(done)
        pid = _info(daemon, runs)["pid"]
        before = {container: daemon.status(container) for container in (done, created)}
        address = pod.status().network.ip
        if how == "kill9":
            daemon.kill9()
        else:
            daemon.stop()
        subprocess.run(["pkill", "-f", "^sleep 98642"], check=True)
        _until(lambda: (daemon.state / "sandboxes" / pod.id / "exits" / leaves).exists())  # while nobody listens
        daemon.start()
        assert _info(daemon, runs)["pid"] == pid
        assert pod.status().state == cri.SANDBOX_READY
        assert pod.status().network.ip == address
        assert daemon.wait_exited(leaves).exit_code == 9
        assert {container: daemon.status(container) for container in before} == before
        assert pod.exec(runs, "echo", "still here").stdout == b"still here\n"
        daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=created), **_CALL)
        daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=runs, timeout=0), **_CALL)
        numbers = [int(line.rsplit(" ", 1)[1]) for line in pod.log("counter").splitlines()]
        assert numbers == list(range(1, len(numbers) + 1))


def test_a_reboot(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    with daemon.pod("rebooted") as pod:
        runs = pod.run("sleep", "1000", name="runs")
        done = pod.run("sh", "-c", "exit 4", name="done")
        daemon.wait_exited(done)
        pid = int(str(_info(daemon, runs)["pid"]))
        daemon.kill9()
        _end_everything(pid)
        subprocess.run(["umount", "-l", *_mounts_below(daemon.state)], check=True)
        shutil.rmtree(daemon.state)
        namespace = Path(f"/run/netns/crisp-{pod.id}")
        subprocess.run(["umount", namespace], check=True)
        namespace.unlink()
        for flag in ("-F", "-X"):  # rules do not outlive a reboot either
            subprocess.run(["iptables", "-t", "nat", flag], check=True)
        daemon.start()
        assert pod.status().state == cri.SANDBOX_NOTREADY
        assert daemon.status(done).exit_code == 4
        gone = daemon.status(runs)
        assert (gone.state, gone.exit_code) == (cri.CONTAINER_EXITED, 255)
        # kubelet raises `attempt` now, and cleans the old one up: leases must be given back.
        config = cri.PodSandboxConfig()
        config.CopyFrom(pod.config)
        config.metadata.attempt = 1
        with daemon.pod(config=config) as again:
            again.run("sleep", "10")


def _mounts_below(directory: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [line.split()[1] for line in lines if line.split()[1].startswith(f"{directory}/")]


def _end_everything(init: int) -> None:
    """What a reboot does to processes."""
    keepers, infra = titled("crisp zygote"), titled("^crisp-infra ")
    for pid in [*keepers, *_shim_pids(), *infra, init]:
        os.kill(pid, signal.SIGKILL)
    _until(lambda: not _shim_pids())


def test_a_shim_and_its_keeper_that_die_at_once_take_the_pod_along(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    with daemon.pod("victim") as pod:
        container = pod.run("sleep", "3456")
        (shim,), (keeper,) = _shim_pids(), titled("crisp zygote")
        os.kill(keeper, signal.SIGSTOP)  # it starts no successor meanwhile
        os.kill(shim, signal.SIGKILL)
        os.kill(keeper, signal.SIGKILL)
        status = daemon.wait_exited(container)
        assert status.exit_code == 255
        _until(lambda: pod.status().state == cri.SANDBOX_NOTREADY)
        _until(lambda: b"sleep\x003456" not in _command_lines())
        _until(lambda: not titled("^crisp-infra "))
    daemon.restart()  # the last one of processes that were killed does not remove their cgroup: a stop does


def _command_lines() -> bytes:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue
    return b"\n".join(found)


def test_an_infra_process_that_dies_takes_its_pod_along(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    with daemon.pod("headless") as pod:
        container = pod.run("sleep", "1000")
        infra = subprocess.run(["pgrep", "-f", "^crisp-infra "], capture_output=True, text=True).stdout
        os.kill(int(infra), signal.SIGKILL)
        assert daemon.wait_exited(container).exit_code == 137
        _until(lambda: pod.status().state == cri.SANDBOX_NOTREADY)


def test_a_created_containers_cgroup_goes_with_its_shim_and_keeper(fresh_daemon: Daemon) -> None:
    """The shim makes it ahead of the start."""
    daemon = fresh_daemon
    with daemon.pod("short") as pod:
        container = pod.create("sleep", "100")
        path = _info(daemon, container)["runtimeSpec"]["linux"]["cgroupsPath"]  # type: ignore[index]
        cgroup = Cgroup.at(Hierarchies.detect(), path)
        _until(cgroup.exists)
        (keeper,) = titled("crisp zygote")
        for pid in (keeper, shim_of(pod)):
            os.kill(pid, signal.SIGKILL)
        _until(lambda: not cgroup.exists())
        assert daemon.wait_exited(container).exit_code == 255
    daemon.restart()  # as above


def test_a_pod_whose_infra_process_dies_while_it_is_made_is_not_made(tmp_path: Path) -> None:
    """A plugin holds the call after the shim has answered."""
    begun, gate, plugin = tmp_path / "begun", tmp_path / "gate", tmp_path / "waits"
    os.mkfifo(gate)
    lines = ('[ "$CNI_COMMAND" = ADD ] || exit 0', f"touch {begun}", f"read go <{gate}", "echo '{}'")
    plugin.write_text("\n".join(("#!/bin/sh", *lines, "")))
    plugin.chmod(0o755)
    with Daemon.running("--cni-bin-dir", str(tmp_path)) as daemon:
        daemon.import_busybox()
        (daemon.cni_conf_dir / "10-test.conflist").write_text(
            json.dumps({"cniVersion": "1.0.0", "name": "waits", "plugins": [{"type": "waits"}]})
        )
        request = cri.RunPodSandboxRequest(config=daemon.sandbox_config("short"))
        call = daemon.runtime.RunPodSandbox.future(request, **_CALL)
        _until(begun.exists)
        pid = int(subprocess.run(["pgrep", "-f", "^crisp-infra "], capture_output=True, text=True).stdout)
        descriptor = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        select.select([descriptor], [], [])
        os.close(descriptor)
        _until(lambda: "lost its shim or infra process" in daemon.log())
        gate.write_text("go\n")
        assert " is gone" in call.exception().details()
        assert not daemon.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL).items
        assert not daemon.admin.Check(admin_pb2.CheckRequest(), **_CALL).disagreements
        begun.unlink()
        call = daemon.runtime.RunPodSandbox.future(request, **_CALL)
        _until(begun.exists)
        gate.write_text("go\n")
        Pod(daemon, call.result().pod_sandbox_id, request.config).remove()


def test_the_zygote_is_replaced(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    with daemon.pod("before"):
        zygote = subprocess.run(["pgrep", "-f", "crisp zygote"], capture_output=True, text=True).stdout
        os.kill(int(zygote.split()[0]), signal.SIGKILL)
        for name in ("after", "later"):  # the shim of the first may have been there
            with daemon.pod(name) as pod:
                assert pod.exec(pod.run("sleep", "100"), "echo", "ok").stdout == b"ok\n"


def test_killed_in_the_middle_of_making_pods(fresh_daemon: Daemon) -> None:
    """kill -9 at many instants of a RunPodSandbox; each time the repeated request succeeds and nothing is left over."""
    daemon = fresh_daemon
    cut = 0
    for step in range(6):
        config = daemon.sandbox_config(f"cut{step}")
        future = daemon.runtime.RunPodSandbox.future(cri.RunPodSandboxRequest(config=config), timeout=30)
        time.sleep(0.008 * step)
        daemon.kill9()
        cut += future.exception() is not None  # a quick machine answers before the last of the kills
        daemon.start()
        made = daemon.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config), **_CALL).pod_sandbox_id
        assert len(_shim_pids()) == 1
        assert [path.name for path in (daemon.state / "sandboxes").iterdir()] == [made]
        Pod(daemon, made, config).remove()
    assert cut >= 2
