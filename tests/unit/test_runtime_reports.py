"""What a child tells whoever cloned it: each report comes as it was said, and nothing else counts for anything."""

from __future__ import annotations

import json
import os
import socket
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime.errors import ExecFailed, OperationFailed, RuntimeCoreError, SpecError
from runtime.wire import reports
from runtime.wire.reports import (
    EXEC,
    INIT,
    MAX_PACKET,
    Born,
    Console,
    Conversation,
    Ended,
    Executing,
    Failed,
    HooksDue,
    NotExecuted,
    Ready,
    Report,
    Reporter,
    Restored,
    SeccompListener,
    Undone,
    Warned,
    decode,
    encode,
    receive,
)

_SAID: tuple[tuple[Report, bytes], ...] = (
    (Warned("low"), b'{"warning": "low"}'),
    (Console(7), b'{"console": true}'),
    (SeccompListener(7), b'{"seccomp": true}'),
    (HooksDue(), b'{"hooks": true}'),
    (Born(12, 7), b'{"pid":12}'),
    (Executing((("cloned", 5),)), b'{"executing": [["cloned", 5]]}'),
    (Restored(12), b'{"restored": 12}'),
    (Ready(), b'{"ready": true}'),
    (NotExecuted(2), b"\x02\0\0\0"),
    (Undone(2, 0x10000028), b"\0undone\0\x02\0\0\0\0\0\0\0\x28\0\0\x10\0\0\0\0"),
)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _some_file() -> int:
    return os.open("/dev/null", os.O_RDONLY)


@pytest.mark.parametrize(("report", "packet"), _SAID)
def test_each_report_has_one_packet(report: Report, packet: bytes) -> None:
    assert encode(report) == packet
    assert decode(packet, [7]) == report


def test_the_picture_shows_every_report() -> None:
    assert {type(report) for report, _packet in _SAID} | {Failed} == set(get_args(Report))
    assert all(kind.__name__ in str(reports.__doc__) for kind in get_args(Report))


@pytest.mark.parametrize("error", [SpecError("process.cwd", "is no path"), OperationFailed("mount", "/", 1)])
def test_a_failure_comes_as_the_error_that_it_was(error: RuntimeCoreError) -> None:
    told = decode(encode(Failed(error)))
    assert isinstance(told, Failed)
    assert (type(told.error), str(told.error)) == (type(error), str(error))


def test_a_long_failure_is_cut_to_a_packet() -> None:
    packet = encode(Failed(RuntimeCoreError("é" * MAX_PACKET)))
    told = decode(packet)
    assert len(packet) <= MAX_PACKET
    assert isinstance(told, Failed)
    assert str(told.error).endswith("é...")


@given(st.binary(max_size=64) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["failed", "executing", "warning", "pid", "console", "error", "message", "errno"]), inner
    ),
    max_leaves=6,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
@example(b'{"failed": {"message": ""}}')
def test_what_is_no_report_is_none_and_raises_nothing(packet: bytes) -> None:
    report = decode(packet)
    assert report is None or isinstance(report, Report)
    if isinstance(report, Failed):
        assert str(report.error)


@pytest.mark.parametrize(
    "packet",
    [
        b"[" * 60000,
        b'{"failed": {"error": "OperationFailed", "operation": 1, "object": [], "errno": "x"}}',
        b'{"failed": {"error": ["OperationFailed"]}}',
        b'{"failed": {"error": "OperationFailed", "operation": "a", "object": "b", "errno": 99999999999999999999}}',
        b'{"executing": [1, [2, "x"], ["a", 1, 2], "ab"]}',
        b'{"console": true}',
        b'{"pid": 4}',
    ],
)
def test_who_speaks_in_the_place_of_the_program_breaks_nothing(packet: bytes) -> None:
    match decode(packet):
        case Failed(error):
            assert str(error)
        case Executing(steps):
            assert steps == ()
        case other:
            assert other is None


