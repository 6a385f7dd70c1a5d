"""Root's integration tests move to a box (tests/box.py) before anything is collected."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import box

INTEGRATION = Path(__file__).parent / "integration"


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Run the same command line again inside a box if it names integration tests, and answer with its exit status."""
    if os.geteuid() != 0 or box.inside() or config.option.collectonly:
        return None
    paths = [(config.invocation_params.dir / argument.split("::")[0]).resolve() for argument in config.args]
    if not any(INTEGRATION.is_relative_to(path) or path.is_relative_to(INTEGRATION) for path in paths):
        return None
    return box.run_pytest(config.invocation_params.args)
