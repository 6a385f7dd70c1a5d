"""What the README promises: the trial passes, and nothing of it stays."""

from __future__ import annotations

import subprocess
from pathlib import Path

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_trial_runs_a_pod_and_leaves_nothing() -> None:
    trial = subprocess.run(
        [DEPLOY / "try.sh"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=120,
    )  # fmt: skip
    assert trial.returncode == 0, trial.stdout
    assert "Hello from a pod" in trial.stdout
    assert "is left." in trial.stdout