def test_what_may_not_be_said_is_dropped_with_its_descriptor() -> None:
    before = _descriptors()
    conversation = Conversation(EXEC, bears=True)
    for unsaid in (HooksDue(), Executing(), Warned("x"), Restored(3), SeccompListener(0)):
        assert conversation.take(encode(unsaid), [_some_file()]) is None
    born = conversation.take(encode(Born(12, 0)), [_some_file()])
    assert isinstance(born, Born)
    for unsaid in (Born(13, 0), Console(0)):
        assert conversation.take(encode(unsaid), [_some_file()]) is None
    os.close(born.fd)
    assert conversation.take(b"", []) == Ended()
    assert conversation.outcome is None
    assert _descriptors() == before


def test_a_filter_has_one_listener() -> None:
    conversation = Conversation(INIT, bears=True, listens=True)
    first = conversation.take(encode(SeccompListener(0)), [_some_file()])
    assert isinstance(first, SeccompListener)
    assert conversation.take(encode(SeccompListener(0)), [_some_file()]) is None
    os.close(first.fd)


def test_a_program_is_executed_once() -> None:
    conversation = Conversation(INIT)
    assert conversation.take(encode(Executing((("ready", 1),))), []) == Executing((("ready", 1),))
    assert conversation.take(encode(Executing((("more", 2),))), []) is None
    assert conversation.outcome is None


def test_how_a_conversation_ends() -> None:
    def outcome(conversation: Conversation, *said: Report) -> str:
        for report in said:
            conversation.take(encode(report), [_some_file()] if isinstance(report, Born) else [])
        return str(conversation.outcome)

    assert outcome(Conversation(INIT)) == "the container's init died before its program ran"
    assert outcome(Conversation(INIT), Executing()) == "None"
    assert outcome(Conversation(INIT, bears=True), Executing()) == "the container's init died before its program ran"
    assert outcome(Conversation(INIT), Executing(), Failed(RuntimeCoreError("no"))) == "no"
    assert outcome(Conversation(EXEC)) == "None"
    assert outcome(Conversation(EXEC, bears=True)) == "the exec died before its program ran"
    assert outcome(Conversation(EXEC, program="x"), NotExecuted(2)) == 'exec: "x": no such file or directory'


def test_the_gate_says_why_nothing_was_executed() -> None:
    assert reports.failure(b"", "x") is None
    assert isinstance(reports.failure(encode(NotExecuted(13)), "x"), ExecFailed)
    assert str(reports.failure(encode(Failed(RuntimeCoreError("a hook"))), "x")) == "a hook"
    assert str(reports.failure(b"?", "x")) == "the process failed"


def test_questions_are_answered() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            reporter, conversation = Reporter(theirs), Conversation(INIT)
            with pytest.raises(BlockingIOError):
                receive(ours, conversation, wait=False)
            reporter.say(HooksDue())
            assert receive(ours, conversation) == HooksDue()
            reports.answer(ours, {"id": "c"})
            assert reporter.await_answer() == {"id": "c"}
            fd = _some_file()
            reporter.say(Console(fd))
            console = receive(ours, conversation)
            assert isinstance(console, Console)
            assert os.path.sameopenfile(fd, console.fd)
            os.close(fd)
            os.close(console.fd)
            reporter.fail(ZeroDivisionError("oops"))
            receive(ours, conversation)
            assert str(conversation.failure) == "ZeroDivisionError: oops"
        assert receive(ours, conversation) == Ended()


def test_a_child_that_dies_with_its_answer_unread_has_ended() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        conversation = Conversation(INIT)
        reports.answer(ours, {"id": "c"})
        theirs.close()
        assert receive(ours, conversation, wait=False) == Ended()
        assert conversation.outcome is not None


def test_an_answer_may_be_larger_than_a_packet() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = _descriptors()
    with ours, theirs:
        reports.answer(ours, {"annotations": "a" * 1_000_000})
        assert Reporter(theirs).await_answer() == {"annotations": "a" * 1_000_000}
        assert _descriptors() == before
