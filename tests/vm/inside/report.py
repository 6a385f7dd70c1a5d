"""A pytest plugin: each test's outcome as a line of JSON on the results port, crispd's journal with what failed."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Generator

import pytest

PORT = int(os.environ["CRISP_GUEST_RESULTS"])
JOURNAL_LINES = 60


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cri(rpc, *fields): as in pyproject.toml, which is not here")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections.append(("crispd's journal", _journal()))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or not report.passed:
        _write(report.nodeid.split("/")[-1], report.outcome, report.duration, _text(report))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write(report.nodeid.split("/")[-1], report.outcome, 0.0, str(report.longrepr))


def _text(report: pytest.TestReport) -> str:
    if report.passed:
        return "\n".join(str(value) for name, value in report.user_properties if name == "told")
    sections = [f"--- {title}\n{content}" for title, content in report.sections]
    return "\n".join([str(report.longrepr), *sections])


def _write(name: str, outcome: str, seconds: float, text: str) -> None:
    line = json.dumps({"test": name, "outcome": outcome, "seconds": round(seconds, 1), "text": text}) + "\n"
    with open(PORT, "w", closefd=False) as port:
        port.write(line)


def _journal() -> str:
    command = ["journalctl", "--unit=crispd", "--no-pager", "--output=cat", f"--lines={JOURNAL_LINES}"]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout
