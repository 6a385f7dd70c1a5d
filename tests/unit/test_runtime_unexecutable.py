"""What is said of a program that the kernel refuses to execute, and of the interpreter that it names."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from linux.elf import MACHINES
from runtime.process.unexecutable import one_word, reason
from tests.refused import refused

_FOREIGN = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 2, 22 if os.uname().machine != "s390x" else 62)
_FILES: dict[str, tuple[bytes, int]] = {
    "foreign": (_FOREIGN.ljust(200, b"\0"), 0o755),
    "closed": (b"#!/bin/sh\n", 0o644),
    "text": (b"echo\n", 0o755),
    "lonely": (b"#!/not/there\n", 0o755),
    "by-foreign": (b"#!%s/foreign -x\n", 0o755),
    "by-closed": (b"#! %s/closed\n", 0o755),
    "by-text": (b"#!%s/text\n", 0o755),
    "by-lonely": (b"#!%s/lonely\n", 0o755),
    "mark": (b"\xef\xbb\xbf#!/bin/sh\n", 0o755),
    "wide": ("#!/bin/sh\n".encode("utf-16"), 0o755),
    "late": (b"\n#!/bin/sh\n", 0o755),
    "nothing": (b"#!\necho\n", 0o755),
    "dos": (b"#!/bin/sh\r\necho\r\n", 0o755),
}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("by-foreign", 'its interpreter "{}/foreign" (#!): it is a program for s390x, and this is '),
        ("by-closed", 'its interpreter "{}/closed" (#!): its mode 0644 lets nobody execute it'),
        ("by-text", 'its interpreter "{}/text" (#!): it is no ELF file, and has no #! line'),
        ("by-lonely", 'its interpreter "{}/lonely" (#!): its interpreter "/not/there" (#!) is not in the container'),
        ("mark", "its #! comes after a byte order mark"),
        ("wide", "it is text in UTF-16"),
        ("late", "its #! comes after white space"),
        ("dos", 'its interpreter "/bin/sh" ends in a carriage return'),
        ("nothing", "its #! line names no interpreter"),
    ],
)
def test_the_reason_is_the_kernel_s(tmp_path: Path, name: str, told: str) -> None:
    for file, (content, mode) in _FILES.items():
        path = tmp_path / file
        path.write_bytes(content.replace(b"%s", os.fsencode(tmp_path)))
        path.chmod(mode)
    with pytest.raises(OSError, match=r"Exec format error|Permission denied|No such file") as caught:
        subprocess.run([tmp_path / name], check=False)
    number = caught.value.errno or 0
    why = reason(str(tmp_path / name), number)
    assert why.startswith(told.format(tmp_path))
    if os.uname().machine in MACHINES:
        assert refused(tmp_path / name)[-1] == f'exec: "it": {os.strerror(number).lower()}: {why}'


def test_a_circle_of_interpreters_ends(tmp_path: Path) -> None:
    path = tmp_path / "circle"
    path.write_text(f"#!{path}\n")
    path.chmod(0o755)
    for number in (2, 8, 13):
        assert reason(str(path), number)


def test_a_command_line_in_one_word() -> None:
    assert one_word("httpd -f").startswith(": it is one word, with spaces in it")
    assert one_word("httpd") == one_word("") == ""
