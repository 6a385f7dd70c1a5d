"""Tells at the end of a run how the guest spent its time: all of it is one fixture's to pytest."""

from __future__ import annotations

import pytest

TIMES = pytest.StashKey[str]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if told := config.stash.get(TIMES, ""):
        terminalreporter.section("where the guest's time went")
        terminalreporter.write_line(told)
