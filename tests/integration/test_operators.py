"""What an operator asks a node for: what holds its disk, what is wrong on it, one archive for a bug report."""

from __future__ import annotations

import contextlib
import json
import tarfile
from pathlib import Path
from typing import Any

import grpc

from cri.v1 import api_pb2 as cri
from tests.daemon import BUSYBOX, CALL_SECONDS, Daemon
from tests.images import build_image, busybox_layer, entry, layer, write_layout
from tests.integration.test_crisp_command import crisp

_MIB = 1 << 20


def _holdings(daemon: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(crisp(daemon, "df", "-o", "json").stdout)["holdings"]
    return [{**one, **{key: int(one[key]) for key in ("bytes", "shared", "frees")}} for one in found]


def test_each_byte_has_a_holder(fresh_daemon: Daemon, tmp_path: Path) -> None:
    daemon = fresh_daemon
    config = {"Cmd": ["sleep", "1000"]}
    images = {
        f"localhost/{name}:1": build_image([busybox_layer(), layer(entry(name, b"x" * _MIB))], config)
        for name in ("used", "idle")
    }
    daemon.import_image(write_layout(tmp_path / "layout", images))
    stray = daemon.root / "containers" / "nobodys"
    with daemon.pod("writes") as pod:
        container = pod.run("sh", "-c", "head -c 3145728 /dev/zero >/file; sleep 1000", image="localhost/used:1")
        while pod.exec(container, "stat", "-c", "%s", "/file").stdout.strip() != b"3145728":
            pass
        stray.mkdir(parents=True)
        (stray / "file").write_bytes(b"x" * _MIB)
        found = _holdings(daemon)
        used, idle = (next(one for one in found if one["name"] == name) for name in images)
        assert (used["users"], used["frees"]) == (["default/writes/main"], 0)
        assert idle["users"] == []
        assert idle["frees"] == idle["bytes"] >= _MIB  # its own layer alone
        (shared,) = (one for one in found if one["kind"] == "shared layers")
        assert shared["bytes"] == used["shared"] == idle["shared"] > 0
        assert shared["frees"] == 0  # the used image needs them
        (layers,) = (one for one in found if one["kind"] == "container")
        assert layers["id"] == container
        assert layers["bytes"] >= 3 * _MIB
        (nobodys,) = (one for one in found if one["kind"] == "stray")
        assert (nobodys["name"], nobodys["frees"] >= _MIB) == (str(stray), True)
        assert {"log", "recordings", "own"} <= {one["kind"] for one in found}
        table = crisp(daemon, "df", "--verbose").stdout
        assert "localhost/used:1" in table
        assert table.splitlines()[-1].startswith("all ")
    (stray / "file").unlink()
    stray.rmdir()


def test_where_audit_cannot_be_read_it_is_said(daemon: Daemon) -> None:
    done = crisp(daemon, "seccomp", "denials")  # tests run in a PID namespace
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["CONTAINER", "NAME"])
    assert "denied calls cannot be counted: crispd runs in a PID namespace of its own" in done.stderr
    done = crisp(daemon, "seccomp", "learn", "-w", "/nowhere", BUSYBOX)
    assert "learn a seccomp profile: crispd runs in a PID namespace" in done.stderr


def test_a_bundle_has_what_helps_and_no_secret(tmp_path: Path) -> None:
    """Each secret has SECRET in it, wherever it was planted."""
    plugin = tmp_path / "talks"
    plugin.write_text(
        "#!/bin/sh\n[ $CNI_COMMAND = DEL ] && exit 0\n"
        """echo '{"cniVersion":"1.0.0","code":7,"msg":"GET https://admin:SECRET1@ipam/?token=SECRET2: 401",'
echo '"details":"Authorization: Bearer SECRET3, \\"password\\": \\"SECRET4\\""}'; exit 1\n"""
    )
    plugin.chmod(0o755)
    with Daemon.running(f"--cni-bin-dir={tmp_path}") as daemon, daemon.pod("talks") as pod:
        daemon.import_busybox()
        container = pod.run(
            *("sh", "-c", "echo the key is SECRET5; exit 3", "SECRET6"),
            envs=[cri.KeyValue(key="A", value=b"SECRET7")],
            annotations={"a": "SECRET8"},
            labels={"a": "SECRET9"},
        )
        daemon.wait_exited(container)
        with contextlib.suppress(grpc.RpcError):
            pod.run("sleep", "100", name="works")
            pod.exec(pod.run("sleep", "100", name="again"), "sh", "-c", "echo SECRET$((6 + 7)) >&2; exit 1", "SECRET10")
        login = cri.AuthConfig(username="me", password="SECRET11")
        pull = cri.PullImageRequest(image=cri.ImageSpec(image="127.0.0.1:1/a:1"), auth=login)
        with contextlib.suppress(grpc.RpcError):
            daemon.images.PullImage(pull, timeout=CALL_SECONDS)
        conf = {"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "talks", "key": "SECRET12"}]}
        (daemon.cni_conf_dir / "00-talks.conflist").write_text(json.dumps(conf))
        config = daemon.sandbox_config("no-network")
        with contextlib.suppress(grpc.RpcError):
            daemon.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config), timeout=CALL_SECONDS)
        done = crisp(daemon, "bundle", "--offline", "-o", str(tmp_path / "bundle.tar.gz"))
        assert done.returncode == 0, done.stderr
        shown = crisp(daemon, "why")
        (daemon.cni_conf_dir / "00-talks.conflist").unlink()
    with tarfile.open(tmp_path / "bundle.tar.gz") as archive:
        members = {path.name.partition("/")[2]: archive.extractfile(path).read().decode() for path in archive}  # type: ignore[union-attr]
    assert all("SECRET" not in content for content in members.values())
    told = {one["subject"]: one for one in json.loads(members["why.json"])}
    assert told["pod default/talks"]["name"] == "exit-code"
    assert "exit code 3: [left out]" in told["pod default/talks"]["cause"]
    assert told["pod default/no-network"]["name"] == "network-plugin"
    assert "401" in told["pod default/no-network"]["cause"]
    assert told["image 127.0.0.1:1/a:1"]["name"] == "registry-unavailable"
    assert {"versions.json", "doctor.json", "containers.json", "machine.txt"} <= set(members)
    for subject in ("container main of pod default/talks", "image 127.0.0.1:1/a:1", "pod default/no-network"):
        assert f"{subject}:" in shown.stdout.splitlines()
