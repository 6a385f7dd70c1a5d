"""Debian's containerd on crisp-oci, by way of its runc shim."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.images import busybox_layout, tar_of
from tests.oci import CRISP_OCI, Finished

IMAGE = "docker.io/library/busybox:latest"
NAMESPACE = f"crisp-test-{os.getpid()}"  # also the parent of its containers' cgroups


@dataclass
class Containerd:
    """A containerd below `directory`, spoken to by ctr."""

    directory: Path

    def ctr(self, *arguments: str, status: int = 0) -> Finished:
        command = ["ctr", "-a", str(self.directory / "socket"), "-n", NAMESPACE, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        assert done.returncode == status, done.stderr
        return done

    def run(self, *options: str, id: str, command: tuple[str, ...], status: int = 0) -> Finished:
        runtime = ("--runtime", "io.containerd.runc.v2", "--runc-binary", str(CRISP_OCI), "--snapshotter", "native")
        return self.ctr("run", *runtime, *options, IMAGE, id, *command, status=status)

    def status(self, id: str) -> str:
        lines = [line.split() for line in self.ctr("task", "ls").stdout.splitlines()]
        return next((words[2] for words in lines if words[0] == id), "")

    def log(self) -> str:
        return (self.directory / "log").read_text()


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    made = Containerd(tmp_path_factory.mktemp("containerd"))
    config = made.directory / "config.toml"
    config.write_text(
        f'version = 2\nroot = "{made.directory}/root"\nstate = "{made.directory}/state"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\n  address = "{made.directory}/socket"\n'
    )
    with open(made.directory / "log", "wb") as log:
        process = subprocess.Popen(["containerd", "--config", str(config)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while "successfully booted" not in made.log():
            assert time.monotonic() < deadline, made.log()
            time.sleep(0.05)
        layout = busybox_layout(made.directory / "layout")
        made.ctr("images", "import", "--snapshotter", "native", str(tar_of(layout, made.directory / "busybox.tar")))
        yield made
    finally:
        process.terminate()
        process.wait(20)


def test_run_in_the_foreground(containerd: Containerd) -> None:
    done = containerd.run("--rm", id="fg", command=("sh", "-c", "echo out; exit 3"), status=3)
    assert done.stdout == "out\n"
    done = containerd.run("--rm", id="no", command=("nosuch",), status=1)
    assert 'exec: "nosuch": executable file not found in $PATH' in done.stderr


def test_life_of_a_task(containerd: Containerd) -> None:
    containerd.run("-d", "--memory-limit", str(64 << 20), id="one", command=("sleep", "100"))
    try:
        assert containerd.status("one") == "RUNNING"
        done = containerd.ctr("task", "exec", "--exec-id", "e", "one", "sh", "-c", "echo in; exit 4", status=4)
        assert done.stdout == "in\n"
        assert "one" in containerd.ctr("task", "metrics", "one").stdout
        containerd.ctr("task", "pause", "one")
        assert containerd.status("one") == "PAUSED"
        containerd.ctr("task", "resume", "one")
        assert containerd.status("one") == "RUNNING"
        assert len(containerd.ctr("task", "ps", "one").stdout.splitlines()) == 2
    finally:
        containerd.ctr("task", "kill", "-s", "KILL", "one")
        deadline = time.monotonic() + 10
        while containerd.status("one") != "STOPPED":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        containerd.ctr("task", "delete", "one")
        containerd.ctr("container", "delete", "one")
