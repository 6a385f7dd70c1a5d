"""What other users of the machine, and images with names that lead out, get of crisp: nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon
from tests.images import build_image, busybox_layer, entry, layer, write_layout

# Another user may not reach the environment that the tests run in: root's home is often closed.
_PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else os.path.realpath(sys.executable)
_NOBODY = 65534
_TRY = """
import json, os, socket, sys
reached = []
for path in json.load(sys.stdin):
    try:
        if path.endswith(".sock"):
            socket.socket(socket.AF_UNIX).connect(path)
        else:
            os.listdir(path) if os.path.isdir(path) else open(path).close()
        reached.append(path)
    except OSError:
        pass
print(json.dumps(reached))
"""


def _inside(top: Path) -> list[str]:
    return [str(path) for path in top.rglob("*") if not path.is_symlink()]


def test_other_users_reach_no_socket_and_no_file(daemon: Daemon) -> None:
    """CVE-2021-41103, CVE-2024-25621: set-uid programs of images, configurations with Secrets, the way to command."""
    mode = daemon.directory.stat().st_mode
    with daemon.pod("reached") as pod:
        pod.run("sleep", "1000", envs=[cri.KeyValue(key="A", value=b"secret")])
        daemon.directory.chmod(0o755)
        try:
            socket = str(daemon.directory / "crisp.sock")
            private = [str(daemon.root), *_inside(daemon.root), *_inside(daemon.state), socket]
            assert any(path.endswith("shim.sock") for path in private)
            assert any(path.endswith("config.json") for path in private)
            tried = subprocess.run(
                [_PYTHON, "-I", "-c", _TRY], input=json.dumps(private), capture_output=True, text=True,
                user=_NOBODY, group=_NOBODY, extra_groups=[], cwd="/", check=True,
            )  # fmt: skip
        finally:
            daemon.directory.chmod(mode)
    # Names that are no secret: the directories themselves, which hold what only root may open.
    allowed = {str(daemon.state / name) for name in ("sandboxes", "containers", "handlers")}
    assert set(json.loads(tried.stdout)) - allowed == set()


def test_no_socket_is_abstract(daemon: Daemon) -> None:
    """CVE-2020-15257: one would be reached from every container on the host's network."""
    with daemon.pod("abstract") as pod:
        pod.exec(pod.run("sleep", "1000"), "true")
        listed = Path("/proc/net/unix").read_text()
    assert "shim.sock" in listed
    assert [line for line in listed.splitlines() if line.rpartition(" ")[2].startswith("@")] == []


@pytest.mark.parametrize("readonly", [True, False])
def test_an_images_names_lead_nowhere(daemon: Daemon, tmp_path: Path, readonly: bool) -> None:
    """CVE-2022-23648 (VOLUME), CVE-2024-5154 (links at /etc/resolv.conf and /etc/mtab), CVE-2022-4318 (HOME)."""
    outside = tmp_path / "outside"
    outside.mkdir()
    links = layer(
        entry("etc/", mode=0o755),
        entry("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
        entry("etc/mtab", type=tarfile.SYMTYPE, linkname=f"{outside}/mtab"),
        entry("etc/hostname", type=tarfile.SYMTYPE, linkname=f"../../../../../../../..{outside}/hostname"),
    )
    up = "/.." * 12
    volumes = [up, f"{up}{outside}", "/proc", "/proc/./sys", "/v/../sys", "/ok"]
    config = {
        "Cmd": ["sleep", "1000"], "Volumes": {volume: {} for volume in volumes},
        "Env": ["PATH=/bin", "HOME=/\nevil::0:0::/:/bin/sh"],
    }  # fmt: skip
    name = f"localhost/leads:{int(readonly)}"
    daemon.import_image(write_layout(tmp_path / "layout", {name: build_image([busybox_layer(), links], config)}))
    with daemon.pod(f"leads{int(readonly)}") as pod:
        security = cri.LinuxContainerSecurityContext(readonly_rootfs=readonly)
        linux = cri.LinuxContainerConfig(security_context=security)
        container = pod.create(image=name, linux=linux)
        document = json.loads((daemon.state / "containers" / container / "config.json").read_bytes())
        covered = {mount["destination"] for mount in document["mounts"] if "volumes" in mount.get("source", "")}
        assert not {path for path in covered if path in ("/", "/sys") or path.startswith("/proc")}
        daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=20)
        look = "cat /etc/passwd; ls /proc/self/status /sys/kernel"
        assert b"evil" not in pod.exec(container, "sh", "-c", look).stdout
    assert os.listdir(outside) == []
