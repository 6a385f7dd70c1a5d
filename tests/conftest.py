"""Root's integration and end-to-end tests move to a box (tests/box.py) before anything is collected."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import box, boxes

# How long an example takes is the machine's affair, which other things may keep busy.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

# A shell's background job ignores it, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

IN_A_BOX = [Path(__file__).parent / name for name in ("integration", "e2e")]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--boxes", type=int, default=1, help="share the test modules among this many boxes (tests/boxes.py)"
    )


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """In one of several boxes, run the modules that it takes."""
    if not boxes.sharing() or session.config.option.collectonly:
        return None
    boxes.loop(session)
    return True


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Run the same command line again inside a box if it names such tests, and answer with its exit status."""
    if os.geteuid() != 0 or box.inside() or config.option.collectonly:
        return None
    if config.option.boxes > 1 and not boxes.sharing():
        return boxes.run(config.invocation_params.args, config.option.boxes)
    paths = [(config.invocation_params.dir / argument.split("::")[0]).resolve() for argument in config.args]
    if not any(room.is_relative_to(path) or path.is_relative_to(room) for path in paths for room in IN_A_BOX):
        return None
    return box.run_pytest(config.invocation_params.args)
