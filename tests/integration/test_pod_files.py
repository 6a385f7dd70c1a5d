"""What containers can write to and nobody counts: /etc/hostname, /etc/hosts, /etc/resolv.conf."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon, Pod

_NAMES = ("hostname", "hosts", "resolv.conf")
_FILL = "for name in hostname hosts resolv.conf; do head -c 3m /dev/zero >> /etc/$name; done"
_MOST = 1 << 20


def _mounted(directory: Path) -> bool:
    return any(line.split()[4] == str(directory) for line in Path("/proc/self/mountinfo").read_text().splitlines())


def _place(daemon: Daemon, pod: Pod) -> Path:
    return daemon.state / "sandboxes" / pod.id / "etc"


@pytest.mark.trial("pod-files-are-bounded", "what containers write to the files of their pod has a bound")
def test_a_container_cannot_fill_the_machine_by_the_pods_files(fresh_daemon: Daemon) -> None:
    host = os.path.getsize("/etc/hosts") + os.path.getsize("/etc/resolv.conf")
    with fresh_daemon.pod("fill") as pod:
        place = _place(fresh_daemon, pod)
        first = pod.run("sleep", "1000", name="first")
        assert pod.exec(first, "cat", "/etc/hostname").stdout == b"fill\n"
        said = pod.exec(first, "sh", "-c", _FILL)
        assert said.stderr.count(b"head: ") == 3
        assert sum((place / name).stat().st_size for name in _NAMES) <= _MOST + host + os.sysconf("SC_PAGE_SIZE")
        assert os.statvfs(place).f_files <= 16
        fresh_daemon.kill9()
        fresh_daemon.start()
        assert _mounted(place)
        for name in _NAMES:
            (place / name).write_text("small\n")
        second = pod.run("sleep", "1000", name="second")
        assert pod.exec(second, "cat", *(f"/etc/{name}" for name in _NAMES)).stdout == b"small\n" * 3
        pod.exec(second, "sh", "-c", _FILL)
        assert sum((place / name).stat().st_size for name in _NAMES) <= _MOST + host + os.sysconf("SC_PAGE_SIZE")
        fresh_daemon.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout=20)
        assert not _mounted(place)


def test_a_pod_of_an_earlier_crisp_keeps_its_files(daemon: Daemon) -> None:
    with daemon.pod("earlier") as pod:
        place = _place(daemon, pod)
        files = {name: (place / name).read_bytes() for name in _NAMES}
        subprocess.run(["umount", str(place)], check=True)
        place.rmdir()
        for name, content in files.items():
            (place.parent / name).unlink()
            (place.parent / name).write_bytes(content)
        container = pod.run("sleep", "1000")
        assert pod.exec(container, "cat", "/etc/hostname").stdout == b"earlier\n"


def test_a_resolv_conf_that_nobody_reads_is_refused(daemon: Daemon) -> None:
    dns = cri.DNSConfig(servers=["10.0.0.10"], searches=["s" * 1000] * 100)
    request = cri.RunPodSandboxRequest(config=daemon.sandbox_config("long", dns_config=dns))
    with pytest.raises(grpc.RpcError, match=r"config\.dns_config: resolv\.conf would have") as refusal:
        daemon.runtime.RunPodSandbox(request, timeout=20)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_pods_files_are_the_pods(daemon: Daemon) -> None:
    with daemon.pod("modes") as pod:
        place = _place(daemon, pod)
        assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
        assert {stat.S_IMODE((place / name).stat().st_mode) for name in _NAMES} == {0o644}
