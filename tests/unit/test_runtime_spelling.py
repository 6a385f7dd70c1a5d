"""Members of config.json in another case, as Go's decoder takes them."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from runtime.spec import parse as spec_parse
from runtime.spec.parse import parse, parse_resources, spelled

CONFIG: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "root": {"path": "rootfs", "readonly": True},
    "process": {"args": ["a"], "cwd": "/", "user": {"uid": 1, "gid": 2, "additionalGids": [3]}},
    "annotations": {"Limit": "kept", "limit": "kept too"},
    "linux": {
        "resources": {"hugepageLimits": [{"pageSize": "2MB", "limit": 1}], "memory": {"disableOOMKiller": True},
                      "rdma": {"Limit": {"hcaHandles": 1}}},
        "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ERRNO"}]},
        "sysctl": {"net.ipv4.conf.Mode": "1"},
    },
}  # fmt: skip
_MAPS = ("annotations", "rdma", "sysctl")


def _changed(value: Any, change: Any) -> Any:
    """With other names of members, but not where names are the user's own."""
    if isinstance(value, list):
        return [_changed(each, change) for each in value]
    if not isinstance(value, dict):
        return value
    return {change(name): each if name in _MAPS else _changed(each, change) for name, each in value.items()}


@pytest.mark.trial("members-in-any-case", "members of config.json are taken in any case, as by Go's decoder")
@pytest.mark.parametrize("change", [str.lower, str.upper, str.title, str.swapcase])
def test_any_case_is_taken(change: Any) -> None:
    assert dataclasses.asdict(parse(_changed(CONFIG, change))) == dataclasses.asdict(parse(CONFIG))


@pytest.mark.trial("members-in-any-case", "members of config.json are taken in any case, as by Go's decoder")
def test_the_last_one_counts() -> None:
    assert parse_resources({"pids": {"limit": 1, "Limit": 2}}).pids_limit == 2
    assert parse_resources({"PIDS": {"LIMIT": 2}, "pids": {"limit": 1}}).pids_limit == 1
    assert spelled({"unknown": 1, "Unknown": 2}) == {"unknown": 1, "Unknown": 2}


def test_every_member_that_is_read_is_known_in_its_spelling() -> None:
    calls = [node for node in ast.walk(ast.parse(Path(spec_parse.__file__).read_text())) if isinstance(node, ast.Call)]
    read = {
        argument.value
        for call in calls
        if isinstance(call.func, ast.Attribute) and hasattr(spec_parse._Object, call.func.attr)
        for argument in call.args[:1]
        if isinstance(argument, ast.Constant)
    }
    assert read - {None} <= spec_parse._NAMES
    assert len({name.lower() for name in spec_parse._NAMES}) == len(spec_parse._NAMES)


@pytest.mark.trial("seccomp-spec-allow", "a seccomp profile without `flags` is loaded with SPEC_ALLOW, with [] without")
def test_flags_of_a_profile_that_says_nothing() -> None:
    def flags(**more: Any) -> tuple[str, ...]:
        linux = {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", **more}}
        seccomp = parse({"ociVersion": "1.2.0", "root": {"path": "r"}, "linux": linux}).linux.seccomp
        assert seccomp is not None
        return seccomp.flags

    assert flags() == flags(flags=None) == ("SECCOMP_FILTER_FLAG_SPEC_ALLOW",)
    assert flags(flags=[]) == ()
    assert flags(flags=["SECCOMP_FILTER_FLAG_LOG"]) == ("SECCOMP_FILTER_FLAG_LOG",)
