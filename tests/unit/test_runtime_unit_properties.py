"""Properties of a container's scope by annotations, as with runc."""

from __future__ import annotations

import pytest

from runtime.command.unit_properties import unit_properties
from runtime.errors import SpecError

_PREFIX = "org.systemd.property."


@pytest.mark.trial("systemd-properties", "annotations org.systemd.property.NAME are properties of a scope")
def test_annotations_are_properties() -> None:
    given = {"TimeoutStopUSec": "uint64 5000000", "CollectMode": "'inactive-or-failed'", "SendSIGHUP": "true",
             "After": "['one.service', 'two.service']", "RuntimeMaxSec": "1.5", "OOMScoreAdjust": "int32 -5",
             "Nice": "7"}  # fmt: skip
    assert unit_properties({"other": "x", **{_PREFIX + name: text for name, text in given.items()}}) == [
        ("TimeoutStopUSec", "t", 5_000_000),
        ("CollectMode", "s", "inactive-or-failed"),
        ("SendSIGHUP", "b", True),
        ("After", "as", ["one.service", "two.service"]),
        ("RuntimeMaxUSec", "t", 1_500_000),
        ("OOMScoreAdjust", "i", -5),
        ("Nice", "i", 7),
    ]


@pytest.mark.trial("systemd-properties", "annotations org.systemd.property.NAME are properties of a scope")
@pytest.mark.parametrize(
    ("name", "text"),
    [("Nice", "uint64 -1"), ("Nice", "no"), ("Nice", ""), ("Nice", "uint64 'a'"), ("Nice", "[]"), ("Nice", "{1: 2}"),
     ("a-b-c", "1"), ("Abc", "1"), ("", "1"), ("StopSec", "'5'"), ("Nice", "__import__('os')")],
)  # fmt: skip
def test_what_is_none_is_refused(name: str, text: str) -> None:
    with pytest.raises(SpecError, match="annotations"):
        unit_properties({_PREFIX + name: text})
