"""criu's messages."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.criu import worker as criu
from runtime.criu.pids import highest
from runtime.errors import NotSupported, RuntimeCoreError
from tests.waiting import until

VALUES = st.booleans() | st.integers(0, 2**63 - 1) | st.text(max_size=20) | st.binary(max_size=200)


@given(options=st.dictionaries(st.sampled_from(sorted(criu.OPTIONS)), VALUES, max_size=5))
def test_what_is_asked_can_be_read(options: dict[str, bool | int | str | bytes]) -> None:
    message = criu.decode(criu.request(criu.DUMP, options))
    inner = message[2]
    assert message[1] == criu.DUMP
    assert isinstance(inner, bytes)
    texts = {name: value.encode() if isinstance(value, str) else value for name, value in options.items()}
    assert criu.decode(inner) == {criu.OPTIONS[name]: value for name, value in texts.items()}


def test_a_message_as_it_is_on_the_wire() -> None:
    options: dict[str, criu.Value] = {
        "pid": 300,
        "external": ["a", "bc"],
        "inherit_fd": [criu.inherited("pipe:[1]", 5)],
    }
    assert criu.request(criu.RESTORE, options) == bytes.fromhex(
        "08 02 12 1b"  # type RESTORE; opts of 27 bytes
        "10 ac 02"  # pid
        "aa 02 01 61 aa 02 02 62 63"  # external, twice
        "da 01 0c 0a 08 70 69 70 65 3a 5b 31 5d 10 05"  # inherit_fd: key, fd
    )


@given(message=st.binary(max_size=60))
def test_an_answer_that_is_none_is_told(message: bytes) -> None:
    with contextlib.suppress(RuntimeCoreError):
        criu.decode(message)
    with pytest.raises(RuntimeCoreError, match="could not decode criu's answer: the message is truncated"):
        criu.decode(criu.request(criu.DUMP, {"log_file": "x" * 50})[:-1])


def test_without_criu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotSupported, match="apt-get install"):
        criu.find("criu-that-nobody-has")


def test_the_largest_id_of_the_image_of_processes() -> None:
    def entry(*fields: tuple[int, int]) -> bytes:
        message = b"".join(bytes((number << 3, value)) for number, value in fields)
        return struct.pack("<I", len(message)) + message

    image = bytes(8) + entry((1, 5), (2, 90), (3, 5), (4, 5), (5, 5), (5, 7), (5, 6)) + entry((1, 6), (3, 9), (4, 11))
    assert highest(image) == 11
    assert highest(image[: -len(entry((1, 6), (3, 9), (4, 11)))]) == 7  # a thread's; that of a parent does not count
    assert highest(bytes(8)) == 0
    with pytest.raises(RuntimeCoreError, match="truncated"):
        highest(image + b"\1")


# Writes files for ever, as criu does with memory; it tells whether it could tidy up before it ended.
WRITES = """#!{python} -IS
import os, sys
with open({told!r}, "w") as told:
    pass
try:
    while True:
        with open({written!r}, "wb") as file:
            file.write(b"x")
except OSError as error:
    os.rename({told!r}, {told!r} + "." + os.strerror(error.errno).replace(" ", "-"))
"""


def test_criu_may_tidy_up_at_the_deadline(tmp_path: Path) -> None:
    program, told = tmp_path / "criu", tmp_path / "told"
    program.write_text(WRITES.format(python=sys.executable, told=str(told), written=str(tmp_path / "written")))
    program.chmod(0o755)
    # A deadline that leaves the program time to begin: with one that does not, it is killed before it has begun.
    worker = criu.Worker(program=str(program), deadline=time.monotonic() + 3600)
    until(lambda: (tmp_path / "written").exists())
    worker._deadline = time.monotonic()
    with pytest.raises(TimeoutError):
        worker.call(criu.DUMP, {}, str(tmp_path / "log"))
    assert (tmp_path / "told.File-too-large").exists()


def test_a_criu_that_does_not_end_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "criu"
    program.write_text("#!/bin/sh\nsleep 1000000 & wait\n")
    program.chmod(0o755)
    worker = criu.Worker(program=str(program), deadline=time.monotonic())
    with pytest.raises(TimeoutError):
        worker.call(criu.DUMP, {}, str(tmp_path / "log"))
    until(lambda: not _has_group(worker._process.pid))  # with all that it has started


def _has_group(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_known_lack_of_criu_is_told_with_what_to_do(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text(
        "(00.06) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
        "(00.07) Error (criu/sockets.c:628): sockets: Can't get 1:16 opt: Operation not supported\n"
        "(00.08) Error (criu/cr-dump.c:2111): Dumping FAILED.\n"
    )
    said = criu.last_error(str(log))
    assert said.startswith(": (criu/sockets.c:628): sockets: Can't get 1:16 opt: Operation not supported: this criu")
    assert "take a later criu or an older kernel" in said
    assert said.endswith(f"(see {log})")
