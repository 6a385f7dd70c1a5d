"""CRI log files: lines, ends, growth and rotation."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.client import logfile
from cri.client.errors import LogUnreadable
from cri.client.logfile import Decoder, Entry, LogFile, parse_entry, tail_offset
from cri.client.logs import Printer, follow

STAMP = b"2026-01-02T03:04:05.000000006Z"


def line(text: str, tag: str = "F", stream: str = "stdout") -> bytes:
    return STAMP + f" {stream} {tag} {text}\n".encode()


def contents(entries: list[Entry]) -> bytes:
    return b"".join(entry.content for entry in entries)


def test_an_entry_keeps_every_byte_of_its_content() -> None:
    assert parse_entry(STAMP + b" stderr F  a  \xff\r") == Entry(STAMP, "stderr", False, b" a  \xff\r\n")
    assert parse_entry(STAMP + b" stdout P piece") == Entry(STAMP, "stdout", True, b"piece")
    assert parse_entry(STAMP + b" stdout F ") == Entry(STAMP, "stdout", False, b"\n")
    assert parse_entry(STAMP + b" stdout P:later-tag x") == Entry(STAMP, "stdout", True, b"x")
    assert parse_entry(b"torn by a crash") is None


@given(st.lists(st.binary(max_size=20).filter(lambda data: b"\n" not in data)), st.integers(1, 7))
def test_a_stream_may_be_cut_anywhere(texts: list[bytes], step: int) -> None:
    whole = b"".join(STAMP + b" stdout F " + text + b"\n" for text in texts)
    decoder = Decoder()
    entries = [entry for at in range(0, len(whole), step) for entry in decoder.feed(whole[at : at + step])]
    assert contents(entries) == b"".join(text + b"\n" for text in texts)
    assert decoder.malformed == 0


@given(
    st.lists(st.tuples(st.text("ab", max_size=9), st.sampled_from("FFP"))),
    st.integers(0, 9),
    st.integers(1, 40),
    st.sampled_from([b"", b"torn"]),
)
def test_the_tail_is_the_last_whole_lines(
    pieces: list[tuple[str, str]], count: int, block: int, torn: bytes
) -> None:
    lines: list[list[bytes]] = [[]]
    for text, tag in pieces:
        lines[-1].append(line(text, tag))
        if tag == "F":
            lines.append([])
    lines = lines if lines[-1] else lines[:-1]
    wanted = b"".join(piece for whole in lines[max(0, len(lines) - count) :] for piece in whole)
    data = b"".join(line(*piece) for piece in pieces) + torn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logfile, "_BLOCK", block)
        assert data[tail_offset(io.BytesIO(data), count) :].removesuffix(torn) == wanted


def test_nothing_is_lost_over_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(line("one"))
    with LogFile(path) as log, path.open("ab") as old:
        assert contents(list(log.read())) == b"one\n"
        path.rename(tmp_path / "0.log.20260102")
        old.write(line("two, after the rename"))
        old.flush()
        assert contents(list(log.read())) == b"two, after the rename\n"
        old.write(line("three, before the new file"))
        old.flush()
        path.write_bytes(line("four"))
        log.wait(5)
        assert contents(list(log.read())) == b"three, before the new file\nfour\n"


def test_what_comes_while_the_new_file_is_looked_for_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(line("one"))

    class Racing(LogFile):
        def _successor(self) -> BinaryIO | None:
            if late:
                old.write(late.pop())
            return super()._successor()

    late = [line("two")]
    with Racing(path) as log, path.open("ab", buffering=0) as old:
        path.rename(tmp_path / "0.log.20260102")
        path.write_bytes(line("three"))
        assert contents(list(log.read())) == b"one\ntwo\nthree\n"


def test_following_ends_when_the_container_has_and_all_is_out(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(line("early"))
    answers = iter([True, True, False])

    def running() -> bool:
        answer = next(answers)
        with path.open("ab") as log:
            log.write(line("written while running" if answer else "last words", stream="stderr"))
        return answer

    with LogFile(path) as log:
        follow(log, running, Printer())
    out, err = capfdbinary.readouterr()
    assert out == b"early\n"
    assert err == b"written while running\n" * 2 + b"last words\n"


def test_one_timestamp_stands_before_a_line_in_pieces(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(line("a", "P") + line("x", stream="stderr") + line("b") + line("c"))
    with LogFile(path) as log:
        Printer(timestamps=True).print(log.read())
    out, err = capfdbinary.readouterr()
    assert out == STAMP + b" ab\n" + STAMP + b" c\n"
    assert err == STAMP + b" x\n"


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogUnreadable, match=r"absent/0\.log: No such file"):
        LogFile(tmp_path / "absent" / "0.log")
