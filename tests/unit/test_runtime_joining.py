"""Which execs are a list of system calls, and what two of them share."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from runtime.cgroups import Cgroup, Hierarchies
from runtime.errors import OperationFailed, RuntimeCoreError
from runtime.light import replace
from runtime.process.gate import Gate
from runtime.process.join import Join
from runtime.process.joining import Joinings, Program, obstacle
from runtime.process.script import Runner
from runtime.shim.execs import Execs
from runtime.shim.supervisor import Parent
from runtime.spec.parse import parse
from runtime.wire.calls import Answer
from runtime.wire.reports import Undone

_HIERARCHIES = Hierarchies({"cpu": "/sys/fs/cgroup/cpu"}, "/sys/fs/cgroup/unified", frozenset())
_LISTENER = 8


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open("/dev/null", os.O_RDWR)
    yield fd
    os.close(fd)


def _join(null: int, process: dict[str, Any] = {}, **members: Any) -> Join:  # noqa: B006
    default = {"args": ["true"], "cwd": "/", "env": ["PATH=/bin", "HOME=/"], "user": {"uid": 0, "gid": 0}}
    namespaces = [{"type": kind} for kind in ("mount", "pid")]
    spec = parse(
        {
            "ociVersion": "1.2.0", "process": default | process, "root": {"path": "rootfs"},
            "linux": {"namespaces": namespaces, "cgroupsPath": "/a/b"} | members.pop("linux", {}),
        }
    )  # fmt: skip
    assert spec.process is not None
    members.setdefault("cgroup", Cgroup.at(_HIERARCHIES, "/a/b"))
    return Join(
        container_id="c", spec=spec, process=spec.process, init_pidfd=null, in_unified_cgroup=True,
        stdio=(null, null, null), **members,
    )  # fmt: skip


def test_a_probe_is_a_list(null: int) -> None:
    labels = {"apparmorProfile": "a", "selinuxLabel": "b"}
    join = _join(null, {"noNewPrivileges": True, "oomScoreAdj": 100, "user": {"uid": 1, "gid": 2}, **labels})
    assert obstacle(join) == ""
    joining = Joinings().of(join)
    assert joining is not None
    assert joining.births == 2  # into the version 2 cgroup, and into the PID namespace


@pytest.mark.parametrize(
    ("process", "members"),
    [
        ({"terminal": True}, {}),
        ({"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}]}, {}),
        ({"ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 1}}, {}),
        ({"scheduler": {"policy": "SCHED_BATCH"}}, {}),
        ({"execCPUAffinity": {"initial": "0"}}, {}),
        ({"env": ["PATH=/bin"]}, {}),
        ({"env": ["PATH=/bin", "HOME="]}, {}),
        ({"env": ["PATH=/bin", "HOME=/", "HOME="]}, {}),
        ({"env": ["HOME=/", "odd"]}, {}),
        ({"capabilities": {"effective": ["CAP_KILL"]}}, {}),
        ({}, {"linux": {"personality": {"domain": "LINUX32"}}}),
        ({}, {"gate": Gate(3, 4)}),
        ({}, {"preserved": 1}),
        ({}, {"filter_flags": _LISTENER}),
    ],
)
def test_what_a_list_cannot_say_takes_an_interpreter(
    null: int, process: dict[str, Any], members: dict[str, Any]
) -> None:
    join = _join(null, process, **members)
    assert obstacle(join) != ""
    assert Joinings().of(join) is None


def test_execs_that_differ_in_their_arguments_share_all_the_rest(null: int) -> None:
    joinings, first = Joinings(), _join(null)
    joining = joinings.of(first)
    assert joining is not None
    other = replace(first, process=replace(first.process, args=("/bin/false", "x")))
    assert joinings.of(other) is joining
    lists = [joining.list_for(args) for args in (("true",), ("/bin/false", "x"), ("true",))]
    images = [program.image for program in lists if program is not None]
    assert len(images) == 3
    assert images[0] == images[2] != images[1]
    for unlike in (
        replace(first, process=replace(first.process, env=("PATH=/bin", "HOME=/", "A=1"))),
        replace(first, filter_program=b"\6\0\0\0\0\0\xff\x7f"),
        replace(first, stdio=(null, null, os.pipe()[1])),
    ):
        assert joinings.of(unlike) not in (None, joining)
    assert joinings.of(replace(first, process=replace(first.process, terminal=True))) is None


def test_a_number_that_passes_a_filter_is_good_for_one_exec(null: int) -> None:
    joining = Joinings().of(_join(null, filter_program=b"\6\0\0\0\0\0\xff\x7f"))
    assert joining is not None
    first, second = (joining.list_for(("true",)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.image != second.image


def test_arguments_that_no_list_can_have(null: int) -> None:
    joining = Joinings().of(_join(null))
    assert joining is not None
    for args in (("true", "x" * (1 << 18)), ("true", "a\0b"), ()):
        assert joining.list_for(args) is None
    assert joining.list_for(("true",)) is not None


def test_whatever_is_reported_becomes_an_error() -> None:
    program = Program(b"", {16: ("enter", "/x")})
    assert str(program.failure(Undone(errno.EACCES, 16))) == "enter `/x`: Permission denied"
    assert isinstance(program.failure(Undone(2**64 - 1, 2**64 - 1)), OperationFailed)


def test_what_an_interpreter_reports_arrives_where_the_lists_program_cannot_be_executed(null: int) -> None:
    """A packet that it left unread would have the shim read ECONNRESET in the place of the report."""

    def follow(pid: int, done: Callable[[int], None]) -> None:
        done(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    parent = SimpleNamespace(
        command_started=follow, on_exit=follow, is_child=lambda _pid: False, unwatch=lambda _fd: None
    )
    runner = Runner()
    os.dup2(null, runner.program)
    cgroup = Cgroup.at(Hierarchies({"cpu": "/not/there"}, "", frozenset()), "/a")
    join = _join(null, cgroup=cgroup, linux={"namespaces": [{"type": "mount"}]})
    replies: list[Answer | RuntimeCoreError] = []
    Execs(cast("Parent", parent), runner).begin("key", join, replies.append)
    os.close(runner.program)
    assert [str(reply) for reply in replies] == ["write `0` to `/not/there/a/tasks`: No such file or directory"]
