"""Settings and images of containerd and CRI-O come over to crisp, from stores that their own programs made."""

from __future__ import annotations

import random
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cri.client.migrate import bolt, containerd, crio
from cri.client.migrate.layout import NotWhole
from tests.daemon import Daemon
from tests.images import build_image, busybox_layer, entry, layer, tar_of, write_layout
from tests.integration.test_crisp_command import crisp
from tests.waiting import until

_CONTAINERD = """
version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{0}/socket"
[plugins."io.containerd.grpc.v1.cri"]
  max_concurrent_downloads = 5
  stream_server_port = "0"
  image_pull_progress_timeout = "1m30s"
  max_container_log_line_size = 4096
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    options.SystemdCgroup = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun]
    runtime_type = "io.containerd.runc.v2"
    options.BinaryName = "/usr/bin/crun"
  [plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
    endpoint = ["http://mirror.example:5000", "https://registry-1.docker.io"]
  [plugins."io.containerd.grpc.v1.cri".registry.configs."r.example".auth]
    password = "SECRET"
"""
_CRIO = """
[crio.runtime]
cgroup_manager = "systemd"
pids_limit = 1024
[crio.runtime.runtimes.kata]
runtime_path = "/usr/bin/kata"
[crio.network]
plugin_dirs = ["/opt/cni/bin"]
"""


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images that share a layer; one has links, an empty file and a file with an odd name."""
    link = entry("data/link", linkname="empty", type=b"2")
    odd = layer(entry("data/ü \n", b"x" * 70_000), entry("data/empty", b""), link)
    images = {
        "localhost/one:1": build_image([busybox_layer(), odd], {"Cmd": ["cat", "/data/empty"]}),
        "localhost/two:1": build_image([busybox_layer()], {"Cmd": ["true"]}),
    }
    return write_layout(tmp_path_factory.mktemp("images") / "layout", images)


@contextmanager
def _containerd(place: Path) -> Iterator[None]:
    with open(place / "log", "wb") as log:
        process = subprocess.Popen(["containerd", "--config", str(place / "config.toml")], stdout=log, stderr=log)
    try:
        until(lambda: "successfully booted" in (place / "log").read_text())
        yield
    finally:
        process.terminate()
        process.wait(60)


def test_images_and_settings_of_containerd(fresh_daemon: Daemon, layout: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(_CONTAINERD.format(tmp_path))
    with _containerd(tmp_path):
        archive = tar_of(layout, tmp_path / "images.tar")
        ctr = ["ctr", "-a", str(tmp_path / "socket"), "-n", "k8s.io", "images", "import", "--no-unpack", str(archive)]
        subprocess.run(ctr, check=True, capture_output=True)
        source = ("--from", "containerd", "--config", str(config), "--root", str(tmp_path / "root"))
        shown = crisp(fresh_daemon, "migrate", *source, "--dry-run")  # while containerd runs
        assert "localhost/one:1" in shown.stdout
        assert "max_container_log_line_size" in shown.stdout
        assert "SECRET" not in shown.stdout + shown.stderr
        assert crisp(fresh_daemon, "images", "-o", "json").stdout.count("localhost/one:1") == 0
    etc = tmp_path / "etc"
    done = crisp(fresh_daemon, "migrate", *source, "--directory", str(etc))
    assert done.returncode == 0, done.stderr
    settings = tomllib.loads((etc / "crisp/crisp.toml.d/50-migrated.toml").read_text())
    assert settings["parallel_downloads"] == 5
    assert settings["pull_progress_timeout"] == 90
    assert settings["cgroup_driver"] == "systemd"
    assert settings["runtime_handlers"] == {"crun": {"path": "/usr/bin/crun"}}
    (registry,) = tomllib.loads((etc / "containers/registries.conf.d/50-migrated.conf").read_text())["registry"]
    assert (registry["prefix"], registry["location"]) == ("docker.io", "docker.io")
    assert registry["mirror"] == [{"location": "mirror.example:5000", "insecure": True}]
    _assert_runs(fresh_daemon)
    assert "it exists" in crisp(fresh_daemon, "migrate", *source, "--directory", str(etc)).stderr
    _assert_damage_is_told((tmp_path / "root/io.containerd.metadata.v1.bolt/meta.db").read_bytes())
    for blob in (tmp_path / "root/io.containerd.content.v1.content/blobs/sha256").iterdir():
        if blob.stat().st_size > 10_000:
            blob.unlink()  # as with discard_unpacked_layers
    done = crisp(fresh_daemon, "migrate", *source, "--images-only")
    assert done.returncode == 1
    assert "localhost/two:1: " in done.stderr
    assert "is not in the content store" in done.stderr


def _assert_damage_is_told(database: bytes) -> None:
    def names(content: bytes) -> list[bytes]:
        listed = bolt.open_database(content).bucket(b"v1", b"k8s.io", b"images")
        return [key for key, _image in listed.buckets()] if listed is not None else []

    assert b"localhost/one:1" in names(database)
    chance = random.Random(1)
    for _ in range(100):
        damaged = bytearray(database[: chance.randrange(len(database))] if chance.random() < 0.3 else database)
        for _ in range(chance.randrange(20)):
            if damaged:
                damaged[chance.randrange(min(len(damaged), 1 << 16))] = chance.randrange(256)
        with suppress(bolt.Damaged):
            names(bytes(damaged))
    with pytest.raises(bolt.Damaged, match="no bolt database"):
        bolt.open_database(b"x" * 100_000)


def _assert_runs(daemon: Daemon) -> None:
    with daemon.pod("migrated") as pod:
        container = pod.run("sh", "-c", "wc -c /data/*; readlink /data/link", image="localhost/one:1")
        assert daemon.wait_exited(container).exit_code == 0
        assert "70000" in pod.log()
        daemon.wait_exited(pod.run("true", name="two", image="localhost/two:1"))


def test_images_and_settings_of_cri_o(fresh_daemon: Daemon, layout: Path, tmp_path: Path) -> None:
    config, store = tmp_path / "crio.conf", tmp_path / "store"
    config.write_text(_CRIO)
    drop_ins = tmp_path / "crio.conf.d"
    drop_ins.mkdir()
    (drop_ins / "10.conf").write_text('[crio.runtime]\nlog_level = "warn"\n')
    for name in ("localhost/one:1", "localhost/two:1"):
        target = f"containers-storage:[overlay@{store}+{tmp_path}/run]{name}"
        copy = ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}:{name}", target]
        subprocess.run(copy, check=True, capture_output=True)
    subprocess.run(["umount", store / "overlay"], check=True)  # skopeo leaves it mounted on itself
    source = ("--from", "crio", "--config", str(config), "--root", str(store))
    etc = tmp_path / "etc"
    done = crisp(fresh_daemon, "migrate", *source, "--directory", str(etc))
    assert done.returncode == 0, done.stderr
    assert "pids_limit" in done.stdout
    settings = tomllib.loads((etc / "crisp/crisp.toml.d/50-migrated.toml").read_text())
    assert settings == {
        "cgroup_driver": "systemd",
        "log_level": "warning",
        "cni_bin_dirs": ["/opt/cni/bin"],
        "runtime_handlers": {"kata": {"path": "/usr/bin/kata"}},
    }
    _assert_runs(fresh_daemon)
    (changed,) = store.glob("overlay/*/diff/data/empty")
    changed.with_name("ü \n").write_bytes(b"y" * 70_000)
    found = {one.name: one for one in crio.images(store)}
    with pytest.raises(NotWhole, match="was changed in the store"):
        found["localhost/one:1"].write(_empty(tmp_path / "out"))
    shutil.rmtree(changed.parent)
    changed.parent.symlink_to("/etc")  # nothing is read through a link out of the store
    with pytest.raises(NotWhole, match="put layer"):
        found["localhost/one:1"].write(_empty(tmp_path / "out2"))


def _empty(directory: Path) -> Path:
    directory.mkdir()
    return directory


def test_hosts_toml_of_containerd_become_registries(tmp_path: Path) -> None:
    certs = tmp_path / "certs.d"
    for name, text in {
        "r.example_5000_": 'server = "https://r.example:5000"\n[host."https://m.example"]\nskip_verify = true\n',
        "_default": '[host."https://all.example"]\n',
    }.items():
        (certs / name).mkdir(parents=True)
        (certs / name / "hosts.toml").write_text(text)
    config = tmp_path / "config.toml"
    config.write_text(f'version = 3\n[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = "{certs}"\n')
    translation = containerd.translate(config)
    (registry,) = tomllib.loads(translation.registries())["registry"]
    assert registry == {
        "prefix": "r.example:5000",
        "location": "r.example:5000",
        "mirror": [{"location": "m.example", "insecure": True}],
    }
    assert [what for what, _remark in translation.notes] == [str(certs / "_default/hosts.toml")]
