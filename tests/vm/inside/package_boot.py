"""The Debian package: it takes over an installation by hand, is upgraded, and purged. Run in the guest by run.py."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import CALL_SECONDS, Pod
from tests.vm.inside.node import NETWORK, Process, Service, systemctl

PACKAGE = next(Path("/payload").glob("crisp_*.deb"))
HOME = "/usr/lib/crisp"
SETTINGS = Path("/etc/crisp/crisp.toml")
CHANGED = 'log_level = "debug"\n'
OWN_UNIT = Path("/etc/systemd/system/crispd.service")
PATHS = (HOME, "/var/lib/crisp", "/run/crisp", "/etc/crisp", "/usr/bin/crisp", "/usr/bin/crispd", "/usr/bin/crisp-oci")


@pytest.fixture(scope="module")
def service() -> Service:
    service = Service()
    service.start()
    service.cni_conf_dir.mkdir(parents=True, exist_ok=True)
    shutil.copy(NETWORK, service.cni_conf_dir)
    service.import_busybox()
    return service


@pytest.fixture(scope="module")
def pod(service: Service) -> Pod:
    config = service.sandbox_config("packaged")
    request = cri.RunPodSandboxRequest(config=config)
    pod = Pod(service, service.runtime.RunPodSandbox(request, timeout=CALL_SECONDS).pod_sandbox_id, config)
    pod.run("sh", "-c", "sleep infinity")
    return pod


def test_it_takes_over_and_is_upgraded_with_running_pods(service: Service, pod: Pod) -> None:
    container = _container(service, pod)
    process = Process.of(service, container)
    OWN_UNIT.unlink()  # or it would hide the package's
    for _ in ("installation", "upgrade"):
        before = service.pid()
        _dpkg("--install", str(PACKAGE))
        service.connect()
        assert service.pid() not in (0, before)
        assert f"{HOME}/bin/crispd" in Path(f"/proc/{service.pid()}/cmdline").read_text().split("\0")
        assert Process.at(process.pid) == process
        assert pod.exec(container, "echo", "still here").stdout == b"still here\n"
        SETTINGS.write_text(CHANGED)
    assert SETTINGS.read_text() == CHANGED  # a conffile that somebody changed
    assert systemctl("is-enabled", "crispd") == "enabled"
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\n"


def test_a_purge_ends_the_pods_and_leaves_nothing(service: Service, pod: Pod) -> None:
    process = Process.of(service, _container(service, pod))
    shutil.rmtree(SETTINGS.with_name("crisp.toml.d"))  # run.py's, not the package's
    _dpkg("--purge", "crisp")
    with pytest.raises(FileNotFoundError):
        Process.at(process.pid)
    assert [path for path in PATHS if os.path.lexists(path)] == []
    assert list(Path("/run/netns").glob("crisp-*")) == []
    assert [path for path in Path("/proc").glob("[0-9]*/cmdline") if HOME.encode() in _command(path)] == []
    assert subprocess.run(["systemctl", "cat", "crispd.service"], capture_output=True, check=False).returncode != 0


def _container(service: Service, pod: Pod) -> str:
    request = cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=pod.id))
    (container,) = service.runtime.ListContainers(request, timeout=CALL_SECONDS).containers
    return str(container.id)


def _command(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _dpkg(*arguments: str) -> None:
    settings = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    environment = os.environ | settings
    done = subprocess.run(["dpkg", *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
