"""What the configuration says of one NRI plugin (`nri_plugins`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

IGNORE: Final = "ignore"
FAIL: Final = "fail"
WAIT: Final = "wait"
FAILURES: Final = (IGNORE, FAIL, WAIT)


@dataclass(frozen=True, slots=True)
class PluginPolicy:
    """`failure`: what its absence or silence means for a new pod or container. Times are in seconds."""

    failure: str = IGNORE
    seconds: int = 2  # for an answer; containerd's and CRI-O's default
    wait_seconds: int = 60  # for it to connect, with WAIT: within kubelet's two minutes

    @property
    def required(self) -> bool:
        return self.failure != IGNORE
