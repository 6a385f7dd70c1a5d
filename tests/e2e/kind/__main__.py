"""`python -m tests.e2e.kind`: kind makes a cluster of nodes that run crisp, with podman. Takes root."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests import box
from tests.e2e.kind import base
from tests.e2e.kind.trial import Trial
from tests.e2e.kind.two_nodes import TwoNodes

_DIRECTORY: Final = "CRISP_KIND_DIRECTORY"  # tells the command in the box where the image is
_TRIALS: Final = {1: Trial, 2: TwoNodes}


def main() -> int:
    """Make, use and delete a cluster; nothing of it is left. Exit status 0, or 1 if a step failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.kind", description=__doc__)
    parser.add_argument("--build", action="store_true", help="build programs and the base image, and run nothing")
    parser.add_argument(
        "--nodes", type=int, choices=_TRIALS, default=1,
        help="one, which is restarted; or two, and crisp is upgraded on one of them",
    )  # fmt: skip
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("kind: a node takes root: run as root", file=sys.stderr)
        return 1
    trial = _TRIALS[arguments.nodes]
    if box.inside():
        return _run(trial(Path(os.environ[_DIRECTORY])))
    base.prepare()
    if arguments.build:
        return 0
    directory = Path(tempfile.mkdtemp(prefix="kind-", dir="/var/tmp"))
    try:
        trial(directory).build()
        return box.run([sys.executable, "-m", "tests.e2e.kind", *sys.argv[1:]], {_DIRECTORY: str(directory)})
    finally:
        shutil.rmtree(directory)


def _run(trial: Trial) -> int:
    try:
        for step in trial.steps:
            step()
    except (AssertionError, RuntimeError, subprocess.CalledProcessError) as error:
        trial.tell()
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
