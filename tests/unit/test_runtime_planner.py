"""The planner's list is the one that the shim would make."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.light import replace
from runtime.process.starting import NO_STREAMS, InitList
from runtime.shim import planner
from runtime.shim.planner import Asked, Planner
from runtime.wire.reports import Undone
from tests.unit.test_runtime_starting import _V1, _document, _start, null, rootfs

__all__ = ["null", "rootfs"]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The shims' and the planner's."""
    asking, plans = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with asking, plans:
        yield asking, plans


def _asked(shims: Planner, null: int, rootfs: int, **members: Any) -> Asked | None:
    start = replace(_start(null, rootfs, stdio=NO_STREAMS, **members), mounts=())
    return shims.ask(start, [0], json.dumps(_document(**members)).encode())


def _answer(plans: socket.socket, null: int) -> None:
    data, fds, _flags, _address = socket.recv_fds(plans, 1 << 18, 2)
    planner._serve(data, fds, _V1, null)


def test_it_is_the_same_list_and_explains_the_same(
    ends: tuple[socket.socket, socket.socket], null: int, rootfs: int
) -> None:
    volume = {"destination": "/etc/deep", "type": "bind", "source": "/etc", "options": ["rbind", "ro"]}
    members = {"mounts": (volume,), "process": {"args": ["x"]}, "linux": {"maskedPaths": ["/proc/kcore"]}}
    own = InitList.of(_start(null, rootfs, stdio=NO_STREAMS, **members), [0])
    asked = _asked(Planner(ends[0]), null, rootfs, **members)
    assert asked is not None
    _answer(ends[1], null)
    made = asked.list()
    assert made is not None
    assert made.is_of(_start(null, rootfs, stdio=(null, 1, 2), **members))
    assert made.program is not None
    assert own.program is not None
    assert (made.program.image, made.births) == (own.program.image, own.births)
    names = own.program._names
    assert isinstance(names, dict)
    assert {type(about).__name__ for about in names.values()} == {"tuple", "Always", "Mounting", "NoProgram", "Refusal"}
    for at in names:
        for number in (errno.ENOTDIR, errno.EACCES):
            told = Undone(number, at)
            assert made.program.failure(told).to_json() == own.program.failure(told).to_json()


def test_what_a_list_cannot_do_is_told(ends: tuple[socket.socket, socket.socket], null: int, rootfs: int) -> None:
    asked = _asked(Planner(ends[0]), null, rootfs, process={"terminal": True})
    assert asked is not None
    _answer(ends[1], null)
    made = asked.list()
    assert made is not None
    assert made.program is None


def test_without_an_answer_there_is_no_list(
    ends: tuple[socket.socket, socket.socket], null: int, rootfs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking, plans = ends
    wrong = Planner(asking).ask(_start(null, rootfs), [0], b"{}")
    assert wrong is not None
    _answer(plans, null)
    assert wrong.list() is None  # the shim finds the mistake itself, and can tell of it
    monkeypatch.setattr(planner, "_PATIENCE", 0.01)
    shims = Planner(asking)
    stopped = _asked(shims, null, rootfs)
    assert stopped is not None
    assert stopped.list() is None
    assert _asked(shims, null, rootfs) is None  # it waits once
    dying = _asked(Planner(asking), null, rootfs)
    plans.close()
    assert dying is not None
    assert dying.list() is None
    assert _asked(Planner(asking), null, rootfs) is None
