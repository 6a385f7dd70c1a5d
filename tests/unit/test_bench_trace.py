"""The bench reads what crispd writes."""

from __future__ import annotations

import logging

import pytest

from cri.logfmt import LogfmtFormatter
from pods.trace import Trace
from tests.bench.trace import parse


def test_a_trace_in_the_log_is_read_back(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "crisp.trace"):
        for name in ("RunPodSandbox", "a checkpoint"):
            trace = Trace(name, on=True)
            trace.step("rootfs mounted, user found")
            trace.step("durable")
            trace.finish("0a" * 32)
    found = parse("\n".join(map(LogfmtFormatter().format, caplog.records)))
    assert list(found) == ["RunPodSandbox", "a checkpoint"]
    assert all(list(steps) == ["rootfs mounted, user found", "durable", ""] for steps in found.values())
