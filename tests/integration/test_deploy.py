"""What deploy/ and the README promise: the trial passes and leaves nothing; kind's commands work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.images import busybox_layout, tar_of

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.mark.trial("try-tells-all", "try.sh tells all that it does, into a file too, and runs what it shows.")
def test_the_trial_runs_a_pod_and_leaves_nothing(tmp_path: Path) -> None:
    told, traced = tmp_path / "told", tmp_path / "traced"
    with told.open("w") as output, traced.open("w") as trace:
        trial = subprocess.run(
            ["bash", "-x", DEPLOY / "try.sh"], stdin=subprocess.DEVNULL, stdout=output, stderr=output, timeout=300,
            env=os.environ | {"BASH_XTRACEFD": str(trace.fileno())}, pass_fds=[trace.fileno()],
        )  # fmt: skip
    lines = told.read_text().splitlines()
    assert trial.returncode == 0, lines
    assert [line[0] for line in lines if re.match(r"[0-9]\. ", line)] == list("123456789")
    assert lines.count("Hello from a pod") == 2
    assert "is left." in lines[-1]
    shown = {line.removeprefix("$ ").partition(" >>")[0] for line in lines if line.startswith("$ ")}
    assert len(shown) > 10
    assert shown <= {line.lstrip("+ ") for line in traced.read_text().splitlines()}


def test_kind_can_load_images_into_a_node(daemon: Daemon, tmp_path: Path) -> None:
    """The very calls that `kind load` makes of containerd's client."""
    layout = busybox_layout(tmp_path / "layout", "docker.io/library/loaded:1")
    archive = tar_of(layout, tmp_path / "image.tar")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"CRISP_LISTEN": daemon.listen, "PATH": path}

    def ctr(*arguments: str, stdin: Path = Path(os.devnull)) -> str:
        with stdin.open("rb") as source:
            done = subprocess.run(
                [DEPLOY / "kind/ctr", "--namespace=k8s.io", "images", *arguments], stdin=source, env=environment,
                check=True, capture_output=True, text=True,
            )  # fmt: skip
        return done.stdout

    ctr("import", "--all-platforms", "--digests", "--snapshotter=overlayfs", "-", stdin=archive)
    assert "docker.io/library/loaded:1" in ctr("list", "-q").split()
    ctr("tag", "--force", "docker.io/library/loaded:1", "docker.io/library/renamed:2")
    assert {"docker.io/library/loaded:1", "docker.io/library/renamed:2"} <= set(ctr("list", "-q").split())
