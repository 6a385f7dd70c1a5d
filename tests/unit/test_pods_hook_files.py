"""Directories of OCI hooks: which file counts, what is refused, and whom a hook is for."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pods.errors import FailedPrecondition, InvalidArgument
from pods.oci.cdi import find_edits
from pods.oci.hook_files import HookFile, oci_hooks, read_hooks
from runtime.spec.values import HOOK_KINDS

HOOK = {"path": "/usr/bin/hook", "args": ["hook", "now"], "env": ["A=b"], "timeout": 5}


def _file(directory: Path, name: str, **members: Any) -> None:
    directory.mkdir(exist_ok=True)
    document = {"version": "1.0.0", "hook": HOOK, "when": {"always": True}, "stages": ["poststart"], **members}
    (directory / name).write_text(json.dumps(document))


def _only(directory: Path) -> HookFile:
    (found,) = read_hooks([directory])
    return found


def test_later_directories_hide_files_of_earlier_ones_and_names_give_the_order(tmp_path: Path) -> None:
    vendor, admin = tmp_path / "vendor", tmp_path / "admin"
    _file(vendor, "20-two.json", hook={"path": "/two"})
    _file(vendor, "10-one.json", hook={"path": "/hidden"}, stages=["prestart"])
    _file(admin, "10-one.json", hook={"path": "/one"}, stages=["prestart", "poststop"])
    (vendor / "README").write_text("no hook")
    files = read_hooks([vendor, tmp_path / "absent", admin])
    assert oci_hooks(files, {}, "/bin/sh", bind_mounts=False) == {
        "prestart": [{"path": "/one"}],
        "poststop": [{"path": "/one"}],
        "poststart": [{"path": "/two"}],
    }


@pytest.mark.parametrize(
    ("when", "wanted"),
    [
        ({"always": True}, True),
        ({"always": False, "commands": [".*"]}, False),
        ({"commands": ["^/bin/no$", "/sh$"]}, True),
        ({"commands": ["^sh$"]}, False),
        ({"hasBindMounts": True}, True),
        ({"hasBindMounts": False}, False),
        ({"annotations": {"^team$": "^blue$"}}, True),
        ({"annotations": {"^team$": "^red$"}}, False),
        ({"annotations": {"team": "b", "^size": "7"}}, True),
        ({"annotations": {"team": "b", "colour": ""}}, False),
        ({"annotations": {"team": "b"}, "commands": ["^/nowhere"]}, False),
        ({"annotations": None, "commands": None, "hasBindMounts": None, "always": True}, True),
        ({"annotations": {"team": "b"}, "commands": None, "always": None}, True),
    ],
)
def test_every_condition_has_to_hold(tmp_path: Path, when: dict[str, Any], wanted: bool) -> None:
    _file(tmp_path, "one.json", when=when)
    annotations = {"team": "blue", "size": "7"}
    assert _only(tmp_path).wants(annotations, "/bin/sh", bind_mounts=True) is wanted


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"version": "0.1.0"}, "version: expected '1.0.0', got '0.1.0'"),
        ({"hook": {"path": "relative"}}, "hook.path: expected an absolute path, got 'relative'"),
        ({"hook": {"path": "/x", "args": "one"}}, "hook.args: expected strings"),
        ({"hook": {"path": "/x", "timeout": 0}}, "hook.timeout"),
        ({"stages": []}, "stages: expected some of prestart"),
        ({"stages": ["precreate"]}, "got ['precreate']"),
        ({"when": {}}, "when: expected an object with a condition"),
        ({"when": {"weather": "fine"}}, "got ['weather']"),
        ({"when": {"commands": ["("]}}, "is not a regular expression"),
        ({"when": {"always": "yes"}}, "when.always: expected true or false"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, members: dict[str, Any], reason: str) -> None:
    _file(tmp_path, "wrong.json", **members)
    with pytest.raises(FailedPrecondition) as raised:
        read_hooks([tmp_path])
    assert str(raised.value).startswith(f"read hook {tmp_path}/wrong.json: ")
    assert reason in str(raised.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(member=st.sampled_from(["version", "hook", "when", "stages"]), value=JSON)
def test_any_member_of_any_kind_is_a_hook_or_refused(
    tmp_path_factory: pytest.TempPathFactory, member: str, value: Any
) -> None:
    directory = tmp_path_factory.mktemp("hooks")
    _file(directory, "any.json", **{member: value})
    with contextlib.suppress(FailedPrecondition):
        assert set(_only(directory).stages) <= set(HOOK_KINDS)


@pytest.mark.trial("deep-json-is-refused", "JSON that is nested too deep is refused as what is none")
def test_a_file_that_is_nested_too_deep_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(FailedPrecondition, match=r"read hook .*deep\.json"):
        read_hooks([tmp_path])
    with pytest.raises(InvalidArgument, match=r"deep\.json"):
        find_edits({"v/c=d": "config.CDI_devices[0]"}, [tmp_path])
