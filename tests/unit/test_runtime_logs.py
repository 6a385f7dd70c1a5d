"""CRI log records: nothing lost, nothing torn, whatever the chunks."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.logs.writer import MAX_LINE, Clock, LineFormatter, LogFile, Rate, complain

_STAMP = b"2026-01-02T03:04:05.000000006Z"
_RECORD = re.compile(rb"(?P<time>\S+) (?P<stream>stdout|stderr) (?P<tag>[PF]) (?P<content>[^\n]*)\n")


def _content(records: bytes) -> bytes:
    """What a reader of the log makes of it: contents, with a newline after each full record."""
    out, position = [], 0
    while position < len(records):
        match = _RECORD.match(records, position)
        assert match, records[position : position + 80]
        assert len(match["content"]) <= MAX_LINE
        out.append(match["content"] + (b"\n" if match["tag"] == b"F" else b""))
        position = match.end()
    return b"".join(out)


_SPECIAL = st.sampled_from(
    [b"\n", b"x" * MAX_LINE, b"y" * (2 * MAX_LINE + 5), b"z" * (MAX_LINE // 2 - 1) + b"\n", (b"w" * 99 + b"\n") * 655]
)


@pytest.mark.trial("last-line", "A log's reader gets every byte that the program wrote, and no newline that it did not")
@given(st.lists(st.one_of(st.binary(max_size=40), _SPECIAL)))
def test_every_byte_is_logged_once_and_in_order(chunks: list[bytes]) -> None:
    formatter = LineFormatter("stdout")
    records = b"".join(formatter.feed(chunk, _STAMP) for chunk in chunks) + formatter.finish(_STAMP)
    assert _content(records) == b"".join(chunks)


@given(st.lists(st.sampled_from([0, 1, 99, MAX_LINE // 2 - 1, MAX_LINE // 2, MAX_LINE - 1, MAX_LINE, MAX_LINE + 1])))
def test_lines_of_any_length_are_full_if_they_fit(lengths: list[int]) -> None:
    """In one chunk or in many, so that quick ways and others give the same records."""
    lines = [b"x" * length + b"\n" for length in lengths]
    one, many = LineFormatter("stdout"), LineFormatter("stdout")
    chunks = [line[at : at + 5000] for line in lines for at in range(0, len(line), 5000)]
    records = one.feed(b"".join(lines), _STAMP)
    assert records == b"".join(many.feed(chunk, _STAMP) for chunk in chunks)
    assert records.count(b" P ") == lengths.count(MAX_LINE + 1)


def test_what_is_above_the_rate_is_dropped_and_counted() -> None:
    now = [0.0]
    rate = Rate(300_000, lambda: now[0])
    part = b"t stdout F 0\n" * 10_000  # 130,000 bytes
    assert [rate.passes(part) for _ in range(4)] == [True, True, False, False]
    now[0] += 0.5
    assert rate.passes(part)
    text = b"crisp dropped 20000 lines (260000 bytes): more than 300000 bytes a second"
    assert rate.told(b"t") == b"t stderr F " + text + b"\n"
    assert rate.told(b"t") == b""
    now[0] += 3600.0
    assert [rate.passes(part) for _ in range(3)] == [True, True, False]


def test_lines_are_tagged_full_and_long_ones_partial() -> None:
    formatter = LineFormatter("stderr")
    assert formatter.feed(b"one\ntw", _STAMP) == _STAMP + b" stderr F one\n"
    assert formatter.feed(b"o\n", _STAMP) == _STAMP + b" stderr F two\n"
    long = formatter.feed(b"z" * (MAX_LINE + 1), _STAMP)
    assert long == _STAMP + b" stderr P " + b"z" * MAX_LINE + b"\n"
    assert formatter.feed(b"\nend", _STAMP) == _STAMP + b" stderr F z\n"
    assert formatter.finish(_STAMP) == _STAMP + b" stderr P end\n"
    assert formatter.finish(_STAMP) == b""


def test_the_clock_writes_rfc3339_with_nanoseconds() -> None:
    now = iter([1_767_323_045_000_000_006, 1_767_323_045_999_999_999, 1_767_323_046_000_000_000])
    clock = Clock(lambda: next(now))
    assert [clock.stamp() for _ in range(3)] == [
        b"2026-01-02T03:04:05.000000006Z",
        b"2026-01-02T03:04:05.999999999Z",
        b"2026-01-02T03:04:06.000000000Z",
    ]


def test_a_rotated_log_goes_on_in_a_new_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "0.log"
    log = LogFile(str(path))
    log.write(b"before\n")
    path.rename(tmp_path / "0.log.old")
    log.write(b"still the old one\n")
    log.reopen()
    log.write(b"after\n")
    log.close()
    assert (tmp_path / "0.log.old").read_bytes() == b"before\nstill the old one\n"
    assert path.read_bytes() == b"after\n"


def test_a_record_after_a_torn_one_has_a_line_of_its_own(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "0.log"
    log = LogFile(str(path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # as full as a disk can be
    try:
        with pytest.raises(OSError, match="File too large"):
            log.write(b"first\nsecond\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.write(b"third\n")
    log.write(b"fourth\n")
    log.close()
    assert path.read_bytes() == b"first\nseco\nthird\nfourth\n"
    assert (log.written.bytes, log.written.lines, log.lost.bytes, log.lost.lines) == (13, 2, 13, 2)


def test_complaining_to_a_full_disk_raises_nothing() -> None:
    stderr, full = os.dup(2), os.open("/dev/full", os.O_WRONLY)
    try:
        os.dup2(full, 2)
        complain("record exit: no space")
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(full)


def test_a_log_has_a_bound(tmp_path: Path) -> None:
    """However much is written, and whatever kubelet renames; no record is torn."""
    path = tmp_path / "0.log"
    log = LogFile(str(path), limit=1000)
    record = b"t stdout F " + b"x" * 88 + b"\n"
    for _ in range(25):
        log.write(record)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["0.log", "0.log.1"]
    assert (tmp_path / "0.log.1").read_bytes() == record * 10
    assert path.read_bytes() == record * 5
    path.rename(tmp_path / "0.log.20260102-030405")  # kubelet's, before it asks to reopen
    for _ in range(7):
        log.write(record)
    assert (tmp_path / "0.log.20260102-030405").read_bytes() == record * 10
    assert path.read_bytes() == record * 2
    log.reopen()
    log.write(record)
    assert path.read_bytes() == record * 3
    log.close()
    again = LogFile(str(path), limit=1000)
    again.write(record * 8)
    assert path.read_bytes() == record * 8
    again.write(b"y" * 5000)  # more than the bound at once
    assert path.read_bytes() == b"y" * 5000
    again.close()
