"""Limits of a container: the node's settings, and what pods may ask for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from pods.container_limits import DISK, LOG_RATE
from pods.errors import InvalidArgument
from pods.model import ContainerConfig, ContainerMetadata, ImageSpec, SandboxConfig, SandboxMetadata
from pods.settings import NodeSettings
from pods.state.log_counts import LogCounts
from runtime.wire.calls import Logged

_MAIN = ContainerConfig(metadata=ContainerMetadata("main"), image=ImageSpec("i"))


def _pod(**rates: str) -> SandboxConfig:
    names = {"pod": "crisp/log-rate"} | {name: f"log-rate.crisp/{name}" for name in ("main", "other")}
    metadata = SandboxMetadata(name="p", uid="u", namespace="n")
    return SandboxConfig(metadata=metadata, annotations={names[name]: rate for name, rate in rates.items()})


def _settings(rate: int, most: int = 0) -> NodeSettings:
    return cast(NodeSettings, SimpleNamespace(container_log_rate=rate, container_log_rate_most=most))


@pytest.mark.parametrize(
    ("pod", "settings", "rate"),
    [
        (_pod(), _settings(0), 0),
        (_pod(), _settings(100, 900), 100),
        (_pod(pod="50"), _settings(0), 50),
        (_pod(pod="50"), _settings(100), 50),
        (_pod(pod="0"), _settings(0), 0),
        (_pod(pod="50", main="70"), _settings(100), 70),
        (_pod(pod="50", other="70"), _settings(100), 50),
        (_pod(pod="500"), _settings(100, 900), 500),
    ],
)
def test_annotations_set_the_rate(pod: SandboxConfig, settings: NodeSettings, rate: int) -> None:
    LOG_RATE.check(pod, _MAIN, settings)
    assert LOG_RATE.of(pod, _MAIN, settings) == rate


@pytest.mark.parametrize(
    ("rates", "settings", "rate"),
    [
        ({"pod": "101"}, _settings(100), 100),
        ({"pod": "0"}, _settings(100), 100),
        ({"main": "901"}, _settings(100, 900), 900),
        ({"pod": "500"}, _settings(100, 50), 100),
    ],
)
def test_no_pod_loosens_the_nodes_rate(rates: dict[str, str], settings: NodeSettings, rate: int) -> None:
    """Neither when it is created, nor when the operator has lowered the rate before it starts."""
    with pytest.raises(InvalidArgument, match="container_log_rate_most"):
        LOG_RATE.check(_pod(**rates), _MAIN, settings)
    assert LOG_RATE.of(_pod(**rates), _MAIN, settings) == rate


@pytest.mark.parametrize("text", ["", "-1", "1k", "1.5", "²", " 5", "9" * 5000, str((1 << 40) + 1)])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"annotation 'crisp/log-rate': must be a number") as refusal:
        LOG_RATE.check(_pod(pod=text), _MAIN, _settings(0))
    assert not text.strip() or text not in str(refusal.value)


def test_each_limit_has_its_annotations_and_settings() -> None:
    settings = cast(NodeSettings, SimpleNamespace(container_disk_limit=100, container_disk_limit_most=200))
    metadata = SandboxMetadata(name="p", uid="u", namespace="n")
    annotations = {"crisp/disk-limit": "150", "disk-limit.crisp/other": "201", "crisp/log-rate": "7"}
    pod = SandboxConfig(metadata=metadata, annotations=annotations)
    other = ContainerConfig(metadata=ContainerMetadata("other"), image=ImageSpec("i"))
    DISK.check(pod, _MAIN, settings)
    assert (DISK.of(pod, _MAIN, settings), DISK.of(pod, other, settings)) == (150, 200)
    with pytest.raises(InvalidArgument, match=r"'disk-limit\.crisp/other': .* 200 bytes .* raise container_disk"):
        DISK.check(pod, other, settings)


def test_what_containers_log_is_summed_once() -> None:
    counts = LogCounts()
    counts.begun("new")
    counts.heard("new", Logged(bytes=10, lines=1))
    counts.heard("new", Logged(bytes=30, lines=2, dropped_bytes=5, dropped_lines=1))
    counts.heard("earlier", Logged(bytes=1000, lines=100))  # before this crispd
    counts.heard("earlier", Logged(bytes=1007, lines=101))
    counts.heard("new", Logged(bytes=30, lines=2, dropped_bytes=5, dropped_lines=1))
    counts.forget_but({"earlier"})
    assert counts.total == Logged(bytes=37, lines=3, dropped_bytes=5, dropped_lines=1)


def test_a_successor_of_a_shim_counts_from_nothing() -> None:
    counts = LogCounts()
    counts.begun("c")
    for logged in (Logged(bytes=100, lines=10), Logged(), Logged(bytes=5, lines=1), Logged(bytes=9, lines=2)):
        counts.heard("c", logged)
    assert counts.total == Logged(bytes=109, lines=12)
