"""Output of a container while its shim is killed, at whatever instant: each byte is in the log, once."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.logs.writer import Clock, LogFile
from runtime.shim import journal as journal_module
from runtime.shim.journal import STREAMS, Journal
from runtime.shim.stdio import OutputStream

_OUTPUT = (b"one\ntwo\nthr", b"ee\nhundr", b"ed\n", b"x" * 40_000 + b"\nfour", b"\nfive")
_MOST_CALLS = 400


class _Loop:
    """Nothing is watched: the test reads itself."""

    def watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None: ...

    def unwatch(self, fd: int) -> None: ...


def _stream(fd: int, log: LogFile, journal: Journal, place: int | None = None) -> OutputStream:
    log.writing = journal.writing
    return OutputStream(fd, "stdout", log, Clock(lambda: 0), _Loop(), journal, place)


def _killed_at(number: int, run: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run in a child that ends, as by SIGKILL, before the call of this number of those that change something.

    Returns whether it came so far.
    """
    pid = os.fork()
    if pid == 0:
        left = number

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                if left == 0:
                    os._exit(9)
                left -= 1
                return function(*args, **kwargs)

            return call

        try:
            for name in ("splice", "write", "ftruncate"):
                monkeypatch.setattr(os, name, counted(getattr(os, name)))
            for name in ("_STATE", "_STREAM", "_NEXT", "_PHASE"):
                monkeypatch.setattr(journal_module, name, _Counted(getattr(journal_module, name), counted))
            run()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 9)
    return code == 9


class _Counted:
    """A part of the journal, of which each change is counted."""

    def __init__(self, real: struct.Struct, counted: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self.size = real.size
        self.pack_into = counted(real.pack_into)
        self.unpack_from = real.unpack_from


@pytest.mark.parametrize("split", [False, True])
def test_a_kill_at_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: bool) -> None:
    """`split`: the kernel takes only a part of each write."""
    path = tmp_path / "log"
    for number in range(_MOST_CALLS):
        path.unlink(missing_ok=True)
        log, journal, (reader, writer) = LogFile(str(path)), Journal(), os.pipe()
        stream = _stream(reader, log, journal)
        place = stream.place

        def run(stream: OutputStream = stream, writer: int = writer) -> None:
            real = os.write
            if split:
                monkeypatch.setattr(os, "write", lambda fd, data: real(fd, memoryview(data)[: len(data) // 2 + 1]))
            for piece in _OUTPUT:
                real(writer, piece)
                while stream._read_once():
                    pass

        came = _killed_at(number, run, monkeypatch)
        if came:
            _succeed(reader, writer, log, journal, place)
        else:
            stream._read_once()
        records = path.read_bytes()
        log.close()
        os.close(writer)
        _check(records, whole=not came)
        if not came:
            break
    else:
        pytest.fail("it never came to the end")
    assert number > 20


def _succeed(reader: int, writer: int, log: LogFile, journal: Journal, place: int) -> None:
    """What a successor does. The container then goes on, where it was not held up."""
    successor = Journal(os.dup(journal.fd))
    stream = _stream(reader, log, successor, place)
    while select.select([reader], [], [], 0)[0] and stream._read_once():
        pass
    os.set_blocking(writer, False)
    stream.drain()


def _check(records: bytes, *, whole: bool) -> None:
    lines = [record.split(b" ", 3) for record in records.splitlines()]
    assert all(len(words) == 4 for words in lines), records[:200]
    text = b"".join(words[3] + (b"\n" if words[2] == b"F" else b"") for words in lines)
    due = b"".join(_OUTPUT)
    if whole:
        assert text == due[: due.rfind(b"\n") + 1]
        return
    written = {b"".join(_OUTPUT[:count]) for count in range(len(_OUTPUT) + 1)}
    assert text in written, (text[:50], len(text))


def test_there_are_places_for_so_many_streams() -> None:
    journal = Journal()
    places = [journal.take_place() for _ in range(STREAMS + 1)]
    assert len(set(places)) == STREAMS + 1
    assert places[-1] == -1
    journal.give_place(places[3])
    assert journal.take_place() == places[3]
