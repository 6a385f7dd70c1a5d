"""CDI specs: which one has a device, what it adds, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pods.errors import InvalidArgument, PodError, Unimplemented
from pods.model import ContainerConfig, ContainerMetadata, ImageSpec
from pods.oci.cdi import find_edits, requested

_ZERO = {"test.org/gpu=0": "config.CDI_devices[0]"}


def _spec(directory: Path, name: str, edits: dict[str, Any], kind: str = "test.org/gpu", **device: Any) -> None:
    directory.mkdir(exist_ok=True)
    document = {"cdiVersion": "0.6.0", "kind": kind, "containerEdits": edits, "devices": [{"name": "0", **device}]}
    (directory / name).write_text(json.dumps(document))  # which is YAML too


def test_edits_of_the_spec_come_once_and_first(tmp_path: Path) -> None:
    _spec(tmp_path, "a.json", {"env": ["ALL=1"], "additionalGids": [5, 0]}, containerEdits={"env": ["ONE=2"]})
    assert find_edits(_ZERO, [tmp_path]).env == ("ALL=1", "ONE=2")
    assert find_edits(_ZERO, [tmp_path]).additional_gids == (5,)
    assert find_edits({}, [tmp_path / "absent"]).env == ()


@pytest.mark.trial("null-is-missing", "null is taken for a member that is missing, as Go's programs take it")
def test_nulls_of_a_spec_are_what_is_missing(tmp_path: Path) -> None:
    lists = ("env", "deviceNodes", "mounts", "hooks", "additionalGids", "intelRdt", "netDevices")
    absent = ("hostPath", "type", "major", "minor", "fileMode", "permissions", "uid", "gid")
    node = {"path": "/dev/null", **dict.fromkeys(absent)}
    mount = {"hostPath": "/a", "containerPath": "/b", "options": None, "type": None}
    hook = {"hookName": "poststop", "path": "/h", "args": None, "env": None, "timeout": None}
    some = {**dict.fromkeys(lists), "deviceNodes": [node], "mounts": [mount], "hooks": [hook]}
    _spec(tmp_path, "a.json", dict.fromkeys(lists), containerEdits=some, annotations=None)
    (tmp_path / "b.json").write_text('{"cdiVersion": "0.6.0", "kind": "test.org/none", "devices": null}')
    edits = find_edits(_ZERO, [tmp_path])
    assert (edits.nodes[0].type, edits.nodes[0].access) == ("c", "rwm")
    assert edits.mounts[0]["options"] == ["nosuid", "nodev", "bind"]
    assert edits.hooks == (("poststop", {"path": "/h"}),)


def test_a_node_takes_from_the_host_what_the_spec_leaves_out(tmp_path: Path) -> None:
    nodes = [{"path": "/dev/mine", "hostPath": "/dev/null", "permissions": "r"},
             {"path": "/dev/other", "type": "b", "major": 7, "minor": 9, "fileMode": 0o600, "gid": 3},
             {"path": "/dev/pipe", "type": "p", "fileMode": 0o600}]  # fmt: skip
    _spec(tmp_path, "a.yaml", {"deviceNodes": nodes})
    mine, other, pipe = find_edits(_ZERO, [tmp_path]).nodes
    assert (mine.has_rule, other.has_rule, pipe.has_rule) == (True, True, False)
    assert (mine.path, mine.type, mine.major, mine.minor, mine.access) == ("/dev/mine", "c", 1, 3, "r")
    assert (other.type, other.major, other.minor, other.mode, other.gid) == ("b", 7, 9, 0o600, 3)


def test_later_directories_win_and_equals_conflict(tmp_path: Path) -> None:
    low, high = tmp_path / "low", tmp_path / "high"
    _spec(low, "a.json", {"env": ["FROM=low"]})
    _spec(high, "a.json", {"env": ["FROM=high"]})
    (high / "ignored.txt").write_text("nothing of CDI")
    (high / "another-vendors.json").write_text("{broken")
    assert find_edits(_ZERO, [low, high]).env == ("FROM=high",)
    _spec(high, "b.json", {})
    with pytest.raises(InvalidArgument, match=r"more than one spec: .*a\.json.*b\.json"):
        find_edits(_ZERO, [low, high])


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ('{"kind": "a.b/c", "devices": []}', InvalidArgument, "no CDI spec on this node defines device"),
        ("kind: [unclosed", InvalidArgument, "a.yaml"),
        ("just text", InvalidArgument, "a.yaml"),
        ('{"kind": "test.org/gpu", "devices": [{"name": "0", "containerEdits": [1]}]}', InvalidArgument, "a.yaml"),
        ('{"kind": "test.org/gpu", "devices": [{"name": "0", "containerEdits": {"additionalGids": [.inf]}}]}',
         InvalidArgument, "a.yaml"),
        ('{"kind": "test.org/gpu", "devices": [{"name": "0", "containerEdits": {"hooks": [{"path": "/x"}]}}]}',
         InvalidArgument, "hookName: expected one of prestart"),
        ('{"kind": "test.org/gpu", "devices": [{"name": "0", "containerEdits": {"intelRdt": {"closID": "x"}}}]}',
         Unimplemented, "intelRdt is not supported"),
        ('{"kind": "test.org/gpu", "devices": [{"name": "0", "containerEdits": {"env": ["X"]}}]}',
         InvalidArgument, "env[0]: expected NAME=value"),
        ('{"kind": "test.org/gpu", "devices": [{"name": "0", "containerEdits": {"mounts": [{"hostPath": "/a", '
         '"containerPath": "/b/../../c"}]}}]}', InvalidArgument, "without '..'"),
        ('{"kind": "test.org/gpu", "containerEdits": {"deviceNodes": [{"path": "/dev/no"}]}, "devices": [{"name": 0}]}',
         InvalidArgument, "/dev/no"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, text: str, kind: type[PodError], words: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(kind) as raised:
        find_edits(_ZERO, [tmp_path])
    assert words in str(raised.value)


_ANNOTATIONS = pytest.mark.trial(
    "cdi-annotations", "CDI devices that a container's annotations name are given, and those that are not there refused"
)


def _asking(annotations: dict[str, str], *devices: str) -> ContainerConfig:
    return ContainerConfig(
        metadata=ContainerMetadata(name="c"), image=ImageSpec(image="i"), annotations=annotations, cdi_devices=devices
    )


@_ANNOTATIONS
def test_devices_are_asked_for_by_fields_and_annotations_once_each() -> None:
    annotations = {"cdi.k8s.io/plugin_a": "v.com/d=1,v.com/d=2", "cdi.k8s.io/": "w.com/e=all", "other": "v.com/d=9"}
    assert requested(_asking(annotations, "v.com/d=2", "v.com/d=3")) == {
        "v.com/d=2": "config.CDI_devices[0]",
        "v.com/d=3": "config.CDI_devices[1]",
        "v.com/d=1": "config.annotations['cdi.k8s.io/plugin_a']",
        "w.com/e=all": "config.annotations['cdi.k8s.io/']",
    }
    assert requested(_asking({})) == {}


@_ANNOTATIONS
@pytest.mark.parametrize("names", ["", "gpu", "v.com/d", "v.com/d=1,", "v.com/d=1, v.com/d=2", "v.com/d=1\n", "/d=1"])
def test_an_annotation_that_names_no_device_is_refused(names: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^config\.annotations\['cdi\.k8s\.io/x'\]: "):
        requested(_asking({"cdi.k8s.io/x": names}))
