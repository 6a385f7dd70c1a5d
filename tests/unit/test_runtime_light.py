"""What stands in for heavier modules of the standard library behaves as they do, and keeps them out of a start."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import socket
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.light import jsons as lightjson
from runtime.light import sockets as lightsocket
from runtime.light.classes import dataclass, field, replace
from runtime.spec.values import Process, User

HEAVY = "argparse ast dataclasses enum inspect json re selectors signal socket subprocess typing".split()


@pytest.mark.parametrize("command", ["create", "delete", "exec", "kill", "run", "start", "state"])
def test_a_start_imports_nothing_heavy(command: str) -> None:
    modules = ", ".join(f"runtime.command.{name}" for name in ("main", "invocation", "store", f"verbs.{command}"))
    program = f"import sys; sys.path.append({os.getcwd()!r}); import {modules}; print([*sys.modules])"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    allowed = {"kill": ["enum", "signal"], "state": ["re", "enum", "json"]}.get(command, [])
    loaded = set(HEAVY) & set(json.loads(done.stdout.replace("'", '"'))) - set(allowed)
    assert not loaded, "import these lazily, or by way of runtime.light and `if TYPE_CHECKING`"


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = 2
    names: list = field(default_factory=list)  # type: ignore[type-arg]


def test_dataclasses() -> None:
    assert Point(1) == Point(x=1, y=2) != Point(1, 3)
    assert Point(1).names is not Point(1).names
    assert repr(Point(1)) == "Point(x=1, y=2, names=[])"
    assert replace(Point(1), y=5) == dataclasses.replace(Point(1), y=5) == Point(1, 5)
    assert dataclasses.asdict(Point(1)) == {"x": 1, "y": 2, "names": []}
    assert [member.name for member in dataclasses.fields(Point)] == ["x", "y", "names"]
    assert copy.deepcopy(Point(1)) == pickle.loads(pickle.dumps(Point(1))) == Point(1)
    assert hash(User(1, 2)) == hash(User(1, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Point(1).x = 2  # type: ignore[misc]
    for wrong in (lambda: Point(), lambda: Point(1, z=1), lambda: Point(1, x=1), lambda: Point(1, 2, [], 4)):
        with pytest.raises(TypeError):
            wrong()
    assert Process("/", ("a",)).user == User()


_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                     lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(_JSON)
def test_json(value: object) -> None:
    assert lightjson.dumps(value) == json.dumps(value)
    assert lightjson.loads(f" {json.dumps(value)}\n".encode()) == value


@pytest.mark.parametrize("text", ["", "{", "[1,]", '{"a": 1} x', "nul", '"a', "{'a': 1}"])
def test_json_that_is_wrong(text: str) -> None:
    with pytest.raises(json.JSONDecodeError):
        lightjson.loads(text)


@pytest.mark.trial("deep-json-is-refused", "JSON that is nested too deep is refused as what is none")
@pytest.mark.parametrize("text", ["[" * 200_000, "[" * 200_000 + "]" * 200_000, '{"a":' * 200_000])
def test_json_that_is_nested_too_deep_is_wrong(text: str) -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        lightjson.loads(text)


def test_sockets_carry_descriptors() -> None:
    ours, theirs = lightsocket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert not os.get_inheritable(ours.fileno())
        lightsocket.send_fds(ours, [b"two"], [0, 1])
        data, fds, _flags, _address = lightsocket.recv_fds(theirs, 16, 4, socket.MSG_CMSG_CLOEXEC)
        assert (data, len(fds)) == (b"two", 2)
        for fd in fds:
            os.close(fd)
