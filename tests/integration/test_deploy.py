"""What deploy/ and the README promise: the trial passes and leaves nothing; kind's commands work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.daemon import Daemon
from tests.images import busybox_layout, tar_of

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_trial_runs_a_pod_and_leaves_nothing() -> None:
    trial = subprocess.run(
        [DEPLOY / "try.sh"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=120,
    )  # fmt: skip
    assert trial.returncode == 0, trial.stdout
    assert "Hello from a pod" in trial.stdout
    assert "is left." in trial.stdout


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
