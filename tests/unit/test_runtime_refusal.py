"""What an exec by a list of system calls says of a program that the kernel refuses to execute."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

import pytest

from runtime.process.joining import Program
from runtime.process.refusal import Refusal
from runtime.wire.reports import Undone
from tests.refused import refused

_FOREIGN = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 2, 22 if os.uname().machine != "s390x" else 62)
_FILES = {
    "text": (b"echo hello\n", 0o755, "exec format error: it is no ELF file, and has no #! line"),
    "empty": (b"", 0o755, "exec format error: it is empty"),
    "dos": (b"#!/bin/sh\r\necho\r\n", 0o755, 'no such file or directory: its interpreter "/bin/sh" ends in a carriage'),
    "lonely": (b"#!/not/there -x\n", 0o755, 'no such file or directory: its interpreter "/not/there" (#!) is not in'),
    "foreign": (_FOREIGN.ljust(200, b"\0"), 0o755, "exec format error: it is a program for s390x, and this is "),
    "mark": (b"\xef\xbb\xbf#!/bin/sh\n", 0o755, "exec format error: its #! comes after a byte order mark"),
    "closed": (b"#!/bin/sh\n", 0o644, "permission denied: its mode 0644 lets nobody execute it"),
}


@pytest.mark.parametrize("name", _FILES)
def test_the_error_first_and_then_what_the_file_adds(tmp_path: Path, name: str) -> None:
    content, mode, told = _FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    path.chmod(mode)
    first, second = refused(path)
    assert second.startswith(f'exec: "it": {told}')
    assert second.startswith(first)
    assert first == f'exec: "it": {told.partition(":")[0]}'


def test_a_pipe_is_not_opened_for_it(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    path.chmod(0o755)
    writer = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    os.write(writer, b"for somebody else")
    assert refused(path)[-1] == 'exec: "it": permission denied: it is not a regular file'
    assert os.read(writer, 100) == b"for somebody else"
    os.close(writer)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_container_may_send_anything_in_the_place_of_facts() -> None:
    program = Program(b"", {16: Refusal("it", 0, 0)})
    wrong = b"\x7fELF\2\1".ljust(64, b"\xff")
    for facts in (b"", b"x", bytes(256 + 256) + wrong.ljust(4096, b"\xff"), b"\xff" * (256 + 256 + 4096)):
        for number in (2, 8, 13, 2**63):
            assert 'exec: "it": ' in str(program.failure(Undone(number, 16, facts)))
