"""Capability sets, in real child processes where root is needed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from linux.tables import CAPABILITIES
from runtime.errors import OperationFailed, RuntimeCoreError, from_json
from runtime.process import capabilities
from runtime.spec.values import Capabilities

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def _status() -> dict[str, int]:
    lines = (line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(value, 16) for name, value in lines if name.startswith("Cap")}


def _mask(*names: str) -> int:
    return sum(1 << CAPABILITIES.index(name) for name in names)


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked child; a RuntimeCoreError of the child is raised here."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            answer = {"value": work()}
        except RuntimeCoreError as error:
            answer = {"error": error.to_json()}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        answer = json.load(file)
    os.waitpid(pid, 0)
    if "error" in answer:
        raise from_json(answer["error"])
    return answer["value"]


def _become(sets: Capabilities, uid: int) -> dict[str, int]:
    capabilities.drop_bounding(sets.bounding)
    capabilities.set_keepcaps()
    os.setresuid(uid, uid, uid)
    capabilities.apply(sets)
    return _status()


def test_numbers_are_the_kernels() -> None:
    header = Path("/usr/include/linux/capability.h")
    if not header.exists():
        pytest.skip("no kernel headers")
    words = [line.split() for line in header.read_text().splitlines()]
    numbers = {word[1]: int(word[2]) for word in words if word[:1] == ["#define"] and word[-1].isdigit()}
    for number, name in enumerate(CAPABILITIES):
        assert numbers.get(name, number) == number


def test_unknown_names_are_told() -> None:
    assert capabilities.unknown(["CAP_KILL", "CAP_FLY", "kill"]) == ["CAP_FLY", "kill"]


@needs_root
@pytest.mark.oci("process.capabilities.bounding", "process.capabilities.effective")
@pytest.mark.oci("process.capabilities.inheritable", "process.capabilities.permitted", "process.capabilities.ambient")
def test_a_user_gets_exactly_the_sets() -> None:
    two = frozenset({"CAP_KILL", "CAP_NET_BIND_SERVICE"})
    one = frozenset({"CAP_KILL"})
    sets = Capabilities(bounding=two | {"CAP_CHOWN"}, effective=one, inheritable=one, permitted=two, ambient=one)
    assert in_child(lambda: _become(sets, 1000)) == {
        "CapInh": _mask("CAP_KILL"),
        "CapPrm": _mask("CAP_KILL", "CAP_NET_BIND_SERVICE"),
        "CapEff": _mask("CAP_KILL"),
        "CapBnd": _mask("CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_CHOWN"),
        "CapAmb": _mask("CAP_KILL"),
    }


@needs_root
@pytest.mark.trial("capabilities-ambient", "What cannot be ambient is left out with a warning, and the others are.")
def test_what_cannot_be_ambient_is_left_out_and_told() -> None:
    held = frozenset({"CAP_KILL", "CAP_CHOWN", "CAP_NET_RAW"})
    inheritable = frozenset({"CAP_KILL", "CAP_NET_RAW"})
    sets = Capabilities(bounding=held, effective=held, permitted=held - {"CAP_NET_RAW"},
                        inheritable=inheritable, ambient=held | {"CAP_FLY"})  # fmt: skip
    assert capabilities.left_out(sets) == [
        "process.capabilities.ambient: CAP_CHOWN is not in process.capabilities.inheritable: left out",
        "process.capabilities.ambient: CAP_FLY is not in process.capabilities.permitted: left out",
        "process.capabilities.ambient: CAP_NET_RAW is not in process.capabilities.permitted: left out",
    ]
    held -= {"CAP_NET_RAW"}
    sets = Capabilities(bounding=held, effective=held, permitted=held, inheritable=inheritable & held,
                        ambient=held | {"CAP_FLY"})  # fmt: skip
    assert in_child(lambda: _become(sets, 1000)) == {
        "CapInh": _mask("CAP_KILL"), "CapPrm": _mask(*held), "CapEff": _mask(*held), "CapBnd": _mask(*held),
        "CapAmb": _mask("CAP_KILL"),
    }  # fmt: skip


@needs_root
def test_root_without_capabilities_has_none() -> None:
    assert set(in_child(lambda: _become(Capabilities(), 0)).values()) == {0}


@needs_root
def test_names_of_another_kernel_are_passed_over() -> None:
    assert in_child(lambda: _become(Capabilities(permitted=frozenset({"CAP_OF_TOMORROW"})), 0))["CapPrm"] == 0


@needs_root
@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (Capabilities(permitted=frozenset({"CAP_SYSLOG"})), "add `CAP_SYSLOG` to the permitted set"),
        (Capabilities(effective=frozenset({"CAP_KILL"})), "add `CAP_KILL` to the effective set"),
    ],
)
def test_what_the_caller_has_not_got_is_named(sets: Capabilities, message: str) -> None:
    def work() -> None:
        capabilities.apply(Capabilities(permitted=frozenset({"CAP_KILL"}), effective=frozenset({"CAP_KILL"})))
        capabilities.apply(sets)

    with pytest.raises(OperationFailed) as caught:
        in_child(work)
    assert str(caught.value) == f"{message}: Operation not permitted"


@needs_root
def test_dropping_needs_setpcap() -> None:
    def work() -> None:
        capabilities.apply(Capabilities())
        capabilities.drop_bounding(frozenset())

    with pytest.raises(OperationFailed, match="drop `CAP_CHOWN` from the bounding set: Operation not permitted"):
        in_child(work)
