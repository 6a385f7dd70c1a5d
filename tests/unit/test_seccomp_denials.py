"""Denied system calls are counted from the kernel's audit records, and a profile is learnt from them."""

from __future__ import annotations

import contextlib
import os
import platform

import pytest

from cri.admin.v1 import admin_pb2
from cri.client import seccomp
from linux import audit
from pods.diagnosis import causes, troubles
from pods.recorder.entry import Life, Said
from pods.security.denials import Call, Denials
from runtime.seccomp.compile import FLAGS, compile_filter
from runtime.seccomp.load import load_filter
from runtime.spec.values import Seccomp, SeccompRule
from tests.waiting import until

_ERRNO = 0x50000
_X86_64 = 0xC000003E
_RECORD = (
    b'audit(1796000088.833:269): auid=4294967295 uid=0 gid=0 ses=4294967295 pid=31365 comm=%s exe="/bin/x" '
    b"sig=31 arch=c000003e syscall=83 compat=0 ip=0x7f9d51863f37 code=0x50001"
)


def _message(text: bytes, kind: int = 1326) -> bytes:
    return audit._HEADER.pack(16 + len(text), kind, 0, 0, 0) + text


def test_a_record_is_read_with_any_program_s_name() -> None:
    found = audit.parse(_message(_RECORD % b'"sh pid=1"'))
    assert found == audit.SeccompRecord(31365, "sh pid=1", _X86_64, 83, _ERRNO, 31)
    hexadecimal = audit.parse(_message(_RECORD % b"22C3BC"))  # what a name with a quotation mark comes as
    assert hexadecimal is not None
    assert hexadecimal.program == '"ü'
    assert audit.parse(_message(_RECORD % b'"sh"', kind=1300)) is None
    assert audit.parse(_message(b"audit(1:2): pid=x")) is None
    assert audit.parse(b"") is None


def test_calls_are_counted_by_container_also_of_processes_that_are_gone() -> None:
    told: list[tuple[str, Call, str]] = []
    where = {10: f"0::/kubepods/pod1/{'c' * 64}\n", 11: "0::/system.slice/ssh.service\n"}
    denials = Denials(lambda found: found == "c" * 64, lambda *one: told.append(one))
    for pid in (10, 10, 11, 12):
        denials._take(audit.SeccompRecord(pid, "sh", _X86_64, 83, _ERRNO, 0), where.get(pid))
    denials._take(audit.SeccompRecord(10, "sh", _X86_64, 83, _ERRNO, 0), None)  # it has ended, but was seen
    assert denials.of("c" * 64).counts == {Call("mkdir", "errno"): 3}
    assert denials.of("").counts == {Call("mkdir", "errno"): 1}
    assert told == [("c" * 64, Call("mkdir", "errno"), "sh")]


@pytest.mark.skipif(os.geteuid() != 0 or bool(audit.why_unreadable()), reason="needs root and the host's audit")
def test_the_kernel_reports_a_call_that_a_filter_denies() -> None:
    profile = Seccomp("SCMP_ACT_ALLOW", syscalls=(SeccompRule(("mkdir", "mkdirat"), "SCMP_ACT_ERRNO"),))
    program = compile_filter(profile)
    try:
        listening = audit.listen()
        before = audit.lost()
    except OSError as error:
        pytest.skip(f"audit: {error}")
    child = os.fork()
    if child == 0:
        load_filter(program, FLAGS["SECCOMP_FILTER_FLAG_LOG"])
        with contextlib.suppress(PermissionError):
            os.mkdir("/tmp/never")
        os._exit(0)
    os.waitpid(child, 0)
    found: list[audit.SeccompRecord] = []

    def came() -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                record = audit.receive(listening)
                assert record is not None  # others do not pass the socket's filter
                found.append(record)
        return any(one.pid == child for one in found)

    try:
        until(came)
    finally:
        listening.close()
    (mine,) = (one for one in found if one.pid == child)
    assert mine.action == _ERRNO
    assert audit.lost() >= before


def test_a_learnt_profile_has_what_the_container_called_and_no_more() -> None:
    def answer(**containers: dict[tuple[str, str], int]) -> admin_pb2.GetDenialsResponse:
        return admin_pb2.GetDenialsResponse(
            denials=[
                admin_pb2.Denials(
                    container_id=name.strip("_"),
                    calls=[
                        admin_pb2.DeniedCall(name=call, action=action, count=count)
                        for (call, action), count in calls.items()
                    ],
                )
                for name, calls in containers.items()
            ]
        )

    before = answer(_={("read", "log"): 5, ("write", "log"): 1})
    mine = {("execve", "log"): 1, ("mkdir", "errno"): 2}
    after = answer(c=mine, _={("read", "log"): 5, ("write", "log"): 2, ("getpid", "log"): 1})
    assert seccomp.learnt(before, after, "c") == ["execve", "getpid", "write"]
    profile = seccomp.profile_of(["execve"])
    assert profile["syscalls"] == [{"names": ["execve"], "action": "SCMP_ACT_ALLOW"}]
    assert any(platform.machine().upper() in name for name in profile["architectures"])
    assert seccomp.rows(after.denials) == [("c", "", "mkdir", "errno", "2")]


def test_the_call_that_killed_a_program_is_named_also_if_its_report_comes_late() -> None:
    said = Said(3, "main", "info", f"{troubles.SECCOMP}mkdir (kill_process), first called by 'sh'")
    trouble = troubles.worst([Life(2, "main", "c", "stopped", 159, "Error"), said])
    assert trouble is not None
    cause = causes.of(trouble)
    assert cause.name == "seccomp-killed"
    assert "forbids mkdir (kill_process)" in cause.text
    ended = troubles.worst([said, Life(4, "main", "c", "stopped", 9, "Error")])
    assert ended is not None
    assert "exit code 9 (before, its seccomp profile denied mkdir" in causes.of(ended).text
