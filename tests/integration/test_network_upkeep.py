"""Addresses, links and namespaces belong to pods: whatever plugins and crispd do, none stays without."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import CALL_SECONDS, Daemon
from tests.waiting import until

_CALL = {"timeout": CALL_SECONDS}


def _leases(daemon: Daemon) -> list[str]:
    return sorted(path.read_text().split()[0] for path in daemon.leases.rglob("10.*"))


def _allocated(daemon: Daemon) -> None:
    """Every pod has one address, and every address a pod."""
    pods = daemon.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL).items
    assert _leases(daemon) == sorted(pod.id for pod in pods)


def test_a_plugin_taken_away(tmp_path: Path) -> None:
    """Addresses are given back without it, and the pod's end is tried again until it is back."""
    own = tmp_path / "own"
    own.write_text(
        "#!/usr/bin/env python3\nimport json, os, sys\n"
        "given = json.load(sys.stdin)\n"
        "print(json.dumps(given['prevResult']) if os.environ['CNI_COMMAND'] == 'ADD' else '')\n"
    )
    own.chmod(0o755)
    with Daemon.running("--cni-bin-dir", str(tmp_path)) as daemon:
        conflist = daemon.cni_conf_dir / "10-test.conflist"
        network = json.loads(conflist.read_text())
        network["plugins"].append({"type": "own"})
        conflist.write_text(json.dumps(network))
        with daemon.pod("one") as one, daemon.pod("two"):
            _allocated(daemon)
            own.rename(tmp_path / "aside")
            with pytest.raises(grpc.RpcError, match='find plugin "own"') as refusal:
                one.remove()
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
            assert len(_leases(daemon)) == 1
            (tmp_path / "aside").rename(own)
            one.remove()
            _allocated(daemon)


def test_pods_that_nobody_knows_any_more(fresh_daemon: Daemon) -> None:
    """A lost database: their shims end, and their addresses are given back."""
    daemon = fresh_daemon
    for name in ("lost", "lost-too"):
        config = daemon.sandbox_config(name)
        daemon.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config), **_CALL)
    assert len(_leases(daemon)) == 2
    daemon.kill9()
    for path in daemon.root.glob("crisp.db*"):
        path.unlink()
    daemon.start()
    assert not daemon.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL).items
    until(lambda: not _leases(daemon))
    until(lambda: not list((daemon.root / "network").iterdir()))


def test_crispd_killed_while_plugins_run(fresh_daemon: Daemon) -> None:
    """Its successor has one address for each pod."""
    for turn in range(4):
        _cut(fresh_daemon, turn)
        _allocated(fresh_daemon)


def _cut(daemon: Daemon, turn: int) -> None:
    configs = [daemon.sandbox_config(f"cut{turn}-{number}") for number in range(4)]
    calls = [
        daemon.runtime.RunPodSandbox.future(cri.RunPodSandboxRequest(config=config), timeout=60) for config in configs
    ]
    until(lambda: len(_plugins()) > turn or all(call.done() for call in calls))
    daemon.kill9()
    for pid in _plugins()[:turn]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not _plugins())
    daemon.start()
    # A bridge plugin that was killed between its address and its rules fails once to undo it; kubelet stops it again.
    for left in daemon.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL).items:
        if left.state == cri.SANDBOX_NOTREADY:
            daemon.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=left.id), **_CALL)
            daemon.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=left.id), **_CALL)
    for config in configs:
        daemon.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config), **_CALL)
    until(lambda: len(list((daemon.root / "network").iterdir())) == 4 * (turn + 1))


def _plugins() -> list[int]:
    """The pids of plugins that run."""
    lines = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True).stdout.splitlines()
    return [int(line.split()[0]) for line in lines if re.search(r"/(bridge|host-local|portmap)$", line)]
