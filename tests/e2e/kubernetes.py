"""Programs of Kubernetes, built once a machine."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

BUILD = Path(__file__).with_name("build-kubernetes.sh")


@cache
def directory(*programs: str) -> Path:
    """Where these programs (kubelet, kube-apiserver, ...) are; built now where they are missing, which takes minutes.

    Raises CalledProcessError when they cannot be built; why is on standard error.
    """
    done = subprocess.run([BUILD, *programs], check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    return Path(done.stdout.strip())
