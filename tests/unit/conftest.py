"""What several unit tests begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cri.daemon.config import Configuration
from cri.daemon.main import settings
from pods.recorder.recorder import Bounds, Recorder
from pods.state.memory import State
from tests.answers import told as told


@pytest.fixture
async def state(tmp_path: Path) -> AsyncIterator[State]:
    """The state of a node that has nothing yet."""
    opened = State(
        settings(Configuration(root=tmp_path, state=tmp_path / "state")), Recorder(tmp_path / "recorder", Bounds())
    )
    await opened.store.open()
    yield opened
    opened.store.close()
