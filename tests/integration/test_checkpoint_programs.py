"""Which programs go on from a checkpoint (tests/programs.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri.v1 import api_pb2 as cri
from tests import programs
from tests.checkpoints import carried_over
from tests.criu import on_path
from tests.daemon import Daemon
from tests.images import write_layout


@pytest.mark.cri("CheckpointPod", "container_ids")
@pytest.mark.cri("RestorePod", "container_configs")
def test_programs_go_on(tmp_path: Path) -> None:
    with on_path(), Daemon.running() as daemon:
        daemon.import_image(write_layout(tmp_path / "layout", {programs.IMAGE: programs.image(programs.unpacked())}))
        carried_over(daemon, tmp_path, [one for one in programs.PROGRAMS if not one.tcp])
        remove = cri.RemoveImageRequest(image=cri.ImageSpec(image=programs.IMAGE))
        daemon.images.RemoveImage(remove, timeout=60)
