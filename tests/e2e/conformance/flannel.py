"""flannel, a network that others wrote: its daemon on each node makes a VXLAN, and routes to the others' pods."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

from tests.e2e.processes import Processes

MTU: Final = 1450  # of pods: VXLAN takes 50 bytes of a packet
_BUILD: Final = Path(__file__).parents[1] / "build-flannel.sh"
_PORT: Final = 8472


@cache
def program() -> Path:
    """The daemon; built now where it is missing, which takes a minute and the network."""
    done = subprocess.run([_BUILD], check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    return Path(done.stdout.strip()) / "flanneld"


def start(processes: Processes, directory: Path, node: str, kubeconfig: Path, pods: str) -> None:
    """Start a node's daemon, which learns of the others from the API server. `pods` are the addresses of all pods."""
    settings = directory / "flannel.json"
    backend = {"Type": "vxlan", "VNI": 1, "Port": _PORT}
    settings.write_text(json.dumps({"Network": pods, "EnableNFTables": False, "Backend": backend}))
    processes.start(
        program(),
        "--kube-subnet-mgr",
        f"--kubeconfig-file={kubeconfig}",
        f"--net-config-path={settings}",
        f"--subnet-file={directory / 'subnet.env'}",
        "--iface=eth0",
        environment={"NODE_NAME": node},
    )
