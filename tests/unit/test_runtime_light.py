"""What stands in for heavier modules of the standard library behaves as they do, and keeps them out of a start."""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import json
import os
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.light import contexts as lightcontexts
from runtime.light import jsons as lightjson
from runtime.light import sockets as lightsocket
from runtime.light.classes import dataclass, field, replace
from runtime.spec.values import Process, User

HEAVY = """
    argparse ast collections contextlib dataclasses enum functools inspect json re selectors signal socket subprocess
    typing
""".split()

_ENUM = ["enum", "functools", "collections"]


@pytest.mark.parametrize("command", ["create", "delete", "exec", "kill", "run", "start", "state"])
def test_a_start_imports_nothing_heavy(command: str) -> None:
    modules = ", ".join(f"runtime.command.{name}" for name in ("main", "invocation", "store", f"verbs.{command}"))
    program = f"import sys; sys.path.append({os.getcwd()!r}); import {modules}; print([*sys.modules])"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    allowed = {"kill": [*_ENUM, "signal"], "state": [*_ENUM, "re", "json", "contextlib"]}.get(command, [])
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
    assert lightjson.dumps(value, separators=(",", ":")) == json.dumps(value, separators=(",", ":"))
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
        with pytest.raises(BlockingIOError):
            _fill(ours)


def _fill(sock: lightsocket.socket) -> None:
    while True:
        lightsocket.send_fds(sock, [bytes(4096)], [0], socket.MSG_DONTWAIT)


def test_a_socket_accepts(tmp_path: Path) -> None:
    with lightsocket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "it"))
        listener.listen()
        with lightsocket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(tmp_path / "it"))
            accepted, _address = listener.accept()
            with accepted:
                client.sendall(b"x")
                assert accepted.recv(1) == b"x"
                assert not os.get_inheritable(accepted.fileno())


def test_shims_use_the_light_ones() -> None:
    """What a shim runs of the standard library's, it takes into its own memory. `dataclasses.replace` is the worst."""
    heavy = re.compile(r"^(?:import (?:json|selectors|signal|socket)|from dataclasses import .*replace)", re.MULTILINE)
    shim = Path(__file__).parents[2] / "runtime/shim"
    found = {path.name: heavy.findall(path.read_text()) for path in shim.rglob("*.py")}
    # The zygote loads `json` for the errors of runtime.light's.
    assert {name: lines for name, lines in found.items() if lines} == {"zygote.py": ["import json"]}


class Stopped(Exception):
    pass


# What a block, and each context and callback on a stack, does when its turn comes.
_ACTS = st.sampled_from(
    ["pass", "raise", "raise StopIteration", "raise RuntimeError", "raise from", "again", "suppress"]
)
_ENTRIES = st.lists(st.tuples(st.sampled_from(["context", "callback", "callback", "move"]), _ACTS), max_size=5)


def _act(act: str, name: object, error: BaseException | None = None) -> bool:
    match act:
        case "raise":
            raise Stopped(name)
        case "raise StopIteration":
            raise StopIteration(name)
        case "raise RuntimeError":
            raise RuntimeError(name)
        case "raise from":
            raise Stopped(name) from error
        case "again" if error is not None:
            raise error
    return act == "suppress"


def _story(module: Any, block: str, before: str, entries: list[tuple[str, str]]) -> list[object]:
    """What happens, in order, and the chain of exceptions at the end; `before` was being handled meanwhile."""
    happened: list[object] = []

    @module.contextmanager
    def context(act: str, name: int) -> Any:
        try:
            yield name
        except BaseException as error:
            happened.append((name, repr(error)))
            if not _act(act, name, error):
                raise
        else:
            _act(act, name)

    def callback(act: str, name: int) -> None:
        happened.append(name)
        _act(act, name)

    def run() -> None:
        with module.suppress(KeyError, RuntimeError), module.ExitStack() as moved:
            with module.ExitStack() as stack:
                for name, (kind, act) in enumerate(entries):
                    if kind == "context":
                        assert stack.enter_context(context(act, name)) == name
                    elif kind == "move":
                        moved.push(stack.pop_all())
                    else:
                        stack.callback(callback, act, name)
                _act(block, "block")
            happened.append("after")

    try:
        try:
            _act(before, "before")
        finally:
            run()
    except BaseException as error:
        chain: BaseException | None = error
        while chain is not None:
            happened.append((repr(chain), repr(chain.__cause__), chain.__suppress_context__))
            chain = chain.__context__
    return happened


@settings(max_examples=400, deadline=None)
@given(_ACTS, _ACTS, _ENTRIES)
def test_contexts(block: str, before: str, entries: list[tuple[str, str]]) -> None:
    assert _story(lightcontexts, block, before, entries) == _story(contextlib, block, before, entries)


@pytest.mark.parametrize("yields", [0, 2])
def test_a_context_yields_once(yields: int) -> None:
    def generator() -> Any:
        yield from range(yields)

    def said(make: Callable[[Any], Any]) -> str:
        with pytest.raises(RuntimeError) as caught, make(generator)():
            pass
        return str(caught.value)

    assert said(lightcontexts.contextmanager) == said(contextlib.contextmanager)


def test_what_is_used_of_a_stand_in_is_there() -> None:
    """A type checker cannot tell: it sees the standard library."""
    used = {
        node.attr
        for path in Path("runtime").rglob("*.py")
        if re.search(r"^from runtime\.light import .*\bcontextlib\b", text := path.read_text(), re.MULTILINE)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "contextlib"
    }
    assert {"ExitStack", "contextmanager", "suppress"} <= used
    assert not [name for name in used if not hasattr(lightcontexts, name)]
