"""A daemon for tests whose processes can be killed at exact points."""

from __future__ import annotations

import os
from pathlib import Path

from tests.daemon import Daemon


class CrashDaemon(Daemon):
    """A daemon that dies, or kills, at the points of a plan."""

    module = "tests.crash.daemon"

    @property
    def plan(self) -> Path:
        return self.directory / "plan"

    def start(self) -> None:
        os.environ["CRASH_PLAN"] = str(self.plan)
        super().start()

    def alive(self) -> bool:
        """Whether crispd still runs; one that was killed is reaped."""
        return self.process is not None and self.process.poll() is None

    @property
    def plugins(self) -> Path:
        """A directory of network plugins beside the machine's."""
        return self.directory / "plugins"

    def _flags(self) -> list[str]:
        return [*super()._flags(), f"--cni-bin-dir={self.plugins}"]
